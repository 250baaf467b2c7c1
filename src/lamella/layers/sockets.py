# SPDX-License-Identifier: Apache-2.0
"""Sockets in directories that become layers: no layer can hold one, so each is said to be lost."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from lamella.changes.losses import Loss, Losses

if TYPE_CHECKING:
    from lamella.layers.directory_tree import DirectoryTree
    from lamella.paths import LayerPath


def lost_sockets(losses: Losses | None, below: DirectoryTree | None = None) -> Callable[[LayerPath], None] | None:
    """What `DirectoryTree.left_out` is to be, so that ``losses`` have each socket once.

    A socket that was ``below`` already is no change, and so nothing that is lost of one.
    """
    if losses is None:
        return None
    told: set[LayerPath] = set()

    def left_out(path: LayerPath) -> None:
        if path in told:
            return
        told.add(path)
        status = None if below is None else below.status(path)
        if status is None or not stat.S_ISSOCK(status.st_mode):
            losses.record(Loss(path, "socket", "no layer can hold one"))

    return left_out
