# SPDX-License-Identifier: Apache-2.0
"""The contract of snapshot drivers: how one kind of snapshotter keeps a snapshot in a directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from msgspec import Struct

from lamella.changes.contracts import Sink, Tree
from lamella.changes.losses import Losses
from lamella.errors import NotFound
from lamella.host.durability import durable_outputs
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.store.contract import Mount, SnapshotKind, Snapshotter, Usage


class OpenTree(Tree, Protocol):
    """A tree that holds files open until it is closed, or until the end of its block."""

    def close(self) -> None:
        """Close the files. The tree cannot be used any more."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class UnpackingSnapshotter(Snapshotter, Protocol):
    """A snapshotter that unpacks layers without mounts."""

    @property
    def can_rebase(self) -> bool:
        """Whether a snapshot can get its parent at its commit, so that layers can be unpacked in parallel."""
        ...

    def sink(
        self, key: str, *, policy: Policy | None = None, losses: Losses | None = None, parents_known: bool = True
    ) -> Sink[Losses]:
        """Return the sink that applies one layer to the empty active snapshot ``key``.

        If ``parents_known`` is false, the snapshot gets its parent at its commit (`can_rebase`). With some drivers the
        snapshot has no mounts between the end of the layer and its commit; `mounts` raises Conflict then.
        Raises NotFound, Conflict (not active, or not empty), Unsupported (parents must be known).
        """
        ...

    def tree(self, key: str) -> OpenTree:
        """Return the tree that a mount of the snapshot ``key``, of any kind, shows. Raises NotFound."""
        ...


class Purpose(Enum):
    """What a new snapshot is made for."""

    RUN = "run"
    """To be mounted, and read or written."""
    UNPACK = "unpack"
    """To get a layer, through mounts or a sink; nothing runs on it."""
    APPLY = "apply"
    """To get a layer through `SnapshotDriver.sink`; nothing is mounted before the commit."""


class SnapshotDriver(Protocol):
    """Storage of one kind of snapshotter, with one directory per snapshot.

    A driver knows nothing of keys, of the database, or of other processes.
    """

    name: str
    """containerd's name of the snapshotter."""
    can_rebase: bool
    """As `UnpackingSnapshotter.can_rebase`."""

    def create(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path], purpose: Purpose) -> None:
        """Fill the new directory of a snapshot, which is renamed afterwards."""
        ...

    def mounts(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """Return the mounts of a view or an active snapshot."""
        ...

    def rebase(self, directory: Path, parents: LayerStack[Path]) -> None:
        """Give an active snapshot that was made without parents its parents, before `commit`."""
        ...

    def remove_whiteouts(self, directory: Path, paths: Sequence[LayerPath]) -> None:
        """Remove whiteouts that a mount would list from an active snapshot that was made without parents."""
        ...

    def commit(self, directory: Path) -> None:
        """Write what a committed snapshot needs. Keeps its sources, so that an interrupted commit can be repeated."""
        ...

    def active_directories(self, directory: Path) -> Sequence[Path]:
        """Return the existing directories of a committed snapshot that only an active one needs."""
        ...

    def release(self, directory: Path) -> None:
        """Unmount what is mounted in a directory that is about to be removed, even if its creation was interrupted."""
        ...

    def usage(self, directory: Path, kind: SnapshotKind, below_root: Usage | None = None) -> Usage:
        """Measure a snapshot; a committed one without its `active_directories`.

        ``below_root`` is the result of `usage_below_root`, if only `rebase` has changed the snapshot since.
        """
        ...

    def usage_below_root(self, directory: Path) -> Usage | None:
        """Measure an unpacked active snapshot as `usage` will after its commit, without its root directory.

        None if `commit` makes the files to measure.
        """
        ...

    def sink(
        self, directory: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        """Return the sink of `UnpackingSnapshotter.sink`; ``parents`` is None if they are not known."""
        ...

    def tree(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        """Return the tree of `UnpackingSnapshotter.tree`."""
        ...

    def find_missing(self, directory: Path, kind: SnapshotKind, *, has_parents: bool) -> str:
        """Return which file the existing directory of a snapshot lacks, for a message; empty if it is complete."""
        ...

    def verify(self, directory: Path, step: Callable[[int], object]) -> None:
        """Read the sealed files of a committed snapshot and compare them with their seal.

        ``step`` receives the number of bytes read, and may raise to stop. Raises Integrity, FormatError, Unsupported,
        OSError.
        """
        ...


class SequentialDriver:
    """Base class of drivers that need the parents of a layer first, and seal nothing."""

    can_rebase = False

    def rebase(self, directory: Path, parents: LayerStack[Path]) -> None:
        raise NotImplementedError

    def remove_whiteouts(self, directory: Path, paths: Sequence[LayerPath]) -> None:
        raise NotImplementedError

    def active_directories(self, directory: Path) -> Sequence[Path]:  # noqa: ARG002
        return ()

    def release(self, directory: Path) -> None: ...

    def usage_below_root(self, directory: Path) -> Usage | None:  # noqa: ARG002
        return None

    def verify(self, directory: Path, step: Callable[[int], object]) -> None: ...


class SnapshotTarget(Struct, frozen=True):
    """An active snapshot that receives a layer; usable in a process that has no database."""

    driver: SnapshotDriver
    directory: Path
    parents: LayerStack[Path] | None
    """None if they are not known."""

    def sink(self, policy: Policy | None = None, losses: Losses | None = None) -> Sink[Losses]:
        """Return the sink that applies the layer. Raises Conflict (not empty), Denied, NotFound."""
        # The commit of the snapshot syncs its files.
        with durable_outputs(False), _translate_removal(self.directory):
            return self.driver.sink(self.directory, self.parents, policy, losses)

    def usage_below_root(self) -> Usage | None:
        """Return `SnapshotDriver.usage_below_root`. Raises Denied, NotFound."""
        with _translate_removal(self.directory):
            return self.driver.usage_below_root(self.directory)


@contextmanager
def _translate_removal(directory: Path) -> Iterator[None]:
    """Raise NotFound if the snapshot was collected, as after the end of its lease."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(
            f"the snapshot in {os.fspath(directory)!r} was removed before its layer was unpacked",
            hint="its lease has ended; unpack the image again",
        ) from error


_ROOT_MODE: Final = 0o755


def make_root(path: Path) -> None:
    """Make the root directory of an empty snapshot, with the metadata of an image that does not state its root."""
    path.mkdir(mode=_ROOT_MODE)
    path.chmod(_ROOT_MODE)  # regardless of the umask
    os.utime(path, ns=(0, 0))


def is_unstated(path: Path) -> bool:
    """Return whether a root directory still has the metadata of `make_root`, so that no layer has stated others."""
    status = path.stat()
    ours = status.st_uid == os.geteuid() and status.st_mtime_ns == 0
    return ours and stat.S_IMODE(status.st_mode) == _ROOT_MODE


def describe_missing(path: Path) -> str:
    """Return a message if the file at ``path`` is missing in the directory of a snapshot; else the empty text."""
    return "" if path.exists() else f"{path.name!r} is missing in its directory"
