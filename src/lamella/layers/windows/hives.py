# SPDX-License-Identifier: Apache-2.0
"""The registry hives of a layer's folder: what the deltas of a layer make of the hives below."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

from lamella.changes.contracts import Source
from lamella.changes.model import Change, Entry, Inline, Kind, Posix, Put
from lamella.formats.ntfs import names
from lamella.host import file_io
from lamella.layers.windows.layout import CONFIG, FILES, HIVE_NAMES, HIVES
from lamella.paths import LayerPath, join, sort_key

if TYPE_CHECKING:
    from lamella.layers.windows.folder.parents import Parents

_READ: Final = os.O_RDONLY | file_io.O_NOFOLLOW | file_io.O_CLOEXEC
_DIRECTORY: Final = _READ | file_io.O_DIRECTORY


def base_hives(root: int) -> None:
    """Give the hives of a base layer their names in `Hives`, as Windows does. Raises OSError."""
    directory = root
    opened = []
    try:
        for part in CONFIG.strip("/").split("/"):
            found = [name for name in os.listdir(directory) if name.lower() == part.lower()]
            if not found:
                return
            directory = os.open(found[0], _DIRECTORY, dir_fd=directory)
            opened.append(directory)
        there = [
            (name, HIVE_NAMES[name.upper()]) for name in sorted(os.listdir(directory)) if name.upper() in HIVE_NAMES
        ]
        if not there:
            return
        try:
            os.mkdir(HIVES, dir_fd=root)
        except FileExistsError:
            pass
        hives = os.open(HIVES, _DIRECTORY, dir_fd=root)
        opened.append(hives)
        taken = {name.lower() for name in os.listdir(hives)}
        for name, called in there:
            if f"{called}_base".lower() not in taken:
                os.link(name, f"{called}_Base", src_dir_fd=directory, dst_dir_fd=hives, follow_symlinks=False)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def merged_hives(root: int, parents: Parents) -> None:
    """Write what the deltas in `Hives` make of the parents' hives; those without a delta are carried on.

    A hive that the layers below do not have is none here either. Raises FormatError, InvalidInput, OSError.
    """
    from lamella.formats.regf import Hive, encode_hive, merged

    directory = os.open(HIVES, _DIRECTORY, dir_fd=root)
    try:
        there = {name.lower(): name for name in os.listdir(directory)}
        for called in HIVE_NAMES.values():
            wanted = f"{called}_Base"
            if wanted.lower() in there:
                continue
            below = parents.hive(wanted)
            if below is None:
                continue
            delta_name = there.get(f"{called}_delta".lower())
            delta = b"" if delta_name is None else _read(directory, delta_name)
            if delta:
                base = Hive(below) if below else None
                above = Hive(delta, layered=True)
                key = merged(None if base is None else base.root_key, above.root_key)
                below = encode_hive(key, file_name=above.file_name if base is None else base.file_name)
            with open(os.open(wanted, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory), "wb") as file:
                file.write(below)
    finally:
        os.close(directory)


def _read(directory: int, name: str) -> bytes:
    with open(os.open(name, _READ, dir_fd=directory), "rb") as file:
        return file.read()


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
