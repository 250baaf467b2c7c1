# SPDX-License-Identifier: Apache-2.0
"""What is at each path of a layer, kept a directory at a time."""

from __future__ import annotations


class PathCodes:
    """A number for each of many paths, which are as NTFS compares them."""

    __slots__ = ("_inside",)

    def __init__(self) -> None:
        self._inside: dict[str, dict[str, int]] = {}

    def get(self, path: str) -> int | None:
        """The number of ``path``; None where it has none."""
        parent, _, name = path.rpartition("/")
        inside = self._inside.get(parent)
        return None if inside is None else inside.get(name)

    def __contains__(self, path: str) -> bool:
        return self.get(path) is not None

    def __setitem__(self, path: str, code: int) -> None:
        parent, _, name = path.rpartition("/")
        inside = self._inside.get(parent)
        if inside is None:
            inside = self._inside[parent] = {}
        inside[name] = code

    def remove(self, path: str) -> list[str]:
        """Forget ``path`` and all beneath it, and give their paths; that takes time in proportion to them."""
        parent, _, name = path.rpartition("/")
        inside = self._inside.get(parent)
        if inside is not None:
            inside.pop(name, None)
        gone = [path]
        for at in gone:
            gone.extend(f"{at}/{beneath}" for beneath in self._inside.pop(at, ()))
        return gone
