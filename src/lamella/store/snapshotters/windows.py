# SPDX-License-Identifier: Apache-2.0
"""What snapshots of Windows layers have in common: their places name the image that they have and the parent.

A place is the folder of the layer: what the host needs outside of an image lies in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.changes.tree import MemoryTree
from lamella.errors import InvalidInput, from_os
from lamella.layers.policy import Policy

PARENT: Final = "parent"
"""The file in a place that says which place is that of its parent."""


class EmptyTree(MemoryTree):
    """The tree of a snapshot in which nothing is yet (`OpenTree`)."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to let go of."""


def note(place: Path, name: str, text: str) -> None:
    """Write a file of one line into a new place."""
    (place / name).write_text(text + "\n", "ascii")


def noted(place: Path, name: str) -> str | None:
    """What such a file says; None where it is not there. Raises InvalidInput where it is none of ours."""
    path = place / name
    try:
        text = path.read_text("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise from_os(problem, f"read {os.fspath(path)!r}") from problem
    if not text.endswith("\n") or "/" in text or text.startswith(".") or len(text) > 64:
        raise InvalidInput(f"{os.fspath(path)!r} is damaged")
    return text[:-1]


def without_policy(policy: Policy | None) -> None:
    """Raise InvalidInput where somebody chooses owners for a layer of Windows."""
    if policy is not None:
        raise InvalidInput("owners and devices are chosen for POSIX layers; a Windows layer keeps what it has")


def apply_nothing(sink: Sink[Losses]) -> None:
    """The layer in which nothing changed."""
    try:
        sink.commit()
    except BaseException:
        sink.abort()
        raise
