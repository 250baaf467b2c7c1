# SPDX-License-Identifier: Apache-2.0
"""The folder of a Windows layer as a sink of changes, on a host without NTFS."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lamella.changes.contracts import Mine
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Content, Entry, Kind, Windows
from lamella.errors import (
    Conflict,
    FormatError,
    InvalidInput,
    LamellaError,
    MissingFacet,
    NotFound,
    Unsupported,
    from_os,
)
from lamella.formats.ntfs import names, reparse
from lamella.formats.ntfs.attributes import DIRECTORY
from lamella.layers.descriptors import Descriptors, open_root, remove_tree
from lamella.layers.windows.index import BASE, TRANSPORT, IndexWriter, LinkFact, PutFact, StreamFact
from lamella.layers.windows.parents import Parents
from lamella.layers.windows.place import (
    BOOT_COPIES,
    DIRECTORY_SUFFIX,
    FILES,
    HIVES,
    INDEX,
    STREAMS,
    TOMBSTONES,
    TOMBSTONES_HEAD,
    TOPS,
    UTILITY,
    UTILITY_FILES,
    WindowsLayer,
    disk_name,
    disk_path,
    in_transport,
)
from lamella.layers.windows.writing import Backup, write_plain
from lamella.layers.windows_names import NameRules
from lamella.layers.windows_tar import EmptyData
from lamella.layers.windows_tar_sink import Facets
from lamella.paths import LayerPath, join

if TYPE_CHECKING:
    from lamella.layers.stack import LayerStack

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_FILE: Final = 0
_DIRECTORY: Final = 1
_CLOSED: Final = 2
"""A link to a directory or the like: nothing can be put into it."""
_IMPLIED: Final = 3
"""A directory that the layer has something in, without stating it."""
_CLONED_FILE: Final = 4
_CLONED: Final = 5
"""Of the parent's utility VM."""
_LINK: Final = 6
_OPEN: Final = (_DIRECTORY, _IMPLIED, _CLONED)


class WindowsSink:
    """Applies a layer to the folder ``layer``, which must not exist or be empty.

    Without ``parents`` it is a base layer, with files as themselves; else a transport folder, with attributes and
    backup streams in place of each file of `Files`. All that no file can hold here is in `lamella.index`; so is the
    order. What does not lie in `Files`, `Hives` and `UtilityVM` is refused, and so are a name that is there twice, in
    whatever case, and what is put into a link. ``rules`` are for odd names.

    The work is done in a folder beside the layer's, which gets the name in `commit`; `abort` removes it.
    """

    def __init__(
        self,
        layer: WindowsLayer,
        *,
        parents: LayerStack[WindowsLayer] | None = None,
        rules: NameRules | None = None,
        losses: Losses | None = None,
    ) -> None:
        """Make the hidden folder. Raises Conflict, NotFound (a parent is not there)."""
        self.layer = layer
        self.size = 0
        """Bytes of all files so far, as hcsshim counts them: no alternate streams, no further names."""
        self._base = not parents
        self._parents = Parents(parents)
        self._awkward = rules is not None and rules.awkward
        self._losses = losses if losses is not None else Losses()
        self._lost: set[str] = set()
        self._kinds: dict[str, int] = {}
        """What is at a path as NTFS compares it."""
        self._spelled: dict[str, LayerPath] = {"": LayerPath("")}
        """Directories, by their path as NTFS compares it, as they are called in the folder."""
        self._facets = Facets()
        self._link_facet: tuple[LayerPath, Windows] | None = None
        self._tombstones: list[LayerPath] = []
        self._backup: Backup | None = None
        """The file that may still get alternate streams."""
        self._owner: LayerPath | None = None
        self._streams: int | None = None
        self._streams_size = 0
        self._stage = self._make_stage(layer.path)
        try:
            self._descriptors = Descriptors(open_root(self._stage))
            self._index_file = os.fdopen(os.open(INDEX, _CREATE, 0o666, dir_fd=self._descriptors.root), "wb", 1 << 18)
            self._index = IndexWriter(self._index_file.write, BASE if self._base else TRANSPORT)
        except BaseException:
            self._remove()
            raise

    @property
    def view(self) -> None:
        """See `Sink.view`: no name in a Windows layer leads through a link."""
        return

    @property
    def layered(self) -> bool:
        """See `Sink.layered`."""
        return True

    def put(self, entry: Entry, content: Content | None) -> None:
        """See `Sink.put`. Raises MissingFacet, InvalidInput, UnsafePath, Exhausted."""
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
            raise InvalidInput(f"{entry.path!r} is a file by its kind and a directory by its attributes")
        if entry.kind is Kind.SYMLINK and windows.reparse is None:
            windows = replace(windows, reparse=reparse.encode(reparse.symlink(entry.target)))
            entry = replace(entry, windows=windows)
        folder = directory or bool(windows.attributes & DIRECTORY)
        path, key = self._claim(entry.path, folder=folder)
        if path != entry.path:
            entry = Entry(path, entry.kind, None, entry.size, entry.target, windows)
        closed = windows.reparse is not None
        try:
            if path == UTILITY and not self._base:
                self._clone()
            existed = self._make_room(path, key, directory=folder and not closed)
            fact = self._write(entry, windows, content, folder=folder, existed=existed)
        except OSError as error:
            raise from_os(error, f"write {path!r}") from error
        self._index.put(fact)
        self.size += entry.size
        if folder:
            self._kinds[key] = _CLOSED if closed else _DIRECTORY
            self._spelled[key] = path
        else:
            self._kinds[key] = _FILE
            self._facets.add(path, windows)
        self._owner = path

    def link_facet(self, path: LayerPath, windows: Windows) -> None:
        """The attributes and times that the link ``path``, which comes next, has where it comes from."""
        self._link_facet = path, windows

    def link(self, path: LayerPath, target: LayerPath) -> None:
        """See `Sink.link`. A file of the parents must be given as they spell it, or this layer did."""
        self._close_owner()
        if target in self._lost:
            self._lost.add(path)
            self._losses.record(Loss(path, "hard link", f"its target {target!r} is not kept"))
            return
        stated, self._link_facet = self._link_facet, None
        if not self._base:
            for name in (path, target):
                if not name.startswith((FILES + "/", UTILITY_FILES + "/")):
                    raise InvalidInput(f"hard link {path!r}: {name!r} is neither in Files nor in UtilityVM/Files")
        goal = names.folded(target)
        code = self._kinds.get(goal)
        if code in (_DIRECTORY, _CLOSED, _IMPLIED, _CLONED):
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
        facet = self._facets.find(target) if code is not None else None
        if code is None or facet is None:
            below = self._parents.lookup(target)
            if below is None or (code is None and not target.startswith(FILES + "/")):
                raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
            if below.kind is Kind.DIRECTORY:
                raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
            facet = facet or below.windows
        if stated is not None and stated[0] == path:
            facet = stated[1]
        if facet is None:
            raise MissingFacet(target, "Windows")
        path, key = self._claim(path, folder=False)
        try:
            self._make_room(path, key, directory=False)
            ours = not in_transport(path, base=self._base)
            if ours and not in_transport(target, base=self._base) and code is not None:
                # Where one of them is in transport it says in the index what it is, as in a folder of Windows.
                self._link_on_disk(path, target)
        except OSError as error:
            raise from_os(error, f"link {path!r} to {target!r}") from error
        self._index.link(LinkFact(path, target, facet))
        self._kinds[key] = _LINK
        self._facets.add(path, facet)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """See `Sink.stream`; the file must have been put right before. Raises InvalidInput, SizeMismatch."""
        what = f"alternate data stream {name!r}"
        if path in self._lost:
            self._losses.record(Loss(path, what, "its file is not kept"))
            return
        problem = names.illegal_stream(name)
        if problem is not None:
            self._losses.record(Loss(path, what, problem))
            return
        if self._owner is None or names.folded(self._owner) != names.folded(path):
            raise InvalidInput(f"the {what} does not follow its file {path!r}")
        path = self._owner
        try:
            if self._backup is not None:
                at = self._backup.alternate(name, content)
            else:
                if self._streams is None:
                    self._streams = os.open(STREAMS, _CREATE, 0o666, dir_fd=self._descriptors.root)
                at = self._streams_size
                write_plain(self._streams, content, path, at=at)
                self._streams_size += content.size
        except OSError as error:
            raise from_os(error, f"write {path!r}") from error
        self._index.stream(StreamFact(path, name, content.size, at))

    def whiteout(self, path: LayerPath) -> None:
        """See `Sink.whiteout`. Raises InvalidInput in a base layer, and NotFound for what the utility VM lacks."""
        self._close_owner()
        if self._base:
            raise InvalidInput(
                f"{path!r} is to be hidden, and a base layer has nothing below",
                hint="say which layers are below with --parent, the nearest first",
            )
        self._check_names(path)
        if path.startswith(FILES + "/"):
            self._tombstones.append(path)
        elif path.startswith(UTILITY_FILES + "/"):
            key = names.folded(path)
            try:
                self._clone()
                found = self._kinds.get(key)
                if found in (_CLONED, _CLONED_FILE):
                    self._displace(key)
                elif found is None:
                    raise NotFound(f"{path!r} is to be hidden, and the layers below do not have it")
            except OSError as error:
                raise from_os(error, f"remove {path!r}") from error
        else:
            raise InvalidInput(f"{path!r} is to be hidden, and is neither in Files nor in UtilityVM/Files")
        self._index.whiteout(path)

    def opaque(self, path: LayerPath, mine: Mine) -> None:  # noqa: ARG002
        """Raises Unsupported: Windows has no such marker."""
        raise Unsupported(
            f"{path!r}: a Windows layer cannot say that all in a directory is hidden",
            hint="compare with the layers below, so that each name that is gone has its own whiteout",
        )

    def commit(self) -> Losses:
        """Write what waits for the end, and give the folder its name. Raises Conflict where that has been taken."""
        try:
            self._close_owner()
            self._copy_boot_files()
            self._make_hives()
            if not self._base:
                self._write_tombstones()
            self._index.finish()
            self._index_file.close()
            self._close()
            os.rename(self._stage, self.layer.path)
        except FileExistsError:
            raise self._occupied() from None
        except OSError as error:
            raise from_os(error, f"finish the layer {os.fspath(self.layer.path)!r}") from error
        return self._losses

    def abort(self) -> None:
        """See `Sink.abort`."""
        try:
            if self._backup is not None:
                self._backup.close()
            self._index_file.close()
        except (OSError, LamellaError):
            pass  # what could not be written is removed
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
            f"{os.fspath(self.layer.path)!r} is there, and is no empty folder", hint="apply each layer to a new folder"
        )

    def _close(self) -> None:
        if self._streams is not None:
            os.close(self._streams)
            self._streams = None
        self._descriptors.close()

    def _remove(self) -> None:
        parent, name = os.path.split(self._stage)
        try:
            descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                remove_tree(descriptor, name)
            finally:
                os.close(descriptor)
        except OSError:
            pass  # `abort` does not raise; the name of what is left says that it is unfinished

    # Names

    def _claim(self, path: LayerPath, *, folder: bool) -> tuple[LayerPath, str]:
        """The path as the folder spells it, and as NTFS compares it. Raises UnsafePath, InvalidInput."""
        parent, _, name = path.rpartition("/")
        if not names.plain(name):
            self._check_names(path)
        where = self._enter(parent, path)
        path = join(where, name)
        if not where and (path not in TOPS or not folder):
            raise InvalidInput(f"{path!r}: a Windows layer has the directories Files, Hives and UtilityVM")
        if not self._base:
            if where == UTILITY and path != UTILITY_FILES:
                raise InvalidInput(f"{path!r}: of the utility VM a layer with parents has UtilityVM/Files alone")
            if name.lower().endswith(DIRECTORY_SUFFIX):
                raise InvalidInput(f"{path!r}: a transport folder has a directory's metadata in files of such names")
        key = names.folded(path)
        known = self._kinds.get(key)
        if known not in (None, _IMPLIED, _CLONED, _CLONED_FILE) or (known == _IMPLIED and not folder):
            raise InvalidInput(
                f"{path!r} is there twice, and NTFS has one file of that name in whatever case",
                hint="a layer for Windows must have each file once",
            )
        return path, key

    def _check_names(self, path: LayerPath) -> None:
        from lamella.layers.windows_names import LayerNames

        rules = LayerNames(NameRules(awkward=self._awkward))
        for name in path.split("/"):
            rules.check(path, name)

    def _enter(self, parent: str, path: str) -> LayerPath:
        """The directory ``parent`` as the folder spells it, made where the layer does not state it."""
        if not parent:
            return LayerPath("")
        key = names.folded(parent)
        known = self._kinds.get(key)
        if known in _OPEN:
            return self._spelled[key]
        if known is not None:
            raise InvalidInput(f"{path!r} cannot be in {parent!r}, which is no directory that can be entered")
        above, _, name = parent.rpartition("/")
        where = self._enter(above, path)
        if not names.plain(name):
            self._check_names(LayerPath(parent))
        made = join(where, name)
        if not where and made not in TOPS:
            raise InvalidInput(f"{path!r}: a Windows layer has the directories Files, Hives and UtilityVM")
        try:
            if not self._base and names.folded(made).startswith(names.folded(UTILITY)):
                self._clone()
                if self._kinds.get(key) in _OPEN:
                    return self._spelled[key]
            os.mkdir(disk_name(name), dir_fd=self._descriptors.open(disk_path(where)))
        except OSError as error:
            raise from_os(error, f"make the directory {made!r}") from error
        self._kinds[key] = _IMPLIED
        self._spelled[key] = made
        return made

    # Files

    def _make_room(self, path: LayerPath, key: str, *, directory: bool) -> bool:
        """Make way at ``path``; whether a directory is there that stays."""
        known = self._kinds.get(key)
        if known is None:
            return False
        if directory and known in (_IMPLIED, _CLONED):
            return True
        if known == _IMPLIED:
            raise InvalidInput(f"{path!r} has files in it, and is a link")
        self._displace(key)
        return False

    def _write(
        self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool
    ) -> PutFact:
        path = entry.path
        parent, _, name = path.rpartition("/")
        name = disk_name(name)
        directory = self._descriptors.open(disk_path(parent))
        if folder and not existed:
            os.mkdir(name, dir_fd=directory)
        has_data = type(content) is EmptyData
        if in_transport(path, base=self._base):
            if folder:
                name += DIRECTORY_SUFFIX
            file = os.open(name, _CREATE, 0o666, dir_fd=directory)
            self._backup = backup = Backup(file, windows)
            at = backup.head(None if folder or entry.kind is Kind.SYMLINK else content, entry.size)
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

    def _close_owner(self) -> None:
        self._owner = None
        if self._backup is not None:
            backup, self._backup = self._backup, None
            try:
                backup.close()
            except OSError as error:
                raise from_os(error, "write a file's streams") from error

    def _link_on_disk(self, path: str, target: str) -> None:
        parent, _, name = disk_path(path).rpartition("/")
        from_parent, _, from_name = disk_path(self._on_disk(target)).rpartition("/")
        self._descriptors.open(from_parent)
        directory = self._descriptors.open(parent)
        source = self._descriptors.open(from_parent)
        if self._descriptors.known.get(parent) != directory:
            raise Conflict("too few open files are allowed")
        os.link(disk_name(from_name), disk_name(name), src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)

    def _on_disk(self, path: str) -> str:
        """``path`` with its directory as the folder spells it."""
        parent, _, name = path.rpartition("/")
        return join(self._spelled.get(names.folded(parent), parent), name)

    # The utility VM of the nearest parent that has one

    def _clone(self) -> None:
        """See to it that the folder has the utility VM, with the files of the parents' as they are."""
        key = names.folded(UTILITY)
        if self._kinds.get(key) is not None:
            return
        os.mkdir(UTILITY, dir_fd=self._descriptors.root)
        self._kinds[key] = _IMPLIED
        self._spelled[key] = LayerPath(UTILITY)
        copied = frozenset(map(names.folded, BOOT_COPIES))
        for path, directory in self._parents.clone_utility(self._descriptors, copied):
            at = names.folded(path)
            self._kinds[at] = _CLONED if directory else _CLONED_FILE
            self._spelled[at] = path

    def _displace(self, key: str) -> None:
        """Remove what was cloned at the path, with all beneath it."""
        path = disk_path(self._spelled[key])
        self._descriptors.forget(path)
        parent, _, name = path.rpartition("/")
        remove_tree(self._descriptors.open(parent), name)
        if self._kinds[key] == _CLONED:
            for beneath in [one for one in self._kinds if one.startswith(key + "/")]:
                del self._kinds[beneath]
                self._spelled.pop(beneath, None)
        del self._kinds[key]
        self._spelled.pop(key, None)

    # The end

    def _copy_boot_files(self) -> None:
        for path, copy in BOOT_COPIES.items():
            if self._kinds.get(names.folded(path)) not in (_FILE, _LINK):
                continue
            parent, _, name = self._on_disk(path).rpartition("/")
            try:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._descriptors.open(parent))
            except FileNotFoundError:
                continue  # spelled in another case, which hcsshim does not copy
            try:
                target = os.open(copy, _CREATE, 0o666, dir_fd=self._descriptors.root)
                with open(target, "wb") as written:
                    while chunk := os.read(file, 1 << 20):
                        written.write(chunk)
            finally:
                os.close(file)

    def _make_hives(self) -> None:
        from lamella.layers.windows.hives import base_hives, merged_hives

        root = self._descriptors.root
        if self._base:
            base_hives(root)
            return
        if names.folded(HIVES) in self._kinds:
            try:
                merged_hives(root, self._parents)
            except FormatError as error:
                raise InvalidInput(f"a hive of the layer, or of those below, cannot be read: {error}") from None

    def _write_tombstones(self) -> None:
        # Windows would take away what the layer itself puts, which the whiteout is not meant for.
        gone = [path for path in self._tombstones if names.folded(path) not in self._kinds]
        lines = [TOMBSTONES_HEAD, *("\\" + path[len(FILES) + 1 :].replace("/", "\\") for path in gone)]
        file = os.open(TOMBSTONES, _CREATE, 0o666, dir_fd=self._descriptors.root)
        with open(file, "wb") as written:
            written.write(b"\xef\xbb\xbf" + "".join(line + "\r\n" for line in lines).encode("utf-8", "surrogatepass"))
