# SPDX-License-Identifier: Apache-2.0
"""Layers that are unpacked beside each other: each lane takes one after the other.

The first lane is this process, which takes what comes next. Each other has a process (`layer_process`) and takes what
is large enough to pay one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from lamella.errors import Cancelled
from lamella.host.worker import can_fork
from lamella.store.unpack.layer import LayerDone, LayerWork, do
from lamella.store.unpack.worker import LayerProcess

if TYPE_CHECKING:
    from lamella.progress import Cancellation
    from lamella.store.unpack.layer import Advance


class Lane:
    """What unpacks one layer after the other: a thread of this process, and a process that it gives them to."""

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        """Whether all is done in this process."""
        self._process: LayerProcess | None = None

    def fork(self) -> None:
        """Have the process now, out of this one, of which `can_fork` must be true; else it is started when needed."""
        with suppress(OSError):  # what is not possible now may be then
            self._process = LayerProcess(fork=True)

    def do(self, work: LayerWork, advance: Advance, cancel: Cancellation) -> LayerDone:
        """See `layer_work.do`."""
        if self._alone:
            return do(work, advance, cancel)
        if self._process is None:
            self._process = LayerProcess()
        try:
            return self._process.do(work, advance, cancel)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process, if there is one. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.close()


def in_lanes(
    layers: Iterable[int],
    count: int,
    is_large: Callable[[int], bool],
    one: Callable[[int, Lane], object],
    stop: Cancellation,
) -> None:
    """Have ``one`` called for each of ``layers``, begun in order by each of at most ``count`` lanes.

    Raises the first failure once everybody has stopped.
    """
    waiting, lock = list(layers), threading.Lock()
    failures: list[BaseException] = []

    def take(*, large: bool) -> int | None:
        with lock:
            at = next((at for at in waiting if not large or is_large(at)), None)
            if at is not None:
                waiting.remove(at)
            return at

    def run(lane: Lane, at: int | None, *, large: bool) -> None:
        try:
            while at is not None:
                stop.check()
                one(at, lane)
                at = take(large=large)
        except BaseException as problem:  # noqa: BLE001 - raised in the caller's thread
            with lock:
                # What stopped because another failed says nothing new.
                if not failures or not isinstance(problem, Cancelled):
                    failures.append(problem)
            stop.cancel()
        finally:
            lane.close()

    with ExitStack() as held:
        ours, first = Lane(alone=True), take(large=False)
        others: list[tuple[Lane, int]] = []
        forks = can_fork()
        # Before there are threads, and before a lock is held; and none that would find nothing to do.
        while len(others) < count - 1 and (at := take(large=True)) is not None:
            lane = Lane(alone=False)
            held.callback(lane.close)
            if forks:
                lane.fork()
            others.append((lane, at))
        threads: list[threading.Thread] = []
        try:
            for lane, at in others:
                thread = threading.Thread(target=run, args=(lane, at), kwargs={"large": True}, daemon=True)
                thread.start()
                threads.append(thread)
            run(ours, first, large=False)
            for thread in threads:
                thread.join()
        except BaseException:
            stop.cancel()
            for thread in threads:
                thread.join()
            raise
    if failures:
        raise failures[0]
