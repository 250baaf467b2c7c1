# SPDX-License-Identifier: Apache-2.0
"""Ordered layers of one kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

L = TypeVar("L")


class LayerStack(Generic[L]):
    """Layers on top of each other. Every use names an order; there is no bare iteration."""

    __slots__ = ("_layers",)

    def __init__(self, base_first: Iterable[L]) -> None:
        self._layers = tuple(base_first)

    @classmethod
    def from_nearest(cls, nearest_first: Iterable[L]) -> LayerStack[L]:
        """A stack from its top layer down, the order of ``lowerdir=`` in an overlay mount."""
        return cls(reversed(tuple(nearest_first)))

    def base_first(self) -> tuple[L, ...]:
        """The layers from the bottom up."""
        return self._layers

    def nearest_first(self) -> tuple[L, ...]:
        """The layers from the top down: the order in which a child looks entries up."""
        return self._layers[::-1]

    def with_top(self, layer: L) -> LayerStack[L]:
        """A stack with ``layer`` on top of this one."""
        return LayerStack((*self._layers, layer))

    def __len__(self) -> int:
        return len(self._layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerStack) and self._layers == other._layers

    def __hash__(self) -> int:
        return hash(self._layers)

    def __repr__(self) -> str:
        return f"LayerStack({self._layers!r})"
