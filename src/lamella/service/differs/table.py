# SPDX-License-Identifier: Apache-2.0
"""The differs, and the choice of one by mounts.

Mounts that no differ supports raise Unsupported, so that containerd asks its next differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar

from lamella.changes.losses import Losses
from lamella.errors import InvalidInput, Unsupported
from lamella.layers import kinds
from lamella.layers.kinds import LAYER_KINDS
from lamella.service.differs.contract import Differ, MakeLayer, Mounts, Target, WriteLayer
from lamella.store.contract import AddedMount

if TYPE_CHECKING:
    from lamella.layers.windows.names import NameRules
    from lamella.operations.layers.write import Written

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


def all_differs() -> Iterator[Differ]:
    """All differs: those of `DIFFERS`, and one for each kind of layer that another package adds."""
    for make in DIFFERS.values():
        yield make()
    for kind, row in LAYER_KINDS.rows().items():
        if kind not in LAYER_KINDS.built_in and row.mount_type:
            yield AddedDiffer(kind)


class AddedDiffer:
    """The differ of a kind of layer that another package adds (`Differ`), based only on its row."""

    def __init__(self, kind: str) -> None:
        self.name = kind
        self.layers = (kind,)
        self._row = LAYER_KINDS[kind]

    def supports(self, mounts: Mounts) -> bool:
        return any(isinstance(mount, AddedMount) and mount.kind == self.name for mount in mounts)

    @contextmanager
    def open_target(self, mounts: Mounts, losses: Losses) -> Iterator[Target]:
        mount = self._one(mounts)
        if mount.readonly:
            raise InvalidInput("a layer cannot be applied to a read-only mount")
        root = kinds.required_directory(self.name, mount.place)
        sink = kinds.sink(self.name, mount.place, mount.parents, kinds.SinkOptions(losses=losses, rules=self._rules()))
        yield Target(sink, root, lambda reader: kinds.tar_changes(self.name, reader, sink, self._rules(), losses))

    def plan_diff(self, left: Mounts, right: Mounts) -> MakeLayer:
        upper = self._one(right)
        lower = self._one(left) if left else None
        if self._row.changes_only and (lower and lower.place) != (upper.parents[0] if upper.parents else None):
            raise InvalidInput(f"{self._row.summary} can be compared with its parent only")

        def write(write_layer: WriteLayer) -> Written:
            below = lower.place if lower is not None and not self._row.changes_only else None
            parents = upper.parents if self._row.reads_parents else ()
            with kinds.source(self.name, upper.place, kinds.SourceOptions(below, parents)) as (changes, lookup):
                return write_layer(changes, lookup, windows=self._row.windows)

        return write

    def _rules(self) -> NameRules | None:
        if not self._row.windows:
            return None
        from lamella.layers.windows.names import AS_WINDOWS

        return AS_WINDOWS

    def _one(self, mounts: Mounts) -> AddedMount:
        match mounts:
            case (AddedMount() as mount,) if mount.kind == self.name:
                return mount
            case _:
                raise InvalidInput(f"{len(mounts)} mounts were given; a layer of the kind {self.name!r} is one mount")


@contextmanager
def open_target(mounts: Mounts, losses: Losses) -> Iterator[Target]:
    """`Differ.open_target` of the first differ that supports the mounts and does not raise Unsupported."""
    if not mounts:
        raise InvalidInput("there is nothing to apply a layer to")
    with ExitStack() as stack:
        yield _first(mounts, lambda differ: stack.enter_context(differ.open_target(mounts, losses)))


def plan_diff(left: Mounts, right: Mounts) -> MakeLayer:
    """`Differ.plan_diff` of the first differ that supports ``right`` and does not raise Unsupported."""
    return _first(right or left, lambda differ: differ.plan_diff(left, right))


def _first(mounts: Mounts, ask: Callable[[Differ], T]) -> T:
    refusal = Unsupported("no differ supports this combination of mounts")
    added = (AddedDiffer(mount.kind) for mount in mounts if isinstance(mount, AddedMount))
    for differ in chain((make() for make in DIFFERS.values()), added):
        if differ.supports(mounts):
            try:
                return ask(differ)
            except Unsupported as problem:
                refusal = problem
    raise refusal
