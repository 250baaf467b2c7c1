# SPDX-License-Identifier: Apache-2.0
"""``lamella store content``."""

from __future__ import annotations

import click

from lamella.cli.console import Console, human_size
from lamella.cli.store.opening import namespace_option, opened_space, table, when
from lamella.cli.verb import Verb, VerbGroup


@click.group("content", cls=VerbGroup, invoke_without_command=True)
@namespace_option
@click.pass_context
def command(context: click.Context) -> None:
    """List and remove blobs.

    Without a verb, list them.
    """
    if context.invoked_subcommand is None:
        context.invoke(ls, filters=())


@command.command("ls", cls=Verb, example="lamella store content ls 'labels.\"example.org/keep\"'")
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
@namespace_option
@click.pass_obj
def ls(console: Console, filters: tuple[str, ...]) -> None:
    """List blobs.

    A FILTER has containerd's syntax, as in 'digest==sha256:...' or 'labels.KEY'. --json shows labels, too.
    """
    from lamella.times import format_rfc3339

    with opened_space(readonly=True) as space:
        if console.json:
            console.document(
                [
                    {
                        "digest": record.digest,
                        "size": record.size,
                        "labels": dict(record.labels),
                        "created": format_rfc3339(record.created_at),
                        "updated": format_rfc3339(record.updated_at),
                    }
                    for record in space.content.walk(filters)
                ]
            )
            return
        table(
            console,
            ("DIGEST", "SIZE", "CREATED"),
            [
                (record.digest, human_size(record.size), when(record.created_at))
                for record in space.content.walk(filters)
            ],
            {1},
        )


@command.command(
    "rm",
    cls=Verb,
    example="lamella store content rm sha256:0000000000000000000000000000000000000000000000000000000000000000",
)
@click.argument("digests", metavar="DIGEST...", nargs=-1, required=True)
@namespace_option
@click.pass_obj
def rm(console: Console, digests: tuple[str, ...]) -> None:
    """Remove blobs, even those that an image needs.

    References are not checked; 'lamella store gc' removes only blobs that nothing references.
    """
    from lamella.digests import parse_digest

    parsed = [parse_digest(digest) for digest in digests]
    with opened_space(frees=True) as space:
        for digest in parsed:
            space.content.delete(digest)
            console.summary(f"removed {digest}")
    if console.json:
        console.document({"removed": parsed})
