# SPDX-License-Identifier: Apache-2.0
"""What copy, pull and push do alike."""

from __future__ import annotations

from lamella.cli.console import Console, human_size


def copy_and_tell(
    console: Console, source: str, target: str, *, platform: str | None, all_platforms: bool, replace: bool = False
) -> None:
    """Copy the image and say what came of it."""
    from lamella.operations.copy import copy
    from lamella.operations.inspect import describe_descriptor

    copied = copy(
        source,
        target,
        platform=platform,
        all_platforms=all_platforms,
        replace=replace,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    if console.json:
        document = describe_descriptor(copied.entry)
        console.document({"image": target, **document, "blobs": copied.blobs, "bytes": copied.size})
        return
    console.summary(f"{target}: {copied.entry.digest}")
    console.summary(f"{copied.blobs} blobs written, {human_size(copied.size)}; {copied.present} were there already")


def check_direction(verb: str, image: str, *, in_registry: bool) -> None:
    """Refuse an image that is on the wrong side for ``verb``. Raises InvalidInput."""
    from lamella.errors import InvalidInput
    from lamella.images.naming import REGISTRY, parse_image_name

    if (parse_image_name(image).form == REGISTRY) != in_registry:
        where = "not in a registry" if in_registry else "in a registry"
        raise InvalidInput(
            f"{verb}: {image[:300]!r} is {where}",
            hint="'lamella pull' goes from docker://HOST/NAME[:TAG] to this machine, 'lamella push' the other way, "
            "and 'lamella copy' from anywhere to anywhere",
        )
