# SPDX-License-Identifier: Apache-2.0
"""Progress as a bar on a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_PATIENCE: Final = 0.4
"""Seconds that work may take without a bar; most is done by then, and loading the bar would only slow it."""


class Bar:
    """A bar that appears when the work takes longer than a moment, and goes when it is done."""

    def __init__(self) -> None:
        self._what = ""
        self._total = 0
        self._done = 0
        self._due = 0.0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, what: str, total: int | None) -> None:
        """``total`` bytes are to be done, None where nobody knows."""
        self.finish()
        self._what, self._total, self._done = what, total or 0, 0
        self._due = time.monotonic() + _PATIENCE

    def advance(self, amount: int) -> None:
        """``amount`` further bytes are done. A count that two threads garble is off by little, and shown only."""
        self._done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() >= self._due > 0:
            self._show()

    def finish(self) -> None:
        """The work is over, well or not."""
        self._due = 0.0
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def _show(self) -> None:
        from rich import progress
        from rich.console import Console

        self._due = 0.0
        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = bar.add_task(self._what, total=self._total or None, completed=self._done)
        bar.start()
        self._bar = bar
