# SPDX-License-Identifier: Apache-2.0
"""A Windows layer written to NTFS through Windows' own calls, and made a layer by its compute service."""

from __future__ import annotations

import ntpath
import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.changes.model import Content, Entry, Kind, Windows
from lamella.errors import AlreadyExists, Conflict, InvalidInput, LamellaError, NotFound
from lamella.formats.ntfs import names
from lamella.formats.ntfs.attributes import DIRECTORY, REPARSE_POINT
from lamella.host.windows.files import (
    FILE_WRITE_ATTRIBUTES,
    GENERIC_READ,
    GENERIC_WRITE,
    RESTORING,
    SHARE_READ,
    BackupOutput,
    Basic,
    Handle,
)
from lamella.host.windows.security import BACKUP, RESTORE, SECURITY
from lamella.host.windows.system import WindowsSystem
from lamella.layers.windows.contract import Ending
from lamella.layers.windows.layout import (
    BOOT_COPIES,
    DIRECTORY_SUFFIX,
    HIVES,
    TOMBSTONES,
    UTILITY,
    UTILITY_FILES,
    WindowsLayer,
    in_transport,
)
from lamella.layers.windows.native.reader import basic_of, native, windows_of
from lamella.layers.windows.transport import BackupStreams
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.layers.stack import LayerStack

_WRITING: Final = GENERIC_READ | GENERIC_WRITE


class _Open(Struct):
    """The file that was put last, which may still get alternate streams."""

    streams: BackupStreams
    handle: Handle
    output: BackupOutput | None = None

    def close(self) -> None:
        """Let go of it."""
        try:
            if self.output is not None:
                self.output.close()
        finally:
            self.handle.close()


class NativeWriter:
    """Writes a layer's files by backup semantics.

    A base layer is restored into its folder, and processed at the end. One with parents is written into a transport
    folder beside it, from which Windows makes the folder; only its utility VM is written there directly. The folder
    has its name all along; until `finish` it lacks what makes it a layer. Until `finish` or `abort`, which must come
    in the same thread, the process holds SeBackupPrivilege and SeRestorePrivilege, and this thread SeSecurityPrivilege.
    """

    def __init__(self, layer: WindowsLayer, parents: LayerStack[WindowsLayer] | None, system: WindowsSystem) -> None:
        """Make the folders.

        Raises Denied (a privilege), Unsupported (no Containers feature), Conflict, NotFound (a parent is not there).
        """
        self._system = system
        self._files = system.files
        self._layer = ntpath.abspath(os.fspath(layer.path))
        self._base = not parents
        self._parents = [ntpath.abspath(os.fspath(one.path)) for one in parents.nearest_first()] if parents else []
        self._roots: list[Handle] = []
        self._opened = ExitStack()
        self._stage_path = ""
        self._stage: Handle | None = None
        self._made = False
        self._open: _Open | None = None
        self._directories: list[tuple[LayerPath, Basic]] = []
        self._placeholders: list[LayerPath] = []
        """Directories that are links: nothing is to be put into them, so they are made again at the end."""
        self._links: list[tuple[LayerPath, LayerPath, LayerPath | None]] = []
        self._privileges = ExitStack()
        try:
            # The thread gets a copy of the process's token, so that what the process holds comes first.
            self._privileges.enter_context(system.privileges(BACKUP, RESTORE))
            self._privileges.enter_context(system.privileges.in_thread(SECURITY))
            system.layers.require()
            self._roots = [self._opened.enter_context(self._parent(path)) for path in self._parents]
            self._make_folder()
            self._root = self._opened.enter_context(self._files.open(self._layer))
            if not self._base:
                above, name = ntpath.split(self._layer)
                self._stage_path = ntpath.join(above, f".{name}.transport-{secrets.token_hex(4)}")
                self._files.make_directory(self._stage_path)
                self._stage = self._opened.enter_context(self._files.open(self._stage_path))
        except BaseException:
            self.abort()
            raise

    def below(self, path: LayerPath) -> Entry | None:
        """See `LayerWriter.below`."""
        found = self._parent_with(path)
        if found is None:
            return None
        with self._files.open_in(found, native(path)) as handle:
            basic = self._files.basic(handle)
        kind = Kind.DIRECTORY if basic.attributes & DIRECTORY else Kind.FILE
        return Entry(path, kind, None, 0, "", windows_of(basic))

    def imply(self, path: LayerPath) -> None:
        """See `LayerWriter.imply`."""
        self._files.open_in(self._where(path), native(path), create=True, directory=True).close()

    def put(self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool) -> None:
        """See `LayerWriter.put`."""
        content = None if folder or entry.kind is Kind.SYMLINK else content
        if in_transport(entry.path, base=self._base):
            self._put_transported(entry, windows, content, folder=folder, existed=existed)
        else:
            self._put_restored(entry, windows, content, folder=folder, existed=existed)
        if folder:
            self._directories.append((entry.path, basic_of(windows)))

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """See `LayerWriter.stream`."""
        if self._open is None:
            raise Conflict(f"{path!r} is not open any more")
        self._open.streams.alternate(name, content)

    def close_file(self) -> None:
        """See `LayerWriter.close_file`."""
        if self._open is not None:
            opened, self._open = self._open, None
            try:
                opened.streams.flush()
            finally:
                opened.close()

    def link(self, path: LayerPath, target: LayerPath, windows: Windows, *, at: LayerPath | None) -> None:  # noqa: ARG002
        """See `LayerWriter.link`: made at once in a base layer; else once Windows has made the files."""
        if self._base:
            self._link(self._root, native(at or target), path)
        else:
            self._links.append((path, target, at))

    def whiteout(self, path: LayerPath) -> None:
        """See `LayerWriter.whiteout`: those in `Files` come with the end."""

    def clone_utility(self) -> Iterator[tuple[LayerPath, bool]]:
        """See `LayerWriter.clone_utility`."""
        self._files.open_in(self._root, UTILITY, create=True, directory=True).close()
        root = self._parent_with(LayerPath(UTILITY_FILES))
        if root is not None:
            yield from self._clone(root)

    def remove(self, path: LayerPath) -> None:
        """See `LayerWriter.remove`."""
        self._files.delete_tree(self._root, native(path))

    def finish(self, ending: Ending) -> None:
        """See `LayerWriter.finish`."""
        self.close_file()
        for path, copy in ending.boot_copies:
            self._copy_boot_file(path, copy)
        if not self._base:
            self._import(ending)
        for path, basic in reversed(self._directories):
            access = FILE_WRITE_ATTRIBUTES
            with self._files.open_in(self._root, native(path), access, directory=True) as handle:
                self._files.set_basic(handle, basic)
        if ending.utility:
            with self._files.open_in(self._root, UTILITY, directory=True) as handle:
                if self._files.basic(handle).attributes & REPARSE_POINT:
                    raise InvalidInput("UtilityVM is a link")
        self._close()
        if self._base:
            self._system.layers.process_base(self._layer)
        if ending.utility:
            self._system.layers.process_utility(ntpath.join(self._layer, UTILITY))
        self._remove_stage()
        self._made = False  # from here on it is a layer
        self._privileges.close()

    def abort(self) -> None:
        """See `LayerWriter.abort`."""
        try:
            if self._open is not None:
                self._open.close()
                self._open = None
        except LamellaError:
            pass
        self._close()
        try:
            self._remove_stage()
        except LamellaError:
            pass  # `abort` does not raise; the name of what is left says what it is
        if self._made:
            self._made = False
            try:
                self._system.layers.destroy(self._layer)
            except LamellaError:
                self._remove_folder(self._layer)
        try:
            self._privileges.close()
        except LamellaError:
            pass  # what has gone wrong before is what is to be told

    # Folders

    def _parent(self, path: str) -> Handle:
        try:
            return self._files.open(path)
        except NotFound:
            raise NotFound(f"the parent layer {path!r} is not there") from None

    def _make_folder(self) -> None:
        try:
            self._files.make_directory(self._layer)
        except AlreadyExists:
            with self._files.open(self._layer) as handle:
                directory = self._files.standard(handle).directory
                if not directory or next(self._files.listing(handle), None) is not None:
                    raise Conflict(
                        f"{self._layer!r} is there, and is no empty folder", hint="apply each layer to a new folder"
                    ) from None
        self._made = True

    def _close(self) -> None:
        self._opened.close()
        self._stage = None

    def _remove_stage(self) -> None:
        if self._stage_path:
            above, name = ntpath.split(self._stage_path)
            with self._files.open(above) as handle:
                self._files.delete_tree(handle, name)
            self._stage_path = ""

    def _remove_folder(self, path: str) -> None:
        above, name = ntpath.split(path)
        try:
            with self._files.open(above) as handle:
                self._files.delete_tree(handle, name)
        except LamellaError:
            pass  # what is left has no files that make it a layer

    def _where(self, path: str) -> Handle:
        """The folder that the file ``path`` is written to."""
        if self._base or path == UTILITY or path.startswith(UTILITY + "/"):
            return self._root
        assert self._stage is not None  # noqa: S101
        return self._stage

    def _parent_with(self, path: LayerPath) -> Handle | None:
        for root in self._roots:
            try:
                self._files.open_in(root, native(path)).close()
            except NotFound:
                continue
            return root
        return None

    # Files

    def _put_restored(
        self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool
    ) -> None:
        """A file as itself. Of `Hives` in a transport folder Windows wants the content alone."""
        path = entry.path
        security = self._base or not path.startswith(HIVES + "/")
        handle = self._files.open_in(
            self._where(path), native(path), RESTORING, share=SHARE_READ, create=not existed, directory=folder
        )
        output = self._files.restore(handle, security=security)
        self._open = opened = _Open(BackupStreams(output.write, windows), handle, output)
        self._files.set_basic(handle, basic_of(windows))
        opened.streams.head(content, entry.size, sparse=False)

    def _put_transported(
        self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool
    ) -> None:
        """Attributes and streams in a file, which has the times; a directory has its own file beside it."""
        path = native(entry.path)
        stage = self._where(entry.path)
        if folder:
            if not existed and windows.reparse is None:
                self._files.open_in(stage, path, create=True, directory=True).close()
            elif windows.reparse is not None:
                self._placeholders.append(entry.path)
            path += DIRECTORY_SUFFIX
        handle = self._files.open_in(stage, path, _WRITING, share=SHARE_READ, create=True)
        self._open = opened = _Open(BackupStreams(partial(self._files.write, handle), windows), handle)
        self._files.set_basic(handle, basic_of(windows, attributes=False))
        opened.streams.head(content, entry.size, prefix=struct.pack("<I", windows.attributes), sparse=False)

    def _link(self, root: Handle, target: str, path: LayerPath) -> None:
        with self._files.open_in(root, target, FILE_WRITE_ATTRIBUTES) as handle:
            self._files.link(handle, self._root, native(path))

    # The utility VM of the nearest parent that has one

    def _clone(self, root: Handle) -> Iterator[tuple[LayerPath, bool]]:
        todo = [UTILITY_FILES]
        while todo:
            path = todo.pop()
            with self._files.open_in(root, native(path), directory=True) as handle:
                basic = self._copy(handle, path)
                inner = sorted(self._files.listing(handle), key=lambda one: one.name, reverse=True)
            self._directories.append((LayerPath(path), basic))
            yield LayerPath(path), True
            for one in inner:
                below = LayerPath(f"{path}/{one.name}")
                if one.attributes & DIRECTORY and not one.attributes & REPARSE_POINT:
                    todo.append(below)
                    continue
                if one.attributes & REPARSE_POINT or names.folded(below) in _COPIED:
                    with self._files.open_in(root, native(below)) as handle:
                        self._copy(handle, below)
                else:
                    self._link(root, native(below), below)
                yield below, False

    def _copy(self, source: Handle, path: str) -> Basic:
        """Make a file of a parent anew, with all that it has."""
        found = self._files.basic(source)
        basic = basic_of(windows_of(found))
        folder = bool(found.attributes & DIRECTORY)
        with self._files.open_in(
            self._root, native(path), RESTORING, share=SHARE_READ, create=True, directory=folder
        ) as handle:
            self._files.set_basic(handle, basic)
            with (
                self._files.backup(source, security=True) as read,
                self._files.restore(handle, security=True) as written,
            ):
                while chunk := read.read():
                    written.write(chunk)
        return basic

    # The end

    def _copy_boot_file(self, path: LayerPath, copy: str) -> None:
        with (
            self._files.open_in(self._root, native(path)) as old,
            self._files.open_in(self._root, copy, _WRITING, create=True) as new,
        ):
            while chunk := self._files.read(old):
                self._files.write(new, chunk)

    def _import(self, ending: Ending) -> None:
        """Let Windows make the folder, and do what it leaves undone."""
        assert self._stage is not None  # noqa: S101
        self._files.delete_tree(self._stage, TOMBSTONES)  # it would take this for its own
        for path in self._placeholders:
            self._files.open_in(self._stage, native(path), create=True, directory=True).close()
        self._system.layers.import_layer(self._layer, self._stage_path, self._parents)
        for path in ending.tombstones:
            self._delete(path)
        for path, target, at in self._links:
            self._delete(path)
            if at is not None:
                self._link(self._root, native(at), path)
                continue
            root = self._parent_with(target)
            if root is None:
                raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
            self._link(root, native(target), path)

    def _delete(self, path: LayerPath) -> None:
        try:
            self._files.delete(self._root, native(path))
        except NotFound:
            pass


_COPIED: Final = frozenset(map(names.folded, BOOT_COPIES))
