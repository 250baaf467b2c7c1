# SPDX-License-Identifier: Apache-2.0
"""The forms that an image name can have, each with the module that reads and writes it, loaded when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

from lamella.errors import InvalidInput, Unsupported
from lamella.images.contract import ImageReader, ImageWriter
from lamella.images.naming import REGISTRY, STORE, ImageName
from lamella.images.options import RegistryOptions, StoreOptions, current_options

_READERS: Final = {
    "oci": "lamella.images.layout:open_directory",
    "oci-archive": "lamella.images.archive:open_oci_archive",
    "docker-archive": "lamella.images.docker_archive:open_docker_archive",
    REGISTRY: "lamella.registry.reader:open_registry",
    STORE: "lamella.store.image_reader:open_store_reader",
}
"""Form to a function of the path; for a registry and the store, of the name and the options."""

_WRITERS: Final = {
    "oci": "lamella.images.layout_writer:LayoutWriter",
    "oci-archive": "lamella.images.archive_writer:OciArchiveWriter",
    "docker-archive": "lamella.images.archive_writer:DockerArchiveWriter",
    REGISTRY: "lamella.registry.writer:open_registry",
    STORE: "lamella.store.image_writer:open_store_writer",
}
"""Form to a function of the path, ``replace`` and ``durable``.

For a registry and the store, of the name and the options; for the store ``replace`` besides, which is always durable.
"""

_LATER: Final = {
    "containerd": "images of containerd",
}


def open_reader(
    name: ImageName, *, registry: RegistryOptions | None = None, store: StoreOptions | None = None
) -> ImageReader:
    """A reader of the place that ``name`` names; ``registry`` says how one is talked to, else `registry_options`.

    ``store`` says which store is meant.

    Raises NotFound, InvalidInput, Unsupported, Denied; for a registry Unavailable and Integrity too.
    """
    if name.form == REGISTRY:
        return cast("ImageReader", _load(_READERS, name)(name, registry or current_options()))
    if name.form == STORE:
        return cast("ImageReader", _load(_READERS, name)(name, store))
    return cast("ImageReader", _load(_READERS, name)(name.path))


def open_writer(
    name: ImageName,
    *,
    replace: bool = False,
    durable: bool = False,
    registry: RegistryOptions | None = None,
    store: StoreOptions | None = None,
) -> ImageWriter:
    """A writer to the place that ``name`` names.

    With ``replace`` an archive that is there already gives way when the new one is complete; a layout keeps its other
    images either way. With ``durable`` everything is on the disk, not in its cache alone, before `commit` returns. A
    registry is talked to as ``registry`` says; a tag there always gives way. ``store`` says where that is; a name there
    that has another image gives way with ``replace`` alone, and the store is durable either way.
    Raises AlreadyExists, InvalidInput, Unsupported, Denied.
    """
    if name.form == REGISTRY:
        return cast("ImageWriter", _load(_WRITERS, name)(name, registry or current_options()))
    if name.form == STORE:
        return cast("ImageWriter", _load(_WRITERS, name)(name, store, replace=replace))
    if name.position is not None:
        raise InvalidInput(f"{name}: an image cannot be written at a number", hint="give it a tag")
    return cast("ImageWriter", _load(_WRITERS, name)(name.path, replace=replace, durable=durable))


def _load(table: dict[str, str], name: ImageName):  # type: ignore[no-untyped-def]
    where = table.get(name.form)
    if where is None:
        what = _LATER.get(name.form, f"the form {name.form!r}")
        raise Unsupported(
            f"{name}: {what} cannot be used yet",
            hint="copy the image to oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:REF] first",
        )
    module, _, function = where.partition(":")
    return getattr(import_module(module), function)
