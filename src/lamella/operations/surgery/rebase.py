# SPDX-License-Identifier: Apache-2.0
"""Replace the base of an image."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

import msgspec
from msgspec.structs import replace as replaced

from lamella.changes.job import Job
from lamella.errors import Conflict, InvalidInput
from lamella.images.resolve import PlatformImage, open_platform_image
from lamella.images.transports import ImageName, Syntax, open_writer, parse_image_name
from lamella.oci.config import History
from lamella.oci.platform import Platform
from lamella.oci.reference import parse_reference
from lamella.operations.surgery.draft import Draft, DraftLayer, WrittenImage, draft_of, write_draft
from lamella.operations.surgery.mutate import creation_time
from lamella.times import source_date_epoch

BASE_NAME: Final = "org.opencontainers.image.base.name"
"""Annotation of a manifest: the reference of its base image."""
BASE_DIGEST: Final = "org.opencontainers.image.base.digest"


def rebase(
    source: str | ImageName,
    target: str | ImageName,
    *,
    old_base: str | ImageName | None = None,
    new_base: str | ImageName | None = None,
    platform: str | Platform | None = None,
    replace: bool = False,
    job: Job | None = None,
) -> WrittenImage:
    """Write the image ``source`` as ``target``, with the layers of ``new_base`` in place of those of ``old_base``.

    The default bases are in the annotations in which builders record the base image: the old one by name and digest,
    the new one by name. No layer is read, unless the target lacks it, and nothing is merged: the image's own layers
    must fit the new base. `replace_base` says how config and history change.

    Raises Conflict if the image is not built on ``old_base``, InvalidInput if no base is known, NotFound if a base does
    not exist for the image's platform.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    with ExitStack() as stack:
        image = stack.enter_context(open_platform_image(source, platform))
        old_base = old_base or _recorded_base(image, with_digest=True)
        new_base = new_base or _recorded_base(image, with_digest=False)
        old = stack.enter_context(open_platform_image(old_base, image.platform))
        new = stack.enter_context(open_platform_image(new_base, image.platform))
        draft = replace_base(image, old, new)
        with open_writer(target, replace=replace) as writer:
            return write_draft(draft, writer, tag=target.tag, job=job)


def replace_base(image: PlatformImage, old: PlatformImage, new: PlatformImage) -> Draft:
    """A draft of ``image`` with the layers of ``new`` in place of those of ``old``, with which it must begin.

    Its config stays, including variables: the config of the new base is not merged into it. Only the version of the
    operating system is that of the new base. The history is that of the new base and the steps after the old one; it
    is empty if the history of either does not match its layers. The date is SOURCE_DATE_EPOCH, or stays.
    """
    _check_built_on(image, old)
    _check_platform(image, new)
    draft = draft_of(image)
    layers: tuple[DraftLayer, ...] = (*new.layers, *image.layers[len(old.layers) :])
    history: list[History] = []
    if draft.history_matches and draft_of(new).history_matches:
        history = [*new.config.history, *_own_history(image, old)]
    config = msgspec.structs.replace(
        draft.config, history=history, os_version=new.config.os_version, os_features=new.config.os_features
    )
    if source_date_epoch() is not None:
        config = msgspec.structs.replace(config, created=creation_time())
    annotations = {key: to for key, to in draft.manifest.annotations.items() if key not in (BASE_NAME, BASE_DIGEST)}
    if new.name is not None and new.name.syntax is Syntax.REGISTRY:
        # Names of other transports mean nothing to other users of the image.
        annotations[BASE_NAME] = new.name.path + (f":{new.name.tag}" if new.name.tag else "")
        annotations[BASE_DIGEST] = str(new.descriptor.digest)
    manifest = msgspec.structs.replace(draft.manifest, annotations=annotations)
    return replaced(draft, config=config, layers=layers, manifest=manifest)


def _check_built_on(image: PlatformImage, old: PlatformImage) -> None:
    if len(old.layers) > len(image.layers):
        raise Conflict(
            f"{_name(image)} has {len(image.layers)} layers, fewer than the {len(old.layers)} of {_name(old)}, "
            "so it was not built on it"
        )
    for number, (below, mine) in enumerate(zip(old.layers, image.layers, strict=False)):
        if below.diff_id != mine.diff_id:
            raise Conflict(
                f"{_name(image)} was not built on {_name(old)}: layer {number} is {mine.diff_id}, "
                f"expected {below.diff_id}",
                hint="give the image that it was built on as the old base, by digest if its tag has moved",
            )


def _check_platform(image: PlatformImage, new: PlatformImage) -> None:
    mine, other = image.config, new.config
    if (mine.os, mine.architecture) != (other.os, other.architecture):
        raise Conflict(f"{_name(image)} is for {image.platform}, and {_name(new)} for {new.platform}")


def _own_history(image: PlatformImage, old: PlatformImage) -> list[History]:
    """The steps after those of the old base."""
    history, below = image.config.history, old.config.history
    if draft_of(old).history_matches and history[: len(below)] == below:
        return list(history[len(below) :])
    # The histories differ: take the steps after the base's last layer for the image's own.
    count = len(old.layers)
    at = 0
    while count:
        count -= not history[at].empty_layer
        at += 1
    return list(history[at:])


def _recorded_base(image: PlatformImage, *, with_digest: bool) -> ImageName:
    annotations = image.manifest.annotations
    name, digest = annotations.get(BASE_NAME), annotations.get(BASE_DIGEST)
    if not name or (with_digest and not digest):
        which = "old" if with_digest else "new"
        raise InvalidInput(
            f"{_name(image)} does not record its base image",
            hint=f"give the {which} base: the image has no annotation {BASE_DIGEST if name else BASE_NAME}",
        )
    reference = replaced(parse_reference(name), digest=None)
    return parse_image_name(f"docker://{reference.name}@{digest}" if with_digest else f"docker://{reference}")


def _name(image: PlatformImage) -> str:
    return str(image.name or image.descriptor.digest)
