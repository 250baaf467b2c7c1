# SPDX-License-Identifier: Apache-2.0
"""Threads for calls: one for each call that runs, since calls that last may wait for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias

from lamella.errors import Exhausted
from lamella.service.grpc.quota import Quota, SharedLimit

MAX_THREADS: Final = 2000
"""Threads for calls, of all connections."""

_IDLE: Final = 20.0
"""Seconds that a thread waits for further work before it ends."""

_Job: TypeAlias = tuple[Callable[[], None], Quota]


class ThreadPool:
    """Runs each job at once, in an idle thread or a new one."""

    def __init__(self, most: int) -> None:
        self.limit = SharedLimit(most)
        """The threads at work; each connection has a `Quota` of it."""
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def run(self, work: Callable[[], None], quota: Quota, *, force: bool = False) -> None:
        """Run ``work``, which raises nothing. Raises Exhausted beyond the quota, unless by ``force``."""
        if not quota.acquire(1, force=force):
            raise Exhausted(f"{quota.used} calls of this client are under way, which is its share of threads")
        if self._idle.acquire(blocking=False):
            self._jobs.put((work, quota))
            return
        try:
            # In a list, for a thread keeps its arguments, and with them a request, until it ends.
            threading.Thread(target=self._serve, args=([(work, quota)],), name="call", daemon=True).start()
        except RuntimeError as problem:  # the system has no more threads
            quota.release(1)
            raise Exhausted(f"no thread for the call: {problem}") from problem

    def wait(self, seconds: float) -> bool:
        """Wait until no job runs, at most ``seconds``; returns whether none does."""
        end = time.monotonic() + seconds
        while self.limit.used:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def _serve(self, first: list[_Job]) -> None:
        work, quota = first.pop()
        while True:
            work()
            quota.release(1)
            del work, quota  # an idle thread keeps no request alive
            self._idle.release()
            try:
                work, quota = self._jobs.get(timeout=_IDLE)
            except Empty:
                if self._idle.acquire(blocking=False):
                    return
                work, quota = self._jobs.get()  # `run` counts on this thread
