# SPDX-License-Identifier: Apache-2.0
"""Which layers containerd's mounts of Windows layers mean, and which of them tells how two mounts differ."""

from __future__ import annotations

import os

from msgspec import Struct

from lamella.errors import InvalidInput
from lamella.layers.stack import LayerStack
from lamella.layers.windows import WindowsLayer


class WindowsMount(Struct, frozen=True):
    """A layer as containerd mounts it: writable, or to be looked at."""

    layer: WindowsLayer | None
    """None for what shows nothing: a view of no layer."""
    parents: LayerStack[WindowsLayer]

    @classmethod
    def of(cls, source: WindowsLayer, parents: LayerStack[WindowsLayer], *, read_only: bool) -> WindowsMount:
        """What a mount of type ``windows-layer`` means: a read-only one shows its parents, and is a dummy itself."""
        if not read_only:
            return cls(source, parents)
        nearest = parents.nearest_first()
        if not nearest:
            return cls(None, parents)
        return cls(nearest[0], LayerStack.from_nearest(nearest[1:]))


def layer_to_diff(lower: WindowsMount, upper: WindowsMount) -> tuple[WindowsLayer, LayerStack[WindowsLayer]]:
    """The layer that tells how ``upper`` differs from ``lower``, with its parents.

    A Windows layer says itself what changed, against its parents alone, so ``lower`` must be the nearest of them, with
    the same parents in turn. Raises InvalidInput where it is not.
    """
    if upper.layer is None:
        raise InvalidInput("the upper mount shows no layer")
    above = upper.parents.nearest_first()
    if lower.layer is None:
        if above:
            raise InvalidInput("the upper layer has parents, and is to be compared with nothing")
        return upper.layer, upper.parents
    if not above:
        raise InvalidInput("the upper layer has no parents, and is to be compared with a layer")
    if above[0] != lower.layer:
        raise InvalidInput(
            f"{os.fspath(lower.layer.path)!r} is not the nearest parent of {os.fspath(upper.layer.path)!r}",
            hint="a Windows layer can be compared with its parent alone",
        )
    if above[1:] != lower.parents.nearest_first():
        raise InvalidInput("the two layers do not have the same layers below")
    return upper.layer, upper.parents
