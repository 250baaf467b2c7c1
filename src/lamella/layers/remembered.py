# SPDX-License-Identifier: Apache-2.0
"""A few bytes for each of many files, held tightly, since few of them are ever asked for."""

from __future__ import annotations

from lamella.paths import split


class Remembered:
    """Records of ``size`` bytes by path, kept a directory at a time; the one added last of a path counts."""

    __slots__ = ("_rows", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: dict[str, _Row] = {}

    def add(self, path: str, record: bytes) -> None:
        """Remember ``record``."""
        parent, _, name = path.rpartition("/")
        row = self._rows.get(parent)
        if row is None:
            row = self._rows[parent] = _Row()
        row.names += name.encode("utf-8", "surrogateescape")
        row.names += b"/"
        row.records += record

    def find(self, path: str) -> bytes | None:
        """What was remembered last of ``path``."""
        parent, name = split(path)
        row = self._rows.get(parent)
        place = None if row is None else row.find(name, self._size)
        return None if row is None or place is None else bytes(row.records[place : place + self._size])


class _Row:
    __slots__ = ("_done", "_places", "names", "records")

    def __init__(self) -> None:
        self.names = bytearray()
        self.records = bytearray()
        self._places: dict[bytes, int] = {}
        self._done = 0

    def find(self, name: str, size: int) -> int | None:
        """Where the record of ``name`` begins."""
        if self._done < len(self.names):
            new = self.names[self._done :].split(b"/")[:-1]
            first = len(self.records) - size * len(new)
            self._places.update((bytes(one), first + size * at) for at, one in enumerate(new))
            self._done = len(self.names)
        return self._places.get(name.encode("utf-8", "surrogateescape"))
