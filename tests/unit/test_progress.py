# SPDX-License-Identifier: Apache-2.0
"""Stopping long work, and hearing from it."""

from __future__ import annotations

import pytest

from lamella.errors import Cancelled
from lamella.progress import Cancellation, NoProgress, Progress


def test_a_cancellation_raises_once_it_was_asked_for_and_ever_after() -> None:
    cancel = Cancellation()
    cancel.check()
    cancel.cancel()
    for _ in range(2):
        with pytest.raises(Cancelled):
            cancel.check()


def test_who_does_not_care_hears_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress: Progress = NoProgress()
    progress.start("read", None)
    progress.advance(1)
    progress.finish()
    assert capfd.readouterr() == ("", "")
