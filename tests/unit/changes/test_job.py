# SPDX-License-Identifier: Apache-2.0
"""The context of one operation."""

from __future__ import annotations

import pytest

from lamella.changes.job import Job
from lamella.changes.losses import Loss
from lamella.errors import Cancelled
from lamella.progress import Cancellation, LinkedCancellation


class Recorded:
    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def start(self, what: str, total: int | None) -> None:
        self.calls.append((what, total))

    def advance(self, amount: int) -> None:
        self.calls.append(("advance", amount))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_a_step_is_finished_when_its_block_raises() -> None:
    progress = Recorded()
    with pytest.raises(ZeroDivisionError), Job(progress=progress).step("read", 4):
        raise ZeroDivisionError
    assert progress.calls == [("read", 4), ("finish", None)]


def test_a_job_without_progress_runs_its_steps() -> None:
    job = Job()
    with job.step("read", None):
        done = True
    assert (done, job.advance) == (True, None)


def test_advance_forwards_to_the_progress() -> None:
    progress = Recorded()
    advance = Job(progress=progress).advance
    assert advance is not None
    advance(3)
    assert progress.calls == [("advance", 3)]


def test_a_job_raises_once_it_is_cancelled() -> None:
    cancel = Cancellation()
    job = Job(cancel=cancel)
    job.check()
    cancel.cancel()
    with pytest.raises(Cancelled):
        job.check()


def test_jobs_do_not_share_their_losses() -> None:
    one, other = Job(), Job()
    one.losses.record(Loss("a", "owner", "not root"))
    assert (len(one.losses), len(other.losses)) == (1, 0)


def test_a_linked_cancellation_follows_its_parent_but_never_cancels_it() -> None:
    parent = Cancellation()
    first, second = LinkedCancellation(parent), LinkedCancellation(parent)
    first.cancel()
    assert (parent.cancelled, first.cancelled, second.cancelled) == (False, True, False)
    with pytest.raises(Cancelled):
        first.check()
    parent.cancel()
    assert second.cancelled
    with pytest.raises(Cancelled):
        second.check()
