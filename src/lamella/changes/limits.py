# SPDX-License-Identifier: Apache-2.0
"""Limits on the resources that one layer may consume."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from lamella.errors import Exhausted

_EACH: Final = 512
"""Characters counted for each implied directory in addition to its path."""


class Limits(Struct, frozen=True):
    """Limits of one layer; exceeding one raises Exhausted."""

    entries: int = 50_000_000
    depth: int = 5_000
    """Components of a path."""
    length: int = 8_192
    """Characters of a path; twice Linux' PATH_MAX."""
    implied: int = 1 << 26
    """Characters of the paths of implied parent directories, plus 512 for each.

    The first implied directory of each entry is free, so that a layer which merely omits its directories passes at
    any size, while a few names of thousands of levels, each of which implies megabytes of paths, do not.
    """


DEFAULT_LIMITS: Final = Limits()


class Implied(Struct):
    """The total charged for implied directories: of one layer, or of all layers that are held in memory together."""

    sum: int = 0

    def add(self, path: str, limits: Limits = DEFAULT_LIMITS) -> None:
        """Charge the directory ``path``; callers leave out the first one of each entry. Raises Exhausted."""
        self.sum += len(path) + _EACH
        if self.sum > limits.implied:
            short = repr(path) if len(path) <= 60 else f"{path[:60]!r}..."
            raise Exhausted(
                f"the layer implies too many directories that it does not state, such as {short}: "
                f"their paths, plus {_EACH} for each, exceed {limits.implied} characters"
            )
