# SPDX-License-Identifier: Apache-2.0
"""``lamella store usage``."""

from __future__ import annotations

import click

from lamella.cli.console import Console, human_size
from lamella.cli.store.opening import chosen_namespace, namespace_option, opened_store, table
from lamella.cli.verb import Verb


@click.command("usage", cls=Verb)
@namespace_option
@click.pass_obj
def command(console: Console) -> None:
    """Show what takes how much space.

    All namespaces are shown, or the one that --namespace names. A blob that several of them have is one file.
    """
    from lamella.store.gc.usage import store_usage

    wanted = chosen_namespace()
    with opened_store(readonly=True) as store:
        found = store_usage(store, namespaces=None if wanted is None else [wanted])
        root = str(store.root)
    if console.json:
        console.document(
            {
                "root": root,
                "blobs": found.blobs,
                "snapshots": found.snapshots,
                "reclaimable": found.reclaimable,
                "objects": [
                    {"namespace": one.namespace, "type": one.type, "count": one.count, "size": one.size}
                    for one in found.shares
                ],
            }
        )
        return
    table(
        console,
        ("NAMESPACE", "TYPE", "COUNT", "SIZE"),
        [
            (one.namespace, one.type, str(one.count), "-" if one.type == "images" else human_size(one.size))
            for one in found.shares
        ],
        {2, 3},
    )
    console.summary(
        f"{human_size(found.blobs)} in blobs, {human_size(found.snapshots)} in snapshots; "
        f"{human_size(found.reclaimable)} can be freed"
    )
