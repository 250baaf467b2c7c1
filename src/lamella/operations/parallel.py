# SPDX-License-Identifier: Apache-2.0
"""The same work for several things at once, ended by the first failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from lamella.errors import Cancelled
from lamella.progress import Cancellation, LinkedCancellation

T = TypeVar("T")

_POLL: Final = 0.1

_PATIENCE: Final = 1.0
"""Seconds that an interrupted caller waits for each lane to come to its end."""


def for_each(
    things: Iterable[T], work: Callable[[T, Cancellation], None], lanes: int, cancel: Cancellation | None = None
) -> None:
    """Do ``work`` for each thing, for at most ``lanes`` at a time, begun in order.

    The first failure is raised once the others have stopped, which they are asked to by the cancellation that they
    are given. With one lane everything happens in the caller's thread. Raises what ``work`` does, Cancelled.
    """
    stop = LinkedCancellation(cancel)
    if lanes <= 1:
        for thing in things:
            stop.check()
            work(thing, stop)
        return
    waiting, lock = iter(things), threading.Lock()
    failures: list[BaseException] = []

    def taken() -> Iterator[T]:
        while True:
            with lock:
                if failures:
                    return
                try:
                    thing = next(waiting)
                except StopIteration:
                    return
            yield thing

    def run() -> None:
        try:
            for thing in taken():
                stop.check()
                work(thing, stop)
        except BaseException as problem:  # noqa: BLE001 - raised in the caller's thread
            with lock:
                # What stopped because another failed says nothing new.
                if not failures or not isinstance(problem, Cancelled):
                    failures.append(problem)
            stop.cancel()

    threads = [threading.Thread(target=run, name="lamella-lane", daemon=True) for _ in range(lanes)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_POLL)
                if cancel is not None:
                    cancel.check()  # a lane may be waiting for a network that has fallen silent
    except BaseException:
        stop.cancel()
        for thread in threads:
            if thread.is_alive():
                thread.join(_PATIENCE)
        raise
    if failures:
        raise failures[0]
