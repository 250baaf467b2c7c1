# SPDX-License-Identifier: Apache-2.0
"""``lamella copy``, ``pull`` and ``push``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.documents import print_copied
from lamella.cli.options import all_option, platform_option, replace_option
from lamella.cli.verb import ImageVerb


def _copy(
    console: Console, source: str, target: str, *, platform: str | None, all_platforms: bool, replace: bool = False
) -> None:
    """Copy the image and report the copy."""
    from lamella.operations.copy import copy

    copied = copy(source, target, platform=platform, all_platforms=all_platforms, replace=replace, job=console.job())
    print_copied(console, target, copied)


def _check_direction(verb: str, image: str, *, in_registry: bool) -> None:
    """Raise InvalidInput if ``image`` is on the wrong side for ``verb``."""
    from lamella.errors import InvalidInput
    from lamella.images.transports import Syntax, parse_image_name

    if (parse_image_name(image).syntax is Syntax.REGISTRY) != in_registry:
        where = "not in a registry" if in_registry else "in a registry"
        raise InvalidInput(
            f"{verb}: {image[:300]!r} is {where}",
            hint="'lamella pull' goes from docker://HOST/NAME[:TAG] to this machine, 'lamella push' the other way, "
            "and 'lamella copy' from anywhere to anywhere",
        )


@click.command("copy", cls=ImageVerb, example="lamella copy oci:app:1.0 docker-archive:app.tar:app:1.0")
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="TARGET")
@all_option
@platform_option
@replace_option
@click.pass_obj
def copy(console: Console, source: str, target: str, all_platforms: bool, platform: str | None, replace: bool) -> None:
    """Copy an image from one place to another.

    The copy is the same byte for byte, so digests stay. Digests and sizes are checked, and blobs that TARGET has are
    not read. TARGET changes only at the end, all at once; a layout keeps its other images.
    """
    _copy(console, source, target, platform=platform, all_platforms=all_platforms, replace=replace)


@click.command("pull", cls=ImageVerb, example="lamella pull docker://docker.io/library/alpine:3.20 oci:alpine:3.20")
@click.argument("source", metavar="docker://HOST/NAME[:TAG]")
@click.argument("target", metavar="IMAGE")
@all_option
@platform_option
@replace_option
@click.pass_obj
def pull(console: Console, source: str, target: str, all_platforms: bool, platform: str | None, replace: bool) -> None:
    """Copy an image from a registry to this machine.

    The copy is the same byte for byte, so digests stay; blobs that IMAGE has are not fetched. 'lamella unpack' takes
    an image straight from a registry too, without storing its blobs.
    """
    _check_direction("pull", source, in_registry=True)
    _check_direction("pull", target, in_registry=False)
    _copy(console, source, target, platform=platform, all_platforms=all_platforms, replace=replace)


@click.command("push", cls=ImageVerb, example="lamella push oci:app:1.0 docker://registry.example/team/app:1.0")
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="docker://HOST/NAME[:TAG]")
@all_option
@platform_option
@click.pass_obj
def push(console: Console, source: str, target: str, all_platforms: bool, platform: str | None) -> None:
    """Copy an image from this machine to a registry.

    The copy is the same byte for byte, so digests stay; blobs that the registry has are not sent. The tag is set last.
    """
    _check_direction("push", source, in_registry=False)
    _check_direction("push", target, in_registry=True)
    _copy(console, source, target, platform=platform, all_platforms=all_platforms)
