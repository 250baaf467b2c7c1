# SPDX-License-Identifier: Apache-2.0
"""Which differ is for which mounts. Mounts that none knows are Unsupported, so that containerd asks its next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from lamella.changes.contracts import Sink, Source
from lamella.changes.losses import Losses
from lamella.changes.model import Entry
from lamella.errors import InvalidInput, Unsupported
from lamella.paths import LayerPath
from lamella.store.contract import Mount

if TYPE_CHECKING:
    from lamella.operations.layers.write import Written
    from lamella.streams.blob_reader import BlobReader

Lookup: TypeAlias = Callable[[LayerPath], Entry | None]
Mounts: TypeAlias = tuple[Mount, ...]
T = TypeVar("T")


class WriteLayer(Protocol):
    """Writes changes as a layer, from its start on even where it was begun before."""

    def __call__(self, changes: Source, lookup: Lookup | None, *, windows: bool = False) -> Written:
        """``lookup`` tells of the targets of links; ``windows`` is for entries with a Windows facet."""
        ...


Make: TypeAlias = Callable[[WriteLayer], "Written"]


class Target(Struct, frozen=True):
    """Where a layer goes."""

    sink: Sink[Losses]
    root: Path
    """A directory of the file system that it is written to."""
    changes: Callable[[BlobReader], Source]
    """Reads a tar as the place takes it."""


class Differ(Protocol):
    """Applies layers to mounts of some types, and makes layers of such mounts."""

    @property
    def name(self) -> str:
        """Containerd's name for it."""
        ...

    def knows(self, mounts: Mounts) -> bool:
        """Whether the mounts are of its types."""
        ...

    def applying(self, mounts: Mounts, losses: Losses) -> AbstractContextManager[Target]:
        """Where a layer onto ``mounts`` goes. Raises Unsupported, InvalidInput and what making the sink raises."""
        ...

    def comparing(self, left: Mounts, right: Mounts) -> Make:
        """What makes the layer that leads from ``left`` to ``right``. Raises Unsupported, InvalidInput."""
        ...


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
    """See `Differ.applying`, by the first differ that knows the mounts and does not find them Unsupported."""
    if not mounts:
        raise InvalidInput("there is nothing to apply a layer to")
    with ExitStack() as stack:
        yield _first(mounts, lambda differ: stack.enter_context(differ.applying(mounts, losses)))


def comparing(left: Mounts, right: Mounts) -> Make:
    """See `Differ.comparing`, by the first differ that knows the right mounts and does not find it Unsupported."""
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
