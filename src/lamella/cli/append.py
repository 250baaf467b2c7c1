# SPDX-License-Identifier: Apache-2.0
"""``lamella append``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.console import Console, human_size
from lamella.cli.frame import Verb
from lamella.cli.options import platform_option, replace_option


@click.command("append", cls=Verb)
@click.argument("source", metavar="IMAGE")
@click.argument("blob", metavar="BLOB", type=click.Path(path_type=Path))
@click.argument("target", metavar="IMAGE")
@platform_option
@replace_option
@click.pass_obj
def command(console: Console, source: str, blob: Path, target: str, platform: str | None, replace: bool) -> None:
    """Copy an image with one more layer on top.

    BLOB, as 'lamella diff -o' writes it, is stored as it is. The second IMAGE may be the first one, whose tag then
    names the new image. It is dated by SOURCE_DATE_EPOCH, or 1970 where that is not set.
    """
    from lamella.operations.append import append
    from lamella.operations.inspect import describe_descriptor

    appended = append(
        source,
        blob,
        target,
        platform=platform,
        replace=replace,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    facts = appended.facts
    if console.json:
        layer = {**describe_descriptor(appended.layer), "diff_id": facts.diff_id, "tar_size": facts.tar_size}
        console.document({"image": target, **describe_descriptor(appended.descriptor), "layers": [layer]})
        return
    console.summary(f"{target}: {appended.descriptor.digest}")
    console.summary(f"layer of {human_size(facts.size)}, diff id {facts.diff_id}")
