# SPDX-License-Identifier: Apache-2.0
"""The forms that an image name can have, each with the module that reads and writes it, loaded when it is used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib import import_module
from typing import Final, cast

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import InvalidInput
from lamella.images.contract import Elsewhere, ImageReader, ImageWriter
from lamella.images.options import (
    ContainerdOptions,
    RegistryOptions,
    StoreOptions,
    current_containerd,
    current_options,
)

ON_DISK: Final = ("oci", "oci-archive", "docker-archive")
REGISTRY: Final = "docker"
STORE: Final = "store"
CONTAINERD: Final = "containerd"
KEPT: Final = (STORE, CONTAINERD)
"""Stores that keep images by their full names."""

_HINT: Final = (
    "write oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:REF], or docker://HOST/NAME[:TAG], "
    "or store:NAME[:TAG], or containerd:NAME[:TAG]"
)


class ImageName(Struct, frozen=True):
    """Where an image is. Build it with `parse_image_name`."""

    form: str
    path: str
    """A directory or file; registry and repository, in a store too."""
    tag: str | None = None
    """The tag of an OCI layout, in a registry or a store, the full reference of a Docker archive."""
    position: int | None = None
    """The number of the image there, from 0, where that was asked for (``@0``)."""
    digest: Digest | None = None
    """What the image in a registry or a store must be; a registry is asked for it, whatever the tag names by now."""

    def __str__(self) -> str:
        if self.form in (REGISTRY, *KEPT):
            suffix = (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")
            return f"{self.form}:{'//' if self.form == REGISTRY else ''}{self.path}{suffix}"
        which = self.tag if self.position is None else f"@{self.position}"
        return f"{self.form}:{self.path}" + (f":{which}" if which is not None else "")


def parse_image_name(text: str) -> ImageName:
    """The image that ``text`` names, as in ``oci:DIR:TAG``; ``oci:DIR:@0`` is the first one there, whatever its tag.

    The path ends at its first colon, so it cannot have one. ``docker://HOST/NAME[:TAG][@DIGEST]`` is an image in a
    registry, short forms made full as Docker does; with neither tag nor digest it is ``latest``. ``store:`` goes before
    the same name of an image in the store, ``containerd:`` before one in a running containerd. Raises InvalidInput,
    with a hint that names the forms; Unsupported (a digest's algorithm).
    """
    form, colon, rest = text.partition(":")
    if not colon or form not in (*ON_DISK, REGISTRY, *KEPT):
        hint = "'lamella pack' makes an image of a directory or composite image" if form in ("dir", "cim") else _HINT
        if not colon and text.lower().endswith(".cim"):
            hint = f"where a tree will do, a composite image is cim:{text[:300]}"
        raise InvalidInput(f"{text[:300]!r} does not say what kind of place the image is in", hint=hint)
    if form == REGISTRY:
        return _in_registry(text, rest)
    if form in KEPT:
        return _in_store(form, rest)
    drive = re.match(r"[A-Za-z]:(?=[\\/])", rest) if os.name == "nt" else None
    start = drive.end() if drive else 0
    path, _, which = rest[start:].partition(":")
    path = rest[:start] + path
    if not path or "\0" in path:
        raise InvalidInput(f"{text[:300]!r} has no path", hint=_HINT)
    if not which:
        return ImageName(form, path)
    if which.startswith("@"):
        if not re.fullmatch("@[0-9]{1,9}", which):
            raise InvalidInput(f"{text[:300]!r}: {which[:40]!r} is not the number of an image", hint="count from @0")
        return ImageName(form, path, position=int(which[1:]))
    if form == "docker-archive":
        from lamella.oci.reference import parse_reference

        reference = parse_reference(which).with_default_tag()
        if reference.digest is not None:
            raise InvalidInput(f"{text[:300]!r}: an archive's images are named by tags, not by digests")
        which = str(reference)
    return ImageName(form, path, which)


def _in_registry(text: str, rest: str) -> ImageName:
    from lamella.oci.reference import parse_reference

    if not rest.startswith("//"):
        raise InvalidInput(f"{text[:300]!r}: two slashes must follow the form", hint="write docker://HOST/NAME[:TAG]")
    reference = parse_reference(rest[2:]).with_default_tag()
    return ImageName(REGISTRY, reference.name, reference.tag, digest=reference.digest)


def _in_store(form: str, rest: str) -> ImageName:
    from lamella.oci.reference import parse_reference

    reference = parse_reference(rest).with_default_tag()
    return ImageName(form, reference.name, reference.tag, digest=reference.digest)


_READERS: Final = {
    "oci": "lamella.images.layout:open_directory",
    "oci-archive": "lamella.images.archive:open_oci_archive",
    "docker-archive": "lamella.images.docker_archive:open_docker_archive",
    REGISTRY: "lamella.registry.reader:open_registry",
    STORE: "lamella.store.image_reader:open_store_reader",
    CONTAINERD: "lamella.client.images:open_containerd_reader",
}
"""Form to a function of the path; for a registry, the store and a containerd, of the name and the options."""

_WRITERS: Final = {
    "oci": "lamella.images.layout:LayoutWriter",
    "oci-archive": "lamella.images.archive_writer:OciArchiveWriter",
    "docker-archive": "lamella.images.archive_writer:DockerArchiveWriter",
    REGISTRY: "lamella.registry.writer:open_registry",
    STORE: "lamella.store.image_writer:open_store_writer",
    CONTAINERD: "lamella.client.images:open_containerd_writer",
}
"""Form to a function of the path, ``replace`` and ``durable``.

For a registry, the store and a containerd, of the name and the options; for the latter two ``replace`` besides, which
are always durable.
"""

_ELSEWHERE: Final = "lamella.registry.blob_fetch:Elsewhere"
"""A function of a place's name and how registries are talked to."""


def open_reader(
    name: ImageName,
    *,
    registry: RegistryOptions | None = None,
    store: StoreOptions | None = None,
    containerd: ContainerdOptions | None = None,
) -> ImageReader:
    """A reader of the place that ``name`` names; ``registry`` says how one is talked to, else `registry_options`.

    ``store`` says which store is meant, ``containerd`` which containerd, else `containerd_options`. Layers that are not
    there, and not to be passed on, are fetched from elsewhere where ``registry`` allows that.

    Raises NotFound, InvalidInput, Unsupported, Denied; for a registry or a containerd Unavailable and Integrity too.
    """
    registry = registry or current_options()
    load = _load(_READERS[name.form])
    if name.form == REGISTRY:
        return cast("ImageReader", load(name, registry))
    if name.form == STORE:
        reader = cast("ImageReader", load(name, store))
    elif name.form == CONTAINERD:
        reader = cast("ImageReader", load(name, containerd or current_containerd()))
    else:
        reader = cast("ImageReader", load(name.path))
    if registry.foreign_urls:
        reader.elsewhere = cast("Elsewhere", _load(_ELSEWHERE)(reader.where, registry))
    return reader


def open_writer(
    name: ImageName,
    *,
    replace: bool = False,
    durable: bool = False,
    registry: RegistryOptions | None = None,
    store: StoreOptions | None = None,
    containerd: ContainerdOptions | None = None,
) -> ImageWriter:
    """A writer to the place that ``name`` names.

    With ``replace`` an archive that is there already gives way when the new one is complete; a layout keeps its other
    images either way. With ``durable`` everything is on the disk, not in its cache alone, before `commit` returns. A
    registry is talked to as ``registry`` says; a tag there always gives way. ``store`` and ``containerd`` say where
    those are; a name there that has another image gives way with ``replace`` alone, and both are durable either way.
    Raises AlreadyExists, InvalidInput, Unsupported, Denied.
    """
    load = _load(_WRITERS[name.form])
    if name.form == REGISTRY:
        return cast("ImageWriter", load(name, registry or current_options()))
    if name.form == STORE:
        return cast("ImageWriter", load(name, store, replace=replace))
    if name.form == CONTAINERD:
        return cast("ImageWriter", load(name, containerd or current_containerd(), replace=replace))
    if name.position is not None:
        raise InvalidInput(f"{name}: an image cannot be written at a number", hint="give it a tag")
    return cast("ImageWriter", load(name.path, replace=replace, durable=durable))


def _load(where: str) -> Callable[..., object]:
    module, _, function = where.partition(":")
    found: Callable[..., object] = getattr(import_module(module), function)
    return found
