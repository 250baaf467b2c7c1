# SPDX-License-Identifier: Apache-2.0
"""An image on another base."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace as replaced

from lamella.errors import Conflict, InvalidInput
from lamella.images.resolve import PlatformImage, open_platform_image
from lamella.images.transports import ImageName, Syntax, open_writer, parse_image_name
from lamella.oci.config import History
from lamella.oci.platform import Platform
from lamella.oci.reference import parse_reference
from lamella.operations.surgery.draft import Draft, DraftLayer, Finished, draft_of, write_draft
from lamella.operations.surgery.mutate import creation_time
from lamella.times import source_date_epoch

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress

BASE_NAME: Final = "org.opencontainers.image.base.name"
"""Annotation of a manifest: the reference of the image that it was built on."""
BASE_DIGEST: Final = "org.opencontainers.image.base.digest"


def rebase(
    source: str | ImageName,
    target: str | ImageName,
    *,
    old_base: str | ImageName | None = None,
    new_base: str | ImageName | None = None,
    platform: str | Platform | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Finished:
    """Write the image ``source`` as ``target``, with the layers of ``new_base`` in place of those of ``old_base``.

    Where a base is not given, the annotations tell it by which builders note what an image was built on: the old one
    by name and digest, the new one by name. No layer is read, unless the target lacks it, and nothing is merged: the
    image's own layers must make sense on the new base. `rebased` tells what comes of config and history.

    Raises Conflict where the image is not built on ``old_base``, InvalidInput where no base is known, NotFound also
    where a base is not there for the image's platform.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    with ExitStack() as stack:
        image = stack.enter_context(open_platform_image(source, platform))
        old_base = old_base or _noted_base(image, with_digest=True)
        new_base = new_base or _noted_base(image, with_digest=False)
        old = stack.enter_context(open_platform_image(old_base, image.platform))
        new = stack.enter_context(open_platform_image(new_base, image.platform))
        draft = rebased(image, old, new)
        with open_writer(target, replace=replace) as writer:
            return write_draft(draft, writer, tag=target.tag, progress=progress, cancel=cancel)


def rebased(image: PlatformImage, old: PlatformImage, new: PlatformImage) -> Draft:
    """``image`` with the layers of ``new`` in place of those of ``old``, which it must begin with.

    Its config stays, variables included: what the new base sets in its own config does not get in. Only the version of
    the operating system is the new base's. The history is the new base's with the steps that followed the old one,
    and empty where one of the two does not account for its layers. The date is SOURCE_DATE_EPOCH, or stays.
    """
    _check_built_on(image, old)
    _check_platform(image, new)
    draft = draft_of(image)
    layers: tuple[DraftLayer, ...] = (*new.layers, *image.layers[len(old.layers) :])
    history: list[History] = []
    if draft.accounted and draft_of(new).accounted:
        history = [*new.config.history, *_own_history(image, old)]
    config = msgspec.structs.replace(
        draft.config, history=history, os_version=new.config.os_version, os_features=new.config.os_features
    )
    if source_date_epoch() is not None:
        config = msgspec.structs.replace(config, created=creation_time())
    annotations = {key: to for key, to in draft.manifest.annotations.items() if key not in (BASE_NAME, BASE_DIGEST)}
    if new.name is not None and new.name.syntax is Syntax.REGISTRY:
        # A name in another place would tell nobody anything who has the image only.
        annotations[BASE_NAME] = new.name.path + (f":{new.name.tag}" if new.name.tag else "")
        annotations[BASE_DIGEST] = str(new.descriptor.digest)
    manifest = msgspec.structs.replace(draft.manifest, annotations=annotations)
    return replaced(draft, config=config, layers=layers, manifest=manifest)


def _check_built_on(image: PlatformImage, old: PlatformImage) -> None:
    if len(old.layers) > len(image.layers):
        raise Conflict(
            f"{_called(image)} has {len(image.layers)} layers, fewer than the {len(old.layers)} of {_called(old)}, "
            "so it was not built on that"
        )
    for number, (below, mine) in enumerate(zip(old.layers, image.layers, strict=False)):
        if below.diff_id != mine.diff_id:
            raise Conflict(
                f"{_called(image)} was not built on {_called(old)}: layer {number} is {mine.diff_id}, "
                f"expected {below.diff_id}",
                hint="name the very image that it was built on as the old base, by its digest if its tag has moved",
            )


def _check_platform(image: PlatformImage, new: PlatformImage) -> None:
    mine, other = image.config, new.config
    if (mine.os, mine.architecture) != (other.os, other.architecture):
        raise Conflict(f"{_called(image)} is for {image.platform}, and {_called(new)} for {new.platform}")


def _own_history(image: PlatformImage, old: PlatformImage) -> list[History]:
    """The steps behind those of the old base."""
    history, below = image.config.history, old.config.history
    if draft_of(old).accounted and history[: len(below)] == below:
        return list(history[len(below) :])
    # The old base tells its history differently; what follows its last layer is taken for the image's own.
    count = len(old.layers)
    at = 0
    while count:
        count -= not history[at].empty_layer
        at += 1
    return list(history[at:])


def _noted_base(image: PlatformImage, *, with_digest: bool) -> ImageName:
    annotations = image.manifest.annotations
    name, digest = annotations.get(BASE_NAME), annotations.get(BASE_DIGEST)
    if not name or (with_digest and not digest):
        which = "old" if with_digest else "new"
        raise InvalidInput(
            f"{_called(image)} does not say what it was built on",
            hint=f"name the {which} base: the image has no annotation {BASE_DIGEST if name else BASE_NAME}",
        )
    reference = replaced(parse_reference(name), digest=None)
    return parse_image_name(f"docker://{reference.name}@{digest}" if with_digest else f"docker://{reference}")


def _called(image: PlatformImage) -> str:
    return str(image.name or image.descriptor.digest)
