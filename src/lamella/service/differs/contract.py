# SPDX-License-Identifier: Apache-2.0
"""Contract of a differ (containerd's Diff service): applies layers to mounts, and makes layers from mounts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from msgspec import Struct

from lamella.changes.contracts import Sink, Source
from lamella.changes.losses import Losses
from lamella.changes.model import Entry
from lamella.paths import LayerPath
from lamella.store.contract import Mount

if TYPE_CHECKING:
    from lamella.operations.layers.write import Written
    from lamella.streams.blob_reader import BlobReader

Lookup: TypeAlias = Callable[[LayerPath], Entry | None]
Mounts: TypeAlias = tuple[Mount, ...]


class WriteLayer(Protocol):
    """Writes changes as a layer. A second call discards what the first has written, and starts again."""

    def __call__(self, changes: Source, lookup: Lookup | None, *, windows: bool = False) -> Written:
        """``lookup`` finds the entries that hard links name; ``windows`` is for entries with a Windows facet."""
        ...


MakeLayer: TypeAlias = Callable[[WriteLayer], "Written"]
"""Reads the mounts that it was made for, passes their changes to a `WriteLayer`, and returns its result."""


class Target(Struct, frozen=True):
    """Where a layer is applied."""

    sink: Sink[Losses]
    root: Path
    """A directory of the file system that the sink writes to."""
    changes: Callable[[BlobReader], Source]
    """Reads a tar in the dialect of the sink."""


class Differ(Protocol):
    """Applies layers to mounts of some types, and makes layers from such mounts."""

    @property
    def name(self) -> str:
        """Containerd's name for the differ."""
        ...

    @property
    def layers(self) -> tuple[str, ...]:
        """The kinds of layer whose mounts it takes."""
        ...

    def supports(self, mounts: Mounts) -> bool:
        """Whether the mounts are of the types of this differ."""
        ...

    def open_target(self, mounts: Mounts, losses: Losses) -> AbstractContextManager[Target]:
        """Open the mounts as the target of one layer, until the block ends.

        Raises Unsupported, InvalidInput and the errors of the sink's constructor.
        """
        ...

    def plan_diff(self, left: Mounts, right: Mounts) -> MakeLayer:
        """Return the function that makes the layer from ``left`` to ``right``. Raises Unsupported, InvalidInput."""
        ...
