# SPDX-License-Identifier: Apache-2.0
"""Registry hives of layers: deltas merged into the hives below, and the empty hives of a new base layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

from lamella.changes.contracts import Source
from lamella.changes.model import Change, Entry, Inline, Kind, Posix, Put
from lamella.errors import InvalidInput
from lamella.formats.ntfs import names
from lamella.host import file_io
from lamella.layers.windows.layout import CONFIG, FILES, HIVE_NAMES, HIVES
from lamella.paths import LayerPath, join, sort_key

if TYPE_CHECKING:
    from lamella.formats.regf import Key
    from lamella.layers.windows.folder.parents import Parents

_READ: Final = os.O_RDONLY | file_io.O_NOFOLLOW | file_io.O_CLOEXEC
_DIRECTORY: Final = _READ | file_io.O_DIRECTORY


_RESERVED: Final = {
    names.folded(f"{HIVES}/{stem}_{suffix}"): suffix for stem in HIVE_NAMES.values() for suffix in ("Base", "Delta")
}


def check_hive(path: str, kind: Kind | None) -> None:
    """Check what a layer puts at ``path`` in `Hives`; ``kind`` None is a hard link.

    Only files are deltas. The import writes the merged hives, so no layer may have one. Raises InvalidInput.
    """
    suffix = _RESERVED.get(names.folded(path))
    if suffix == "Base":
        raise InvalidInput(
            f"the layer has the merged hive {path!r}, which the import writes",
            hint="a layer has only the delta, Hives/NAME_Delta",
        )
    if suffix is not None and kind is not Kind.FILE:
        phrase = "hard link" if kind is None else kind.phrase
        raise InvalidInput(f"{path!r} is a {phrase}; a registry delta must be a file")


def base_hives(root: int) -> None:
    """Link the hives of a base layer into `Hives`, as Windows does. Raises OSError."""
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
        for name, called in there:
            os.link(name, f"{called}_Base", src_dir_fd=directory, dst_dir_fd=hives, follow_symlinks=False)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def merged_hives(root: int, parents: Parents, *, dirty: bool = False) -> None:
    """Write the parents' hives with the deltas in `Hives` merged in; a hive without a delta is copied.

    A hive that the layers below do not have is left out. Raises FormatError, InvalidInput, OSError.
    """
    directory = os.open(HIVES, _DIRECTORY, dir_fd=root)
    try:
        there = {name.lower(): name for name in os.listdir(directory)}
        for called in HIVE_NAMES.values():
            wanted = f"{called}_Base"
            below = parents.hive(wanted)
            if below is None:
                continue
            delta_name = there.get(f"{called}_delta".lower())
            delta = b"" if delta_name is None else _read(directory, delta_name)
            if delta:
                below = merge_deltas(below, [delta], dirty=dirty)
            with open(os.open(wanted, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory), "wb") as file:
                file.write(below)
    finally:
        os.close(directory)


def merge_deltas(base: bytes, deltas: Iterable[bytes], *, dirty: bool = False) -> bytes:
    """Merge ``deltas``, lowest first and at least one, into the hive ``base``, which may be empty.

    ``dirty`` is that of `Hive`. Raises FormatError, InvalidInput.
    """
    from lamella.formats.regf import Hive, encode_hive, merge_keys

    named = Hive(base, dirty=dirty) if base else None
    root: Key | None = None if named is None else named.root_key
    for delta in deltas:
        above = Hive(delta, dirty=dirty, layered=True)
        root = merge_keys(root, above.root_key)
        named = named or above
    assert root is not None  # noqa: S101  # there is a delta
    assert named is not None  # noqa: S101
    return encode_hive(root, file_name=named.file_name)


def _read(directory: int, name: str) -> bytes:
    with open(os.open(name, _READ, dir_fd=directory), "rb") as file:
        return file.read()


_CONFIG: Final = CONFIG[len(FILES) + 1 : -1].split("/")
"""The components of the hives' directory on drive C."""


def missing_hives(listed: Callable[[LayerPath], Iterable[str]]) -> list[LayerPath]:
    """The paths on drive C of the registry hives that it lacks, in the order of a walk.

    ``listed`` returns the names in a directory, or none if the directory does not exist. Windows requires all five
    hives in a base layer; they may be empty. Names are compared without case.
    """
    at = LayerPath("")
    for part in _CONFIG:
        spelled = (name for name in listed(at) if names.folded(name) == names.folded(part))
        at = join(at, next(spelled, part))
    there = {names.folded(name) for name in listed(at)}
    return sorted((join(at, name) for name in HIVE_NAMES if names.folded(name) not in there), key=sort_key)


def with_hives(changes: Source, paths: Iterable[LayerPath], time: int) -> Iterator[Change]:
    """Insert an empty hive at each of ``paths`` into ``changes``, which are in the order of a walk."""
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
    """An empty hive; always the same bytes."""
    from lamella.formats.regf import MemoryKey, encode_hive

    return encode_hive(MemoryKey("ROOT"))
