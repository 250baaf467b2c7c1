# SPDX-License-Identifier: Apache-2.0
"""``lamella apply``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamella.cli.choices import kind_option
from lamella.cli.console import Console
from lamella.cli.documents import applied_document, blob_summary, losses_document
from lamella.cli.options import (
    awkward_names_option,
    devices_option,
    name_rules,
    owner_option,
    policy,
    strict_option,
)
from lamella.cli.verb import Verb

if TYPE_CHECKING:
    from lamella.layers.kinds import LayerKind
    from lamella.layers.policy import Policy


@click.command("apply", cls=Verb)
@click.argument("blob", metavar="BLOB")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@kind_option(lambda row: row.sink, "--as", default="directory", about="What DIR is.")
@click.option(
    "--parent",
    "parents",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A layer below, of the same kind, the nearest first; may be given again.",
)
@click.option("--expect", metavar="DIFF_ID", help="The digest that the uncompressed tar must have.")
@click.option("--digest", metavar="DIGEST", help="The digest that BLOB must have.")
@owner_option
@devices_option
@awkward_names_option
@strict_option
@click.pass_obj
def command(
    console: Console,
    blob: str,
    directory: Path,
    kind: str,
    parents: tuple[Path, ...],
    expect: str | None,
    digest: str | None,
    owner: str | None,
    devices: str | None,
    awkward_names: bool,
    strict: bool,
) -> None:
    """Apply a layer blob to a directory.

    BLOB is a tar, plain or compressed with gzip or zstd; - is standard input. DIR is made where it is missing. What was
    written before a failure is left in DIR; the folder of a Windows layer appears when it is complete.
    """
    from lamella.changes.losses import Losses
    from lamella.digests import parse_digest
    from lamella.layers.kinds import LAYER_KINDS
    from lamella.operations.layers.apply import apply_apart, apply_blob, read_apart

    row = LAYER_KINDS[kind]
    if parents and not row.has_parents:
        raise click.UsageError(f"--parent is for separate layers; {row.summary} holds the layers below too")
    rules = name_rules(awkward_names, kind)
    losses = Losses(refuse=strict)
    progress = console.progress()
    chosen = _policy(row, owner, devices)
    wanted = None if digest is None else parse_digest(digest)
    diff_id = None if expect is None else parse_digest(expect)
    cancel = console.cancellation()
    with ExitStack() as stack:
        other = None
        if row.windows and row.other_process and blob != "-":
            # Before anything shows progress, which may take a thread.
            other = stack.enter_context(read_apart(Path(blob), digest=wanted, diff_id=diff_id, rules=rules))
        if progress is not None:
            progress.start("apply", None if blob == "-" else _size(blob))
            stack.callback(progress.finish)
        if other is not None:
            layer = other.next(progress=None if progress is None else progress.advance, cancel=cancel)
            applied = apply_apart(layer, directory, kind=kind, parents=parents, losses=losses, cancel=cancel)
        else:
            applied = apply_blob(
                console.binary_input() if blob == "-" else Path(blob),
                directory,
                kind=kind,
                parents=parents,
                policy=chosen,
                losses=losses,
                digest=wanted,
                diff_id=diff_id,
                rules=rules,
                progress=progress,
                cancel=cancel,
            )
    console.losses(losses)
    if console.json:
        console.document({**applied_document(applied), **losses_document(losses)})
        return
    blob_summary(console, applied.facts, applied.entries)


def _policy(row: LayerKind, owner: str | None, devices: str | None) -> Policy | None:
    if row.chooses_owners:
        return policy(owner, devices)
    if owner is not None or devices is not None:
        raise click.UsageError(f"--owner and --devices are for directories; {row.summary} keeps what the layer has")
    return None


def _size(blob: str) -> int | None:
    try:
        return Path(blob).stat().st_size
    except OSError:
        return None
