# SPDX-License-Identifier: Apache-2.0
"""How two images differ: in config, in layers, and in the files that they come to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct, field

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.diff import same_windows
from lamella.changes.model import Entry, Kind
from lamella.changes.single_layer import links_shown
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
    from lamella.layers.windows.casefold import Spelling
    from lamella.oci.platform import Platform
    from lamella.progress import Cancellation, Progress


def fingerprinted_place(
    place: str | ImageName,
    spelling: Spelling,
    *,
    platform: str | Platform | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> tuple[MemoryTree, bool]:
    """What ``place`` comes to, with a fingerprint in place of each file's content, and whether that is of Windows.

    A place is what `open_tree` takes. Files of Windows are spelled as ``spelling`` has it from what went before; what
    the import of a layer derives is left out of a composite image. Raises as reading the place does.
    """
    if isinstance(place, str) and names_a_place(place):
        form, _, path = place.partition(":")
        of_windows = _OF_WINDOWS.get(form)
        windows = of_windows is not None
        tree = MemoryTree(streams=windows)
        if windows and not path:
            raise InvalidInput(f"{place!r} has no path")
        with _walked(place, cancel) if of_windows is None else of_windows(Path(path), spelling) as changes:
            apply(fingerprinted(links_shown(changes, tree)), MemorySink(tree), cancel=cancel)
        return tree, windows
    with open_platform_image(place, platform) as image, ExitStack() as stack:
        windows = is_windows(image)
        tree = MemoryTree(streams=windows)
        if progress is not None:
            progress.start("read", sum(layer.descriptor.size for layer in image.layers))
            stack.callback(progress.finish)
        for layer in image.layers:
            with layer_changes(layer, None, progress, cancel, spelling if windows else None) as stated:
                apply(fingerprinted(stated), MemorySink(tree), cancel=cancel)
    return tree, windows


@contextmanager
def _walked(place: str, cancel: Cancellation | None) -> Iterator[Source]:
    with open_tree(place, cancel=cancel) as tree:
        yield walk(tree)


@contextmanager
def _of_cim(path: Path, spelling: Spelling) -> Iterator[Source]:
    from lamella.layers.cim.image_files import CimLayer, OpenCim
    from lamella.layers.cim.source import stated_files

    with OpenCim(CimLayer(path)) as image:
        yield posix_from_windows(spelling.respelled(stated_files(image)))


@contextmanager
def _of_windows_layer(path: Path, spelling: Spelling) -> Iterator[Source]:
    if path.is_file():
        with BlobReader(path, hash_blob=False, hash_stream=False) as reader:
            yield changes_of_blob(reader, spelling=spelling)
            reader.finish()
        return
    with kinds.source("windows", path) as (changes, _):
        yield posix_from_windows(spelling.respelled(changes))


_OF_WINDOWS: Final = {"cim": _of_cim, "windows": _of_windows_layer}
"""What places that hold files of Windows state, by their forms."""

OF_FILES: Final = ("content", "mode", "owner", "mtime", "xattrs", "target", "device", "links", "windows")
OF_IMAGES: Final = ("created", "history", "annotations", "config")
IGNORABLE: Final = OF_FILES + OF_IMAGES
"""What a comparison can be told to ignore."""


class FieldDifference(Struct, frozen=True):
    """A field of the config, or an annotation, as ``config.Env.PATH``; None where one of the images has none."""

    name: str
    old: Any
    new: Any


class FileDifference(Struct, frozen=True):
    """A file that is not the same in both images."""

    sign: Literal["A", "M", "D"]
    """Added, modified, deleted."""
    path: LayerPath
    old: Entry | None
    new: Entry | None
    what: tuple[str, ...] = ()
    """Of a modified one: ``kind``, or some of `OF_FILES`."""


class PathSize(Struct, frozen=True):
    """Bytes of the files beneath a directory in both images; hard links count once."""

    path: LayerPath
    old: int
    new: int


class Compared(Struct, frozen=True):
    """What two images, or trees of files, have in common, and what not."""

    old: Descriptor | None
    new: Descriptor | None
    """None where files alone were compared."""
    config: tuple[FieldDifference, ...]
    shared: tuple[ImageLayer, ...]
    """Layers of both, by diff id: however they are compressed."""
    only_old: tuple[ImageLayer, ...]
    only_new: tuple[ImageLayer, ...]
    files: tuple[FileDifference, ...]
    sizes: tuple[PathSize, ...]
    """Of directories of which the size differs, the largest difference first."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs. How the files are cut into layers does not count."""
        return not self.config and not self.files


def compare(
    old: str | ImageName,
    new: str | ImageName,
    *,
    ignore: Collection[str] = (),
    exclude: Collection[str] = (),
    depth: int = 1,
    platform: str | Platform | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Compared:
    """Compare the images ``old`` and ``new``; or, where one is another place that `open_tree` takes, files alone.

    ``ignore`` are names out of `IGNORABLE`; ``exclude`` are patterns of paths as the shell has them (``var/log/*``,
    where ``*`` matches slashes too), which leave out what they match and all beneath. Sizes are told of directories
    ``depth`` levels down. Where both have the same layers no layer is read, else each is read once; contents are
    compared by digest. Raises InvalidInput, and as unpacking the images does.
    """
    if any(isinstance(place, str) and names_a_place(place) for place in (old, new)):
        return _compare_places(old, new, ignore, exclude, depth, platform, progress, cancel)
    for place in (old, new):
        if isinstance(place, str):
            refuse_path(place)
    with open_platform_image(old, platform) as one, open_platform_image(new, platform) as other:
        return compare_images(one, other, ignore=ignore, exclude=exclude, depth=depth, progress=progress, cancel=cancel)


def compare_images(
    old: PlatformImage,
    new: PlatformImage,
    *,
    ignore: Collection[str] = (),
    exclude: Collection[str] = (),
    depth: int = 1,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Compared:
    """See `compare`."""
    walk = _walk(ignore, exclude, depth)
    ours, theirs = _diff_ids(old), _diff_ids(new)
    if ours != theirs:
        windows = is_windows(old)
        if windows is not is_windows(new):
            raise InvalidInput("one of the images is for Windows and the other is not: they have no files in common")
        walk.compare(*fingerprinted_trees(old.layers, new.layers, windows=windows, progress=progress, cancel=cancel))
    return Compared(
        old.descriptor,
        new.descriptor,
        tuple(_fields(old, new, walk.ignore)),
        tuple(layer for layer in old.layers if layer.diff_id in theirs),
        tuple(layer for layer in old.layers if layer.diff_id not in theirs),
        tuple(layer for layer in new.layers if layer.diff_id not in ours),
        tuple(walk.found),
        tuple(walk.sizes()),
    )


def _compare_places(
    old: str | ImageName,
    new: str | ImageName,
    ignore: Collection[str],
    exclude: Collection[str],
    depth: int,
    platform: str | Platform | None,
    progress: Progress | None,
    cancel: Cancellation | None,
) -> Compared:
    """What differs in the files of two places, one of which is no image."""
    from lamella.layers.windows.casefold import Spelling

    walk = _walk(ignore, exclude, depth)
    spelling = Spelling()
    (one, is_one), (other, is_other) = (
        fingerprinted_place(place, spelling, platform=platform, progress=progress, cancel=cancel)
        for place in (old, new)
    )
    if is_one is not is_other:
        raise InvalidInput(
            "one of the two is of Windows and the other is not: they have no files in common",
            hint="of a Windows layer in a blob say windows:FILE",
        )
    walk.compare(one, other)
    return Compared(None, None, (), (), (), (), tuple(walk.found), tuple(walk.sizes()))


def _walk(ignore: Collection[str], exclude: Collection[str], depth: int) -> _Walk:
    if isinstance(ignore, str) or isinstance(exclude, str):
        raise InvalidInput("what is ignored and excluded are lists, not texts")
    for name in ignore:
        if name not in IGNORABLE:
            raise InvalidInput(f"{name!r} cannot be ignored", hint=f"there are {', '.join(IGNORABLE)}")
    return _Walk(frozenset(ignore), [pattern.strip("/") for pattern in exclude], depth)


def _diff_ids(image: PlatformImage) -> list[Digest]:
    return [layer.diff_id for layer in image.layers]


# Config ----------------------------------------------------------------------------------------------------------


def _fields(old: PlatformImage, new: PlatformImage, ignore: Collection[str]) -> Iterator[FieldDifference]:
    one, other = _flat(old), _flat(new)
    for name in sorted({*one, *other}):
        if name.partition(".")[0] not in ignore and one.get(name) != other.get(name):
            yield FieldDifference(name, one.get(name), other.get(name))


def _flat(image: PlatformImage) -> dict[str, Any]:
    """The fields of config and annotations by name, maps taken apart; diff ids belong to the layers."""
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
    """Walks two trees in step."""

    ignore: frozenset[str]
    exclude: Sequence[str]
    depth: int
    found: list[FileDifference] = field(default_factory=list)
    old_sizes: Counter[str] = field(default_factory=Counter)
    new_sizes: Counter[str] = field(default_factory=Counter)
    _firsts: tuple[dict[Hashable, LayerPath], dict[Hashable, LayerPath]] = field(default_factory=lambda: ({}, {}))
    """The first name of each file that has several."""

    def compare(self, old: MemoryTree, new: MemoryTree) -> None:
        """Note all that differs."""
        todo: list[tuple[Entry | None, Entry | None]] = [(old.lookup(ROOT), new.lookup(ROOT))]
        while todo:
            low, up = todo.pop()
            path = (low or up).path  # type: ignore[union-attr]  # one of the two is there
            if self.exclude and any(fnmatchcase(path, pattern) for pattern in self.exclude):
                continue
            first = None if low is None else self._account(old, low, 0)
            other = None if up is None else self._account(new, up, 1)
            if low is None or up is None:
                self.found.append(FileDifference("A" if low is None else "D", path, low, up))
            elif what := tuple(self._what(old, new, low, up, first == other)):
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
        """What differs in size."""
        found = [
            PathSize(LayerPath(path), self.old_sizes[path], self.new_sizes[path])
            for path in {*self.old_sizes, *self.new_sizes}
        ]
        found.sort(key=lambda one: (-abs(one.new - one.old), one.path))
        return (one for one in found if one.old != one.new)

    def _account(self, tree: MemoryTree, entry: Entry, side: int) -> LayerPath | None:
        """Count the size of a file, and return its first name where it has several."""
        if entry.kind is Kind.DIRECTORY:
            return None
        identity = tree.identity(entry.path)
        first = None if identity is None else self._firsts[side].setdefault(identity, entry.path)
        if entry.kind is Kind.FILE and first in (None, entry.path):
            parents = entry.path.split("/")[:-1]
            (self.new_sizes if side else self.old_sizes)["/".join(parents[: self.depth])] += entry.size
        return first

    def _what(self, old: MemoryTree, new: MemoryTree, low: Entry, up: Entry, linked_alike: bool) -> Iterator[str]:
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
        yield from (name for name in OF_FILES if differs[name] and name not in self.ignore)


def _name(pair: tuple[Entry | None, Entry | None]) -> bytes:
    entry = pair[0] or pair[1]
    assert entry is not None  # noqa: S101
    return entry.path.encode("utf-8", "surrogateescape")
