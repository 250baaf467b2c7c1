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
    "usage": ("Show what takes how much space.", "store.gc:usage"),
    "gc": ("Remove what nothing needs any more.", "store.gc:gc"),
    "check": ("Check that all is there and undamaged.", "store.check"),
}
"""Each verb with the first line of its help and the place of its command."""


class _Verbs(LazyGroup, Verb):
    """The verbs of ``lamella store``, each loaded when it is called."""


@click.group("store", cls=_Verbs, sections={"Verbs": VERBS})
@namespace_option
def command() -> None:
    """Keep images, and what is unpacked of them, in a store.

    The store is where --root says, which stands before 'store', or LAMELLA_ROOT, or else where this system keeps such
    things. 'store:REF' names an image in it wherever an image is named.
    """
