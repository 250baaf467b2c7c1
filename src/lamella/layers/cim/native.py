# SPDX-License-Identifier: Apache-2.0
"""Composite images written by the calls of Windows (cimfs.dll)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from lamella.changes.contracts import Seen
from lamella.changes.model import Buffer, Kind
from lamella.errors import AlreadyExists, InvalidInput, LamellaError, SizeMismatch, Unsupported
from lamella.formats.ntfs import basic_information as bits
from lamella.host.windows import cimfs
from lamella.host.windows.cimfs import Cimfs
from lamella.host.windows.system import WindowsSystem, this_system
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.import_rules import FileMetadata
from lamella.layers.cim.tree import CimTree
from lamella.layers.windows.layout import windows_path
from lamella.paths import LayerPath

_STREAM: Final = ":$DATA"


class SystemWriter:
    """Writes the image with the handle ``image`` (`CimWriter`). Subclasses remove the files of an aborted image."""

    def __init__(self, calls: Cimfs, image: int) -> None:
        self._calls = calls
        self._image: int | None = image

    @property
    def image(self) -> int:
        """The handle. Raises LamellaError after the image is closed."""
        if self._image is None:
            raise LamellaError("the image is closed")
        return self._image

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> None:
        """For a content of zeros nothing is written; Windows reads that as zeros."""
        known = cimfs.FileMetadata(
            attributes=metadata.attributes,
            size=0 if metadata.attributes & bits.DIRECTORY else size,
            creation_time=metadata.creation_time,
            write_time=metadata.write_time,
            change_time=metadata.change_time,
            access_time=metadata.access_time,
        )
        stream = self._calls.create_file(
            self.image,
            windows_path(path),
            known,
            security=metadata.security,
            reparse=metadata.reparse,
            extended_attributes=metadata.extended_attributes,
        )
        self._fill(stream, path, size, chunks)

    def stream(self, path: str, name: str, size: int, chunks: Iterable[Buffer]) -> None:
        full = f"{windows_path(path)}:{name}{_STREAM}"
        self._fill(self._calls.create_stream(self.image, full, size), full, size, chunks)

    def link(self, path: str, target: str) -> None:
        self._calls.hard_link(self.image, windows_path(path), windows_path(target))

    def merge_link(self, path: str, target: str) -> None:
        self._calls.merge_link(self.image, windows_path(path), windows_path(target))

    def delete(self, path: str) -> None:
        self._calls.delete(self.image, windows_path(path))

    def tombstone(self, path: str) -> None:
        self._calls.tombstone(self.image, windows_path(path))

    def commit(self) -> None:
        self._calls.commit(self.image)
        self.close()

    def close(self) -> None:
        """Close the image. Can be called repeatedly."""
        if self._image is not None:
            image, self._image = self._image, None
            self._calls.close(image)

    def abort(self) -> None:
        """Close the image; its files stay."""
        self.close()

    def _fill(self, stream: int, path: str, size: int, chunks: Iterable[Buffer] | None) -> None:
        done = 0
        try:
            for chunk in chunks or ():
                done += len(chunk)
                if done > size:
                    raise SizeMismatch(f"content of {path!r}", expected=size, actual="more")
                self._calls.write(stream, chunk)
        finally:
            self._calls.close_stream(stream)
        if chunks is not None and done != size:
            raise SizeMismatch(f"content of {path!r}", expected=size, actual=done)


def host_path(path: Path) -> str:
    """A host path as Windows' calls expect it: without a trailing backslash."""
    return os.fspath(path).rstrip("\\")


def fork_writer(
    layer: CimLayer, parent: CimLayer | None = None, system: WindowsSystem | None = None
) -> SystemForkWriter | None:
    """Start the image ``layer`` by the calls of Windows; None if this host has none that can write.

    ``system`` is this host if None. Raises what `SystemForkWriter` raises.
    """
    system = this_system() if system is None else system
    if system is None:
        return None
    try:
        calls = system.images
        calls.check_writing()
    except Unsupported:
        return None
    return SystemForkWriter(calls, layer, parent)


class _Node(NamedTuple):
    name: str
    directory: bool
    reparse: bool


class SystemForkWriter(SystemWriter):
    """Writes the image ``layer``, forked from ``parent`` if given, by the calls of Windows (`ForkWriter`).

    Windows cannot query a new image, so this class records its files, on top of the parent's file tables.
    """

    def __init__(self, calls: Cimfs, layer: CimLayer, parent: CimLayer | None = None) -> None:
        """Start the image. Raises AlreadyExists, NotFound, Unsupported, InvalidInput (parent in another directory)."""
        calls.check_writing()
        layer.check()
        if os.path.lexists(layer.path):
            raise AlreadyExists(f"{os.fspath(layer.path)!r} exists")
        if parent is not None and parent.directory.resolve() != layer.directory.resolve():
            raise InvalidInput(
                f"{os.fspath(layer.path)!r} cannot be forked from {os.fspath(parent.path)!r}",
                hint="an image and those it is forked from must be in one directory",
            )
        self._layer = layer
        self._below = None if parent is None else CimTree(parent)
        self._put: dict[str, _Node] = {}
        """The files that this image has put, by path in upper case."""
        self._inside: dict[str, set[str]] = {}
        """Directory -> the paths in it that lead to files of `_put`; in upper case."""
        self._gone: set[str] = set()
        """Paths at which no file of the parent remains, in upper case."""
        self._before = set(os.listdir(layer.directory))
        existing = None if parent is None else parent.path.name
        try:
            image = calls.create(host_path(layer.directory), existing, layer.path.name)
        except BaseException:
            self._remove()
            raise
        super().__init__(calls, image)

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> None:
        """The root keeps the metadata of the parent."""
        if not path:
            return
        super().put(path, metadata, size, chunks)
        directory = bool(metadata.attributes & bits.DIRECTORY)
        found = self._find(path)
        if found is not None and not (directory and found.directory):
            self._forget(path)
        self._record(path, directory, bool(metadata.attributes & bits.REPARSE_POINT))

    def link(self, path: str, target: str) -> None:
        super().link(path, target)
        self._forget(path)
        self._record(path, False, False)

    def delete(self, path: str) -> None:
        super().delete(path)
        self._forget(path)

    def commit(self) -> None:
        super().commit()
        self._close_parent()

    def abort(self) -> None:
        """Remove the files created since the start; no other program writes into the directory."""
        super().abort()
        self._remove()

    def seen(self, path: str) -> Seen | None:
        found = self._find(path)
        if found is None:
            return None
        return Seen(Kind.DIRECTORY if found.directory and not found.reparse else Kind.FILE)

    def is_reparse_point(self, path: str) -> bool:
        found = self._find(path)
        return found is not None and found.reparse

    def names(self, directory: str) -> Iterable[tuple[str, bool]]:
        found: dict[str, tuple[str, bool]] = {}
        if self._below is not None and not self._is_gone(directory.upper()):
            entry = self._below.lookup(LayerPath(directory))
            for each in self._below.entries(LayerPath(directory)) if entry and entry.kind is Kind.DIRECTORY else ():
                if each.path.upper() not in self._gone:
                    name = each.path.rpartition("/")[2]
                    found[name.upper()] = name, each.kind is Kind.DIRECTORY
        above = directory.upper()
        for key in self._inside.get(above, ()):
            put = self._put.get(key)
            if put is not None:
                found[key.rpartition("/")[2]] = put.name, put.directory
        return list(found.values())

    def touched(self, path: str) -> bool:
        todo = [path.upper()]
        while todo:
            key = todo.pop()
            if key in self._put:
                return True
            todo.extend(self._inside.get(key, ()))
        return False

    def _record(self, path: str, directory: bool, reparse: bool) -> None:
        key = path.upper()
        self._put[key] = _Node(path.rpartition("/")[2], directory, reparse)
        while key:
            parent = key.rpartition("/")[0]
            inside = self._inside.setdefault(parent, set())
            if key in inside:
                break
            inside.add(key)
            key = parent

    def _find(self, path: str) -> _Node | None:
        """The file at ``path``."""
        key = path.upper()
        found = self._put.get(key)
        if found is not None:
            return found
        if not path:
            return _Node("", True, False)
        if self._below is None or self._is_gone(key):
            return None
        entry = self._below.lookup(LayerPath(path))
        if entry is None:
            return None
        attributes = entry.windows.attributes if entry.windows is not None else 0
        return _Node("", bool(attributes & bits.DIRECTORY), bool(attributes & bits.REPARSE_POINT))

    def _is_gone(self, key: str) -> bool:
        while key:
            if key in self._gone:
                return True
            key = key.rpartition("/")[0]
        return False

    def _forget(self, path: str) -> None:
        """Record that nothing is left at ``path`` and below."""
        key = path.upper()
        self._gone.add(key)
        self._inside.get(key.rpartition("/")[0], set()).discard(key)
        todo = [key]
        while todo:
            each = todo.pop()
            self._put.pop(each, None)
            todo.extend(self._inside.pop(each, ()))

    def _close_parent(self) -> None:
        if self._below is not None:
            self._below.close()
            self._below = None

    def _remove(self) -> None:
        self._close_parent()
        for name in set(os.listdir(self._layer.directory)) - self._before:
            if name == self._layer.path.name or name.startswith(("region_", "objectid_")):
                (self._layer.directory / name).unlink(missing_ok=True)
