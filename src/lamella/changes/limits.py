# SPDX-License-Identifier: Apache-2.0
"""Bounds on what one layer may ask for."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from lamella.errors import Exhausted

_EACH: Final = 512
"""What a directory counts beside its path."""


class Limits(Struct, frozen=True):
    """Bounds on one layer; reaching one raises Exhausted."""

    entries: int = 50_000_000
    depth: int = 5_000
    """Components of a path."""
    length: int = 8_192
    """Characters of a path; twice what Linux takes at once."""
    implied: int = 1 << 26
    """Characters of the paths of directories that the layer has something in without stating them, and 512 for each.

    Of those on the way to one file the first is free: so memory stays in proportion to what the layer states, and one
    that merely leaves out its directories is taken whatever its size.
    """


DEFAULT_LIMITS: Final = Limits()


class Implied(Struct):
    """What the directories come to that a layer does not state, or all layers of what is held in memory together."""

    sum: int = 0

    def add(self, path: str, limits: Limits = DEFAULT_LIMITS) -> None:
        """Count the directory ``path``, not the first one on the way to a file. Raises Exhausted."""
        self.sum += len(path) + _EACH
        if self.sum > limits.implied:
            short = repr(path) if len(path) <= 60 else f"{path[:60]!r}..."
            raise Exhausted(
                f"the layer has something in too many directories that it does not state, such as {short}: "
                f"their paths, each counted with {_EACH} more, come to more than {limits.implied} characters"
            )
