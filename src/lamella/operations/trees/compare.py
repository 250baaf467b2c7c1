# SPDX-License-Identifier: Apache-2.0
"""Compare two images: their configs, their layers and the files of their merged views."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct, field

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.diff import same_windows
from lamella.changes.job import Job
from lamella.changes.model import Entry, Kind
from lamella.changes.single_layer import show_links
from lamella.changes.tree import MemorySink, MemoryTree, streams_of, walk
from lamella.digests import Digest
from lamella.errors import InvalidInput
from lamella.images.resolve import ImageLayer, PlatformImage, open_platform_image
from lamella.images.transports import ImageName
from lamella.layers import kinds
from lamella.layers.windows.transforms import posix_from_windows
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.operations.layers.read import changes_of_blob, is_windows, layer_changes
from lamella.operations.trees.fingerprints import fingerprinted, fingerprinted_trees
from lamella.operations.trees.open import names_a_place, open_tree, refuse_path
from lamella.paths import ROOT, LayerPath
from lamella.streams.blob_reader import BlobReader

if TYPE_CHECKING:
    from lamella.layers.windows.names import Spelling
    from lamella.oci.platform import Platform


def fingerprinted_place(
    place: str | ImageName, spelling: Spelling, job: Job, *, platform: str | Platform | None = None
) -> tuple[MemoryTree, bool]:
    """The files of ``place`` with fingerprints for content, and whether they are files of Windows.

    ``place`` is as for `open_tree`. ``spelling`` is shared by the places to compare: it gives the names of Windows
    files in the case in which they were seen first. Files of a composite image that the import of a layer derives are
    left out. Raises what reading the place raises.
    """
    if isinstance(place, str) and names_a_place(place):
        form, _, path = place.partition(":")
        open_windows = _WINDOWS_FORMS.get(form)
        windows = open_windows is not None
        tree = MemoryTree(streams=windows)
        if windows and not path:
            raise InvalidInput(f"{place!r} has no path")
        opened = _walk_place(place, job) if open_windows is None else open_windows(Path(path), spelling)
        with opened as changes:
            apply(fingerprinted(show_links(changes, tree)), MemorySink(tree), cancel=job.cancel)
        return tree, windows
    with (
        open_platform_image(place, platform) as image,
        job.step("read", sum(layer.descriptor.size for layer in image.layers)),
    ):
        windows = is_windows(image)
        tree = MemoryTree(streams=windows)
        for layer in image.layers:
            with layer_changes(layer, job, spelling=spelling if windows else None) as changes:
                apply(fingerprinted(changes), MemorySink(tree), cancel=job.cancel)
    return tree, windows


@contextmanager
def _walk_place(place: str, job: Job) -> Iterator[Source]:
    with open_tree(place, job=job) as tree:
        yield walk(tree)


@contextmanager
def _open_cim(path: Path, spelling: Spelling) -> Iterator[Source]:
    from lamella.layers.cim.image import CimLayer, OpenCim
    from lamella.layers.cim.source import stated_files

    with OpenCim(CimLayer(path)) as image:
        yield posix_from_windows(spelling.respell(stated_files(image)))


@contextmanager
def _open_windows_layer(path: Path, spelling: Spelling) -> Iterator[Source]:
    if path.is_file():
        with BlobReader(path, hash_blob=False, hash_stream=False) as reader:
            yield changes_of_blob(reader, spelling=spelling)
            reader.finish()
        return
    with kinds.source("windows", path) as (changes, _):
        yield posix_from_windows(spelling.respell(changes))


_WINDOWS_FORMS: Final = {"cim": _open_cim, "windows": _open_windows_layer}
"""How to open the places that hold files of Windows, by their forms."""

FILE_ASPECTS: Final = ("content", "mode", "owner", "mtime", "xattrs", "target", "device", "links", "windows")
IMAGE_ASPECTS: Final = ("created", "history", "annotations", "config")
IGNORABLE: Final = FILE_ASPECTS + IMAGE_ASPECTS
"""Aspects that a comparison can ignore."""


class FieldDifference(Struct, frozen=True):
    """A field of the config, such as ``config.Env.PATH``, or an annotation; None if an image does not have it."""

    name: str
    old: Any
    new: Any


class FileDifference(Struct, frozen=True):
    """A file that differs between two images."""

    sign: Literal["A", "M", "D"]
    """Added, modified, deleted."""
    path: LayerPath
    old: Entry | None
    new: Entry | None
    what: tuple[str, ...] = ()
    """How a modified file differs: ``kind``, or some of `FILE_ASPECTS`."""


class PathSize(Struct, frozen=True):
    """Total bytes of the files beneath a directory in each image; a file with hard links counts once."""

    path: LayerPath
    old: int
    new: int


class Compared(Struct, frozen=True):
    """The differences between two images or trees of files."""

    old: Descriptor | None
    new: Descriptor | None
    """None if only files were compared."""
    config: tuple[FieldDifference, ...]
    shared: tuple[ImageLayer, ...]
    """Layers of both images, by diff id; their compression may differ."""
    only_old: tuple[ImageLayer, ...]
    only_new: tuple[ImageLayer, ...]
    files: tuple[FileDifference, ...]
    sizes: tuple[PathSize, ...]
    """Directories that differ in size, the largest difference first."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs but the layers that the files are in."""
        return not self.config and not self.files


def compare(
    old: str | ImageName,
    new: str | ImageName,
    *,
    ignore: Collection[str] = (),
    exclude: Collection[str] = (),
    depth: int = 1,
    platform: str | Platform | None = None,
    job: Job | None = None,
) -> Compared:
    """Compare the images ``old`` and ``new``, or only files if one is another place that `open_tree` takes.

    ``ignore`` has names out of `IGNORABLE`; ``exclude`` has shell patterns of paths (``var/log/*``, where ``*`` also
    matches slashes), which leave out all files beneath them too. Sizes are those of directories ``depth`` levels down.
    If both images have the same layers, no layer is read; otherwise each is read once, and content is compared by
    digest. Raises InvalidInput, and what unpacking the images raises.
    """
    job = job or Job()
    if any(isinstance(place, str) and names_a_place(place) for place in (old, new)):
        return _compare_places(old, new, _new_walk(ignore, exclude, depth), platform, job)
    for place in (old, new):
        if isinstance(place, str):
            refuse_path(place)
    with open_platform_image(old, platform) as one, open_platform_image(new, platform) as other:
        return compare_images(one, other, ignore=ignore, exclude=exclude, depth=depth, job=job)


def compare_images(
    old: PlatformImage,
    new: PlatformImage,
    *,
    ignore: Collection[str] = (),
    exclude: Collection[str] = (),
    depth: int = 1,
    job: Job | None = None,
) -> Compared:
    """Compare two open images, as `compare` does."""
    walk = _new_walk(ignore, exclude, depth)
    ours, theirs = _diff_ids(old), _diff_ids(new)
    if ours != theirs:
        windows = is_windows(old)
        if windows is not is_windows(new):
            raise InvalidInput("one of the images is for Windows and the other is not: their files cannot be compared")
        walk.compare(*fingerprinted_trees(old.layers, new.layers, windows=windows, job=job or Job()))
    return Compared(
        old.descriptor,
        new.descriptor,
        tuple(_field_differences(old, new, walk.ignore)),
        tuple(layer for layer in old.layers if layer.diff_id in theirs),
        tuple(layer for layer in old.layers if layer.diff_id not in theirs),
        tuple(layer for layer in new.layers if layer.diff_id not in ours),
        tuple(walk.found),
        tuple(walk.sizes()),
    )


def _compare_places(
    old: str | ImageName, new: str | ImageName, walk: _Walk, platform: str | Platform | None, job: Job
) -> Compared:
    """Compare the files of two places."""
    from lamella.layers.windows.names import Spelling

    spelling = Spelling()
    (one, one_windows), (other, other_windows) = (
        fingerprinted_place(place, spelling, job, platform=platform) for place in (old, new)
    )
    if one_windows is not other_windows:
        raise InvalidInput(
            "one of the places is of Windows and the other is not: their files cannot be compared",
            hint="name a blob with a Windows layer as windows:FILE",
        )
    walk.compare(one, other)
    return Compared(None, None, (), (), (), (), tuple(walk.found), tuple(walk.sizes()))


def _new_walk(ignore: Collection[str], exclude: Collection[str], depth: int) -> _Walk:
    if isinstance(ignore, str) or isinstance(exclude, str):
        raise InvalidInput("ignore and exclude are lists, not texts")
    for name in ignore:
        if name not in IGNORABLE:
            raise InvalidInput(f"{name!r} cannot be ignored", hint=f"choose from {', '.join(IGNORABLE)}")
    return _Walk(frozenset(ignore), [pattern.strip("/") for pattern in exclude], depth)


def _diff_ids(image: PlatformImage) -> list[Digest]:
    return [layer.diff_id for layer in image.layers]


# Config ----------------------------------------------------------------------------------------------------------


def _field_differences(old: PlatformImage, new: PlatformImage, ignore: Collection[str]) -> Iterator[FieldDifference]:
    one, other = _flatten_fields(old), _flatten_fields(new)
    for name in sorted({*one, *other}):
        if name.partition(".")[0] not in ignore and one.get(name) != other.get(name):
            yield FieldDifference(name, one.get(name), other.get(name))


def _flatten_fields(image: PlatformImage) -> dict[str, Any]:
    """The fields of config and annotations by dotted name, without the diff ids, which are compared as layers."""
    document: dict[str, Any] = json.loads(encode(image.config))
    document.pop("rootfs")
    process: dict[str, Any] = document.pop("config", {})
    variables = [entry.partition("=") for entry in process.pop("Env", [])]
    flat = {**document, **{f"annotations.{key}": value for key, value in image.manifest.annotations.items()}}
    for name, value in process.items():
        if isinstance(value, dict):
            flat |= {f"config.{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[f"config.{name}"] = value
    return flat | {f"config.Env.{name}": value for name, _, value in variables}


# Files -----------------------------------------------------------------------------------------------------------


class _Walk(Struct):
    """Walks two trees in parallel and collects their differences."""

    ignore: frozenset[str]
    exclude: Sequence[str]
    depth: int
    found: list[FileDifference] = field(default_factory=list)
    old_sizes: Counter[str] = field(default_factory=Counter)
    new_sizes: Counter[str] = field(default_factory=Counter)
    _firsts: tuple[dict[Hashable, LayerPath], dict[Hashable, LayerPath]] = field(default_factory=lambda: ({}, {}))
    """The first name of each file with hard links, for either tree."""

    def compare(self, old: MemoryTree, new: MemoryTree) -> None:
        """Collect the differences."""
        todo: list[tuple[Entry | None, Entry | None]] = [(old.lookup(ROOT), new.lookup(ROOT))]
        while todo:
            low, up = todo.pop()
            path = (low or up).path  # type: ignore[union-attr]  # one of the two is there
            if self.exclude and any(fnmatchcase(path, pattern) for pattern in self.exclude):
                continue
            first = None if low is None else self._count_size(old, low, 0)
            other = None if up is None else self._count_size(new, up, 1)
            if low is None or up is None:
                self.found.append(FileDifference("A" if low is None else "D", path, low, up))
            elif what := tuple(self._differing(old, new, low, up, first == other)):
                self.found.append(FileDifference("M", path, low, up, what))
            inside = {entry.path: entry for entry in (old.entries(path) if low and low.kind is Kind.DIRECTORY else ())}
            pairs: list[tuple[Entry | None, Entry | None]] = [
                (inside.pop(entry.path, None), entry)
                for entry in (new.entries(path) if up and up.kind is Kind.DIRECTORY else ())
            ]
            pairs += [(entry, None) for entry in inside.values()]
            pairs.sort(key=_name, reverse=True)
            todo += pairs

    def sizes(self) -> Iterator[PathSize]:
        """Directories that differ in size."""
        found = [
            PathSize(LayerPath(path), self.old_sizes[path], self.new_sizes[path])
            for path in {*self.old_sizes, *self.new_sizes}
        ]
        found.sort(key=lambda one: (-abs(one.new - one.old), one.path))
        return (one for one in found if one.old != one.new)

    def _count_size(self, tree: MemoryTree, entry: Entry, side: int) -> LayerPath | None:
        """Count the size of a file; return its first name if it has hard links."""
        if entry.kind is Kind.DIRECTORY:
            return None
        identity = tree.identity(entry.path)
        first = None if identity is None else self._firsts[side].setdefault(identity, entry.path)
        if entry.kind is Kind.FILE and first in (None, entry.path):
            parents = entry.path.split("/")[:-1]
            (self.new_sizes if side else self.old_sizes)["/".join(parents[: self.depth])] += entry.size
        return first

    def _differing(self, old: MemoryTree, new: MemoryTree, low: Entry, up: Entry, linked_alike: bool) -> Iterator[str]:
        if low.kind is not up.kind:
            yield "kind"
            return
        one, other = low.posix, up.posix
        assert one is not None  # noqa: S101  # tars have POSIX metadata
        assert other is not None  # noqa: S101
        differs = {
            "content": low.kind is Kind.FILE and (low.size != up.size or old.open(low.path) != new.open(up.path)),
            "mode": one.mode != other.mode,
            "owner": (one.uid, one.gid) != (other.uid, other.gid),
            "mtime": one.mtime != other.mtime,
            "xattrs": one.xattrs != other.xattrs,
            "target": low.target != up.target,
            "device": one.device != other.device,
            "links": not linked_alike,
            "windows": not same_windows(low, up) or streams_of(old, low.path) != streams_of(new, up.path),
        }
        yield from (name for name in FILE_ASPECTS if differs[name] and name not in self.ignore)


def _name(pair: tuple[Entry | None, Entry | None]) -> bytes:
    entry = pair[0] or pair[1]
    assert entry is not None  # noqa: S101
    return entry.path.encode("utf-8", "surrogateescape")
