# SPDX-License-Identifier: Apache-2.0
"""``lamella store gc``."""

from __future__ import annotations

import click

from lamella.cli.console import Console, human_size
from lamella.cli.store.opening import chosen_namespace, namespace_option, opened_store, table
from lamella.cli.verb import Verb


@click.command("gc", cls=Verb)
@click.option("--dry-run", is_flag=True, help="Remove nothing; say of each object whether it stays, and why.")
@namespace_option
@click.pass_obj
def command(console: Console, dry_run: bool) -> None:
    """Remove what nothing needs any more.

    Images, leases and what they lead to stay, and so does what is being written. All namespaces are gone through, or
    the one that --namespace names.
    """
    from lamella.store.gc.collect import collect, explain

    wanted = chosen_namespace()
    namespaces = None if wanted is None else [wanted]
    with opened_store(readonly=dry_run) as store:
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
