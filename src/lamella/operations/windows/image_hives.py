# SPDX-License-Identifier: Apache-2.0
"""The registry of a Windows image: hives of its base layer, deltas of the layers above, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from lamella.changes.job import Job
from lamella.changes.model import Put, Whiteout, dense
from lamella.errors import InvalidInput, NotFound, UnsafePath
from lamella.formats.ntfs import names
from lamella.layers.windows.casefold import Spelling
from lamella.layers.windows.folder.layout import CONFIG, HIVE_NAMES, HIVES
from lamella.operations.layers.read import layer_changes
from lamella.paths import beneath, parse_path

if TYPE_CHECKING:
    from lamella.formats.regf import Key
    from lamella.images.resolve import PlatformImage
    from lamella.progress import Cancellation, Progress

FILE, DELTA, MERGED = "file", "delta", "merged"
_PATHS: Final = {
    names.folded(path): (form, name)
    for name, called in HIVE_NAMES.items()
    for form, path in (
        (FILE, f"{CONFIG}{name}"),
        (DELTA, f"{HIVES}/{called}_Delta"),
        (MERGED, f"{HIVES}/{called}_Base"),
    )
}


class ImageHive(Struct, frozen=True):
    """A hive of an image, in memory."""

    content: bytes
    note: str | None = None
    """What whoever looks at it alone would miss."""


class _Found(Struct):
    file: bytes | None = None
    deltas: list[tuple[int, bytes]] = field(default_factory=list)
    """Numbers of layers, and theirs."""


def names_a_hive(path: str) -> bool:
    """Whether ``path`` is one at which `image_hive` finds something in a Windows image."""
    try:
        return names.folded(parse_path(path)) in _PATHS
    except UnsafePath:  # which the view of an image may find all the same
        return False


def image_hive(
    image: PlatformImage,
    path: str,
    *,
    layer: int | None = None,
    dirty: bool = False,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> ImageHive:
    """The hive at ``path`` of a Windows image, in whatever case; see `names_a_hive`.

    ``Hives/System_Base`` is what the hive of the base layer and the deltas come to, as Windows makes it of them for a
    container; it is in no layer. ``Hives/System_Delta`` is the delta of the topmost layer that has one, or of ``layer``
    alone, which counts from 0 at the base. ``Files/Windows/System32/config/SYSTEM`` is the file. Of the first and the
    last, ``layer`` gives what is there with it on top.

    Raises NotFound, InvalidInput (no such layer), Unsupported (a hive of which changes are in its log alone, unless
    ``dirty``), FormatError and what reading the layers raises.
    """
    form, name = _PATHS[names.folded(parse_path(path))]
    count = len(image.layers)
    if layer is not None and not 0 <= layer < count:
        raise InvalidInput(
            f"there is no layer {layer}",
            hint=f"the image has {count} {'layer' if count == 1 else 'layers'}, which count from 0 at the base",
        )
    found = _found(image, name, count if layer is None else layer + 1, progress, cancel)
    deltas = found.deltas
    if form == DELTA:
        if layer is not None:
            deltas = [one for one in deltas if one[0] == layer]
        if not deltas:
            raise NotFound(f"{path!r} is not there" if layer is None else f"layer {layer} has no {path!r}")
        return ImageHive(deltas[-1][1], _several(deltas, name))
    if form == FILE:
        if found.file is None:
            raise NotFound(f"{path!r} is not there")
        return ImageHive(found.file, _changed(deltas, name))
    if found.file is None and not deltas:
        raise NotFound(f"no layer has the hive {name}")
    if not deltas:
        assert found.file is not None  # noqa: S101
        return ImageHive(found.file)
    return ImageHive(with_deltas(found.file or b"", [delta for _, delta in deltas], dirty=dirty))


def with_deltas(base: bytes, deltas: Iterable[bytes], *, dirty: bool = False) -> bytes:
    """The hive that ``deltas``, the lowest first and at least one, make of ``base``, which may be empty."""
    from lamella.formats.regf import Hive, encode_hive, merged

    hive = Hive(base, dirty=dirty) if base else None
    root: Key | None = None if hive is None else hive.root_key
    for delta in deltas:
        root = merged(root, Hive(delta, dirty=dirty, layered=True).root_key)
    assert root is not None  # noqa: S101
    return encode_hive(root, file_name="" if hive is None else hive.file_name)


def _found(
    image: PlatformImage, name: str, count: int, progress: Progress | None, cancel: Cancellation | None
) -> _Found:
    layers = image.layers[:count]
    config, delta = names.folded(f"{CONFIG}{name}"), names.folded(f"{HIVES}/{HIVE_NAMES[name]}_Delta")
    found, spelling = _Found(), Spelling()
    if progress is not None:
        progress.start("read", sum(layer.descriptor.size for layer in layers))
    try:
        for number, layer in enumerate(layers):
            with layer_changes(layer, Job(progress=progress, cancel=cancel), spelling=spelling) as changes:
                for change in changes:
                    if isinstance(change, Put):
                        key = names.folded(change.entry.path)
                        if key == config:
                            found.file = b"" if change.content is None else b"".join(map(bytes, dense(change.content)))
                        elif key == delta and change.entry.size and change.content is not None:
                            found.deltas.append((number, b"".join(map(bytes, dense(change.content)))))
                    elif isinstance(change, Whiteout) and beneath(config, names.folded(change.path)):
                        found.file = None
    finally:
        if progress is not None:
            progress.finish()
    return found


def _several(deltas: Sequence[tuple[int, bytes]], name: str) -> str | None:
    if len(deltas) < 2:
        return None
    numbers = ", ".join(str(number) for number, _ in deltas)
    return f"the layers {numbers} have a delta of {name}; this is the last one's, and {_all(name)}"


def _changed(deltas: Sequence[tuple[int, bytes]], name: str) -> str | None:
    if not deltas:
        return None
    numbers = ", ".join(str(number) for number, _ in deltas)
    which = f"the layer {numbers} has a delta" if len(deltas) == 1 else f"the layers {numbers} have deltas"
    return f"{which} of {name}, which this file is without; {_all(name)}"


def _all(name: str) -> str:
    return f"{HIVES}/{HIVE_NAMES[name]}_Base is what all come to"
