# SPDX-License-Identifier: Apache-2.0
"""``lamella store check``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, human_size
from lamella.cli.store.opening import opened_store
from lamella.cli.verb import Verb

if TYPE_CHECKING:
    from lamella.store.check.check import Finding


@click.command("check", cls=Verb, example="lamella store check --repair")
@click.option("--rediff", is_flag=True, help="Compare unpacked layers with the blobs they came from, file by file.")
@click.option("--repair", "mend", is_flag=True, help="Move damaged files aside, and drop records of data that is lost.")
@click.pass_obj
def command(console: Console, rediff: bool, mend: bool) -> None:
    """Check the store for missing and damaged data.

    Checks every blob, snapshot, sealed layer and image in all namespaces, and lists blobs to fetch again. The exit
    code is 0 if nothing is wrong or --repair has repaired everything, else 8.
    """
    from lamella.errors import Integrity
    from lamella.store.check.check import check
    from lamella.store.check.snapshots import CompareSnapshot

    repaired = None
    with opened_store(readonly=not mend, frees=mend) as store, ExitStack() as stack:
        job = console.job()
        differ: CompareSnapshot | None = None
        if rediff:
            from lamella.operations.store.rediff import Rediff

            differ = stack.enter_context(Rediff(job.cancel))
        found = check(store, compare=differ, job=job)
        root = str(store.root)
        if mend:
            from lamella.store.check.repair import repair

            repaired = repair(store, found)
    faults = found.faults if repaired is None else repaired.left
    missing = list(dict.fromkeys(digest for one in found.faults for digest in one.missing))
    if console.json:
        document: dict[str, Any] = {
            "root": root,
            "sound": not faults,
            "blobs": found.blobs,
            "size": found.size,
            "snapshots": found.snapshots,
            "faults": [_document(one) for one in found.faults],
            "notes": [_document(one) for one in found.notes],
            "missing": missing,
        }
        if rediff:
            document |= {"same": found.same, "undecided": [_document(one) for one in found.undecided]}
        if repaired is not None:
            document |= {"repaired": list(repaired.done), "left": [_document(one) for one in repaired.left]}
        console.document(document)
    else:
        for one in found.faults:
            console.line(str(one))
        for one in found.undecided:
            console.summary(f"cannot tell: {one}")
        for one in found.notes:
            console.summary(f"note: {one}")
        for line in repaired.done if repaired is not None else ():
            console.summary(line)
        for digest in missing:
            console.line(f"fetch again: {digest}")
        same = f", {found.same} as their layers say" if rediff else ""
        console.summary(
            f"{found.blobs} sound {'blob' if found.blobs == 1 else 'blobs'}, {human_size(found.size)}; "
            f"{found.snapshots} {'snapshot' if found.snapshots == 1 else 'snapshots'}{same}; "
            f"{len(found.faults)} {'fault' if len(found.faults) == 1 else 'faults'}"
        )
    if faults:
        hint = None if mend else "'lamella store check --repair' moves damaged files aside"
        raise Integrity(f"the store {root!r}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'}", hint=hint)


def _document(one: Finding) -> dict[str, Any]:
    return {
        "namespace": one.namespace,
        "type": one.type,
        "id": one.id,
        "problem": one.problem,
        "missing": list(one.missing),
    }
