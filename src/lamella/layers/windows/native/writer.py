# SPDX-License-Identifier: Apache-2.0
"""Writes a Windows layer to NTFS by the calls of Windows; the Host Compute Service (HCS) completes it."""

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
from lamella.formats.ntfs.basic_information import DIRECTORY, REPARSE_POINT
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
from lamella.layers.windows.contract import FinalSteps
from lamella.layers.windows.layout import (
    BOOT_COPIES,
    DIRECTORY_SUFFIX,
    HIVES,
    TOMBSTONES,
    UTILITY,
    UTILITY_FILES,
    WindowsLayer,
    in_transport,
    windows_path,
)
from lamella.layers.windows.native.reader import basic_from_facet, facet_from_basic
from lamella.layers.windows.transport import BackupStreams
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.layers.stack import LayerStack

_WRITING: Final = GENERIC_READ | GENERIC_WRITE


class _Open(Struct):
    """The last file, to which alternate streams may be added."""

    streams: BackupStreams
    handle: Handle
    output: BackupOutput | None = None

    def close(self) -> None:
        """Close the file."""
        try:
            if self.output is not None:
                self.output.close()
        finally:
            self.handle.close()


class NativeWriter:
    """Writes the files of a layer with backup semantics (`LayerWriter`).

    A base layer is restored into its folder, which HCS processes at the end. A layer with parents is written into a
    transport folder beside its folder, and HCS imports that; only the utility VM is written directly. The folder has
    its name from the start, but is not a layer before `finish`. Until `finish` or `abort`, which must be called in the
    same thread, the process holds SeBackupPrivilege and SeRestorePrivilege, and the thread SeSecurityPrivilege.
    """

    def __init__(self, layer: WindowsLayer, parents: LayerStack[WindowsLayer] | None, system: WindowsSystem) -> None:
        """Create the folders.

        Raises Denied (a privilege), Unsupported (no Containers feature), Conflict, NotFound (a parent does not exist).
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
        """Directories that are reparse points. They are created last, so that no file is put into them."""
        self._links: list[tuple[LayerPath, LayerPath, LayerPath | None]] = []
        self._privileges = ExitStack()
        try:
            # The thread gets a copy of the process's token: enable the privileges of the process first.
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
        found = self._parent_with(path)
        if found is None:
            return None
        with self._files.open_in(found, windows_path(path)) as handle:
            basic = self._files.basic(handle)
        kind = Kind.DIRECTORY if basic.attributes & DIRECTORY else Kind.FILE
        return Entry(path, kind, None, 0, "", facet_from_basic(basic))

    def imply(self, path: LayerPath) -> None:
        self._files.open_in(self._where(path), windows_path(path), create=True, directory=True).close()

    def put(self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool) -> None:
        content = None if folder or entry.kind is Kind.SYMLINK else content
        if in_transport(entry.path, base=self._base):
            self._put_transported(entry, windows, content, folder=folder, existed=existed)
        else:
            self._put_restored(entry, windows, content, folder=folder, existed=existed)
        if folder:
            self._directories.append((entry.path, basic_from_facet(windows)))

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        if self._open is None:
            raise Conflict(f"{path!r} is closed")
        self._open.streams.alternate(name, content)

    def close_file(self) -> None:
        if self._open is not None:
            opened, self._open = self._open, None
            try:
                opened.streams.flush()
            finally:
                opened.close()

    def link(self, path: LayerPath, target: LayerPath, windows: Windows, *, at: LayerPath | None) -> None:  # noqa: ARG002
        """Links of a base layer are created at once, others after the import."""
        if self._base:
            self._link(self._root, windows_path(at or target), path)
        else:
            self._links.append((path, target, at))

    def whiteout(self, path: LayerPath) -> None:
        """`finish` applies those in `Files`."""

    def clone_utility(self) -> Iterator[tuple[LayerPath, bool]]:
        self._files.open_in(self._root, UTILITY, create=True, directory=True).close()
        root = self._parent_with(LayerPath(UTILITY_FILES))
        if root is not None:
            yield from self._clone(root)

    def remove(self, path: LayerPath) -> None:
        self._files.delete_tree(self._root, windows_path(path))

    def finish(self, ending: FinalSteps) -> None:
        self.close_file()
        for path, copy in ending.boot_copies:
            self._copy_boot_file(path, copy)
        if not self._base:
            self._import(ending)
        for path, basic in reversed(self._directories):
            access = FILE_WRITE_ATTRIBUTES
            with self._files.open_in(self._root, windows_path(path), access, directory=True) as handle:
                self._files.set_basic(handle, basic)
        if ending.utility:
            with self._files.open_in(self._root, UTILITY, directory=True) as handle:
                if self._files.basic(handle).attributes & REPARSE_POINT:
                    raise InvalidInput("UtilityVM is a reparse point")
        self._close()
        if self._base:
            self._system.layers.process_base(self._layer)
        if ending.utility:
            self._system.layers.process_utility(ntpath.join(self._layer, UTILITY))
        self._remove_stage()
        self._made = False  # it is a layer now
        self._privileges.close()

    def abort(self) -> None:
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
            pass  # `abort` does not raise; the name of the folder marks it as temporary
        if self._made:
            self._made = False
            try:
                self._system.layers.destroy(self._layer)
            except LamellaError:
                self._remove_folder(self._layer)
        try:
            self._privileges.close()
        except LamellaError:
            pass  # the first error is reported

    # Folders

    def _parent(self, path: str) -> Handle:
        try:
            return self._files.open(path)
        except NotFound:
            raise NotFound(f"the parent layer {path!r} does not exist") from None

    def _make_folder(self) -> None:
        try:
            self._files.make_directory(self._layer)
        except AlreadyExists:
            with self._files.open(self._layer) as handle:
                directory = self._files.standard(handle).directory
                if not directory or next(self._files.listing(handle), None) is not None:
                    raise Conflict(
                        f"{self._layer!r} exists and is not an empty folder", hint="apply each layer to a new folder"
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
            pass  # the rest is not a layer

    def _where(self, path: str) -> Handle:
        """The folder to which the file ``path`` is written."""
        if self._base or path == UTILITY or path.startswith(UTILITY + "/"):
            return self._root
        assert self._stage is not None  # noqa: S101
        return self._stage

    def _parent_with(self, path: LayerPath) -> Handle | None:
        for root in self._roots:
            try:
                self._files.open_in(root, windows_path(path)).close()
            except NotFound:
                continue
            return root
        return None

    # Files

    def _put_restored(
        self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool
    ) -> None:
        """Restore a file. HCS expects the files of `Hives` in a transport folder without security descriptors."""
        path = entry.path
        security = self._base or not path.startswith(HIVES + "/")
        handle = self._files.open_in(
            self._where(path), windows_path(path), RESTORING, share=SHARE_READ, create=not existed, directory=folder
        )
        output = self._files.restore(handle, security=security)
        self._open = opened = _Open(BackupStreams(output.write, windows), handle, output)
        self._files.set_basic(handle, basic_from_facet(windows))
        opened.streams.head(content, entry.size, sparse=False)

    def _put_transported(
        self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool
    ) -> None:
        """Write attributes and streams to a file, which has the times; those of a directory to a file beside it."""
        path = windows_path(entry.path)
        stage = self._where(entry.path)
        if folder:
            if not existed and windows.reparse is None:
                self._files.open_in(stage, path, create=True, directory=True).close()
            elif windows.reparse is not None:
                self._placeholders.append(entry.path)
            path += DIRECTORY_SUFFIX
        handle = self._files.open_in(stage, path, _WRITING, share=SHARE_READ, create=True)
        self._open = opened = _Open(BackupStreams(partial(self._files.write, handle), windows), handle)
        self._files.set_basic(handle, basic_from_facet(windows, attributes=False))
        opened.streams.head(content, entry.size, prefix=struct.pack("<I", windows.attributes), sparse=False)

    def _link(self, root: Handle, target: str, path: LayerPath) -> None:
        with self._files.open_in(root, target, FILE_WRITE_ATTRIBUTES) as handle:
            self._files.link(handle, self._root, windows_path(path))

    # The utility VM of the nearest parent that has one

    def _clone(self, root: Handle) -> Iterator[tuple[LayerPath, bool]]:
        todo = [UTILITY_FILES]
        while todo:
            path = todo.pop()
            with self._files.open_in(root, windows_path(path), directory=True) as handle:
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
                    with self._files.open_in(root, windows_path(below)) as handle:
                        self._copy(handle, below)
                else:
                    self._link(root, windows_path(below), below)
                yield below, False

    def _copy(self, source: Handle, path: str) -> Basic:
        """Copy a file of a parent with all its metadata and streams."""
        found = self._files.basic(source)
        basic = basic_from_facet(facet_from_basic(found))
        folder = bool(found.attributes & DIRECTORY)
        with self._files.open_in(
            self._root, windows_path(path), RESTORING, share=SHARE_READ, create=True, directory=folder
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
            self._files.open_in(self._root, windows_path(path)) as old,
            self._files.open_in(self._root, copy, _WRITING, create=True) as new,
        ):
            while chunk := self._files.read(old):
                self._files.write(new, chunk)

    def _import(self, ending: FinalSteps) -> None:
        """Let HCS create the folder; then apply tombstones and links, which it leaves out."""
        assert self._stage is not None  # noqa: S101
        self._files.delete_tree(self._stage, TOMBSTONES)  # HCS would read it as its own list
        for path in self._placeholders:
            self._files.open_in(self._stage, windows_path(path), create=True, directory=True).close()
        self._system.layers.import_layer(self._layer, self._stage_path, self._parents)
        for path in ending.tombstones:
            self._delete(path)
        for path, target, at in self._links:
            self._delete(path)
            if at is not None:
                self._link(self._root, windows_path(at), path)
                continue
            root = self._parent_with(target)
            if root is None:
                raise NotFound(f"hard link {path!r}: its target {target!r} does not exist")
            self._link(root, windows_path(target), path)

    def _delete(self, path: LayerPath) -> None:
        try:
            self._files.delete(self._root, windows_path(path))
        except NotFound:
            pass


_COPIED: Final = frozenset(map(names.folded, BOOT_COPIES))
