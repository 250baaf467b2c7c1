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
    PolicyChoice,
    check_name_rules,
    name_rules_option,
    policy_options,
    strict_option,
)
from lamella.cli.verb import Verb

if TYPE_CHECKING:
    from lamella.layers.kinds import LayerKind
    from lamella.layers.policy import Policy
    from lamella.layers.windows.names import NameRules


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
@policy_options
@name_rules_option
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
    choice: PolicyChoice,
    rules: NameRules | None,
    strict: bool,
) -> None:
    """Apply a layer blob to a directory.

    BLOB is a tar, plain or compressed with gzip or zstd; - is standard input. DIR is made where it is missing. What was
    written before a failure is left in DIR; the folder of a Windows layer appears when it is complete.
    """
    from lamella.digests import parse_digest
    from lamella.layers.kinds import LAYER_KINDS
    from lamella.operations.layers.apply import ApplyOptions, apply_blob, apply_reading, start_blob_reader

    row = LAYER_KINDS[kind]
    if parents and not row.has_parents:
        raise click.UsageError(f"--parent is for separate layers; {row.summary} holds the layers below too")
    check_name_rules(rules, kind)
    options = ApplyOptions(kind, parents, _policy(row, choice), rules)
    wanted = None if digest is None else parse_digest(digest)
    diff_id = None if expect is None else parse_digest(expect)
    job = console.job(strict=strict)
    with ExitStack() as stack:
        worker = None
        if row.windows and row.other_process and blob != "-":
            # Before anything shows progress, which may take a thread.
            worker = stack.enter_context(start_blob_reader(Path(blob), digest=wanted, diff_id=diff_id, rules=rules))
        stack.enter_context(job.step("apply", None if blob == "-" else _size(blob)))
        if worker is not None:
            applied = apply_reading(worker.next_layer(job), directory, options, job)
        else:
            source = console.binary_input() if blob == "-" else Path(blob)
            applied = apply_blob(source, directory, options, digest=wanted, diff_id=diff_id, job=job)
    console.losses(job.losses)
    if console.json:
        console.document({**applied_document(applied), **losses_document(job.losses)})
        return
    print_blob(console, applied.facts, applied.entries)


def _policy(row: LayerKind, choice: PolicyChoice) -> Policy | None:
    if row.chooses_owners:
        return choice.policy()
    if any(choice):
        raise click.UsageError(f"--owner and --devices are for directories; {row.summary} keeps what the layer has")
    return None


def _size(blob: str) -> int | None:
    try:
        return Path(blob).stat().st_size
    except OSError:
        return None
