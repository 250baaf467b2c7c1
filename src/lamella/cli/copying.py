# SPDX-License-Identifier: Apache-2.0
"""What copy, pull, push and 'store export' do alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.cli.console import Console, human_size

if TYPE_CHECKING:
    from lamella.operations.copy import Copied


def copy_and_tell(
    console: Console, source: str, target: str, *, platform: str | None, all_platforms: bool, replace: bool = False
) -> None:
    """Copy the image and say what came of it."""
    from lamella.operations.copy import copy

    copied = copy(
        source,
        target,
        platform=platform,
        all_platforms=all_platforms,
        replace=replace,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    tell_copied(console, target, copied)


def tell_copied(console: Console, target: str, copied: Copied) -> None:
    """Say what came of a copy to ``target``."""
    if console.json:
        from lamella.operations.inspect import describe_descriptor

        document = describe_descriptor(copied.entry)
        console.document(
            {"image": target, **document, "blobs": copied.blobs, "bytes": copied.size, "left": copied.left}
        )
        return
    console.summary(f"{target}: {copied.entry.digest}")
    console.summary(copied_summary(copied))


def copied_summary(copied: Copied) -> str:
    """What was moved, for people."""
    left = ""
    if copied.left:
        layers = "layer left where it is" if copied.left == 1 else "layers left where they are"
        left = f"; {copied.left} non-distributable {layers}"
    blobs = f"{copied.blobs} {'blob' if copied.blobs == 1 else 'blobs'} written, {human_size(copied.size)}"
    return f"{blobs}; {copied.present} {'was' if copied.present == 1 else 'were'} there already{left}"


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
