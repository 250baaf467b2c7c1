# SPDX-License-Identifier: Apache-2.0
"""``lamella store gc`` and ``usage``: unreferenced data, and the space that the store takes."""

from __future__ import annotations

import click

from lamella.cli.console import Console, human_size
from lamella.cli.store.opening import chosen_namespace, namespace_option, opened_store, table
from lamella.cli.verb import Verb

# gc -------------------------------------------------------------------------------------------------------------------


@click.command("gc", cls=Verb, example="lamella store gc --dry-run")
@click.option("--dry-run", is_flag=True, help="Remove nothing; show for each object whether it stays, and why.")
@namespace_option
@click.pass_obj
def gc(console: Console, dry_run: bool) -> None:
    """Remove unreferenced data.

    Images, leases, everything that they reference, and writes in progress stay. Collects all namespaces, or the one
    that --namespace names.
    """
    from lamella.store.gc.collect import collect, explain

    wanted = chosen_namespace()
    namespaces = None if wanted is None else [wanted]
    with opened_store(readonly=dry_run, frees=not dry_run) as store:
        verdicts = list(explain(store, namespaces=namespaces)) if dry_run else []
        if not dry_run:
            from lamella.operations.runtime.run import end_dead_runs

            end_dead_runs(store)
        done = collect(store, namespaces=namespaces, dry_run=dry_run)
    if console.json:
        document = {
            "dry_run": dry_run,
            "freed": done.size,
            "kept": done.kept,
            "gone": [
                {"namespace": one.namespace, "type": one.type, "id": one.id, "size": one.size, "why": one.why}
                for one in done.removed
            ],
        }
        if dry_run:
            document["verdicts"] = [
                {
                    "namespace": one.namespace,
                    "type": one.type,
                    "id": one.id,
                    "stays": one.stays,
                    "why": one.why,
                    "chain": [{"type": step.type, "id": step.id, "why": step.why} for step in one.chain],
                }
                for one in verdicts
            ]
        console.document(document)
        return
    if dry_run:
        table(
            console,
            ("", "NAMESPACE", "TYPE", "ID", "WHY"),
            [("stays" if one.stays else "goes", one.namespace, one.type, one.id, one.why) for one in verdicts],
        )
    for kind, count in done.counts.items():
        console.summary(f"{kind}: {count} {'would go' if dry_run else 'gone'}")
    freed = "would be freed" if dry_run else "freed"
    kept = f"{done.kept} {'object' if done.kept == 1 else 'objects'} kept"
    console.summary(f"{human_size(done.size)} {freed}, {kept}")


# usage ----------------------------------------------------------------------------------------------------------------


@click.command("usage", cls=Verb, example="lamella store usage")
@namespace_option
@click.pass_obj
def usage(console: Console) -> None:
    """Show the disk usage of the store.

    Counts all namespaces, or the one that --namespace names. A blob that several namespaces have is stored once.
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
