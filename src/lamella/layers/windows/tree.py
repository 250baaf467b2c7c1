# SPDX-License-Identifier: Apache-2.0
"""What the folder of one Windows layer states, as a tree."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lamella.changes.alone import links_shown
from lamella.changes.apply import apply
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.layers.facets import posix_from_windows
from lamella.layers.windows.opened import opened_source
from lamella.layers.windows.place import WindowsLayer
from lamella.layers.windows_view import Spelling, WindowsTree

if TYPE_CHECKING:
    from lamella.host.windows.system import WindowsSystem


class WindowsLayerTree(WindowsTree):
    """One layer without those below, seen as the merged view of an image is: names in whatever case, both facets.

    Hard links to files of the layers below are shown by `links_shown`. Content can be read until this is closed.
    """

    def __init__(self, layer: WindowsLayer, system: WindowsSystem | None = None) -> None:
        """Read what the layer states. Raises as `opened_source` and what it gives do."""
        tree = MemoryTree(streams=True)
        super().__init__(tree)
        with ExitStack() as stack:
            changes = posix_from_windows(Spelling().respelled(stack.enter_context(opened_source(layer, None, system))))
            apply(links_shown(changes, tree), MemorySink(tree))
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Let go of the folder."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
