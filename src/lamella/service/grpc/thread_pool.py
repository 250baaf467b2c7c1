# SPDX-License-Identifier: Apache-2.0
"""Threads for calls: as many as there are calls, since those that last may wait for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from lamella.errors import Exhausted

MAX_THREADS: Final = 2000
_IDLE: Final = 20.0
"""Seconds that a thread waits for further work."""


class Workers:
    """Runs each piece of work at once, in a thread that has none or in a new one."""

    def __init__(self, most: int = MAX_THREADS) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._count = 0
        self._running = 0
        self._most = most

    def run(self, work: Callable[[], None]) -> None:
        """Have ``work`` done, which raises nothing. Raises Exhausted where there are too many threads."""
        with self._lock:
            self._running += 1
        if self._idle.acquire(blocking=False):
            self._work.put(work)
            return
        with self._lock:
            if self._count >= self._most:
                self._running -= 1
                raise Exhausted(f"{self._count} calls are under way, and that is the limit")
            self._count += 1
        try:
            threading.Thread(target=self._each, args=(work,), name="call", daemon=True).start()
        except RuntimeError as problem:  # the system has no more threads
            with self._lock:
                self._count -= 1
                self._running -= 1
            raise Exhausted(f"no thread for the call: {problem}") from problem

    def wait(self, seconds: float) -> bool:
        """Whether all that runs came to its end within ``seconds``."""
        end = time.monotonic() + seconds
        while self._running:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def _each(self, work: Callable[[], None]) -> None:
        try:
            while True:
                work()
                with self._lock:
                    self._running -= 1
                del work  # what it refers to is not to live until the next one comes
                self._idle.release()
                try:
                    work = self._work.get(timeout=_IDLE)
                except Empty:
                    if self._idle.acquire(blocking=False):
                        return
                    work = self._work.get()  # somebody counts on this thread
        finally:
            with self._lock:
                self._count -= 1
