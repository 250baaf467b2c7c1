# SPDX-License-Identifier: Apache-2.0
"""Writes the folder of a Windows layer on a host without NTFS."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from lamella.changes.model import Buffer, Content, Entry, Kind, Windows
from lamella.errors import Conflict, FormatError, InvalidInput, LamellaError, SizeMismatch, from_os
from lamella.formats.ntfs import names
from lamella.host import file_io
from lamella.layers.directory.dirfd_cache import Descriptors, open_root, remove_tree
from lamella.layers.windows.contract import FinalSteps
from lamella.layers.windows.folder.index import BASE, TRANSPORT, IndexWriter, LinkFact, PutFact, StreamFact
from lamella.layers.windows.folder.parents import Parents
from lamella.layers.windows.hives import base_hives, merged_hives
from lamella.layers.windows.layout import (
    BOOT_COPIES,
    DIRECTORY_SUFFIX,
    INDEX,
    STREAMS,
    TOMBSTONES,
    UTILITY,
    WindowsLayer,
    disk_name,
    disk_path,
    in_transport,
    tombstone_list,
)
from lamella.layers.windows.tar_source import EmptyData
from lamella.layers.windows.transport import BackupStreams
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.layers.stack import LayerStack


def write_plain(
    file: int, content: Content, path: str, *, size: int | None = None, at: int = 0
) -> Sequence[tuple[int, int]] | None:
    """Write the content at the offset ``at`` of an open file, and keep its holes; return its extents.

    Raises SizeMismatch, OSError.
    """
    wanted = content.size if size is None else size
    extents = content.extents
    if extents is None:
        done = at
        for chunk in content.chunks():
            done += _write(file, chunk)
        if done - at != wanted:
            raise SizeMismatch(f"content of {path!r}", expected=wanted, actual=done - at)
        return None
    if content.size != wanted:
        raise SizeMismatch(f"content of {path!r}", expected=wanted, actual=content.size)
    starts = iter(extents)
    offset = left = 0
    for chunk in content.chunks():
        view = memoryview(chunk)
        while view:
            if not left:
                offset, left = next(starts)
                os.lseek(file, at + offset, os.SEEK_SET)
            part = view[:left]
            _write(file, part)
            left -= len(part)
            view = view[len(part) :]
    os.ftruncate(file, at + wanted)
    os.lseek(file, at + wanted, os.SEEK_SET)
    return tuple(extents)


def _write(file: int, chunk: Buffer) -> int:
    size = len(chunk)
    done = os.write(file, chunk)
    while done < size:
        done += os.write(file, memoryview(chunk)[done:])
    return size


class Backup(BackupStreams):
    """Writes the backup streams of one file in a transport folder, and owns the file."""

    __slots__ = ("_file",)

    def __init__(self, file: int, windows: Windows) -> None:
        super().__init__(partial(_write, file), windows)
        self._file = file

    def close(self) -> None:
        """Flush, set the times, and close the file. Raises OSError."""
        try:
            self.flush()
            write = self._windows.write_time
            if write is not None:
                access = self._windows.access_time
                os.utime(self._file, ns=(write if access is None else access, write))
        finally:
            os.close(self._file)


_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | file_io.O_NOFOLLOW | file_io.O_CLOEXEC


class FolderWriter:
    """Writes the files of a layer, and an index of all metadata that this host cannot store (`LayerWriter`).

    Works in a hidden folder beside that of the layer; `finish` renames it, `abort` removes it.
    """

    def __init__(self, layer: WindowsLayer, parents: LayerStack[WindowsLayer] | None, *, dirty: bool = False) -> None:
        """Create the hidden folder. Raises Conflict, NotFound (a parent does not exist)."""
        self._layer = layer
        self._base = not parents
        self._parents = Parents(parents)
        self._dirty = dirty
        self._backup: Backup | None = None
        """The last file, if alternate streams may still follow."""
        self._streams: int | None = None
        self._streams_size = 0
        self._near = "", ""
        """The last directory, and its path on disk."""
        self._stage = self._make_stage(layer.path)
        try:
            self._descriptors = Descriptors(open_root(self._stage))
            self._index_file = self.beside(INDEX)
            self._index = IndexWriter(self._index_file.write, BASE if self._base else TRANSPORT)
        except BaseException:
            self._remove()
            raise

    def beside(self, name: str) -> BinaryIO:
        """Create the file ``name`` at the top of the folder; the caller closes it. Raises Denied, Exhausted."""
        try:
            return os.fdopen(os.open(name, _CREATE, 0o666, dir_fd=self._descriptors.root), "wb", 1 << 18)
        except OSError as error:
            raise from_os(error, f"make {name!r}") from error

    def below(self, path: LayerPath) -> Entry | None:
        return self._parents.lookup(path)

    def imply(self, path: LayerPath) -> None:
        parent, _, name = path.rpartition("/")
        os.mkdir(disk_name(name), dir_fd=self._descriptors.open(self._on_disk(parent)))

    def put(self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool) -> None:
        self._index.put(self._write(entry, windows, content, folder=folder, existed=existed))

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        if self._backup is not None:
            at = self._backup.alternate(name, content)
        else:
            if self._streams is None:
                self._streams = os.open(STREAMS, _CREATE, 0o666, dir_fd=self._descriptors.root)
            at = self._streams_size
            write_plain(self._streams, content, path, at=at)
            self._streams_size += content.size
        self._index.stream(StreamFact(path, name, content.size, at))

    def close_file(self) -> None:
        if self._backup is not None:
            backup, self._backup = self._backup, None
            backup.close()

    def link(self, path: LayerPath, target: LayerPath, windows: Windows, *, at: LayerPath | None) -> None:
        # Files in transport are linked in the index only, as in a folder that Windows wrote.
        if at is not None and not (in_transport(path, base=self._base) or in_transport(target, base=self._base)):
            self._link_on_disk(path, at)
        self._index.link(LinkFact(path, target, windows))

    def whiteout(self, path: LayerPath) -> None:
        self._index.whiteout(path)

    def clone_utility(self) -> Iterator[tuple[LayerPath, bool]]:
        os.mkdir(UTILITY, dir_fd=self._descriptors.root)
        return self._parents.clone_utility(self._descriptors, frozenset(map(names.folded, BOOT_COPIES)))

    def remove(self, path: LayerPath) -> None:
        place = disk_path(path)
        self._descriptors.forget(place)
        parent, _, name = place.rpartition("/")
        remove_tree(self._descriptors.open(parent), name)

    def finish(self, ending: FinalSteps) -> None:
        """Raises Conflict if the name has been taken."""
        for path, copy in ending.boot_copies:
            self._copy_boot_file(path, copy)
        self._make_hives(ending)
        root = self._descriptors.root
        if not self._base:
            with open(os.open(TOMBSTONES, _CREATE, 0o666, dir_fd=root), "wb") as written:
                written.write(tombstone_list(ending.tombstones))
        self._index.finish()
        self._index_file.close()
        self._close()
        try:
            os.rename(self._stage, self._layer.path)
        except FileExistsError:
            raise self._occupied() from None

    def abort(self) -> None:
        try:
            if self._backup is not None:
                self._backup.close()
            self._index_file.close()
        except (OSError, LamellaError):
            pass  # the folder is removed below
        self._close()
        self._remove()

    # The stage

    def _make_stage(self, place: os.PathLike[str]) -> str:
        wanted = os.path.abspath(place)
        if os.path.lexists(wanted) and (not os.path.isdir(wanted) or os.path.islink(wanted) or os.listdir(wanted)):
            raise self._occupied()
        parent, name = os.path.split(wanted)
        stage = os.path.join(parent, f".{disk_name(name)[:200]}.unfinished-{secrets.token_hex(4)}")
        try:
            os.mkdir(stage)
        except OSError as error:
            raise from_os(error, f"make a folder in {parent!r}") from error
        return stage

    def _occupied(self) -> Conflict:
        return Conflict(
            f"{os.fspath(self._layer.path)!r} exists and is not an empty folder",
            hint="apply each layer to a new folder",
        )

    def _close(self) -> None:
        if self._streams is not None:
            os.close(self._streams)
            self._streams = None
        self._descriptors.close()

    def _remove(self) -> None:
        parent, name = os.path.split(self._stage)
        try:
            descriptor = os.open(parent, os.O_RDONLY | file_io.O_DIRECTORY)
            try:
                remove_tree(descriptor, name)
            finally:
                os.close(descriptor)
        except OSError:
            pass  # `abort` does not raise; the name of the folder marks it as unfinished

    # Files

    def _on_disk(self, directory: str) -> str:
        """`disk_path` of a directory, cached for the last one."""
        known, place = self._near
        if directory != known:
            above, _, name = directory.rpartition("/")
            place = f"{place}/{disk_name(name)}" if above and above == known else disk_path(directory)
            self._near = directory, place
        return place

    def _write(
        self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool
    ) -> PutFact:
        path = entry.path
        parent, _, name = path.rpartition("/")
        name = disk_name(name)
        directory = self._descriptors.open(self._on_disk(parent))
        if folder and not existed:
            os.mkdir(name, dir_fd=directory)
        has_data = type(content) is EmptyData
        if in_transport(path, base=self._base):
            if folder:
                name += DIRECTORY_SUFFIX
            file = os.open(name, _CREATE, 0o666, dir_fd=directory)
            self._backup = backup = Backup(file, windows)
            streamed = None if folder or entry.kind is Kind.SYMLINK else content
            at = backup.head(streamed, entry.size, prefix=struct.pack("<I", windows.attributes))
            return PutFact(entry, at, backup.extents, has_data)
        if folder:
            return PutFact(entry, None)
        file = os.open(name, _CREATE, 0o666, dir_fd=directory)
        try:
            extents = None
            if content is not None and entry.kind is Kind.FILE:
                extents = write_plain(file, content, path, size=entry.size)
            if windows.write_time is not None:
                time = windows.write_time
                os.utime(file, ns=(time, time))
        finally:
            os.close(file)
        return PutFact(entry, None, extents, has_data)

    def _link_on_disk(self, path: str, target: str) -> None:
        parent, _, name = disk_path(path).rpartition("/")
        from_parent, _, from_name = disk_path(target).rpartition("/")
        self._descriptors.open(from_parent)
        directory = self._descriptors.open(parent)
        source = self._descriptors.open(from_parent)
        if self._descriptors.known.get(parent) != directory:
            raise Conflict("the limit of open files is too low")
        os.link(disk_name(from_name), disk_name(name), src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)

    # The end

    def _copy_boot_file(self, path: LayerPath, copy: str) -> None:
        parent, _, name = path.rpartition("/")
        try:
            file = os.open(name, os.O_RDONLY | file_io.O_NOFOLLOW, dir_fd=self._descriptors.open(parent))
        except FileNotFoundError:
            return  # in another case, which hcsshim does not copy
        try:
            target = os.open(copy, _CREATE, 0o666, dir_fd=self._descriptors.root)
            with open(target, "wb") as written:
                while chunk := os.read(file, 1 << 20):
                    written.write(chunk)
        finally:
            os.close(file)

    def _make_hives(self, ending: FinalSteps) -> None:
        if self._base:
            base_hives(self._descriptors.root)
        elif ending.hives:
            try:
                merged_hives(self._descriptors.root, self._parents, dirty=self._dirty)
            except FormatError as error:
                raise InvalidInput(f"cannot merge the hives of the layer and its parents: {error}") from None
