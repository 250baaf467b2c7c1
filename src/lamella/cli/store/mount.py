# SPDX-License-Identifier: Apache-2.0
"""``lamella mount``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.console import Console
from lamella.cli.options import PATH, platform_option
from lamella.cli.store.opening import (
    chosen_verity,
    namespace_option,
    opened_space,
    opened_store,
    snapshotter_option,
    store_reference,
    verity_option,
)
from lamella.cli.verb import Verb


@click.command("mount", cls=Verb, example="lamella mount store:alpine:3.20 ./alpine")
@click.argument("image", metavar="store:REF")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--rw", is_flag=True, help="Let programs write to DIR; 'lamella umount' drops the changes.")
@snapshotter_option
@verity_option
@platform_option
@namespace_option
@click.pass_obj
def mount(
    console: Console,
    image: str,
    directory: Path,
    rw: bool,
    snapshotter: str | None,
    verity: str | None,
    platform: str | None,
) -> None:
    """Mount an image of the store at a directory.

    DIR must exist. An image that is not unpacked yet is unpacked into the store. Needs root, or fuse-overlayfs and
    /dev/fuse. 'lamella umount' unmounts it.
    """
    from lamella.operations.store.mount import mount_image

    reference = store_reference(image)
    sealing = chosen_verity(verity, snapshotter)
    job = console.job()
    with opened_space(verity=sealing) as space:
        done = mount_image(
            space,
            reference,
            directory,
            writable=rw,
            snapshotter=snapshotter,
            platform=platform,
            job=job,
        )
    if console.json:
        console.document(
            {
                "image": done.image,
                "directory": str(done.directory),
                "snapshotter": done.snapshotter,
                "snapshot": done.key,
                "writable": done.writable,
                "resumed": done.resumed,
            }
        )
        return
    again = ", with earlier changes" if done.resumed and done.writable else ""
    console.summary(f"{done.image} mounted at {directory}{again}")


@click.command("umount", cls=Verb, example="lamella umount ./alpine")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--lazy", is_flag=True, help="Unmount even while DIR is in use.")
@click.pass_obj
def umount(console: Console, directory: Path, lazy: bool) -> None:
    """Unmount an image mounted by 'lamella mount'.

    Changes in DIR are dropped.
    """
    from lamella.operations.store.mount import unmount_image

    with opened_store(frees=True) as store:
        unmount_image(store, directory, lazy=lazy)
    if console.json:
        console.document({"directory": str(directory)})
    else:
        console.summary(f"{directory} unmounted")
