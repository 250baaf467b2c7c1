# SPDX-License-Identifier: Apache-2.0
"""The context of one operation: its progress, its cancellation and the losses it collects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct, field

from lamella.changes.losses import Losses
from lamella.progress import Cancellation, Progress


class Job(Struct, frozen=True, kw_only=True):
    """Progress, cancellation and losses of one operation, passed as one value to everything that it calls.

    ``Job()`` reports nothing, cannot be cancelled and collects all losses. Public functions make one if none is given.
    """

    progress: Progress | None = None
    """Receives the steps of the operation and their bytes."""
    cancel: Cancellation | None = None
    """Stops the operation, which then raises Cancelled."""
    losses: Losses = field(default_factory=Losses)
    """Collects or refuses what the target cannot hold."""

    @property
    def advance(self) -> Callable[[int], object] | None:
        """`Progress.advance`, or None if nothing listens; bind it once outside a loop."""
        return None if self.progress is None else self.progress.advance

    def check(self) -> None:
        """Raise Cancelled if the operation was cancelled."""
        if self.cancel is not None:
            self.cancel.check()

    @contextmanager
    def step(self, what: str, total: int | None) -> Iterator[None]:
        """Report a step of ``total`` bytes (None: unknown), which ends with the block."""
        if self.progress is None:
            yield
            return
        self.progress.start(what, total)
        try:
            yield
        finally:
            self.progress.finish()
