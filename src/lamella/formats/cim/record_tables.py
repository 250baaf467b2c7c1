# SPDX-License-Identifier: Apache-2.0
"""Compact in-memory tables of a writer: file records, and names of directories."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from lamella.formats.cim.structures import (
    DATA_AT,
    RECORD,
    RECORDS_IN_TABLE,
    REPARSE_AT,
    STREAM,
    TYPE_AT,
    Stream,
    StreamType,
)

Names: TypeAlias = dict[str, tuple[str, int]]
"""Folded name -> name, file id."""

_OPEN: Final = 512
"""Directories kept as dictionaries, which take five times the memory of packed ones."""
_AGAIN: Final = 4
"""After this many loads a directory stays a dictionary, so that alternating access stays linear."""
_BLOCK: Final = RECORDS_IN_TABLE * RECORD.size


class Records:
    """Packed file records by file id: of new files, and of changed files of the parent."""

    __slots__ = ("_before", "_blocks", "_changed", "last")

    def __init__(self, last: int) -> None:
        self._before = last
        self.last = last
        """Highest file id."""
        self._blocks: list[bytearray] = []
        self._changed: dict[int, bytes] = {}

    def add(self, raw: bytes) -> int:
        """Add a new file, and return its file id."""
        if not self._blocks or len(self._blocks[-1]) == _BLOCK:
            self._blocks.append(bytearray())
        self._blocks[-1] += raw
        self.last += 1
        return self.last

    def put(self, file: int, raw: bytes) -> None:
        """Replace the record of a file."""
        number = file - self._before - 1
        if number < 0:
            self._changed[file] = raw
            return
        block, row = divmod(number, RECORDS_IN_TABLE)
        self._blocks[block][row * RECORD.size : (row + 1) * RECORD.size] = raw

    def get(self, file: int) -> bytes | None:
        """The record of a file; None if unchanged."""
        number = file - self._before - 1
        if number < 0:
            return self._changed.get(file)
        block, row = divmod(number, RECORDS_IN_TABLE)
        return bytes(self._blocks[block][row * RECORD.size : (row + 1) * RECORD.size])

    def has(self, file: int) -> bool:
        """Whether a file is new or changed."""
        return file > self._before or file in self._changed

    def kind(self, file: int) -> tuple[bool, bool] | None:
        """Whether a new file is a directory, and whether it is a reparse point; None for a file of the parent."""
        number = file - self._before - 1
        if number < 0:
            return None
        block, row = divmod(number, RECORDS_IN_TABLE)
        at = row * RECORD.size
        raw = self._blocks[block]
        return raw[at + TYPE_AT] == StreamType.LINKS, any(raw[at + REPARSE_AT : at + REPARSE_AT + 8])

    def put_data(self, file: int, data: Stream) -> bool:
        """Replace the default stream of a new file; False for a file of the parent."""
        number = file - self._before - 1
        if number < 0:
            return False
        block, row = divmod(number, RECORDS_IN_TABLE)
        STREAM.pack_into(self._blocks[block], row * RECORD.size + DATA_AT, *data.words())
        return True

    def rows(self, ids: range) -> bytes | None:
        """The concatenated records of new files; None if some are of the parent."""
        start = (ids.start - self._before - 1) * RECORD.size
        if start < 0:
            return None
        stop = start + len(ids) * RECORD.size
        block, at = divmod(start, _BLOCK)
        parts = []
        while start < stop:
            parts.append(self._blocks[block][at : at + stop - start])
            start += len(parts[-1])
            block, at = block + 1, 0
        return b"".join(parts)

    def any(self, ids: range) -> bool:
        """Whether any of these files is new or changed."""
        return ids.stop - 1 > self._before or not self._changed.keys().isdisjoint(ids)


class Directories:
    """Names of directories, by file id. A result of `names` is valid until the next call.

    Time is proportional to the number of names, in any order of access.
    """

    __slots__ = ("_fold", "_load", "_open", "_opened", "_packed", "_staying", "changed")

    def __init__(self, fold: Callable[[str], str], load: Callable[[int], Names]) -> None:
        """``load`` reads the entries of a directory of the parent."""
        self._fold = fold
        self._load = load
        self._open: dict[int, Names] = {}
        self._packed: dict[int, tuple[str, array[int]]] = {}
        """Sorted by folded names."""
        self._opened: dict[int, int] = {}
        """Number of times that a directory was loaded or unpacked."""
        self._staying: dict[int, Names] = {}
        """Directories opened too often to be packed again."""
        self.changed: set[int] = set()
        """Directories with changed names."""

    def names(self, directory: int) -> Names:
        """Entries of a directory."""
        found = self._open.get(directory)
        if found is None:
            found = self._staying.get(directory)
        if found is not None:
            return found
        packed = self._packed.pop(directory, None)
        if packed is None:
            found = self._load(directory)
        else:
            text, files = packed
            names = text.split("/") if files else []
            found = dict(zip(map(self._fold, names), zip(names, files, strict=True), strict=True))
        opened = self._opened[directory] = self._opened.get(directory, 0) + 1
        if opened < _AGAIN:
            self._open_directory(directory, found)
        else:
            self._staying[directory] = found
        return found

    def changing(self, directory: int) -> Names:
        """Entries of a directory, for the caller to change."""
        self.changed.add(directory)
        return self.names(directory)

    def in_order(self, directory: int) -> tuple[Sequence[str], Sequence[int]]:
        """Names and file ids, sorted by folded names."""
        packed = self._packed.get(directory)
        if packed is not None:
            text, files = packed
            return text.split("/") if files else (), files
        names = self.names(directory)
        ordered = [names[key] for key in sorted(names)]
        return [name for name, _ in ordered], [file for _, file in ordered]

    def add(self, directory: int) -> None:
        """Add an empty directory."""
        self.changed.add(directory)
        self._open_directory(directory, {})

    def known(self, directory: int) -> bool:
        """Whether the file is a known directory."""
        return directory in self._open or directory in self._packed or directory in self._staying

    def _open_directory(self, directory: int, names: Names) -> None:
        if len(self._open) >= _OPEN:
            for other in list(self._open)[: _OPEN // 2]:
                links = self._open.pop(other)
                if other in self.changed:
                    ordered = [links[key] for key in sorted(links)]
                    files = array("I", [file for _, file in ordered])
                    self._packed[other] = "/".join([name for name, _ in ordered]), files
        self._open[directory] = names
