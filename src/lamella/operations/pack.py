# SPDX-License-Identifier: Apache-2.0
"""A directory as an image of one layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace as replace_fields

from lamella.changes.contracts import Source
from lamella.changes.losses import Losses
from lamella.changes.model import Entry
from lamella.errors import InvalidInput
from lamella.images.contract import ImageWriter
from lamella.images.transports import ImageName, open_reader, open_writer, parse_image_name
from lamella.layers.policy import Owners
from lamella.oci.config import History, ImageConfig, RootFs
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.oci.manifest import new_manifest
from lamella.oci.mediatypes import OCI_CONFIG, OCI_MANIFEST, oci_layer
from lamella.oci.platform import Platform, host_platform, parse_platform
from lamella.operations.atomic_file import refuse_within
from lamella.operations.layers.diff import sourced
from lamella.operations.layers.write import DEFAULT_OPTIONS, LayerOptions, Written, write_layer
from lamella.operations.surgery.mutate import Settings, configured, creation_time, new_config, parse_variables
from lamella.operations.windows.cim import cim_place
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.layers.windows.names import NameRules
    from lamella.layers.windows.transforms import WindowsTemplate
    from lamella.operations.surgery.new_layers import Opened
    from lamella.progress import Cancellation, Progress

_BY: Final = "lamella pack"


class Packed(Struct, frozen=True):
    """What came of an image that was written."""

    descriptor: Descriptor
    """Of the manifest, as the place lists it."""
    layer: Descriptor
    written: Written
    """The one layer."""


def pack(
    directory: str | os.PathLike[str],
    image: str | ImageName,
    *,
    base: ImageConfig | None = None,
    entrypoint: Sequence[str] | None = None,
    cmd: Sequence[str] | None = None,
    env: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    user: str | None = None,
    working_dir: str | None = None,
    platform: str | Platform | None = None,
    compression: str = "gzip",
    level: int | None = None,
    threads: int | None = None,
    subsecond: bool = False,
    owners: Owners | None = None,
    template: WindowsTemplate | None = None,
    rules: NameRules | None = None,
    replace: bool = False,
    recipe: str | os.PathLike[str] | None = None,
    losses: Losses | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Packed:
    """Write the files in ``directory`` as the image ``image``, which appears when it is complete.

    A composite image, ``cim:DIR/NAME.cim`` or its path, can be given for the directory: it becomes a base layer for
    Windows with all files of the images that it is forked from, and hives with all deltas in them.

    ``base`` is a config to take over, less its layers and history; what else is given counts more. ``env`` are
    ``NAME=VALUE``, each in the place of the one of its name. The platform is that of the base, or of this machine; for
    Windows the directory is drive C, and becomes a base layer, by ``template``: it gets the registry hives that it
    lacks, empty, without which Windows takes none. ``rules`` are for its names; a file whose name they refuse is lost.

    The same tree always gives the same digest on one platform: the image is dated by SOURCE_DATE_EPOCH, or 1970 where
    that is not set. See `lamella.operations.layers.diff.diff` for the options of the layer, and `open_writer` for
    ``replace``. ``recipe`` is a file that gets what it takes to make the layer's blob again, once the image is there.
    Raises AlreadyExists, InvalidInput, and as `diff` does.
    """
    name = parse_image_name(image) if isinstance(image, str) else image
    refuse_within(directory, name.path, "the image")
    if recipe is not None:
        refuse_within(directory, recipe, "the recipe")
    settings = Settings(
        env=parse_variables(env),
        cmd=cmd,
        entrypoint=entrypoint,
        labels=labels,
        user=user,
        working_dir=working_dir,
        platform=platform,
        created=creation_time(),
    )
    cim = cim_place(directory)
    if cim is not None:
        if template is not None or owners is not None:
            raise InvalidInput("the files of a composite image have their metadata; none can be chosen")
        if base is None and platform is None:
            settings = replace_fields(settings, platform=msgspec.structs.replace(host_platform(), os="windows"))
    config = _configured(base, settings)
    if cim is not None and config.os != "windows":
        raise InvalidInput(f"the image is for {config.os}, and a composite image holds files of Windows")
    losses = Losses() if losses is None else losses
    options = LayerOptions(
        compression,
        level,
        threads,
        subsecond,
        owners,
        losses,
        windows=config.os == "windows",
        template=template,
        rules=rules,
    )
    if (template is not None or rules is not None) and not options.windows:
        raise InvalidInput(f"the image is for {config.os}; security descriptors, attributes and odd names are Windows'")
    with _opened(directory, cim, owners, losses) as (changes, lookup), open_writer(name, replace=replace) as writer:
        if options.windows and cim is None:
            from lamella.operations.surgery.new_layers import windows_layer

            changes, lookup = windows_layer(changes, Path(directory), template, losses, base=True), None
        packed = write_image(writer, name.tag, config, changes, lookup, options, progress=progress, cancel=cancel)
    if recipe is not None:
        _record(name, packed, recipe, progress, cancel)
    return packed


def _opened(
    directory: str | os.PathLike[str], cim: Path | None, owners: Owners | None, losses: Losses
) -> AbstractContextManager[Opened]:
    if cim is None:
        return sourced(None, directory, owners=owners, losses=losses)
    from lamella.operations.windows.cim import cim_as_base_layer

    return cim_as_base_layer(cim)


def _record(
    name: ImageName,
    packed: Packed,
    recipe: str | os.PathLike[str],
    progress: Progress | None,
    cancel: Cancellation | None,
) -> None:
    from lamella.operations.layers.recipes import make_recipe

    with open_reader(name) as reader, reader.open_blob(packed.layer) as blob:
        make_recipe(blob, recipe, compression=packed.written.facts.compression, progress=progress, cancel=cancel)


def write_image(
    writer: ImageWriter,
    tag: str | None,
    config: ImageConfig,
    changes: Source,
    lookup: Callable[[LayerPath], Entry | None] | None = None,
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Packed:
    """Write an image of one layer, ``changes``, and commit it as ``tag``. The layer's diff id goes into ``config``."""
    with writer.stage() as blob:
        written = write_layer(changes, blob.file, options, lookup=lookup, progress=progress, cancel=cancel)
        facts = written.facts
        blob.keep(facts.digest, facts.size)
    layer = Descriptor(media_type=oci_layer(facts.compression), digest=facts.digest, size=facts.size)
    config = msgspec.structs.replace(config, rootfs=RootFs(diff_ids=[facts.diff_id]))
    document = writer.put_document(OCI_CONFIG, encode(config))
    manifest = writer.put_document(OCI_MANIFEST, encode(new_manifest(document, [layer])))
    return Packed(writer.commit(tag, manifest), layer, written)


def _configured(base: ImageConfig | None, settings: Settings) -> ImageConfig:
    if base is None:
        place = settings.platform or host_platform()
        base = new_config(parse_platform(place) if isinstance(place, str) else place)
    history = [History(created=creation_time(), created_by=_BY)]
    config: ImageConfig = msgspec.structs.replace(configured(base, settings), history=history)
    return config
