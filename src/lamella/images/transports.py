# SPDX-License-Identifier: Apache-2.0
"""Transports: the kinds of place that hold images, one row for each, and the names of images in them.

Importing the table loads no transport.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from typing import Any, Final, TypeAlias

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import InvalidInput
from lamella.extensions import Table
from lamella.host.durability import outputs_are_durable
from lamella.images.contract import ImageReader, ImageWriter
from lamella.images.options import (
    ContainerdOptions,
    RegistryOptions,
    StoreOptions,
    current_containerd,
    current_options,
)


class Syntax(Enum):
    """How a name goes on after its form."""

    PATH = "path"
    """``FORM:PATH``, ``FORM:PATH:TAG`` or ``FORM:PATH:@POSITION``: an image in a file or a directory."""
    REGISTRY = "registry"
    """``FORM://HOST/NAME[:TAG][@DIGEST]``: an image in a registry."""
    REFERENCE = "reference"
    """``FORM:NAME[:TAG][@DIGEST]``: an image in a store that keeps images by their full names."""


class ImageName(Struct, frozen=True):
    """Where an image is. Build it with `parse_image_name`."""

    form: str
    """The name of the transport: what is before the first colon."""
    path: str
    """A path, or the full name of a repository."""
    tag: str | None = None
    """A tag; in a Docker archive, a full reference."""
    position: int | None = None
    """The number of the image in the place, from 0, if the name has one (``@0``)."""
    digest: Digest | None = None
    """The digest that the image must have; a registry looks it up by this digest instead of the tag."""

    @property
    def syntax(self) -> Syntax:
        """The syntax of its transport."""
        return TRANSPORTS[self.form].syntax

    def __str__(self) -> str:
        syntax = self.syntax
        if syntax is not Syntax.PATH:
            suffix = (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")
            return f"{self.form}:{'//' if syntax is Syntax.REGISTRY else ''}{self.path}{suffix}"
        which = self.tag if self.position is None else f"@{self.position}"
        return f"{self.form}:{self.path}" + (f":{which}" if which is not None else "")


class Access(Struct, frozen=True):
    """How a place is opened."""

    registry: RegistryOptions
    store: StoreOptions | None
    containerd: ContainerdOptions
    replace: bool = False
    """Whether an existing archive, or another image of the same name in a store, is replaced."""
    durable: bool = False
    """Whether `ImageWriter.commit` returns only after everything is on disk."""


OpenReader: TypeAlias = Callable[[ImageName, Access], ImageReader]
OpenWriter: TypeAlias = Callable[[ImageName, Access], ImageWriter]


class Transport(Struct, frozen=True):
    """Everything in which a kind of place for images differs from the others."""

    usage: str
    """The syntax of its names, for help and messages."""
    syntax: Syntax
    reader: OpenReader
    writer: OpenWriter
    tags_are_references: bool = False
    """Whether tags are full references, as in a Docker archive (`Syntax.PATH`)."""


def parse_image_name(text: str) -> ImageName:
    """Parse the name of an image, ``FORM:...``; see `Syntax`.

    The path of ``oci:PATH:TAG`` ends at the first colon and so contains none. A name in a registry or a store is
    expanded as Docker does: without a registry it is on docker.io, with neither tag nor digest it has the tag
    ``latest``. Raises InvalidInput, with a hint that lists the forms; Unsupported for an unknown digest algorithm.
    """
    form, colon, rest = text.partition(":")
    transport = TRANSPORTS.find(form) if colon else None
    if transport is None:
        if form in ("dir", "cim"):
            hint = "'lamella pack' makes an image of a directory or composite image"
        elif not colon and text.lower().endswith(".cim"):
            hint = f"where a tree is accepted, a composite image is cim:{text[:300]}"
        else:
            hint = _usages()
        raise InvalidInput(f"{text[:300]!r} names no transport", hint=hint)
    if transport.syntax is Syntax.PATH:
        return _at_path(text, form, rest, transport)
    if transport.syntax is Syntax.REGISTRY:
        if not rest.startswith("//"):
            raise InvalidInput(f"{text[:300]!r}: two slashes must follow the form", hint=f"write {transport.usage}")
        rest = rest[2:]
    from lamella.oci.reference import parse_reference

    reference = parse_reference(rest).with_default_tag()
    return ImageName(form, reference.name, reference.tag, digest=reference.digest)


def _at_path(text: str, form: str, rest: str, transport: Transport) -> ImageName:
    drive = re.match(r"[A-Za-z]:(?=[\\/])", rest) if os.name == "nt" else None
    start = drive.end() if drive else 0
    path, _, which = rest[start:].partition(":")
    path = rest[:start] + path
    if not path or "\0" in path:
        raise InvalidInput(f"{text[:300]!r} has no path", hint=_usages())
    if not which:
        return ImageName(form, path)
    if which.startswith("@"):
        if not re.fullmatch("@[0-9]{1,9}", which):
            raise InvalidInput(f"{text[:300]!r}: {which[:40]!r} is not the number of an image", hint="count from @0")
        return ImageName(form, path, position=int(which[1:]))
    if transport.tags_are_references:
        from lamella.oci.reference import parse_reference

        reference = parse_reference(which).with_default_tag()
        if reference.digest is not None:
            raise InvalidInput(f"{text[:300]!r}: an archive's images are named by tags, not by digests")
        which = str(reference)
    return ImageName(form, path, which)


def _usages() -> str:
    usages = [row.usage for row in TRANSPORTS.rows().values()]
    return f"write {', '.join(usages[:-1])} or {usages[-1]}"


def open_reader(
    name: ImageName,
    *,
    registry: RegistryOptions | None = None,
    store: StoreOptions | None = None,
    containerd: ContainerdOptions | None = None,
) -> ImageReader:
    """A reader of the place that ``name`` names.

    ``registry`` and ``containerd`` default to `registry_options` and `containerd_options`. Non-distributable layers
    that are absent are fetched from the URLs of their descriptors if ``registry`` allows it.

    Raises NotFound, InvalidInput, Unsupported, Denied; for a registry or a containerd Unavailable and Integrity too.
    """
    access = Access(registry or current_options(), store, containerd or current_containerd())
    reader = TRANSPORTS[name.form].reader(name, access)
    if access.registry.foreign_urls and reader.foreign_layers is None:
        reader.foreign_layers = _load("lamella.registry.blob_fetch:ForeignLayers")(reader.where, access.registry)
    return reader


def open_writer(
    name: ImageName,
    *,
    replace: bool = False,
    registry: RegistryOptions | None = None,
    store: StoreOptions | None = None,
    containerd: ContainerdOptions | None = None,
) -> ImageWriter:
    """A writer to the place that ``name`` names.

    With ``replace``, a new archive replaces an existing one once it is complete, and an image in a store or a
    containerd one of the same name. A layout keeps its other images either way, and a tag in a registry is always
    replaced. Everything is on the disk before `commit` returns, unless `durable_outputs` says otherwise.
    Raises AlreadyExists, InvalidInput, Unsupported, Denied.
    """
    if name.position is not None:
        raise InvalidInput(f"{name}: an image cannot be written at a number", hint="give it a tag")
    access = Access(
        registry or current_options(), store, containerd or current_containerd(), replace, outputs_are_durable()
    )
    return TRANSPORTS[name.form].writer(name, access)


def _load(where: str) -> Callable[..., Any]:
    module, _, function = where.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


# The rows. The functions are named by text: most are in rooms above this one.


def _path_reader(where: str) -> OpenReader:
    def read(name: ImageName, access: Access) -> ImageReader:
        del access
        reader: ImageReader = _load(where)(name.path)
        return reader

    return read


def _path_writer(where: str) -> OpenWriter:
    def write(name: ImageName, access: Access) -> ImageWriter:
        writer: ImageWriter = _load(where)(name.path, replace=access.replace, durable=access.durable)
        return writer

    return write


def _read_registry(name: ImageName, access: Access) -> ImageReader:
    reader: ImageReader = _load("lamella.registry.reader:open_registry")(name, access.registry)
    return reader


def _write_registry(name: ImageName, access: Access) -> ImageWriter:
    writer: ImageWriter = _load("lamella.registry.writer:open_registry")(name, access.registry)
    return writer


def _read_store(name: ImageName, access: Access) -> ImageReader:
    reader: ImageReader = _load("lamella.store.image_reader:open_store_reader")(name, access.store)
    return reader


def _write_store(name: ImageName, access: Access) -> ImageWriter:
    open_store = _load("lamella.store.image_writer:open_store_writer")
    writer: ImageWriter = open_store(name, access.store, replace=access.replace)
    return writer


def _read_containerd(name: ImageName, access: Access) -> ImageReader:
    reader: ImageReader = _load("lamella.client.images:open_containerd_reader")(name, access.containerd)
    return reader


def _write_containerd(name: ImageName, access: Access) -> ImageWriter:
    open_containerd = _load("lamella.client.images:open_containerd_writer")
    writer: ImageWriter = open_containerd(name, access.containerd, replace=access.replace)
    return writer


STORE: Final = "store"
"""The form of images in Lamella's own store."""

TRANSPORTS: Final = Table(
    "transport",
    "lamella.transports",
    Transport,
    {
        "oci": Transport(
            "oci:DIR[:TAG]",
            Syntax.PATH,
            _path_reader("lamella.images.layout:open_directory"),
            _path_writer("lamella.images.layout:LayoutWriter"),
        ),
        "oci-archive": Transport(
            "oci-archive:FILE[:TAG]",
            Syntax.PATH,
            _path_reader("lamella.images.archive:open_oci_archive"),
            _path_writer("lamella.images.archive_writer:OciArchiveWriter"),
        ),
        "docker-archive": Transport(
            "docker-archive:FILE[:REF]",
            Syntax.PATH,
            _path_reader("lamella.images.docker_archive:open_docker_archive"),
            _path_writer("lamella.images.archive_writer:DockerArchiveWriter"),
            tags_are_references=True,
        ),
        "docker": Transport("docker://HOST/NAME[:TAG]", Syntax.REGISTRY, _read_registry, _write_registry),
        STORE: Transport("store:NAME[:TAG]", Syntax.REFERENCE, _read_store, _write_store),
        "containerd": Transport("containerd:NAME[:TAG]", Syntax.REFERENCE, _read_containerd, _write_containerd),
    },
)
"""All transports, by the form that their names begin with."""
