# SPDX-License-Identifier: Apache-2.0
"""``lamella store leases``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console
from lamella.cli.options import parse_pairs
from lamella.cli.store.opening import labels_text, namespace_option, opened_space, table, when
from lamella.cli.verb import Verb, VerbGroup

if TYPE_CHECKING:
    from lamella.store.contract import Lease
    from lamella.store.store import LocalNamespace


@click.group("leases", cls=VerbGroup, invoke_without_command=True)
@namespace_option
@click.pass_context
def command(context: click.Context) -> None:
    """List, create and remove leases.

    Garbage collection keeps what a lease holds. Without a verb, list them.
    """
    if context.invoked_subcommand is None:
        context.invoke(ls, filters=())


@command.command("ls", cls=Verb, example="lamella store leases ls 'id==build'")
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
@namespace_option
@click.pass_obj
def ls(console: Console, filters: tuple[str, ...]) -> None:
    """List leases.

    A FILTER has containerd's syntax, as in 'id==mine' or 'labels.KEY'. HOLDS is the number of objects that a lease
    holds.
    """
    with opened_space(readonly=True) as space:
        leases = space.leases.list(filters)
        if console.json:
            console.document([_document(space, lease) for lease in leases])
            return
        table(
            console,
            ("ID", "HOLDS", "CREATED", "LABELS"),
            [
                (
                    lease.id,
                    str(len(space.leases.resources(lease.id))),
                    when(lease.created_at),
                    labels_text(lease.labels.items()),
                )
                for lease in leases
            ],
            {1},
        )


@command.command("create", cls=Verb, example="lamella store leases create --expires 24 build")
@click.argument("id_", metavar="[ID]", default="")
@click.option(
    "--expires", "hours", type=click.FloatRange(min=0), metavar="HOURS", help="Hours until the lease expires."
)
@click.option(
    "--label", "labels", metavar="KEY=VALUE", multiple=True, callback=parse_pairs, help="A label; may be repeated."
)
@namespace_option
@click.pass_obj
def create(console: Console, id_: str, hours: float | None, labels: dict[str, str]) -> None:
    """Create a lease, and print its id.

    Without ID, the id is random. 'lamella store leases rm' removes the lease.
    """
    from lamella.store.gc.labels import EXPIRE
    from lamella.times import SECOND, format_rfc3339

    with opened_space(create=True) as space:
        if hours is not None:
            labels[EXPIRE] = format_rfc3339(space.store.clock() + int(hours * 3600) * SECOND)
        lease = space.leases.create(id_, labels)
        if console.json:
            console.document(_document(space, lease))
            return
    console.line(lease.id)


@command.command("rm", cls=Verb, example="lamella store leases rm build")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@namespace_option
@click.pass_obj
def rm(console: Console, ids: tuple[str, ...]) -> None:
    """Remove leases.

    The next 'lamella store gc' removes data that only they held.
    """
    with opened_space(frees=True) as space:
        for id_ in ids:
            space.leases.delete(id_)
            console.summary(f"removed {id_}")
    if console.json:
        console.document({"removed": list(ids)})


def _document(space: LocalNamespace, lease: Lease) -> dict[str, Any]:
    from lamella.times import format_rfc3339

    return {
        "id": lease.id,
        "created": format_rfc3339(lease.created_at),
        "labels": dict(lease.labels),
        "resources": [{"type": one.type, "id": one.id} for one in space.leases.resources(lease.id)],
    }
