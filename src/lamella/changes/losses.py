# SPDX-License-Identifier: Apache-2.0
"""What a place could not hold, said out loud."""

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

    The first ``limit`` are kept in full; beyond that they are counted.
    """

    refuse: bool = False
    limit: int = 10_000
    count: int = 0
    kept: list[Loss] = field(default_factory=list)

    def record(self, loss: Loss) -> None:
        """Take note of ``loss``. Raises LossRefused where the policy is to stop."""
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
