# SPDX-License-Identifier: Apache-2.0
"""What a base layer for Windows must have, added to files that have nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Final

from lamella.changes.contracts import Source
from lamella.changes.model import Change, Entry, Inline, Kind, Posix, Put
from lamella.formats.ntfs import names
from lamella.layers.windows.place import CONFIG, FILES, HIVE_NAMES
from lamella.paths import LayerPath, join, sort_key

_CONFIG: Final = CONFIG[len(FILES) + 1 : -1].split("/")
"""The directories on drive C that lead to the hives."""


def missing_hives(listed: Callable[[LayerPath], Iterable[str]]) -> list[LayerPath]:
    """Where on drive C the registry hives are to be that it does not have, in the order of a walk.

    ``listed`` gives the names in a directory, none where there is no such directory. Windows takes no base layer that
    lacks one of the five, empty as they may be. Names that are there are found in whatever case.
    """
    at = LayerPath("")
    for part in _CONFIG:
        at = join(at, _found(listed(at), part))
    there = {names.folded(name) for name in listed(at)}
    return sorted((join(at, name) for name in HIVE_NAMES if names.folded(name) not in there), key=sort_key)


def _found(there: Iterable[str], wanted: str) -> str:
    return next((name for name in there if names.folded(name) == names.folded(wanted)), wanted)


def with_hives(changes: Source, paths: Iterable[LayerPath], time: int) -> Iterator[Change]:
    """``changes``, in the order of a walk, with an empty hive at each of ``paths``, of that ``time``."""
    missing = [(sort_key(path), path) for path in paths]
    for change in changes:
        if missing:
            key = sort_key(change.entry.path if isinstance(change, Put) else change.path)
            while missing and missing[0][0] < key:
                yield _hive(missing.pop(0)[1], time)
        yield change
    for _, path in missing:
        yield _hive(path, time)


def _hive(path: LayerPath, time: int) -> Put:
    data = empty_hive()
    return Put(Entry(path, Kind.FILE, Posix(0o644, 0, 0, time), len(data)), Inline(data))


@cache
def empty_hive() -> bytes:
    """A hive in which there is nothing; always the same bytes."""
    from lamella.formats.regf import MemoryKey, encode_hive

    return encode_hive(MemoryKey("ROOT"))
