# SPDX-License-Identifier: Apache-2.0
"""Registry hives in files and in Windows images: opened, printed and merged."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from msgspec import Struct, field

from lamella.changes.job import Job
from lamella.changes.model import Content, Put, Whiteout, dense
from lamella.errors import InvalidInput, NotFound, UnsafePath, from_os
from lamella.formats.ntfs import names
from lamella.formats.regf.keys import merge_keys
from lamella.formats.regf.log import is_dirty, replay_logs
from lamella.formats.regf.reader import Hive
from lamella.formats.regf.text import LAYER_NAMES, meaning, time_text, type_name, walk
from lamella.formats.regf.writer import encode_hive
from lamella.layers.windows.hives import merge_deltas
from lamella.layers.windows.layout import CONFIG, HIVE_LOGS, HIVE_NAMES, HIVES
from lamella.layers.windows.names import Spelling
from lamella.operations.layers.read import is_windows, layer_changes
from lamella.paths import beneath, parse_path

if TYPE_CHECKING:
    from lamella.formats.regf.keys import Key, Value
    from lamella.images.resolve import PlatformImage
    from lamella.oci.platform import Platform

HivePlace = str | os.PathLike[str] | bytes | BinaryIO
"""A hive: the path of a file, ``IMAGE::PATH``, an open file, or the bytes themselves."""

FILE, DELTA, MERGED = "file", "delta", "merged"
_PATHS: Final = {
    names.folded(path): (form, name)
    for name, stem in HIVE_NAMES.items()
    for form, path in (
        (FILE, f"{CONFIG}{name}"),
        (DELTA, f"{HIVES}/{stem}_Delta"),
        (MERGED, f"{HIVES}/{stem}_Base"),
    )
}


class ImageHive(Struct, frozen=True):
    """A hive of an image, in memory."""

    content: bytes
    note: str | None = None
    """A warning if other layers change the hive too."""


class _Found(Struct):
    file: bytes | None = None
    logs: dict[str, bytes] = field(default_factory=dict)
    """Transaction logs of the file, by path in upper case."""
    deltas: list[tuple[int, bytes]] = field(default_factory=list)
    """Numbers of layers, and their deltas."""


def split_hive_place(text: str) -> tuple[str, str]:
    """The hive and the key in ``FILE[::KEY]`` or ``IMAGE::PATH[::KEY]``.

    Names of keys may contain ``::``; the first one after the file separates the key.
    """
    from lamella.operations.trees.open import names_a_tree

    first, colons, rest = text.partition("::")
    if not names_a_tree(first):
        return first, rest
    path, _, key = rest.partition("::")
    return f"{first}{colons}{path}", key


def open_hive(
    place: HivePlace,
    *,
    dirty: bool = False,
    layered: bool | None = None,
    layer: int | None = None,
    platform: str | Platform | None = None,
    job: Job | None = None,
    warn: Callable[[str], object] | None = None,
) -> Hive:
    """Open the hive at ``place``, in memory; ``dirty`` and ``layered`` are those of `Hive`.

    A hive of a Windows image is that of `image_hive`, with ``layer``; ``warn`` receives its note. Raises NotFound,
    InvalidInput, Unsupported and what reading the place raises.
    """
    if layer is not None and not (isinstance(place, str) and _is_in_image(place)):
        raise InvalidInput("a layer is chosen for a hive of a Windows image only", hint="write it as IMAGE::PATH")
    if isinstance(place, bytes):
        content = place
    elif not isinstance(place, (str, os.PathLike)):
        content = place.read()
    else:
        found = _tree_hive(place, dirty, layer, platform, job or Job()) if isinstance(place, str) else None
        if found is None:
            try:
                found = ImageHive(_read_with_logs(Path(place)))
            except OSError as error:
                raise from_os(error, f"read {os.fspath(place)!r}") from error
        content = found.content
        if found.note is not None and warn is not None:
            warn(found.note)
    try:
        return Hive(content, dirty=dirty, layered=layered)
    except InvalidInput as error:
        if isinstance(place, (str, os.PathLike)):
            error.add_note(f"read from {os.fspath(place)!r}")
        raise


def _read_with_logs(path: Path) -> bytes:
    """The hive in a file, with the changes in the transaction logs beside it."""
    hive = path.read_bytes()
    if not is_dirty(hive):
        return hive
    logs = []
    for suffix in HIVE_LOGS:
        for spelled in (suffix, suffix.lower()):
            log = path.with_name(path.name + spelled)
            if log.is_file():
                logs.append(log.read_bytes())
    return replay_logs(hive, logs)


def _tree_hive(
    place: str, dirty: bool, layer: int | None, platform: str | Platform | None, job: Job
) -> ImageHive | None:
    """The hive in an image or another tree; None if ``place`` is the path of a file."""
    from lamella.operations.trees.filesystem import Filesystem
    from lamella.operations.trees.open import names_a_tree, open_tree

    if not names_a_tree(place):
        return None
    name, _, path = place.partition("::")
    if not path:
        raise InvalidInput(f"{name!r} is not a file", hint="write it as IMAGE::PATH")
    if _is_in_image(place) and names_a_hive(path):
        from lamella.images.resolve import open_platform_image

        with open_platform_image(name, platform) as image:
            if is_windows(image):
                return image_hive(image, path, layer=layer, dirty=dirty, job=job)
    if layer is not None:
        raise InvalidInput(f"{path!r} is not a hive that layers of Windows images change")
    if name.startswith("blob:"):  # a layer with a hive is a Windows layer, whose names ignore case
        name = name.replace("blob:", "windows:", 1)
    with open_tree(name, platform=platform, job=job) as tree:
        return ImageHive((Filesystem(tree) / path).read_bytes())


def _is_in_image(place: str) -> bool:
    from lamella.operations.trees.open import names_an_image

    return names_an_image(place.partition("::")[0])


def names_a_hive(path: str) -> bool:
    """Whether `image_hive` accepts ``path``."""
    try:
        return names.folded(parse_path(path)) in _PATHS
    except UnsafePath:
        return False


def image_hive(
    image: PlatformImage, path: str, *, layer: int | None = None, dirty: bool = False, job: Job | None = None
) -> ImageHive:
    """The hive at ``path`` of a Windows image, in any case; `names_a_hive` must be true for it.

    ``Hives/System_Base`` is the hive of the base layer with all deltas merged in, as a container has it; no layer
    contains it. ``Hives/System_Delta`` is the delta of the topmost layer that has one, or of ``layer``, counted from 0
    at the base. ``Files/Windows/System32/config/SYSTEM`` is the file. For the first and the last, ``layer`` is the
    topmost layer that counts.

    Raises NotFound, InvalidInput (no such layer), Unsupported (a hive with changes in its log only, unless ``dirty``),
    FormatError and what reading the layers raises.
    """
    form, name = _PATHS[names.folded(parse_path(path))]
    count = len(image.layers)
    if layer is not None and not 0 <= layer < count:
        raise InvalidInput(
            f"there is no layer {layer}",
            hint=f"the image has {count} {'layer' if count == 1 else 'layers'}, which count from 0 at the base",
        )
    found = _find_hive(image, name, count if layer is None else layer + 1, job or Job())
    deltas = found.deltas
    merged_name = f"{HIVES}/{HIVE_NAMES[name]}_Base"
    if form == DELTA:
        if layer is not None:
            deltas = [one for one in deltas if one[0] == layer]
        if not deltas:
            raise NotFound(f"{path!r} does not exist" if layer is None else f"layer {layer} has no {path!r}")
        note = f"this is the delta of {name} of the last of {_numbered(deltas)}; {merged_name} has all deltas merged"
        return ImageHive(deltas[-1][1], note if len(deltas) > 1 else None)
    if form == FILE:
        if found.file is None:
            raise NotFound(f"{path!r} does not exist")
        note = f"this file lacks the deltas of {name} of {_numbered(deltas)}; {merged_name} has them merged"
        return ImageHive(found.file, note if deltas else None)
    if deltas:
        return ImageHive(merge_deltas(found.file or b"", [delta for _, delta in deltas], dirty=dirty))
    if found.file is None:
        raise NotFound(f"no layer has the hive {name}")
    return ImageHive(found.file)


def _find_hive(image: PlatformImage, name: str, count: int, job: Job) -> _Found:
    layers = image.layers[:count]
    config, delta = names.folded(f"{CONFIG}{name}"), names.folded(f"{HIVES}/{HIVE_NAMES[name]}_Delta")
    logs = {config + names.folded(suffix) for suffix in HIVE_LOGS}
    found, spelling = _Found(), Spelling()
    with job.step("read", sum(layer.descriptor.size for layer in layers)):
        for number, layer in enumerate(layers):
            with layer_changes(layer, job, spelling=spelling) as changes:
                for change in changes:
                    if isinstance(change, Put):
                        key = names.folded(change.entry.path)
                        if key == config:
                            found.file = _read(change.content)
                        elif key in logs:
                            found.logs[key] = _read(change.content)
                        elif key == delta and change.entry.size:
                            found.deltas.append((number, _read(change.content)))
                    elif isinstance(change, Whiteout):
                        key = names.folded(change.path)
                        if beneath(config, key):
                            found.file = None
                        for log in [log for log in found.logs if beneath(log, key)]:
                            del found.logs[log]
    if found.file is not None:
        found.file = replay_logs(found.file, found.logs.values())
    return found


def _read(content: Content | None) -> bytes:
    return b"" if content is None else b"".join(map(bytes, dense(content)))


def _numbered(deltas: Sequence[tuple[int, bytes]]) -> str:
    numbers = ", ".join(str(number) for number, _ in deltas)
    return f"{'layer' if len(deltas) == 1 else 'layers'} {numbers}"


def merge_hives(
    base: HivePlace,
    deltas: Sequence[HivePlace],
    output: Path | BinaryIO,
    *,
    dirty: bool = False,
    platform: str | Platform | None = None,
    job: Job | None = None,
) -> int:
    """Write the hive ``base`` with ``deltas``, lowest first, merged in; return the size in bytes.

    Without deltas, ``base`` is written anew. ``base`` may be a delta itself, which is merged into an empty hive. The
    new hive has no marks of a delta. A file appears when it is complete. Raises what `open_hive` and `replacing` raise.
    """
    below = open_hive(base, dirty=dirty, platform=platform, job=job)
    root: Key = merge_keys(None, below.root_key) if below.layered else below.root_key
    for delta in deltas:
        # It is a delta by its position, whatever its base block says.
        above = open_hive(delta, dirty=dirty, layered=True, platform=platform, job=job)
        root = merge_keys(root, above.root_key)
    data = encode_hive(root, file_name=below.file_name)
    if isinstance(output, Path):
        from lamella.operations.atomic_file import replacing

        with replacing(output) as file:
            file.write(data)
    else:
        output.write(data)
    return len(data)


def key_documents(key: Key, path: str = "") -> Iterator[dict[str, Any]]:
    """A JSON document for ``key`` and each key below it; security descriptors are base64."""
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
    """A JSON document for a value: its data by type, or as base64 if the type does not represent it exactly."""
    if value.tombstone:
        return {"name": value.name, "tombstone": True}
    document: dict[str, Any] = {"name": value.name, "type": type_name(value.type)}
    known = meaning(value)
    return document | ({"base64": b64encode(value.data).decode()} if known is None else {"value": known})
