# SPDX-License-Identifier: Apache-2.0
"""The differs, and the choice of one by mounts.

Mounts that no differ knows are Unsupported, so that containerd asks its next differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, TypeVar

from lamella.changes.losses import Losses
from lamella.errors import InvalidInput, Unsupported
from lamella.service.differs.contract import Differ, Make, Mounts, Target

T = TypeVar("T")


def _walking() -> Differ:
    from lamella.service.differs.posix import WalkingDiffer

    return WalkingDiffer()


def _windows() -> Differ:
    from lamella.service.differs.windows import WindowsDiffer

    return WindowsDiffer()


def _cimfs() -> Differ:
    from lamella.service.differs.windows import CimDiffer

    return CimDiffer()


def _blockcim() -> Differ:
    from lamella.service.differs.windows import BlockCimDiffer

    return BlockCimDiffer()


DIFFERS: Final[dict[str, Callable[[], Differ]]] = {
    "walking": _walking,
    "windows": _windows,
    "cimfs": _cimfs,
    "blockcim": _blockcim,
}
"""In the order in which they are asked, by containerd's names."""


@contextmanager
def applying(mounts: Mounts, losses: Losses) -> Iterator[Target]:
    """Open a layer's target by the first differ that knows the mounts and does not raise Unsupported."""
    if not mounts:
        raise InvalidInput("there is nothing to apply a layer to")
    with ExitStack() as stack:
        yield _first(mounts, lambda differ: stack.enter_context(differ.applying(mounts, losses)))


def comparing(left: Mounts, right: Mounts) -> Make:
    """The function that writes a layer, by the first differ that knows ``right`` and does not raise Unsupported."""
    return _first(right or left, lambda differ: differ.comparing(left, right))


def _first(mounts: Mounts, ask: Callable[[Differ], T]) -> T:
    refusal = Unsupported("no differ knows these mounts together")
    for make in DIFFERS.values():
        differ = make()
        if differ.knows(mounts):
            try:
                return ask(differ)
            except Unsupported as problem:
                refusal = problem
    raise refusal
