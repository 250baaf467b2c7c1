# SPDX-License-Identifier: Apache-2.0
"""What is in the directories of an image that were looked into, as many of them as memory should hold."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

_MOST: Final = 4096
_AGAIN: Final = 4
"""Times that a directory is read; from then on it is kept, or each name in it could cost as much as all of them."""


class Listings(Generic[T]):
    """Directories by number: the last few thousand, and those that had to be read again and again."""

    __slots__ = ("_known", "_reads", "_staying")

    def __init__(self) -> None:
        self._known: dict[int, T] = {}
        self._staying: dict[int, T] = {}
        self._reads: dict[int, int] = {}

    def get(self, directory: int) -> T | None:
        """What is in a directory; None where it has to be read."""
        found = self._known.get(directory)
        return found if found is not None else self._staying.get(directory)

    def keep(self, directory: int, names: T) -> None:
        """Take in what was read."""
        reads = self._reads[directory] = self._reads.get(directory, 0) + 1
        if reads >= _AGAIN:
            self._staying[directory] = names
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[directory] = names
