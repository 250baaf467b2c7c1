# SPDX-License-Identifier: Apache-2.0
"""The forms that an image name can have, each with the module that reads and writes it, loaded when it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final, cast

from lamella.errors import InvalidInput
from lamella.images.contract import Elsewhere, ImageReader, ImageWriter
from lamella.images.naming import CONTAINERD, REGISTRY, STORE, ImageName
from lamella.images.options import (
    ContainerdOptions,
    RegistryOptions,
    StoreOptions,
    current_containerd,
    current_options,
)

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
    "oci": "lamella.images.layout_writer:LayoutWriter",
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

_ELSEWHERE: Final = "lamella.registry.foreign:Elsewhere"
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
