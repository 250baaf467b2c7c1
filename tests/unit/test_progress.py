# SPDX-License-Identifier: Apache-2.0
"""Progress reports and cancellation."""

from __future__ import annotations

import pytest

from lamella.errors import Cancelled
from lamella.progress import Cancellation, NoProgress, Progress


def test_a_cancelled_token_raises_at_every_check() -> None:
    cancel = Cancellation()
    cancel.check()
    cancel.cancel()
    for _ in range(2):
        with pytest.raises(Cancelled):
            cancel.check()


def test_no_progress_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress: Progress = NoProgress()
    progress.start("read", None)
    progress.advance(1)
    progress.finish()
    assert capfd.readouterr() == ("", "")
