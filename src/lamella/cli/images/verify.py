# SPDX-License-Identifier: Apache-2.0
"""``lamella verify``."""

from __future__ import annotations

import click

from lamella.cli.console import Console, human_size
from lamella.cli.verb import ImageVerb


@click.command("verify", cls=ImageVerb)
@click.argument("image", metavar="IMAGE|DIR")
@click.pass_obj
def command(console: Console, image: str) -> None:
    """Check every digest, size and layer of an image.

    All platforms of the image are checked; without a tag, all images of the place; of DIR, an OCI image layout, every
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
