# SPDX-License-Identifier: Apache-2.0
"""Reports of what a place could not store."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, field

from lamella.errors import LossRefused


class Loss(Struct, frozen=True):
    """``what`` of the file at ``path`` was not kept, because ``why``."""

    path: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.path or '/'}: {self.what} not kept: {self.why}"


class Losses(Struct):
    """Collects losses; with ``refuse`` the first one raises LossRefused.

    The first ``limit`` losses are kept; further ones are only counted.
    """

    refuse: bool = False
    limit: int = 10_000
    count: int = 0
    kept: list[Loss] = field(default_factory=list)

    def record(self, loss: Loss) -> None:
        """Add ``loss``. Raises LossRefused if ``refuse`` is set."""
        if self.refuse:
            raise LossRefused(str(loss))
        self.count += 1
        if len(self.kept) < self.limit:
            self.kept.append(loss)

    def merge(self, others: Losses) -> None:
        """Record ``others``, those that were only counted there included. Raises LossRefused."""
        for loss in others.kept:
            self.record(loss)
        self.count += others.count - len(others.kept)

    def __iter__(self) -> Iterator[Loss]:
        return iter(self.kept)

    def __len__(self) -> int:
        return self.count
