# SPDX-License-Identifier: Apache-2.0
"""Work for several things at once ends with all of it done, or with the first failure."""

from __future__ import annotations

import threading
import time

import pytest

from lamella.errors import Cancelled, NotFound
from lamella.operations.parallel import for_each
from lamella.progress import Cancellation


@pytest.mark.parametrize("lanes", [1, 3, 50])
def test_everything_is_done_once(lanes: int) -> None:
    done: list[int] = []
    for_each(range(40), lambda thing, _: done.append(thing), lanes)
    assert list(range(40)) == sorted(done)


def test_as_many_at_once_as_there_are_lanes() -> None:
    together = threading.Barrier(3, timeout=10)
    for_each(range(6), lambda _, __: (together.wait(), None)[1], 3)
    assert not together.broken


def test_one_lane_is_the_callers_thread() -> None:
    seen: set[int] = set()
    for_each(range(3), lambda _, __: seen.add(threading.get_ident()), 1)
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_failure_stops_the_others_and_is_raised(lanes: int) -> None:
    begun: list[int] = []

    def work(thing: int, stop: Cancellation) -> None:
        begun.append(thing)
        if thing == 2:
            raise NotFound("x")
        end = time.monotonic() + 10
        while lanes > 1 and time.monotonic() < end:
            stop.check()
            time.sleep(0.001)

    with pytest.raises(NotFound):
        for_each(range(1000), work, lanes)
    assert len(begun) < 10


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_wish_to_stop_reaches_every_lane(lanes: int) -> None:
    cancel = Cancellation()

    def work(thing: int, stop: Cancellation) -> None:
        if thing == 2:
            cancel.cancel()
        stop.check()

    with pytest.raises(Cancelled):
        for_each(range(1000), work, lanes, cancel)


def test_a_lane_that_is_stuck_does_not_keep_the_caller() -> None:
    cancel, free = Cancellation(), threading.Event()

    def work(thing: int, stop: Cancellation) -> None:
        cancel.cancel()
        free.wait(30)

    start = time.monotonic()
    with pytest.raises(Cancelled):
        for_each(range(2), work, 2, cancel)
    assert time.monotonic() - start < 10
    free.set()
