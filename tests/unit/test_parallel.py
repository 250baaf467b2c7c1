# SPDX-License-Identifier: Apache-2.0
"""Parallel work on items ends when all are done, or with the first failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from lamella.errors import Cancelled, NotFound
from lamella.parallel import Consumer, for_each
from lamella.progress import Cancellation


def several(count: int, consume: Callable[[int, Cancellation], object]) -> list[Consumer[int]]:
    return [Consumer(consume)] * count


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_every_item_is_handled_once(threads: int) -> None:
    done: list[int] = []
    for_each(range(40), several(threads, lambda item, _: done.append(item)))
    assert sorted(done) == list(range(40))


def test_an_empty_list_of_items_raises_nothing() -> None:
    for_each([], several(0, lambda _, __: None))


def test_consumers_handle_items_concurrently() -> None:
    together = threading.Barrier(3, timeout=10)
    for_each(range(6), several(3, lambda _, __: together.wait()))
    assert not together.broken


def test_a_single_consumer_works_in_the_callers_thread() -> None:
    seen: set[int] = set()
    for_each(range(3), several(1, lambda _, __: seen.add(threading.get_ident())))
    assert seen == {threading.get_ident()}


def test_a_consumer_gets_only_the_items_that_it_takes() -> None:
    every: list[int] = []
    even: list[int] = []
    busy = threading.Event()

    def slowly(item: int, _: Cancellation) -> None:
        every.append(item)
        busy.wait(10)

    def note(item: int, _: Cancellation) -> None:
        even.append(item)
        if item == 8:
            busy.set()

    for_each(range(10), [Consumer(slowly), Consumer(note, lambda item: item % 2 == 0)])
    assert sorted(every + even) == list(range(10))
    assert all(item % 2 == 0 for item in even)
    assert len(even) >= 4


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_stops_the_others_and_is_raised(threads: int) -> None:
    begun: list[int] = []

    def work(item: int, stop: Cancellation) -> None:
        begun.append(item)
        if item == 2:
            raise NotFound("x")
        end = time.monotonic() + 10
        while threads > 1 and time.monotonic() < end:
            stop.check()
            time.sleep(0.001)

    with pytest.raises(NotFound):
        for_each(range(1000), several(threads, work))
    assert len(begun) < 10


@pytest.mark.parametrize("threads", [1, 3])
def test_a_cancellation_reaches_every_consumer(threads: int) -> None:
    cancel = Cancellation()

    def work(item: int, stop: Cancellation) -> None:
        if item == 2:
            cancel.cancel()
        stop.check()

    with pytest.raises(Cancelled):
        for_each(range(1000), several(threads, work), cancel)


def test_a_thread_that_is_stuck_does_not_keep_the_caller() -> None:
    cancel, free = Cancellation(), threading.Event()

    def work(_: int, __: Cancellation) -> None:
        cancel.cancel()
        free.wait(30)

    start = time.monotonic()
    with pytest.raises(Cancelled):
        for_each(range(2), several(2, work), cancel)
    assert time.monotonic() - start < 10
    free.set()


def test_a_caller_without_a_limit_waits_until_every_thread_has_ended() -> None:
    cancel = Cancellation()
    ended: list[int] = []
    together = threading.Barrier(2, timeout=10)

    def work(item: int, _: Cancellation) -> None:
        together.wait()
        cancel.cancel()
        time.sleep(1.5)
        ended.append(item)

    with pytest.raises(Cancelled):
        for_each(range(2), several(2, work), cancel, patience=None)
    assert sorted(ended) == [0, 1]
