# SPDX-License-Identifier: Apache-2.0
"""``lamella store images``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, human_size
from lamella.cli.options import parse_pairs
from lamella.cli.store.opening import labels_text, namespace_option, opened_space, table, when
from lamella.cli.verb import Verb, VerbGroup

if TYPE_CHECKING:
    from lamella.store.contract import ImageRecord
    from lamella.store.store import LocalNamespace


@click.group("images", cls=VerbGroup, invoke_without_command=True)
@namespace_option
@click.pass_context
def command(context: click.Context) -> None:
    """List, name, label and remove images.

    Without a verb, list them.
    """
    if context.invoked_subcommand is None:
        context.invoke(ls, filters=())


@command.command("ls", cls=Verb, example="lamella store images ls 'name~=alpine'")
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
@namespace_option
@click.pass_obj
def ls(console: Console, filters: tuple[str, ...]) -> None:
    """List images.

    A FILTER has containerd's syntax, as in 'name~=alpine' or 'labels.tier==db'; images that match any of them are
    listed. SIZE is that of the stored blobs.
    """
    from lamella.store.gc.usage import image_size

    with opened_space(readonly=True) as space:
        images = space.images.list(filters)
        if console.json:
            console.document([_document(space, image) for image in images])
            return
        table(
            console,
            ("NAME", "DIGEST", "SIZE", "CREATED", "LABELS"),
            [
                (
                    image.name,
                    image.target.digest,
                    human_size(image_size(space, image.target.digest)),
                    when(image.created_at),
                    labels_text(image.labels.items()),
                )
                for image in images
            ],
            {2},
        )


@command.command("tag", cls=Verb, example="lamella store images tag alpine:3.20 alpine:latest")
@click.argument("source", metavar="REF")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--replace", is_flag=True, help="Move existing names to this image.")
@namespace_option
@click.pass_obj
def tag(console: Console, source: str, names: tuple[str, ...], replace: bool) -> None:
    """Give an image further names."""
    from lamella.errors import AlreadyExists
    from lamella.operations.store.images import full_name
    from lamella.store.contract import ImageRecord

    with opened_space() as space:
        found = _find(space, source)
        made = []
        for name in names:
            record = ImageRecord(full_name(name), found.target, found.labels)
            try:
                made.append(space.images.create(record))
            except AlreadyExists as there:
                if not replace:
                    there.hint = "give --replace to let it name the other image"
                    raise
                made.append(space.images.update(record))
        if console.json:
            console.document([_document(space, image) for image in made])
            return
        for image in made:
            console.summary(f"{image.name}: {image.target.digest}")


@command.command("rm", cls=Verb, example="lamella store images rm alpine:3.20")
@click.argument("names", metavar="REF...", nargs=-1, required=True)
@click.option("--no-gc", is_flag=True, help="Leave unreferenced data to a later 'lamella store gc'.")
@namespace_option
@click.pass_obj
def rm(console: Console, names: tuple[str, ...], no_gc: bool) -> None:
    """Remove images, and the data that only they reference."""
    from lamella.store.gc.collect import collect

    with opened_space(frees=True) as space:
        found = [_find(space, name) for name in names]
        for image in {image.name: image for image in found}.values():
            space.images.delete(image.name)
        freed = 0 if no_gc else collect(space.store, namespaces=[space.name]).size
    if console.json:
        console.document({"removed": [image.name for image in found], "freed": freed})
        return
    for image in found:
        console.summary(f"removed {image.name}")
    if not no_gc:
        console.summary(f"{human_size(freed)} freed")


@command.command("label", cls=Verb, example="lamella store images label alpine:3.20 tier=base")
@click.argument("name", metavar="REF")
@click.argument("labels", metavar="KEY=VALUE...", nargs=-1, required=True, callback=parse_pairs)
@namespace_option
@click.pass_obj
def label(console: Console, name: str, labels: dict[str, str]) -> None:
    """Set labels of an image.

    An empty VALUE removes a label.
    """
    from msgspec.structs import replace

    with opened_space() as space:
        found = _find(space, name)
        made = space.images.update(replace(found, labels=labels), [f"labels.{key}" for key in labels])
        if console.json:
            console.document(_document(space, made))
            return
    console.summary(f"{made.name}: {labels_text(made.labels.items())}")


def _find(space: LocalNamespace, text: str) -> ImageRecord:
    from lamella.operations.store.images import find_image

    return find_image(space, text)


def _document(space: LocalNamespace, image: ImageRecord) -> dict[str, Any]:
    from lamella.operations.inspect import describe_descriptor
    from lamella.store.gc.usage import image_size
    from lamella.times import format_rfc3339

    return {
        "name": image.name,
        "target": describe_descriptor(image.target),
        "size": image_size(space, image.target.digest),
        "labels": dict(image.labels),
        "created": format_rfc3339(image.created_at),
        "updated": format_rfc3339(image.updated_at),
    }
