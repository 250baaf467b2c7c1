# SPDX-License-Identifier: Apache-2.0
"""Applies the changes of a layer to the folder of a Windows layer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Final

from msgspec.structs import replace

from lamella.changes.limits import Implied
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Change, Content, Entry, Kind, Windows
from lamella.changes.whiteouts import PutRecord
from lamella.errors import InvalidInput, MissingFacet, NotFound, Unsupported, from_os
from lamella.formats.ntfs import names, reparse
from lamella.formats.ntfs.basic_information import DIRECTORY
from lamella.layers.windows.backend import open_writer
from lamella.layers.windows.contract import FinalSteps
from lamella.layers.windows.folder.tar_split import FramingWriter
from lamella.layers.windows.folder.writer import FolderWriter
from lamella.layers.windows.hives import check_hive
from lamella.layers.windows.layout import (
    BOOT_COPIES,
    DIRECTORY_SUFFIX,
    FILES,
    FRAMING,
    HIVES,
    TOPS,
    UTILITY,
    UTILITY_FILES,
    WindowsLayer,
)
from lamella.layers.windows.names import NameRules, lost_stream
from lamella.layers.windows.tar_sink import LinkMetadata
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.paths import LayerPath, join

if TYPE_CHECKING:
    from lamella.host.windows.system import WindowsSystem
    from lamella.layers.stack import LayerStack
    from lamella.streams.blob_reader import BlobReader


class PathStates:
    """A small integer for each path; the caller folds paths to the form that NTFS compares."""

    __slots__ = ("_inside",)

    def __init__(self) -> None:
        self._inside: dict[str, dict[str, int]] = {}

    def get(self, path: str) -> int | None:
        """The state of ``path``, or None."""
        parent, _, name = path.rpartition("/")
        inside = self._inside.get(parent)
        return None if inside is None else inside.get(name)

    def __contains__(self, path: str) -> bool:
        return self.get(path) is not None

    def __setitem__(self, path: str, code: int) -> None:
        parent, _, name = path.rpartition("/")
        inside = self._inside.get(parent)
        if inside is None:
            inside = self._inside[parent] = {}
        inside[name] = code

    def remove(self, path: str) -> list[str]:
        """Remove ``path`` and everything below it; return the removed paths. Takes time in proportion to them."""
        parent, _, name = path.rpartition("/")
        inside = self._inside.get(parent)
        if inside is not None:
            inside.pop(name, None)
        gone = [path]
        for at in gone:
            gone.extend(f"{at}/{beneath}" for beneath in self._inside.pop(at, ()))
        return gone


_PARENT_HINT: Final = "give the layers below with --parent, the nearest first"

_FILE: Final = 0
_DIRECTORY: Final = 1
_CLOSED: Final = 2
"""A reparse point: nothing can be put into it."""
_IMPLIED: Final = 3
"""An implied parent directory."""
_CLONED_FILE: Final = 4
_CLONED: Final = 5
"""A directory of the parent's utility VM; `_CLONED_FILE` is a file of it."""
_LINK: Final = 6
_OPEN: Final = (_DIRECTORY, _IMPLIED, _CLONED)
_UTILITY: Final = names.folded(UTILITY)
_IN_HIVES: Final = f"{HIVES}/"
_IN_FILES: Final = names.folded(f"{FILES}/")


class WindowsSink:
    """Applies a layer to the folder ``layer``, which must be empty or absent.

    Without ``parents``, the folder is that of a base layer and holds the files themselves; with parents, it is a
    transport folder, which holds the attributes and backup streams of each file in `Files`. ``lamella.index`` keeps the
    order of the entries and all metadata that this host cannot store. The sink refuses top-level names other than
    `Files`, `Hives` and `UtilityVM`, names that occur twice (in any case), and entries below a reparse point. ``rules``
    allow unusual names; ``dirty`` is that of `merge_deltas`.

    On Windows (``system``; None for this host) the calls of Windows write the layer. Nothing that looks like a layer
    exists until `commit`.
    """

    def __init__(
        self,
        layer: WindowsLayer,
        *,
        parents: LayerStack[WindowsLayer] | None = None,
        rules: NameRules | None = None,
        losses: Losses | None = None,
        system: WindowsSystem | None = None,
        dirty: bool = False,
    ) -> None:
        """Start the layer. Raises Conflict, NotFound (a parent does not exist), and what `open_writer` raises."""
        self.layer = layer
        self.size = 0
        """Bytes of all files so far, counted as hcsshim does: without alternate streams and further hard links."""
        self._base = not parents
        self._writer = open_writer(layer, parents, system, dirty=dirty)
        self._awkward = rules is not None and rules.awkward
        self._losses = losses if losses is not None else Losses()
        self._lost: set[str] = set()
        self._kinds = PathStates()
        """The state of each path of the layer, by folded path."""
        self._spelled: dict[str, LayerPath] = {"": LayerPath("")}
        """Folded path of a directory -> its path as spelled in the folder."""
        self._entered = "", LayerPath("")
        """The last parent directory, and its path as spelled in the folder."""
        self._facets = LinkMetadata()
        self._link_facet: tuple[LayerPath, Windows] | None = None
        self._tombstones: dict[str, LayerPath] = {}
        """The whiteouts in `Files`, by folded path."""
        self._absent: tuple[str, ...] = ()
        """The folded path, with a slash, of the last implied directory that no lower layer has."""
        self._owner: LayerPath | None = None
        """The last file, to which alternate streams may be added."""
        self._implied = Implied()

    @property
    def view(self) -> None:
        return

    @property
    def layered(self) -> bool:
        return True

    def beside(self, name: str) -> BinaryIO | None:
        """Create the file ``name`` at the top of the folder; the caller closes it. None if Windows writes the layer."""
        return self._writer.beside(name) if isinstance(self._writer, FolderWriter) else None

    def put(self, entry: Entry, content: Content | None) -> None:
        """Raises MissingFacet, InvalidInput, UnsafePath, Exhausted, SizeMismatch."""
        windows = entry.windows
        if not entry.path:
            return
        if windows is None:
            raise MissingFacet(entry.path, "Windows")
        self._close_owner()
        if entry.kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
            self._lost.add(entry.path)
            self._losses.record(Loss(entry.path, entry.kind.value, "Windows has none"))
            return
        directory = entry.kind is Kind.DIRECTORY
        if entry.kind is Kind.FILE and windows.attributes & DIRECTORY:
            raise InvalidInput(f"{entry.path!r} is a file, but has the attribute of a directory")
        if entry.kind is Kind.SYMLINK and windows.reparse is None:
            windows = replace(windows, reparse=reparse.encode(reparse.symlink(entry.target)))
            entry = replace(entry, windows=windows)
        folder = directory or bool(windows.attributes & DIRECTORY)
        path, key, known = self._claim(entry.path, folder=folder)
        if path[:6] == _IN_HIVES:
            check_hive(path, entry.kind)
        if path != entry.path:
            entry = Entry(path, entry.kind, None, entry.size, entry.target, windows)
        closed = windows.reparse is not None
        try:
            if path == UTILITY and not self._base:
                self._clone()
                known = self._kinds.get(key)
            existed = known is not None and self._make_room(path, key, known, directory=folder and not closed)
            self._writer.put(entry, windows, content, folder=folder, existed=existed)
        except OSError as error:
            raise from_os(error, f"write {path!r}") from error
        self.size += entry.size
        if folder:
            self._kinds[key] = _CLOSED if closed else _DIRECTORY
            self._spelled[key] = path
        else:
            self._kinds[key] = _FILE
            self._facets.add(path, windows)
        self._owner = path

    def link_facet(self, path: LayerPath, windows: Windows) -> None:
        """Set the attributes and times that the source gives for the next change, the hard link ``path``."""
        self._link_facet = path, windows

    def link(self, path: LayerPath, target: LayerPath) -> None:
        """Raises InvalidInput, NotFound, MissingFacet.

        A target in the layers below must be in their spelling or in that of this layer.
        """
        self._close_owner()
        if target in self._lost:
            self._lost.add(path)
            self._losses.record(Loss(path, "hard link", f"its target {target!r} was dropped"))
            return
        stated, self._link_facet = self._link_facet, None
        if not self._base:
            for name in (path, target):
                if not name.startswith((FILES + "/", UTILITY_FILES + "/")):
                    raise InvalidInput(f"hard link {path!r}: {name!r} is not in Files or UtilityVM/Files")
        goal = names.folded(target)
        code = self._kinds.get(goal)
        if code in (_DIRECTORY, _CLOSED, _IMPLIED, _CLONED):
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
        facet = self._facets.find(target) if code is not None else None
        if code is None or facet is None:
            below = None if self._hidden(goal) else self._writer.below(target)
            if below is None or (code is None and not target.startswith(FILES + "/")):
                hint = _PARENT_HINT if self._base else None
                raise NotFound(f"hard link {path!r}: its target {target!r} does not exist", hint=hint)
            if below.kind is Kind.DIRECTORY:
                raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
            facet = facet or below.windows
        if stated is not None and stated[0] == path:
            facet = stated[1]
        if facet is None:
            raise MissingFacet(target, "Windows")
        path, key, known = self._claim(path, folder=False)
        if path[:6] == _IN_HIVES:
            check_hive(path, None)
        try:
            if known is not None:
                self._make_room(path, key, known, directory=False)
            self._writer.link(path, target, facet, at=None if code is None else self._on_disk(target))
        except OSError as error:
            raise from_os(error, f"link {path!r} to {target!r}") from error
        self._kinds[key] = _LINK
        self._facets.add(path, facet)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """The stream must follow its file. Raises InvalidInput, SizeMismatch."""
        loss = lost_stream(path, name, self._lost)
        if loss is not None:
            self._losses.record(loss)
            return
        if self._owner is None or names.folded(self._owner) != names.folded(path):
            raise InvalidInput(f"the alternate data stream {name!r} does not follow its file {path!r}")
        path = self._owner
        try:
            self._writer.stream(path, name, content)
        except OSError as error:
            raise from_os(error, f"write {path!r}") from error

    def whiteout(self, path: LayerPath) -> None:
        """Raises InvalidInput in a base layer; NotFound for a file that the utility VM does not have."""
        self._close_owner()
        if self._base:
            raise InvalidInput(f"whiteout of {path!r} in a base layer, which has no layers below", hint=_PARENT_HINT)
        self._check_names(path)
        if path.startswith(FILES + "/"):
            self._tombstones[names.folded(path)] = path
        elif path.startswith(UTILITY_FILES + "/"):
            key = names.folded(path)
            try:
                self._clone()
                found = self._kinds.get(key)
                if found in (_CLONED, _CLONED_FILE):
                    self._displace(key)
                elif found is None:
                    raise NotFound(f"whiteout of {path!r}, which the layers below do not have")
            except OSError as error:
                raise from_os(error, f"remove {path!r}") from error
        else:
            raise InvalidInput(f"whiteout of {path!r}, which is not in Files or UtilityVM/Files")
        self._writer.whiteout(path)

    def opaque(self, path: LayerPath, record: PutRecord) -> None:  # noqa: ARG002
        """Raises Unsupported: Windows layers have no opaque directories."""
        raise Unsupported(
            f"{path!r}: Windows layers have no opaque directories",
            hint="compare with the layers below, which gives a whiteout for each removed file",
        )

    def commit(self) -> Losses:
        """Run the final steps, and rename the folder. Raises Conflict if its name has been taken."""
        try:
            self._close_owner()
            self._writer.finish(self._ending())
        except OSError as error:
            raise from_os(error, f"finish the layer {os.fspath(self.layer.path)!r}") from error
        return self._losses

    def abort(self) -> None:
        self._writer.abort()

    def _ending(self) -> FinalSteps:
        stated = (_FILE, _LINK)
        return FinalSteps(
            boot_copies=[
                (LayerPath(self._on_disk(path)), copy)
                for path, copy in BOOT_COPIES.items()
                if self._kinds.get(names.folded(path)) in stated
            ],
            # Windows applies tombstones after the import: it would delete files that this layer itself puts.
            tombstones=[path for key, path in self._tombstones.items() if key not in self._kinds],
            hives=names.folded(HIVES) in self._kinds,
            utility=names.folded(UTILITY_FILES) in self._kinds,
        )

    # Names

    def _claim(self, path: LayerPath, *, folder: bool) -> tuple[LayerPath, str, int | None]:
        """Check that the layer may put ``path``.

        Returns the path as spelled in the folder, its folded form, and its present state. Raises UnsafePath,
        InvalidInput.
        """
        parent, _, name = path.rpartition("/")
        if not names.plain(name):
            self._check_names(path)
        if parent == self._entered[0]:
            where = self._entered[1]
        else:
            where = self._enter(parent, path)
            self._entered = parent, where
        path = join(where, name)
        if not where and (path not in TOPS or not folder):
            raise InvalidInput(f"{path!r}: the top level of a Windows layer has only Files, Hives and UtilityVM")
        if not self._base:
            if where == UTILITY and path != UTILITY_FILES:
                raise InvalidInput(f"{path!r}: in a layer with parents, UtilityVM has only the directory Files")
            if name.lower().endswith(DIRECTORY_SUFFIX):
                raise InvalidInput(f"{path!r}: the suffix {DIRECTORY_SUFFIX} is reserved in transport folders")
        key = names.folded(path)
        known = self._kinds.get(key)
        if known not in (None, _IMPLIED, _CLONED, _CLONED_FILE) or (known == _IMPLIED and not folder):
            raise InvalidInput(
                f"{path!r} occurs twice; NTFS ignores case in names",
                hint="a Windows layer must have each file once",
            )
        return path, key, known

    def _check_names(self, path: LayerPath) -> None:
        from lamella.layers.windows.names import LayerNames

        rules = LayerNames(NameRules(awkward=self._awkward))
        for name in path.split("/"):
            rules.check(path, name)

    def _enter(self, parent: str, path: str) -> LayerPath:
        """The directory ``parent`` as spelled in the folder; created if it is implied."""
        at, where = parent, LayerPath("")
        missing: list[tuple[str, str]] = []
        while at:
            key = names.folded(at)
            known = self._kinds.get(key)
            if known in _OPEN:
                where = self._spelled[key]
                break
            if known is not None:
                raise InvalidInput(f"{path!r}: its parent {at!r} is not a directory")
            missing.append((at, key))
            at = at.rpartition("/")[0]
        for number, (at, key) in enumerate(reversed(missing)):
            if number:
                self._implied.add(at)
            where = self._imply(at, key, where)
        return where

    def _imply(self, path: str, key: str, where: LayerPath) -> LayerPath:
        """Create the implied directory ``path`` in the directory ``where``. Raises InvalidInput for a parent's link."""
        name = path.rpartition("/")[2]
        if not names.plain(name):
            self._check_names(LayerPath(path))
        made = join(where, name)
        if not where and made not in TOPS:
            raise InvalidInput(f"{path!r}: the top level of a Windows layer has only Files, Hives and UtilityVM")
        try:
            if not self._base and key.startswith(_UTILITY):
                self._clone()
                if self._kinds.get(key) in _OPEN:
                    return self._spelled[key]
            if not self._base and key.startswith(_IN_FILES) and not key.startswith(self._absent):
                below = None if self._hidden(key) else self._writer.below(made)
                if below is None:
                    self._absent = (f"{key}/",)
                elif below.kind is Kind.SYMLINK:
                    raise InvalidInput(f"a file below {path!r}, which is a link: layers do not follow links")
            self._writer.imply(made)
        except OSError as error:
            raise from_os(error, f"make the directory {made!r}") from error
        self._kinds[key] = _IMPLIED
        self._spelled[key] = made
        return made

    # Files

    def _hidden(self, key: str) -> bool:
        """Whether the layer has removed the file of the layers below, or a directory above it."""
        if self._tombstones:
            while key:
                if key in self._tombstones:
                    return True
                key = key.rpartition("/")[0]
        return False

    def _make_room(self, path: LayerPath, key: str, known: int, *, directory: bool) -> bool:
        """Remove what exists at ``path``. True if it is a directory that is kept."""
        if directory and known in (_IMPLIED, _CLONED):
            return True
        if known == _IMPLIED:
            raise InvalidInput(f"{path!r} is a reparse point, but the layer has files in it")
        self._displace(key)
        return False

    def _close_owner(self) -> None:
        self._owner = None
        try:
            self._writer.close_file()
        except OSError as error:
            raise from_os(error, "write the streams of a file") from error

    def _on_disk(self, path: str) -> LayerPath:
        """``path`` with its directory as spelled in the folder."""
        parent, _, name = path.rpartition("/")
        return join(self._spelled.get(names.folded(parent), parent), name)

    # The utility VM of the nearest parent that has one

    def _clone(self) -> None:
        """Clone the parents' utility VM, once."""
        key = names.folded(UTILITY)
        if self._kinds.get(key) is not None:
            return
        self._kinds[key] = _IMPLIED
        self._spelled[key] = LayerPath(UTILITY)
        for path, directory in self._writer.clone_utility():
            at = names.folded(path)
            self._kinds[at] = _CLONED if directory else _CLONED_FILE
            self._spelled[at] = path

    def _displace(self, key: str) -> None:
        """Remove the cloned files at the path and below it."""
        self._entered = "", LayerPath("")
        self._writer.remove(self._spelled[key])
        for gone in self._kinds.remove(key):
            self._spelled.pop(gone, None)


def recorded_tar_changes(reader: BlobReader, sink: WindowsSink, rules: NameRules | None = None) -> Iterator[Change]:
    """The changes of the blob for ``sink``; records the framing of the tar in the folder.

    With the framing, the folder restores the tar byte for byte. See `windows_tar_changes` for ``rules`` and the
    errors.
    """
    file = sink.beside(FRAMING)
    if file is None:
        yield from windows_tar_changes(reader.next_buffer, end=reader.finish, rules=rules, linked=sink.link_facet)
        return
    with file:
        framing = FramingWriter(reader.next_buffer, file.write)
        changes = windows_tar_changes(framing.next_buffer, rules=rules, linked=sink.link_facet)
        yield from framing.record(changes)
        framing.finish(reader.finish().diff_id)
