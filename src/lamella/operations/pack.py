# SPDX-License-Identifier: Apache-2.0
"""Pack a directory as an image of one layer."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import Source
from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.errors import InvalidInput
from lamella.images.contract import ImageWriter
from lamella.images.transports import ImageName, open_reader, open_writer, parse_image_name
from lamella.layers.kinds import cim_place
from lamella.oci.config import History, ImageConfig, RootFs
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.oci.manifest import new_manifest
from lamella.oci.mediatypes import OCI_CONFIG, OCI_MANIFEST
from lamella.oci.platform import host_platform, parse_platform
from lamella.operations.atomic_file import refuse_within
from lamella.operations.layers.diff import DiffOptions, open_changes
from lamella.operations.layers.write import LayerOptions, Written, write_layer
from lamella.operations.surgery.draft import layer_descriptor
from lamella.operations.surgery.mutate import NO_SETTINGS, Settings, apply_settings, creation_time, new_config

if TYPE_CHECKING:
    from lamella.layers.kinds import Lookup
    from lamella.operations.surgery.new_layers import Opened

_CREATED_BY: Final = "lamella pack"


class PackOptions(LayerOptions, frozen=True, kw_only=True):
    """How to pack a directory, and how to write its layer."""

    base: ImageConfig | None = None
    """The config to start from; its layers and history are left out."""
    replace: bool = False
    """As for `open_writer`."""
    recipe: str | os.PathLike[str] | None = None
    """Also write a recipe of the layer to this file; see `lamella.operations.layers.recipes`."""


DEFAULT_OPTIONS: Final = PackOptions()


class Packed(Struct, frozen=True):
    """An image of one new layer that was written."""

    descriptor: Descriptor
    """The manifest's, as the target lists it."""
    layer: Descriptor
    written: Written


def pack(
    directory: str | os.PathLike[str],
    image: str | ImageName,
    settings: Settings = NO_SETTINGS,
    options: PackOptions = DEFAULT_OPTIONS,
    *,
    job: Job | None = None,
) -> Packed:
    """Write the files in ``directory`` as the image ``image``, which appears when it is complete.

    ``directory`` may be a composite image, ``cim:DIR/NAME.cim`` or its path: the image then has a base layer for
    Windows, with all files of the composite image and of its parents, and with all deltas merged into the hives.

    ``settings`` are the changes to ``options.base``, or to an empty config. The default platform is that of the base,
    else that of this machine. For Windows, the directory is drive C and becomes a base layer, which gets the registry
    hives that it lacks, empty: Windows refuses a base layer without them.

    The same tree always gives the same digest on one platform: the image is dated by SOURCE_DATE_EPOCH, or 1970
    without it. Raises AlreadyExists, InvalidInput, and what `lamella.diff` raises.
    """
    job = job or Job()
    name = parse_image_name(image) if isinstance(image, str) else image
    refuse_within(directory, name.path, "the image")
    if options.recipe is not None:
        refuse_within(directory, options.recipe, "the recipe")
    cim = cim_place(directory)
    if cim is not None:
        if options.template is not None or options.owners is not None:
            raise InvalidInput("files of a composite image keep their metadata: neither owners nor a template apply")
        if options.base is None and settings.platform is None:
            settings = replace(settings, platform=replace(host_platform(), os="windows"))
    config = _new_config(options.base, settings)
    windows = config.os == "windows"
    if cim is not None and not windows:
        raise InvalidInput(f"the image is for {config.os}, but a composite image holds files of Windows")
    if (options.template is not None or options.rules is not None) and not windows:
        raise InvalidInput(
            f"the image is for {config.os}: security descriptors, attributes and unusual names are for Windows"
        )
    with (
        _open_files(directory, cim, options, job.losses) as (changes, lookup),
        open_writer(name, replace=options.replace) as writer,
    ):
        if windows and cim is None:
            from lamella.operations.surgery.new_layers import windows_layer

            changes = windows_layer(changes, Path(directory), options.template, job.losses, base=True)
            lookup = None
        layer, written = _write_one_layer(writer, changes, lookup, replace(options, windows=windows), job)
        descriptor = writer.commit(name.tag, _put_documents(writer, config, layer, written))
    if options.recipe is not None:
        from lamella.operations.layers.recipes import make_recipe

        with open_reader(name) as reader, reader.open_blob(layer) as blob:
            make_recipe(blob, options.recipe, compression=written.facts.compression, job=job)
    return Packed(descriptor, layer, written)


def _open_files(
    directory: str | os.PathLike[str], cim: Path | None, options: PackOptions, losses: Losses
) -> AbstractContextManager[Opened]:
    if cim is None:
        return open_changes(None, directory, DiffOptions(owners=options.owners), losses)
    from lamella.operations.windows.cim import cim_as_base_layer

    return cim_as_base_layer(cim)


def _write_one_layer(
    writer: ImageWriter, changes: Source, lookup: Lookup | None, options: LayerOptions, job: Job
) -> tuple[Descriptor, Written]:
    with writer.stage() as blob:
        written = write_layer(changes, blob.file, options, lookup=lookup, job=job)
        blob.keep(written.facts.digest, written.facts.size)
    return layer_descriptor(written.facts), written


def _put_documents(writer: ImageWriter, config: ImageConfig, layer: Descriptor, written: Written) -> Descriptor:
    config = replace(config, rootfs=RootFs(diff_ids=[written.facts.diff_id]))
    document = writer.put_document(OCI_CONFIG, encode(config))
    return writer.put_document(OCI_MANIFEST, encode(new_manifest(document, [layer])))


def _new_config(base: ImageConfig | None, settings: Settings) -> ImageConfig:
    if settings.created is None:
        settings = replace(settings, created=creation_time())
    if base is None:
        platform = settings.platform or host_platform()
        base = new_config(parse_platform(platform) if isinstance(platform, str) else platform)
    history = [History(created=str(settings.created), created_by=_CREATED_BY)]
    return replace(apply_settings(base, settings), history=history)
