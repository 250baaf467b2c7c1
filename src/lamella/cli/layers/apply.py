# SPDX-License-Identifier: Apache-2.0
"""``lamella apply``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamella.cli.choices import kind_option
from lamella.cli.console import Console
from lamella.cli.documents import applied_document, losses_document, print_blob
from lamella.cli.options import (
    check_name_rules,
    collect,
    name_rules_option,
    policy_options,
    strict_option,
)
from lamella.cli.verb import Verb

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.operations.layers.apply import ApplyOptions


def _parse_digest(context: click.Context, option: click.Parameter, value: str | None) -> Digest | None:  # noqa: ARG001
    from lamella.digests import parse_digest

    return None if value is None else parse_digest(value)


@click.command("apply", cls=Verb)
@click.argument("blob", metavar="BLOB")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@collect(
    "options",
    "operations.layers.apply:ApplyOptions",
    kind_option(lambda row: row.sink, "--as", default="directory", about="What DIR is."),
    click.option(
        "--parent",
        "parents",
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="A layer below, of the same kind, nearest first; may be repeated.",
    ),
    policy_options,
    name_rules_option,
)
@click.option("--expect", "diff_id", metavar="DIFF_ID", callback=_parse_digest, help="The expected digest of the tar.")
@click.option("--digest", metavar="DIGEST", callback=_parse_digest, help="The expected digest of BLOB.")
@strict_option
@click.pass_obj
def command(
    console: Console,
    blob: str,
    directory: Path,
    options: ApplyOptions,
    diff_id: Digest | None,
    digest: Digest | None,
    strict: bool,
) -> None:
    """Apply a layer blob to a directory.

    BLOB is a tar, plain or compressed; - is standard input. DIR is created if missing. Files written before a failure
    stay in DIR; the folder of a Windows layer appears when it is complete.
    """
    from lamella.layers.kinds import LAYER_KINDS
    from lamella.operations.layers.apply import apply_blob, apply_reading, start_blob_reader

    row = LAYER_KINDS[options.kind]
    if options.parents and not row.has_parents:
        raise click.UsageError(f"--parent is for separate layers; {row.summary} holds the layers below too")
    check_name_rules(options.rules, options.kind)
    if options.policy is not None and not row.chooses_owners:
        raise click.UsageError(f"--owner and --devices are for directories; {row.summary} keeps what the layer has")
    job = console.job(strict=strict)
    with ExitStack() as stack:
        worker = None
        if row.windows and row.other_process and blob != "-":
            # First, since showing progress may start a thread.
            worker = stack.enter_context(
                start_blob_reader(Path(blob), digest=digest, diff_id=diff_id, rules=options.rules)
            )
        stack.enter_context(job.step("apply", None if blob == "-" else _size(blob)))
        if worker is not None:
            applied = apply_reading(worker.next_layer(job), directory, options, job)
        else:
            source = console.binary_input() if blob == "-" else Path(blob)
            applied = apply_blob(source, directory, options, digest=digest, diff_id=diff_id, job=job)
    console.losses(job.losses)
    if console.json:
        console.document({**applied_document(applied), **losses_document(job.losses)})
        return
    print_blob(console, applied.facts, applied.entries)


def _size(blob: str) -> int | None:
    try:
        return Path(blob).stat().st_size
    except OSError:
        return None
