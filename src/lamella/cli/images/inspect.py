# SPDX-License-Identifier: Apache-2.0
"""``lamella inspect`` and ``verify``: the documents of an image, and the check of all its blobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from lamella.cli.console import Console, columns, human_size, printable
from lamella.cli.options import platform_option
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.images.resolve import PlatformImage

# inspect --------------------------------------------------------------------------------------------------------------


@click.command("inspect", cls=ImageVerb, example="lamella inspect docker://docker.io/library/alpine:3.20")
@click.argument("image", metavar="IMAGE")
@platform_option
@click.pass_obj
def inspect(console: Console, image: str, platform: str | None) -> None:
    """Show an image's config, layers, history and sizes.

    Only its documents are read; 'lamella verify' reads the layers. For an index, one image is shown, and the platforms
    that it has images for.
    """
    from lamella.images.resolve import open_platform_image
    from lamella.operations.inspect import describe

    with open_platform_image(image, platform) as opened:
        if console.json:
            console.document(describe(opened))
            return
        for line in columns(list(_facts(opened))):
            console.line(line)
        for part in (_layers(opened), _history(opened)):
            console.line()
            for line in part:
                console.line(line)


def _facts(image: PlatformImage) -> Iterator[tuple[str, str]]:
    config = image.config
    process = config.config
    facts: list[tuple[str, list[str]]] = [
        ("image", [str(image.name)]),
        ("manifest", [image.descriptor.digest]),
        ("config", [image.manifest.config.digest]),
        ("platform", [str(image.platform)]),
        ("of", [", ".join(map(str, image.offers))]),
        ("created", [config.created]),
        ("author", [config.author]),
        ("user", [process.user]),
        ("entrypoint", [_words(process.entrypoint)]),
        ("cmd", [_words(process.cmd)]),
        ("workdir", [process.working_dir]),
        ("env", process.env),
        ("ports", sorted(process.exposed_ports)),
        ("volumes", sorted(process.volumes)),
        ("stop signal", [process.stop_signal]),
        ("labels", [f"{key}={value}" for key, value in sorted(process.labels.items())]),
    ]
    for name, values in facts:
        for at, value in enumerate(value for value in values if value):
            yield "" if at else name, printable(value)


def _words(words: list[str]) -> str:
    if not words:
        return ""
    from shlex import join

    return join(words)


def _layers(image: PlatformImage) -> Iterator[str]:
    layers = image.layers
    total = human_size(sum(layer.descriptor.size for layer in layers))
    yield f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'}, {total}"
    rows = [
        [str(at), human_size(layer.descriptor.size), layer.compression, layer.descriptor.digest]
        for at, layer in enumerate(layers)
    ]
    yield from columns(rows, {0, 1})


def _history(image: PlatformImage) -> Iterator[str]:
    from lamella.operations.inspect import steps

    found = steps(image)
    yield "history (layer, created, by)" if found else "no history"
    rows = [
        [
            "" if step.layer is None else str(step.layer),
            printable(step.history.created or "-"),
            _shortened(printable(step.history.created_by or step.history.comment or "-")),
        ]
        for step in found
    ]
    yield from columns(rows, {0})


def _shortened(text: str, most: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


# verify ---------------------------------------------------------------------------------------------------------------


@click.command("verify", cls=ImageVerb, example="lamella verify oci:app:1.0")
@click.argument("image", metavar="IMAGE|DIR")
@click.pass_obj
def verify(console: Console, image: str) -> None:
    """Check every digest, size and layer of an image.

    Checks all platforms of the image; without a tag, all images of the place; with DIR, an OCI image layout, every
    blob in it. Each layer is decompressed, compared with its diff id, and applied to the layers below it. Problems are
    listed on standard output; the exit code is 8 if there are any.
    """
    from pathlib import Path

    from lamella.errors import Integrity
    from lamella.operations.verify import verify

    job = console.job()
    found = verify(f"oci:{image}" if Path(image).is_dir() else image, job=job)
    if console.json:
        console.document(
            {
                "sound": found.sound,
                "images": found.images,
                "blobs": found.blobs,
                "size": found.size,
                "problems": [{"blob": problem.blob, "problem": problem.why} for problem in found.problems],
                "foreign": list(found.foreign),
            }
        )
    else:
        for problem in found.problems:
            console.line(str(problem))
        for digest in found.foreign:
            console.summary(f"{digest}: non-distributable layer, not stored here")
        images = f"{found.images} {'image' if found.images == 1 else 'images'}"
        console.summary(f"{images}, {found.blobs} sound blobs, {human_size(found.size)}")
    if not found.sound:
        count = len(found.problems)
        raise Integrity(f"{image}: {count} {'problem' if count == 1 else 'problems'}")
