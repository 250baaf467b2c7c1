# SPDX-License-Identifier: Apache-2.0
"""Images that lie over each other, read as the tree that they come to, as much of it as is asked for."""

from __future__ import annotations

from lamella.layers.erofs.files import ErofsLayer
from lamella.layers.erofs.tree import ShownErofs
from lamella.layers.stack import LayerStack
from lamella.layers.stack_tree import StackTree


class ErofsStack(StackTree):
    """The tree that a mount of the images would show. Opening reads no more of them than where they begin."""

    def __init__(self, layers: LayerStack[ErofsLayer]) -> None:
        """Open the images. Raises as `OpenErofs` does; what is asked raises FormatError, Unsupported."""
        super().__init__()
        try:
            for layer in layers.nearest_first():
                self._layers.append(ShownErofs(layer))
        except BaseException:
            self.close()
            raise
