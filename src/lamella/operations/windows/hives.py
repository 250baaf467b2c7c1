# SPDX-License-Identifier: Apache-2.0
"""The registry of a Windows image: hives of its base layer, deltas of the layers above, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from lamella.changes.job import Job
from lamella.changes.model import Put, Whiteout, dense
from lamella.errors import InvalidInput, NotFound, UnsafePath
from lamella.formats.ntfs import names
from lamella.layers.windows.hives import merge_deltas
from lamella.layers.windows.layout import CONFIG, HIVE_NAMES, HIVES
from lamella.layers.windows.names import Spelling
from lamella.operations.layers.read import layer_changes
from lamella.paths import beneath, parse_path

if TYPE_CHECKING:
    from lamella.formats.regf import Key
    from lamella.images.resolve import PlatformImage
    from lamella.progress import Cancellation, Progress


import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lamella.errors import from_os
from lamella.formats.regf.merge import merged
from lamella.formats.regf.reader import Hive
from lamella.formats.regf.text import LAYER_NAMES, meaning, time_text, type_name, walk
from lamella.formats.regf.writer import encode_hive

if TYPE_CHECKING:
    from lamella.formats.regf.keys import Key, Value
    from lamella.oci.platform import Platform
    from lamella.progress import Progress

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
    return ImageHive(merge_deltas(found.file or b"", [delta for _, delta in deltas], dirty=dirty))


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


Place = str | os.PathLike[str] | bytes | BinaryIO
"""A hive: the path of a file, ``IMAGE::PATH``, an open file, or the bytes themselves."""


def split_hive_place(text: str) -> tuple[str, str]:
    """The hive and the key that ``FILE[::KEY]`` or ``IMAGE::PATH[::KEY]`` names.

    The first ``::`` behind the file counts: names of keys have it too.
    """
    from lamella.operations.trees.open import names_a_tree

    first, colons, rest = text.partition("::")
    if not names_a_tree(first):
        return first, rest
    path, _, key = rest.partition("::")
    return f"{first}{colons}{path}", key


def open_hive(
    place: Place,
    *,
    dirty: bool = False,
    layered: bool | None = None,
    layer: int | None = None,
    platform: str | Platform | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], object] | None = None,
) -> Hive:
    """The hive at ``place``, in memory; ``dirty`` and ``layered`` are those of `Hive`.

    Of a Windows image it is as `image_hive` tells, which ``layer`` is for; ``tell`` is given what whoever looks at it
    alone would miss. Raises NotFound, InvalidInput, Unsupported and what reading the place raises.
    """
    content = _content(place, dirty, layer, platform, progress, tell)
    try:
        return Hive(content, dirty=dirty, layered=layered)
    except InvalidInput as error:
        if isinstance(place, (str, os.PathLike)):
            error.add_note(f"read from {os.fspath(place)!r}")
        raise


def _content(
    place: Place,
    dirty: bool,
    layer: int | None,
    platform: str | Platform | None,
    progress: Progress | None,
    tell: Callable[[str], object] | None,
) -> bytes:
    if layer is not None and (not isinstance(place, str) or not _of_an_image(place)):
        raise InvalidInput("a layer is chosen for the hives of a Windows image", hint="write it as IMAGE::PATH")
    if isinstance(place, bytes):
        return place
    if not isinstance(place, (str, os.PathLike)):
        return place.read()
    from lamella.operations.trees.open import names_a_tree

    if isinstance(place, str) and names_a_tree(place):
        from lamella.operations.layers.read import is_windows
        from lamella.operations.trees.filesystem import Filesystem
        from lamella.operations.trees.open import open_tree
        from lamella.operations.windows.hives import image_hive, names_a_hive

        name, _, path = place.partition("::")
        if not path:
            raise InvalidInput(f"no file in {name!r} is named", hint="write it as IMAGE::PATH")
        if _of_an_image(place) and names_a_hive(path):
            from lamella.images.resolve import open_platform_image

            with open_platform_image(name, platform) as image:
                if is_windows(image):
                    hive = image_hive(image, path, layer=layer, dirty=dirty, progress=progress)
                    if hive.note is not None and tell is not None:
                        tell(hive.note)
                    return hive.content
        if layer is not None:
            raise InvalidInput(f"{path!r} is none of the hives of a Windows image that layers change")
        if name.startswith("blob:"):  # a layer with a hive is one of Windows, whose names are found in any case
            name = name.replace("blob:", "windows:", 1)
        with open_tree(name, platform=platform, job=Job(progress=progress)) as tree:
            return (Filesystem(tree) / path).read_bytes()
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise from_os(error, f"read {os.fspath(place)!r}") from error


def _of_an_image(place: str) -> bool:
    from lamella.operations.trees.open import names_an_image

    return names_an_image(place.partition("::")[0])


def merge_hives(
    base: Place,
    deltas: Sequence[Place],
    output: Path | BinaryIO,
    *,
    dirty: bool = False,
    platform: str | Platform | None = None,
    progress: Progress | None = None,
) -> int:
    """Write to ``output`` what ``deltas``, the lowest first, make of ``base``; the result is the size in bytes.

    Without deltas that is ``base`` itself, written anew.

    The new hive bears no marks. ``base`` may itself have been a delta, over nothing. A file appears under its name when
    it is complete. Raises as `open_hive` does, and for output what `replacing` raises.
    """
    below = open_hive(base, dirty=dirty, platform=platform, progress=progress)
    root: Key = merged(None, below.root_key) if below.layered else below.root_key
    for delta in deltas:
        # It is a delta by its place here, whatever its base block says.
        opened = open_hive(delta, dirty=dirty, layered=True, platform=platform, progress=progress)
        root = merged(root, opened.root_key)
    data = encode_hive(root, file_name=below.file_name)
    if isinstance(output, Path):
        from lamella.operations.atomic_file import replacing

        with replacing(output) as file:
            file.write(data)
    else:
        output.write(data)
    return len(data)


def key_documents(key: Key, path: str = "") -> Iterator[dict[str, Any]]:
    """``key`` and all keys below it, each as what JSON has for it, security descriptors in base64."""
    from base64 import b64encode

    for place, one in walk(key, path):
        document: dict[str, Any] = {"path": place, "time": time_text(one.time)}
        document["security"] = b64encode(one.security).decode()
        if one.class_name:
            document["class"] = one.class_name
        if one.flags:
            document["flags"] = one.flags
        if one.control:
            document["control"] = one.control
        if one.layering:
            document["layer"] = LAYER_NAMES[one.layering]
        if one.inherit_class:
            document["inherit_class"] = True
        document["values"] = [value_document(value) for value in one.values()]
        yield document


def value_document(value: Value) -> dict[str, Any]:
    """A value as what JSON has for it: its data by its type, or in base64 where that does not tell it all."""
    if value.tombstone:
        return {"name": value.name, "tombstone": True}
    document: dict[str, Any] = {"name": value.name, "type": type_name(value.type)}
    known = meaning(value)
    if known is not None:
        return document | {"value": known}
    from base64 import b64encode

    return document | {"base64": b64encode(value.data).decode()}
