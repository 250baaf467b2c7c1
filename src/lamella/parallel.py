# SPDX-License-Identifier: Apache-2.0
"""Work on several items at once, in threads; the first failure stops it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from msgspec import Struct

from lamella.errors import Cancelled
from lamella.progress import Cancellation, LinkedCancellation

T = TypeVar("T")

_POLL: Final = 0.1
"""Seconds between two looks at the cancellation."""


class Consumer(Struct, Generic[T], frozen=True):
    """One of the threads that share the items."""

    consume: Callable[[T, Cancellation], object]
    """Handles one item. The cancellation stops it, too, if another item fails."""
    takes: Callable[[T], bool] | None = None
    """Whether this thread takes an item; None for every item."""


def for_each(
    items: Iterable[T],
    consumers: Sequence[Consumer[T]],
    cancel: Cancellation | None = None,
    *,
    patience: float | None = 1.0,
) -> None:
    """Hand each of ``items`` to one of ``consumers``, begun in order; some consumer must take each.

    Returns or raises once all threads have ended. The first failure cancels the others and is raised. If this thread
    is interrupted or ``cancel`` is set, it waits ``patience`` seconds for each thread (None: until it ends), since a
    thread may wait for a silent network. A single consumer works in this thread. Raises what ``consume`` raises,
    Cancelled.
    """
    stop = LinkedCancellation(cancel)
    if len(consumers) <= 1:
        for item in items:
            stop.check()
            consumers[0].consume(item, stop)
        return
    waiting, lock = list(items), threading.Lock()
    failures: list[BaseException] = []

    def take(consumer: Consumer[T]) -> list[T]:
        takes = consumer.takes
        with lock:
            for at, item in enumerate(() if failures else waiting):
                if takes is None or takes(item):
                    return [waiting.pop(at)]
        return []

    def run(consumer: Consumer[T]) -> None:
        try:
            while found := take(consumer):
                stop.check()
                consumer.consume(found[0], stop)
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            with lock:
                # A Cancelled that follows from another failure says nothing new.
                if not failures or not isinstance(error, Cancelled):
                    failures.append(error)
            stop.cancel()

    threads = [
        threading.Thread(target=run, args=(consumer,), name=f"lamella-{number}", daemon=True)
        for number, consumer in enumerate(consumers)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_POLL)
                if cancel is not None:
                    cancel.check()
    except BaseException:
        stop.cancel()
        for thread in threads:
            if thread.ident is not None:
                thread.join(patience)
        raise
    if failures:
        raise failures[0]
