# SPDX-License-Identifier: Apache-2.0
"""What tells one kind of snapshotter from another: how it keeps a snapshot in a directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from msgspec import Struct

from lamella.changes.contracts import Sink, Tree
from lamella.changes.losses import Losses
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.store.contract import Mount, SnapshotKind, Usage


class OpenTree(Tree, Protocol):
    """A tree that holds files open until it is closed, or the block ends for which it is entered."""

    def close(self) -> None:
        """Nothing can be asked any more."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Unpacks(Protocol):
    """A snapshotter that layers can be unpacked into without mounting anything."""

    @property
    def side_by_side(self) -> bool:
        """Whether a layer can be unpacked before those below are: prepared without a parent, committed with one."""
        ...

    def sink(
        self, key: str, *, policy: Policy | None = None, losses: Losses | None = None, parents_known: bool = True
    ) -> Sink[Losses]:
        """The sink that applies one layer to the active snapshot ``key``, in which nothing is yet.

        With ``parents_known`` false it will get its parent when it is committed (`side_by_side`). Some kinds have no
        mounts of a snapshot between the end of the layer and its commit, and raise Conflict.
        Raises NotFound, Conflict (not active, or not empty), Unsupported (parents must be known).
        """
        ...

    def tree(self, key: str) -> OpenTree:
        """What a mount of the snapshot ``key``, of whatever kind, shows. Raises NotFound."""
        ...


class Use(Enum):
    """What a snapshot is made for."""

    RUN = "run"
    """To be mounted, and looked at or written to."""
    UNPACK = "unpack"
    """To have a layer applied to it by whatever way; nothing is to run on it."""
    APPLY = "apply"
    """To have a layer applied to it through `SnapshotDriver.sink`; nothing is mounted before it is committed."""


class SnapshotDriver(Protocol):
    """How a kind keeps its snapshots. A snapshot has a directory of its own, its place, which no one else may enter.

    Nothing here knows of names, of the database, or of who else is at work.
    """

    name: str
    """Containerd's name for the kind."""
    side_by_side: bool
    """See `Unpacks.side_by_side`."""
    windows: bool
    """Whether the layers are those of Windows images, whose tars have rules of their own."""

    def make(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path], use: Use) -> None:
        """Fill the new directory ``place``, which gets another name afterwards."""
        ...

    def mounts(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """What to mount to see a view or an active one."""
        ...

    def rebase(self, place: Path, parents: LayerStack[Path]) -> None:
        """Give an active snapshot that was made without parents those that it gets, before it is sealed."""
        ...

    def uncover(self, place: Path, paths: Sequence[LayerPath]) -> None:
        """Drop whiteouts of an active snapshot that was made without parents, which a mount would list."""
        ...

    def seal(self, place: Path) -> None:
        """Write what a committed snapshot needs; may be broken off and done again, and what it is made from stays."""
        ...

    def settle(self, place: Path) -> Sequence[Path]:
        """Of a snapshot that is committed, the directories that are there and only an active one needs."""
        ...

    def release(self, place: Path) -> None:
        """Let go of what is mounted in a place that was moved away to be removed; also where it never was a place."""
        ...

    def usage(self, place: Path, kind: SnapshotKind, beneath: Usage | None = None) -> Usage:
        """What a snapshot takes; for a committed one, what it will take once it is settled.

        ``beneath`` is what `beneath` has told, if nothing was changed since but by `rebase`.
        """
        ...

    def beneath(self, place: Path) -> Usage | None:
        """What an active snapshot that a layer was applied to will take once it is settled, but for its root.

        None where only sealing makes what is to be measured.
        """
        ...

    def sink(
        self, place: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        """See `Unpacks.sink`; without parents they are not known."""
        ...

    def tree(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        """See `Unpacks.tree`."""
        ...

    def lacking(self, place: Path, kind: SnapshotKind, *, parents: bool) -> str:
        """What a snapshot, with ``parents`` or without, lacks in its place, which is there; empty where nothing."""
        ...

    def examine(self, place: Path, step: Callable[[int], object]) -> None:
        """Read all that is sealed of a committed snapshot, and hold it against its seal.

        ``step`` is told of bytes that were read, and may raise to stop. Raises Integrity, FormatError, Unsupported,
        OSError.
        """
        ...


class SequentialDriver:
    """What forms have in common that make a layer on those below alone, and keep of it what they wrote."""

    side_by_side = False

    def rebase(self, place: Path, parents: LayerStack[Path]) -> None:
        """See `SnapshotDriver.rebase`: never, since it is not `side_by_side`."""
        raise NotImplementedError

    def uncover(self, place: Path, paths: Sequence[LayerPath]) -> None:
        """See `SnapshotDriver.uncover`: never, since it is not `side_by_side`."""
        raise NotImplementedError

    def settle(self, place: Path) -> Sequence[Path]:  # noqa: ARG002  # all that it has is needed
        """See `SnapshotDriver.settle`."""
        return ()

    def examine(self, place: Path, step: Callable[[int], object]) -> None:
        """See `SnapshotDriver.examine`: nothing is sealed here."""


class Target(Struct, frozen=True):
    """Where a layer goes: an active snapshot as its kind keeps it, for which nobody has to be asked any more."""

    form: SnapshotDriver
    place: Path
    parents: LayerStack[Path] | None
    """None where they are not known."""

    def sink(self, policy: Policy | None = None, losses: Losses | None = None) -> Sink[Losses]:
        """See `Unpacks.sink`. Raises Conflict (not empty), Denied."""
        return self.form.sink(self.place, self.parents, policy, losses)

    def beneath(self) -> Usage | None:
        """See `SnapshotDriver.beneath`. Raises Denied and the like."""
        return self.form.beneath(self.place)


_ROOT_MODE: Final = 0o755


def new_root(path: Path) -> None:
    """Make the directory that is the root of an empty snapshot: the one that an image has which states none."""
    path.mkdir(mode=_ROOT_MODE)
    path.chmod(_ROOT_MODE)  # whatever the umask
    os.utime(path, ns=(0, 0))


def missing(path: Path) -> str:
    """What to say of a file in a place that is not there; empty where it is."""
    return "" if path.exists() else f"{path.name!r} is missing in its directory"


def is_unstated(path: Path) -> bool:
    """Whether the metadata of a root are still those of `new_root`, so that no layer has stated others."""
    status = path.stat()
    ours = status.st_uid == os.geteuid() and status.st_mtime_ns == 0
    return ours and stat.S_IMODE(status.st_mode) == _ROOT_MODE
