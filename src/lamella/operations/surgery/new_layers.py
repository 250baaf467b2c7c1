# SPDX-License-Identifier: Apache-2.0
"""New layers for an image: from a directory, from a blob, or from files given by path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import Source
from lamella.changes.job import Job
from lamella.changes.losses import Losses
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
from lamella.layers.kinds import cim_place
from lamella.layers.tar.source import WHITEOUT, tar_changes
from lamella.operations.atomic_file import refuse_within
from lamella.operations.copy import BlobPieces
from lamella.operations.layers.diff import DiffOptions, open_changes
from lamella.operations.layers.write import DEFAULT_OPTIONS, LayerOptions, write_layer
from lamella.operations.surgery.draft import BlobTarget, LayerSource, StoredLayer, layer_descriptor
from lamella.paths import LayerPath, parse_path, sort_key
from lamella.streams.blob_reader import BlobReader, open_blob
from lamella.times import SECOND, source_date_epoch

if TYPE_CHECKING:
    from lamella.layers.kinds import Lookup
    from lamella.layers.windows.transforms import WindowsTemplate

Opened: TypeAlias = "tuple[Source, Lookup | None]"
"""Changes, and the lookup of hard links' targets."""

_STEP: Final = 256 << 10
_ID_LIMIT: Final = 1 << 32


class File(Struct, frozen=True):
    """A regular file. Its content is bytes, text (encoded as UTF-8), or the path of a file on disk.

    ``mtime`` is in seconds since the epoch; None is SOURCE_DATE_EPOCH, or 0 without it.
    """

    content: bytes | str | os.PathLike[str] = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int | None = None
    xattrs: Mapping[str, bytes] = NO_XATTRS


class Directory(Struct, frozen=True):
    """A directory; one that exists in a lower layer keeps its content. Parents of files need not be given."""

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
"""A file: bytes and text are a regular file of mode 0644; a path on disk gives content and permission to execute;
None removes the path from the layers below."""

Files: TypeAlias = Mapping[str, FileLike]
"""Files, by their path in the image."""

LayerLike: TypeAlias = str | os.PathLike[str] | Files
"""The path of a directory, a layer blob or a composite image (also ``cim:DIR/NAME.cim``), or files by path."""


class NewLayer(Struct, frozen=True):
    """A layer to write from changes."""

    opened: Callable[[Losses], AbstractContextManager[Opened]]
    """Opens the changes; the argument collects what no layer can hold."""
    options: LayerOptions = DEFAULT_OPTIONS
    directory: Path | None = None
    """The directory that the changes are read from, if any."""
    posix: bool = False
    """The changes are a POSIX tree, to be converted if a Windows layer is written."""
    base: bool = False
    """No layer lies below it."""
    losses: Losses | None = None
    """Collects the losses of this layer instead of those of the job."""

    def for_system(self, system: str, *, base: bool = False) -> NewLayer:
        """This layer for an image whose config has the operating system ``system``; ``base``: no layer lies below."""
        return replace(self, options=replace(self.options, windows=system == "windows"), base=base)

    def store(self, target: BlobTarget, job: Job) -> StoredLayer:
        options = self.options
        if self.losses is not None:
            job = replace(job, losses=self.losses)
        with self.opened(job.losses) as (changes, lookup), target.stage() as blob:
            if self.posix and options.windows:
                changes = windows_layer(changes, self.directory, options.template, job.losses, base=self.base)
                lookup = None
            written = write_layer(changes, blob.file, options, lookup=lookup, job=job)
            blob.keep(written.facts.digest, written.facts.size)
        return StoredLayer(layer_descriptor(written.facts), written.facts, written.entries)


class BlobLayer(Struct, frozen=True):
    """A layer blob in a file, copied unchanged.

    The file is read once before it is copied, for its digests and to check that it is a layer.
    """

    path: Path

    def store(self, target: BlobTarget, job: Job) -> StoredLayer:
        entries = 0
        with BlobReader(self.path, cancel=job.cancel) as reader:
            for _ in tar_changes(reader.next_buffer, end=reader.finish):
                entries += 1
            facts = reader.finish()
        layer = layer_descriptor(facts)
        if not target.has_blob(layer):
            with job.step("copy", layer.size):
                target.put_blob(layer, BlobPieces(lambda: open_blob(self.path), job.progress, job.cancel))
        return StoredLayer(layer, facts, entries)


def new_layer(given: LayerLike, options: LayerOptions = DEFAULT_OPTIONS, losses: Losses | None = None) -> LayerSource:
    """A layer source for ``given``. Directories and files on disk are not read before the layer is stored.

    Of a directory, the layer has the content but not the directory itself: the root of the image keeps its metadata.
    Raises InvalidInput if the files cannot be in one layer.
    """
    if isinstance(given, Mapping):
        changes = changes_of(given)
        return NewLayer(lambda _: nullcontext((changes, None)), options, posix=True, losses=losses)
    path, image = Path(given), cim_place(given)
    if image is not None:
        return NewLayer(partial(open_changes, None, image, DiffOptions(kind="cim")), options, losses=losses)
    if path.is_dir():
        return NewLayer(partial(_open_directory, path, options), options, path, posix=True, losses=losses)
    return BlobLayer(path)


def new_layers(
    given: LayerLike | Sequence[LayerLike], options: LayerOptions = DEFAULT_OPTIONS, losses: Losses | None = None
) -> list[LayerSource]:
    """Layer sources for one layer or for several, lowest first."""
    if isinstance(given, (str, os.PathLike, Mapping)):
        return [new_layer(given, options, losses)]
    return [new_layer(one, options, losses) for one in given]


def refuse_own_source(layers: Iterable[object], target: ImageName) -> None:
    """Raise InvalidInput if the image ``target`` would lie in a directory that one of its layers is made from."""
    if target.syntax is Syntax.PATH:
        for layer in layers:
            if isinstance(layer, NewLayer) and layer.directory is not None:
                refuse_within(layer.directory, target.path, "the image")


def windows_layer(
    changes: Source,
    directory: Path | None = None,
    template: WindowsTemplate | None = None,
    losses: Losses | None = None,
    *,
    base: bool = False,
) -> Source:
    """Convert ``changes`` to a Windows layer that has them on drive C, as `container_layer` does.

    ``directory`` is the directory that they are read from, in which symbolic links are resolved: Windows distinguishes
    links to directories. A ``base`` layer gets the registry hives that it lacks, empty.
    """
    from lamella.layers.windows.transforms import container_layer

    clamp = source_date_epoch()
    if base:
        from lamella.layers.windows.hives import missing_hives, with_hives

        if directory is None:
            changes = list(changes)
        changes = with_hives(changes, missing_hives(_lister(changes, directory)), clamp or 0)
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


def _lister(changes: Source, directory: Path | None) -> Callable[[LayerPath], Iterable[str]]:
    """A function that lists a directory of the layer; it returns no names for a path that is no directory."""
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
def _open_directory(path: Path, options: LayerOptions, losses: Losses) -> Iterator[Opened]:
    with open_changes(None, path, DiffOptions(owners=options.owners), losses) as (changes, lookup):
        yield _without_root(changes), lookup


def _without_root(changes: Source) -> Iterator[Change]:
    for change in changes:
        if change.path if not isinstance(change, Put) else change.entry.path:
            yield change


# Files by path -------------------------------------------------------------------------------------------------------


def changes_of(files: Files) -> list[Change]:
    """The changes of a layer with ``files``, in the order of a walk.

    Parent directories stay implied, so that existing ones keep their metadata. Raises UnsafePath, and InvalidInput for
    a path given twice, a file beneath another file, or a name with the prefix of whiteouts.
    """
    by_path: dict[LayerPath, FileLike] = {}
    for raw, given in files.items():
        path = parse_path(raw)
        if path in by_path:
            raise InvalidInput(f"{path!r} is given twice")
        if not path and not isinstance(given, Directory):
            raise InvalidInput("the root must be a directory")
        if any(part.startswith(WHITEOUT) for part in path.split("/")):
            raise InvalidInput(f"{path!r} has the name of a whiteout", hint="give None to remove a file")
        by_path[path] = given
    for path in by_path:
        parent = path
        while parent:
            parent = LayerPath(parent.rpartition("/")[0])
            if parent in by_path and by_path[parent] is not None and not isinstance(by_path[parent], Directory):
                raise InvalidInput(f"{path!r} cannot be in {parent!r}, which is not a directory")
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
                f"{path!r}: a {type(given).__name__} is not a file",
                hint="give bytes, text, a path, File, Directory, Symlink, or None to remove",
            )
    return Put(Entry(path, Kind.FILE, posix, content.size), content)


def _posix(path: str, mode: int, uid: int, gid: int, mtime: int | None, xattrs: Mapping[str, bytes], now: int) -> Posix:
    if not 0 <= mode <= 0o7777:
        raise InvalidInput(f"{path!r}: the mode {mode:#o} has bits beyond 0o7777")
    if not (0 <= uid < _ID_LIMIT and 0 <= gid < _ID_LIMIT):
        raise InvalidInput(f"{path!r}: the owner {uid}:{gid} is out of range")
    return Posix(mode, uid, gid, (now if mtime is None else int(mtime)) * SECOND, xattrs)


def _content(given: bytes | str | os.PathLike[str]) -> Inline | PathContent:
    if isinstance(given, bytes):
        return Inline(given)
    if isinstance(given, str):
        try:
            return Inline(given.encode())
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text is not valid UTF-8: {error}", hint="give bytes") from None
    return PathContent(Path(given))


class PathContent(Content):
    """The content of a file on disk; symbolic links are followed. The size is that at the time of construction.

    Raises NotFound, Denied, and InvalidInput for a file that is not regular. `chunks` raises Conflict if the size has
    changed.
    """

    __slots__ = ("_path", "_size", "executable")

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            status = path.stat()
        except OSError as error:
            raise from_os(error, f"read {os.fspath(path)!r}") from error
        if not path.is_file():
            raise InvalidInput(f"{os.fspath(path)!r} is not a regular file")
        self._size = status.st_size
        self.executable = bool(status.st_mode & 0o111)

    @property
    def size(self) -> int:
        return self._size

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        return None

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
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
