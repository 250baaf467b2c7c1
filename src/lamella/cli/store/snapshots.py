# SPDX-License-Identifier: Apache-2.0
"""``lamella store snapshots``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamella.cli.console import Console, human_size
from lamella.cli.store.opening import namespace_option, opened_space, snapshotter_option, table, when
from lamella.cli.verb import Verb, VerbGroup

if TYPE_CHECKING:
    from lamella.store.snapshots.snapshotter import LocalSnapshots
    from lamella.store.store import LocalNamespace


@click.group("snapshots", cls=VerbGroup, invoke_without_command=True)
@namespace_option
@click.pass_context
def command(context: click.Context) -> None:
    """List and remove snapshots.

    Without a verb, list them.
    """
    if context.invoked_subcommand is None:
        context.invoke(ls, filters=(), snapshotter=None)


@command.command("ls", cls=Verb, example="lamella store snapshots ls 'kind==active'")
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
@snapshotter_option
@namespace_option
@click.pass_obj
def ls(console: Console, filters: tuple[str, ...], snapshotter: str | None) -> None:
    """List snapshots.

    A FILTER has containerd's syntax, as in 'kind==active'. SIZE is that of the snapshot alone, without its parents.
    """
    from lamella.times import format_rfc3339

    with opened_space(readonly=True) as space:
        found = [(one, record) for one in _kept_by(space, snapshotter) for record in one.list(filters)]
        if console.json:
            console.document(
                [
                    {
                        "snapshotter": one.name,
                        "name": record.name,
                        "parent": record.parent,
                        "kind": record.kind.value,
                        "size": (usage := one.usage(record.name)).size,
                        "inodes": usage.inodes,
                        "labels": dict(record.labels),
                        "created": format_rfc3339(record.created_at),
                        "updated": format_rfc3339(record.updated_at),
                    }
                    for one, record in found
                ]
            )
            return
        table(
            console,
            ("SNAPSHOTTER", "NAME", "KIND", "SIZE", "CREATED", "PARENT"),
            [
                (
                    one.name,
                    record.name,
                    record.kind.value,
                    human_size(one.usage(record.name).size),
                    when(record.created_at),
                    record.parent or "-",
                )
                for one, record in found
            ],
            {3},
        )


@command.command("rm", cls=Verb, example="lamella store snapshots rm work")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@snapshotter_option
@namespace_option
@click.pass_obj
def rm(console: Console, names: tuple[str, ...], snapshotter: str | None) -> None:
    """Remove snapshots without children.

    Without --snapshotter, NAME must be in one snapshotter only.
    """
    from lamella.errors import InvalidInput, NotFound

    with opened_space(frees=True) as space:
        for name in names:
            having = [one for one in _kept_by(space, snapshotter) if _has(one, name)]
            if not having:
                raise NotFound(f"snapshot {name!r} does not exist")
            if len(having) > 1:
                raise InvalidInput(
                    f"there is a snapshot {name!r} of {' and of '.join(one.name for one in having)}",
                    hint="choose one with --snapshotter",
                )
            having[0].remove(name)
            console.summary(f"removed {name}")
    if console.json:
        console.document({"removed": list(names)})


def _kept_by(space: LocalNamespace, snapshotter: str | None) -> list[LocalSnapshots]:
    from lamella.store.snapshots.kinds import SNAPSHOTTERS

    return [space.snapshots(name) for name in (SNAPSHOTTERS.rows() if snapshotter is None else (snapshotter,))]


def _has(snapshots: LocalSnapshots, name: str) -> bool:
    from lamella.errors import NotFound

    try:
        snapshots.stat(name)
    except NotFound:
        return False
    return True
