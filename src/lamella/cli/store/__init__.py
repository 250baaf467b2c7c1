# SPDX-License-Identifier: Apache-2.0
"""``lamella store``: its subcommands, each loaded when it is called."""

from __future__ import annotations

from typing import Final

import click

from lamella.cli.store.opening import namespace_option
from lamella.cli.verb import LazyGroup, Verb

VERBS: Final = {
    "import": ("Copy an image into the store.", "store.transfer:import_"),
    "export": ("Copy an image out of the store.", "store.transfer:export"),
    "images": ("List, name, label and remove images.", "store.images"),
    "snapshots": ("List and remove snapshots.", "store.snapshots"),
    "content": ("List and remove blobs.", "store.content"),
    "leases": ("List, create and remove leases.", "store.leases"),
    "usage": ("Show the disk usage of the store.", "store.gc:usage"),
    "gc": ("Remove unreferenced data.", "store.gc:gc"),
    "check": ("Check the store for missing and damaged data.", "store.check"),
}
"""Each verb with the first line of its help and the place of its command."""


class _Verbs(LazyGroup, Verb):
    """The verbs of ``lamella store``, each loaded when it is called."""


@click.group("store", cls=_Verbs, sections={"Verbs": VERBS})
@namespace_option
def command() -> None:
    """Manage the store of images and unpacked layers.

    --root, which stands before 'store', or LAMELLA_ROOT sets the store's directory. 'store:REF' names an image of the
    store in every verb that takes an image.
    """
