# SPDX-License-Identifier: Apache-2.0
"""Layers from what is at hand: a directory, a blob, or files that a program names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import Source
from lamella.changes.model import (
    NO_XATTRS,
    Buffer,
    Change,
    Content,
    Entry,
    Inline,
    Kind,
    Posix,
    Put,
    Whiteout,
)
from lamella.errors import Conflict, InvalidInput, from_os
from lamella.images.transports import ImageName, Syntax
from lamella.layers.tar.source import WHITEOUT, tar_changes
from lamella.operations.atomic_file import refuse_within
from lamella.operations.copy import Relay
from lamella.operations.layers.diff import sourced
from lamella.operations.layers.write import DEFAULT_OPTIONS, LayerOptions, write_layer
from lamella.operations.surgery.draft import BlobTaker, LayerSource, StoredLayer, described
from lamella.operations.windows.cim import cim_place
from lamella.paths import LayerPath, parse_path, sort_key
from lamella.streams.blob_reader import BlobReader, open_blob
from lamella.times import SECOND, source_date_epoch

if TYPE_CHECKING:
    from lamella.changes.losses import Losses
    from lamella.layers.windows.transforms import WindowsTemplate
    from lamella.progress import Cancellation, Progress

Opened: TypeAlias = tuple[Source, Callable[[LayerPath], Entry | None] | None]
"""Changes, and what tells of the targets of their hard links."""

_STEP: Final = 256 << 10
_ID_LIMIT: Final = 1 << 32


class File(Struct, frozen=True):
    """A regular file: its bytes, its text in UTF-8, or the path of a file on disk whose content it gets.

    ``mtime`` is in seconds since the epoch; without one it is SOURCE_DATE_EPOCH, or 0.
    """

    content: bytes | str | os.PathLike[str] = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int | None = None
    xattrs: Mapping[str, bytes] = NO_XATTRS


class Directory(Struct, frozen=True):
    """A directory; one that is there already keeps what is in it. Those on the way to a file need not be given."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int | None = None
    xattrs: Mapping[str, bytes] = NO_XATTRS


class Symlink(Struct, frozen=True):
    """A symbolic link, its target exactly as given."""

    target: str
    uid: int = 0
    gid: int = 0
    mtime: int | None = None


FileLike: TypeAlias = bytes | str | os.PathLike[str] | File | Directory | Symlink | None
"""What can stand for a file: content alone has mode 0644; a path on disk gives content and permission to execute;
None removes what the layers below have there."""

Files: TypeAlias = Mapping[str, FileLike]
"""Files by their path in the image."""

LayerLike: TypeAlias = str | os.PathLike[str] | Files
"""A directory, a layer's blob or tar, a composite image (``cim:DIR/NAME.cim``, or its path), or files by path."""


class TarredLayer(Struct, frozen=True):
    """A layer that changes are written to."""

    opened: Callable[[], AbstractContextManager[Opened]]
    options: LayerOptions = DEFAULT_OPTIONS
    directory: Path | None = None
    """What it is made from, where that is a directory."""
    posix: bool = False
    """Whether the changes are of a POSIX tree, and still to become a Windows layer where one is wanted."""
    base: bool = False
    """Whether there is no layer below it."""

    def for_system(self, system: str, *, base: bool = False) -> TarredLayer:
        """This layer, for an image whose config names this operating system; the ``base`` has none below it."""
        return replace(self, options=replace(self.options, windows=system == "windows"), base=base)

    def store(
        self, place: BlobTaker, *, progress: Progress | None = None, cancel: Cancellation | None = None
    ) -> StoredLayer:
        """See `LayerSource.store`."""
        options = self.options
        with self.opened() as (changes, lookup), place.stage() as blob:
            if self.posix and options.windows:
                changes = windows_layer(changes, self.directory, options.template, options.losses, base=self.base)
                lookup = None
            written = write_layer(
                changes,
                blob.file,
                options,
                lookup=lookup,
                progress=progress,
                cancel=cancel,
            )
            blob.keep(written.facts.digest, written.facts.size)
        return StoredLayer(described(written.facts), written.facts, written.entries)


class BlobLayer(Struct, frozen=True):
    """A layer that is a blob in a file already, and stays as it is.

    It is read whole first, to find its digests and to see that it is a layer.
    """

    path: Path

    def store(
        self, place: BlobTaker, *, progress: Progress | None = None, cancel: Cancellation | None = None
    ) -> StoredLayer:
        """See `LayerSource.store`. Raises FormatError and whatever else reading the layer raises."""
        entries = 0
        with BlobReader(self.path, cancel=cancel) as reader:
            for _ in tar_changes(reader.next_buffer, end=reader.finish):
                entries += 1
            facts = reader.finish()
        layer = described(facts)
        if not place.has_blob(layer):
            if progress is not None:
                progress.start("copy", layer.size)
            try:
                place.put_blob(layer, Relay(lambda: open_blob(self.path), progress, cancel))
            finally:
                if progress is not None:
                    progress.finish()
        return StoredLayer(layer, facts, entries)


def new_layer(given: LayerLike, options: LayerOptions = DEFAULT_OPTIONS) -> LayerSource:
    """The layer that ``given`` stands for. Directories and files on disk are not read before it is stored.

    Of a directory, all that is in it is taken, but not its own metadata: those of the root stay. Raises InvalidInput
    for files by path that cannot be in one layer.
    """
    if isinstance(given, Mapping):
        changes = changes_of(given)
        return TarredLayer(lambda: _given(changes), options, posix=True)
    path, image = Path(given), cim_place(given)
    if image is not None:
        return TarredLayer(lambda: sourced(None, image, kind="cim"), options)
    if path.is_dir():
        return TarredLayer(lambda: _directory(path, options), options, path, posix=True)
    return BlobLayer(path)


def new_layers(given: LayerLike | Sequence[LayerLike], options: LayerOptions = DEFAULT_OPTIONS) -> list[LayerSource]:
    """The layers that one or several given ones stand for, lowest first."""
    if isinstance(given, (str, os.PathLike, Mapping)):
        return [new_layer(given, options)]
    return [new_layer(one, options) for one in given]


def refuse_own_source(layers: Iterable[object], target: ImageName) -> None:
    """Raise InvalidInput where the image ``target`` would lie in a directory that one of its layers is made from."""
    if target.syntax is Syntax.PATH:
        for layer in layers:
            if isinstance(layer, TarredLayer) and layer.directory is not None:
                refuse_within(layer.directory, target.path, "the image")


def windows_layer(
    changes: Source,
    directory: Path | None = None,
    template: WindowsTemplate | None = None,
    losses: Losses | None = None,
    *,
    base: bool = False,
) -> Source:
    """``changes`` as a Windows layer whose drive C they are; ``directory`` is where they come from.

    Links there tell which of them lead to directories, as Windows must be told. A ``base`` layer gets empty registry
    hives where it has none. See `container_layer`.
    """
    from lamella.layers.windows.transforms import container_layer

    clamp = source_date_epoch()
    if base:
        from lamella.layers.windows.hives import missing_hives, with_hives

        if directory is None:
            changes = list(changes)
        changes = with_hives(changes, missing_hives(_listing(changes, directory)), clamp or 0)
    root = None if directory is None else os.path.realpath(directory)

    def leads_to_directory(path: LayerPath, target: str) -> bool:
        if root is None:
            return False
        start = root if target.startswith("/") else os.path.join(root, os.path.dirname(path[len("Files/") :]))
        found = os.path.realpath(os.path.join(start, target.lstrip("/")))
        return os.path.commonpath((root, found)) == root and os.path.isdir(found)

    return container_layer(
        changes,
        security=None if template is None else template.security,
        attributes=template.bits if template is not None and template.attributes else None,
        leads_to_directory=leads_to_directory,
        clamp=clamp,
        base=base,
        losses=losses,
    )


def _listing(changes: Source, directory: Path | None) -> Callable[[LayerPath], Iterable[str]]:
    """What gives the names in a directory of what is to be a layer, none where it is no directory."""
    if directory is not None:

        def listed(path: LayerPath) -> list[str]:
            place = directory / path
            return os.listdir(place) if place.is_dir() and not place.is_symlink() else []

        return listed
    inside: dict[str, set[str]] = {}
    for change in changes:
        path = change.entry.path if isinstance(change, Put) else change.path
        while path:
            parent, _, name = path.rpartition("/")
            inside.setdefault(parent, set()).add(name)
            path = LayerPath(parent)
    return lambda path: sorted(inside.get(path, ()))


@contextmanager
def _given(changes: Sequence[Change]) -> Iterator[Opened]:
    yield changes, None


@contextmanager
def _directory(path: Path, options: LayerOptions) -> Iterator[Opened]:
    with sourced(None, path, owners=options.owners, losses=options.losses) as (changes, lookup):
        yield _without_root(changes), lookup


def _without_root(changes: Source) -> Iterator[Change]:
    for change in changes:
        if change.path if not isinstance(change, Put) else change.entry.path:
            yield change


# Files by path ---------------------------------------------------------------------------------------------------


def changes_of(files: Files) -> list[Change]:
    """The changes of one layer with these files, in an order that is the paths' own.

    Directories on the way are not stated, so that those which are there stay as they are. Raises UnsafePath,
    InvalidInput: a path given twice, a file in what is no directory, or a name that would read as a whiteout.
    """
    by_path: dict[LayerPath, FileLike] = {}
    for raw, given in files.items():
        path = parse_path(raw)
        if path in by_path:
            raise InvalidInput(f"{path!r} is given twice")
        if not path and not isinstance(given, Directory):
            raise InvalidInput("the root can be a directory only")
        if any(part.startswith(WHITEOUT) for part in path.split("/")):
            raise InvalidInput(f"{path!r} would read as a whiteout", hint="give None to remove a file")
        by_path[path] = given
    for path in by_path:
        parent = path
        while parent:
            parent = LayerPath(parent.rpartition("/")[0])
            if parent in by_path and by_path[parent] is not None and not isinstance(by_path[parent], Directory):
                raise InvalidInput(f"{path!r} cannot be in {parent!r}, which is no directory")
    now = (source_date_epoch() or 0) // SECOND
    return [_change(path, by_path[path], now) for path in sorted(by_path, key=sort_key)]


def _change(path: LayerPath, given: FileLike, now: int) -> Change:
    match given:
        case None:
            return Whiteout(path)
        case Symlink():
            if not given.target or "\0" in given.target:
                raise InvalidInput(f"{path!r}: a symbolic link needs a target")
            posix = _posix(path, 0o777, given.uid, given.gid, given.mtime, NO_XATTRS, now)
            return Put(Entry(path, Kind.SYMLINK, posix, 0, given.target), None)
        case Directory():
            posix = _posix(path, given.mode, given.uid, given.gid, given.mtime, given.xattrs, now)
            return Put(Entry(path, Kind.DIRECTORY, posix), None)
        case File():
            content = _content(given.content)
            posix = _posix(path, given.mode, given.uid, given.gid, given.mtime, given.xattrs, now)
        case bytes() | str() | os.PathLike():
            content = _content(given)
            mode = 0o755 if isinstance(content, PathContent) and content.executable else 0o644
            posix = _posix(path, mode, 0, 0, None, NO_XATTRS, now)
        case _:
            raise InvalidInput(
                f"{path!r}: a {type(given).__name__} stands for no file",
                hint="give bytes, text, a path, File, Directory, Symlink, or None to remove",
            )
    return Put(Entry(path, Kind.FILE, posix, content.size), content)


def _posix(path: str, mode: int, uid: int, gid: int, mtime: int | None, xattrs: Mapping[str, bytes], now: int) -> Posix:
    if not 0 <= mode <= 0o7777:
        raise InvalidInput(f"{path!r}: the mode {mode:#o} has other than permission bits")
    if not (0 <= uid < _ID_LIMIT and 0 <= gid < _ID_LIMIT):
        raise InvalidInput(f"{path!r}: {uid}:{gid} is no owner that a file can have")
    return Posix(mode, uid, gid, (now if mtime is None else int(mtime)) * SECOND, xattrs)


def _content(given: bytes | str | os.PathLike[str]) -> Inline | PathContent:
    if isinstance(given, bytes):
        return Inline(given)
    if isinstance(given, str):
        try:
            return Inline(given.encode())
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text that UTF-8 cannot hold: {error}", hint="give bytes") from None
    return PathContent(Path(given))


class PathContent(Content):
    """The content of a file on disk, links followed, of the size that it had when this was made.

    Raises NotFound, Denied, InvalidInput (no regular file); `chunks` raises Conflict where it has another size by then.
    """

    __slots__ = ("_path", "_size", "executable")

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            status = path.stat()
        except OSError as error:
            raise from_os(error, f"read {os.fspath(path)!r}") from error
        if not path.is_file():
            raise InvalidInput(f"{os.fspath(path)!r} is no regular file")
        self._size = status.st_size
        self.executable = bool(status.st_mode & 0o111)

    @property
    def size(self) -> int:
        """See `Content.size`."""
        return self._size

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """See `Content.extents`."""
        return None

    @property
    def stored(self) -> bool:
        """True."""
        return True

    def chunks(self) -> Iterable[Buffer]:
        """See `Content.chunks`."""
        done = 0
        try:
            with open(self._path, "rb", buffering=0) as file:
                while chunk := file.read(_STEP):
                    done += len(chunk)
                    if done > self._size:
                        break
                    yield chunk
        except OSError as error:
            raise from_os(error, f"read {os.fspath(self._path)!r}") from error
        if done != self._size:
            raise Conflict(f"{os.fspath(self._path)!r} changed while it was read")
