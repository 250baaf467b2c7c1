# SPDX-License-Identifier: Apache-2.0
"""``lamella store import`` and ``export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, human_size
from lamella.cli.documents import losses_document, print_copied
from lamella.cli.options import collect, platform_option, replace_option, strict_option
from lamella.cli.store.opening import chosen_verity, namespace_option, opened_space, snapshotter_option, verity_option
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.operations.store.transfer import ImportOptions


@click.command("import", cls=ImageVerb, example="lamella store import --unpack docker://docker.io/library/alpine:3.20")
@click.argument("image", metavar="IMAGE")
@collect(
    "options",
    "operations.store.transfer:ImportOptions",
    click.option("--name", metavar="REF", help="The name in the store.  [default: the full names of the images]"),
    click.option("--unpack", is_flag=True, help="Also unpack the layers into snapshots."),
    snapshotter_option,
    click.option("--all", "all_platforms", is_flag=True, help="Import an index with the images of all platforms."),
    click.option("--replace", is_flag=True, help="Replace an image of that name."),
    platform_option,
)
@verity_option
@strict_option
@namespace_option
@click.pass_obj
def import_(console: Console, image: str, options: ImportOptions, verity: str | None, strict: bool) -> None:
    """Copy an image into the store.

    Blobs that the store has are not read again. Without --name, all images of an archive or a layout that have a full
    name are imported. Other verbs name them store:REF.
    """
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.store.transfer import import_image

    if options.snapshotter is not None and not options.unpack:
        raise click.UsageError("--snapshotter needs --unpack")
    job = console.job(strict=strict)
    sealing = chosen_verity(verity, options.snapshotter)
    with opened_space(create=True, verity=sealing) as space:
        done = import_image(space, image, options, job=job)
    console.losses(job.losses)
    if console.json:
        images: list[dict[str, Any]] = []
        for one in done.images:
            document: dict[str, Any] = {"name": one.name, "target": describe_descriptor(one.target)}
            if one.unpacked is not None:
                document |= {
                    "snapshotter": one.unpacked.snapshotter,
                    "snapshot": one.unpacked.snapshot,
                    "layers": [
                        {"chain_id": layer.chain_id, "diff_id": layer.diff_id, "skipped": layer.skipped}
                        for layer in one.unpacked.layers
                    ],
                }
            images.append(document)
        totals = {"blobs": done.blobs, "bytes": done.size, "present": done.present}
        console.document({"images": images, **totals, **losses_document(job.losses)})
        return
    for one in done.images:
        console.summary(f"{one.name}: {one.target.digest}")
        if one.unpacked is not None:
            made = sum(not layer.skipped for layer in one.unpacked.layers)
            console.summary(f"{made} of {len(one.unpacked.layers)} layers unpacked into {one.unpacked.snapshotter}")
    console.summary(f"{done.blobs} blobs written, {human_size(done.size)}; {done.present} were there already")


@click.command("export", cls=ImageVerb, example="lamella store export alpine:3.20 oci:alpine:3.20")
@click.argument("name", metavar="REF")
@click.argument("target", metavar="IMAGE")
@click.option("--all", "all_platforms", is_flag=True, help="Copy an index with the images of all platforms.")
@platform_option
@replace_option
@namespace_option
@click.pass_obj
def export(console: Console, name: str, target: str, all_platforms: bool, platform: str | None, replace: bool) -> None:
    """Copy an image out of the store.

    Like 'lamella copy store:REF IMAGE', but for any namespace.
    """
    from lamella.operations.store.transfer import export_image

    job = console.job()
    with opened_space(readonly=True) as space:
        copied = export_image(
            space, name, target, platform=platform, all_platforms=all_platforms, replace=replace, job=job
        )
    print_copied(console, target, copied)
