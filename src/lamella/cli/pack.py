# SPDX-License-Identifier: Apache-2.0
"""``lamella pack``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.console import Console
from lamella.cli.documents import packed_document, packed_summary
from lamella.cli.frame import Verb
from lamella.cli.options import (
    compression_options,
    platform_option,
    read_owner_option,
    replace_option,
    strict_option,
    subsecond_option,
)


@click.command("pack", cls=Verb)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("image", metavar="IMAGE")
@click.option("--config-from", metavar="IMAGE", help="Take over the config of this image, less layers and history.")
@click.option("--entrypoint", metavar="WORDS", help="The program: a JSON list, or words as in a shell.")
@click.option("--cmd", metavar="WORDS", help="Its arguments, or program and arguments: as for --entrypoint.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable; may be given again.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label; may be given again.")
@click.option("--user", metavar="USER[:GROUP]", help="Who the program runs as.")
@click.option("--workdir", metavar="PATH", help="Where the program starts.")
@platform_option
@compression_options
@subsecond_option
@read_owner_option
@replace_option
@strict_option
@click.pass_obj
def command(
    console: Console,
    directory: Path,
    image: str,
    config_from: str | None,
    entrypoint: str | None,
    cmd: str | None,
    env: tuple[str, ...],
    labels: tuple[str, ...],
    user: str | None,
    workdir: str | None,
    platform: str | None,
    compress: str,
    level: int | None,
    subsecond: bool,
    owner: str | None,
    replace: bool,
    strict: bool,
) -> None:
    """Make an image of one layer from a directory.

    The same tree always gives the same digest: files are sorted, times cut to seconds, and the image is dated by
    SOURCE_DATE_EPOCH, or 1970 where that is not set. IMAGE appears when it is complete.
    """
    from lamella.changes.losses import Losses
    from lamella.images.image import open_image
    from lamella.layers.policy import Owners
    from lamella.operations.pack import pack

    base = None
    if config_from is not None:
        with open_image(config_from, platform) as opened:
            base = opened.config
    losses = Losses(refuse=strict)
    packed = pack(
        directory,
        image,
        base=base,
        entrypoint=_words("--entrypoint", entrypoint),
        cmd=_words("--cmd", cmd),
        env=env,
        labels=dict(_pair(label) for label in labels),
        user=user,
        working_dir=workdir,
        platform=platform,
        compression=compress,
        level=level,
        subsecond=subsecond,
        owners=None if owner is None else Owners(owner),
        replace=replace,
        losses=losses,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    console.losses(losses)
    if console.json:
        console.document(packed_document(image, packed))
    else:
        packed_summary(console, image, packed)


def _words(option: str, text: str | None) -> list[str] | None:
    """A JSON list of strings, or words split as a shell does."""
    if text is None:
        return None
    if text.lstrip().startswith("["):
        import json

        try:
            words = json.loads(text)
        except ValueError as error:
            raise click.UsageError(f"{option}: not a JSON list: {error}") from error
        if not all(isinstance(word, str) for word in words):
            raise click.UsageError(f"{option}: not a JSON list of strings")
        return list(words)
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error


def _pair(label: str) -> tuple[str, str]:
    name, equals, value = label.partition("=")
    if not name or not equals:
        raise click.UsageError(f"malformed label {label!r}; write it as NAME=VALUE")
    return name, value
