# SPDX-License-Identifier: Apache-2.0
"""The layers below a Windows layer: metadata for hard links, hives to merge, and the utility VM to clone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from lamella.changes.model import Entry, Kind
from lamella.errors import NotFound, from_os
from lamella.formats.ntfs import names
from lamella.host import file_io
from lamella.layers.directory.dirfd_cache import Descriptors, open_root
from lamella.layers.windows.folder.index import IndexReader, LinkFact, PutFact, WhiteoutFact
from lamella.layers.windows.layout import (
    CONFIG,
    HIVE_LOGS,
    HIVE_NAMES,
    HIVES,
    INDEX,
    UTILITY_FILES,
    WindowsLayer,
)
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.layers.stack import LayerStack


class Parents:
    """The folders of the layers below, read on demand."""

    def __init__(self, parents: LayerStack[WindowsLayer] | None) -> None:
        self._layers = parents.nearest_first() if parents else ()
        self._entries: list[tuple[dict[str, Entry], set[str]]] | None = None
        for layer in self._layers:
            if not layer.path.is_dir():
                raise NotFound(f"the parent layer {os.fspath(layer.path)!r} does not exist")

    def lookup(self, path: LayerPath) -> Entry | None:
        """The file ``path`` in the merged layers below; None if they have none."""
        if self._entries is None:
            self._entries = [_entries(layer) for layer in self._layers]
        key = names.folded(path)
        for entries, hidden in self._entries:
            found = entries.get(key)
            if found is not None:
                return found
            at = key if hidden else ""
            while at:
                if at in hidden:
                    return None
                at = at.rpartition("/")[0]
        return None

    def hive(self, name: str) -> bytes | None:
        """The file ``name`` in `Hives` of the nearest parent that has it, with the changes in its transaction logs."""
        for layer in self._layers:
            folder = layer.path / HIVES
            try:
                found = [one for one in os.listdir(folder) if one.lower() == name.lower()]
                if found:
                    return _replayed(layer, name, _read(folder / found[0]))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise from_os(error, f"read {name!r} of {os.fspath(layer.path)!r}") from error
        return None

    def clone_utility(self, target: Descriptors, copied: frozenset[str]) -> Iterator[tuple[LayerPath, bool]]:
        """Clone the parents' utility VM into the folder. Yields each path, and whether it is a directory.

        Files are hard-linked, since files of layers never change; those in ``copied`` are copied, because Windows
        writes to them.
        """
        for layer in self._layers:
            if (layer.path / UTILITY_FILES).is_dir():
                yield from _clone(layer, target, copied)
                return


def _replayed(layer: WindowsLayer, name: str, data: bytes) -> bytes:
    """The hive ``name`` of a layer after the transaction logs in its configuration, if it is dirty."""
    from lamella.formats.regf.log import is_dirty, replay_logs

    if not is_dirty(data):
        return data
    hive = next(hive for hive, stem in HIVE_NAMES.items() if f"{stem}_Base".lower() == name.lower())
    wanted = {f"{hive}{suffix}".lower() for suffix in HIVE_LOGS}
    folder = layer.path
    for part in CONFIG.strip("/").split("/"):
        folder /= next((one for one in os.listdir(folder) if one.lower() == part.lower()), part)
    logs = sorted(one for one in os.listdir(folder) if one.lower() in wanted)
    return replay_logs(data, [_read(folder / one) for one in logs])


def _read(path: Path) -> bytes:
    with open(os.open(path, file_io.READ_FILE), "rb") as file:
        return file.read()


def _clone(layer: WindowsLayer, target: Descriptors, copied: frozenset[str]) -> Iterator[tuple[LayerPath, bool]]:
    source = Descriptors(open_root(layer.path))
    try:
        todo = [UTILITY_FILES]
        while todo:
            path = todo.pop()
            parent, _, name = path.rpartition("/")
            os.mkdir(name, dir_fd=target.open(parent))
            yield LayerPath(path), True
            with os.scandir(source.open(path)) as scan:
                found = [
                    (one.name, one.is_dir(follow_symlinks=False), one.is_file(follow_symlinks=False)) for one in scan
                ]
            for name, directory, regular in found:
                inner = LayerPath(f"{path}/{name}")
                if directory:
                    todo.append(inner)
                elif regular:
                    from_directory, to_directory = source.open(path), target.open(path)
                    if names.folded(inner) in copied:
                        _copy(name, from_directory, to_directory)
                    else:
                        _link(name, from_directory, to_directory)
                    yield inner, False
    finally:
        source.close()


def _link(name: str, source: int, target: int) -> None:
    try:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError:  # another file system, or too many links
        _copy(name, source, target)


def _copy(name: str, source: int, target: int) -> None:
    with (
        open(os.open(name, file_io.READ_FILE, dir_fd=source), "rb") as old,
        open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=target), "wb") as new,
    ):
        while chunk := old.read(1 << 20):
            new.write(chunk)
        status = os.fstat(old.fileno())
        new.flush()
        os.utime(new.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def open_index(layer: WindowsLayer) -> BinaryIO:
    """Open the index of the folder. Raises NotFound, Denied and other errors of opening a file."""
    try:
        return open(os.open(layer.path / INDEX, file_io.READ_FILE), "rb", 1 << 18)
    except FileNotFoundError:
        raise NotFound(
            f"{os.fspath(layer.path)!r} has no {INDEX}: it is not a layer folder that Lamella wrote"
        ) from None
    except OSError as error:
        raise from_os(error, f"read the index of {os.fspath(layer.path)!r}") from error


def _entries(layer: WindowsLayer) -> tuple[dict[str, Entry], set[str]]:
    """The files of one layer by folded path, and the folded paths that it hides."""
    entries: dict[str, Entry] = {}
    hidden: set[str] = set()
    with open_index(layer) as file:
        for fact in IndexReader(file):
            if isinstance(fact, PutFact):
                entries[names.folded(fact.entry.path)] = fact.entry
            elif isinstance(fact, LinkFact):
                entries[names.folded(fact.path)] = Entry(fact.path, Kind.FILE, None, 0, "", fact.windows)
            elif isinstance(fact, WhiteoutFact):
                hidden.add(names.folded(fact.path))
    return entries, hidden
