# SPDX-License-Identifier: Apache-2.0
"""Registry hives: files, or files in an image, looked into, printed and merged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lamella.changes.job import Job
from lamella.errors import InvalidInput, from_os
from lamella.formats.regf.merge import merged
from lamella.formats.regf.reader import Hive
from lamella.formats.regf.text import LAYER_NAMES, meaning, time_text, type_name, walk
from lamella.formats.regf.writer import encode_hive

if TYPE_CHECKING:
    from lamella.formats.regf.keys import Key, Value
    from lamella.oci.platform import Platform
    from lamella.progress import Progress

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
        from lamella.operations.windows.image_hives import image_hive, names_a_hive

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
