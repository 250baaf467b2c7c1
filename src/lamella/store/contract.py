# SPDX-License-Identifier: Apache-2.0
"""The interfaces of a store, local (`lamella.store`) or remote (`lamella.client`).

Concepts and names are containerd's. Times are in nanoseconds since the Unix epoch. All objects belong to a namespace; a
`Namespace` gives access to them, and adds new objects to its lease.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self, TypeAlias

from msgspec import Struct, field

from lamella.digests import Digest
from lamella.oci.descriptor import Descriptor

Buffer: TypeAlias = bytes | bytearray | memoryview
Labels: TypeAlias = Mapping[str, str]

NO_LABELS: Final[Labels] = {}


class ContentRecord(Struct, frozen=True):
    """A blob of a namespace."""

    digest: Digest
    size: int
    created_at: int
    updated_at: int
    labels: Labels = field(default_factory=dict)


class IngestStatus(Struct, frozen=True):
    """The state of an ingest, an unfinished blob."""

    ref: str
    offset: int
    """Bytes written so far."""
    total: int
    """Expected bytes; 0 if unknown."""
    expected: Digest | None
    started_at: int
    updated_at: int


class Ingest(Protocol):
    """An unfinished blob, open for writing under a reference; only one writer can have a reference open.

    Closing it keeps the bytes, so that opening the reference again resumes it.
    """

    def status(self) -> IngestStatus:
        """Return the current state."""
        ...

    def digest(self) -> Digest:
        """Return the digest of the bytes written so far."""
        ...

    def write(self, data: Buffer) -> int:
        """Append all of ``data``; return the new offset. Raises Exhausted."""
        ...

    def truncate(self, offset: int = 0) -> None:
        """Remove the bytes from ``offset`` on. Raises InvalidInput (beyond the end)."""
        ...

    def commit(self, total: int = 0, expected: Digest | None = None, labels: Labels = NO_LABELS) -> ContentRecord:
        """Turn the ingest into a blob, durably, and free the reference.

        Raises Conflict if a ``total`` above 0 or ``expected`` differ, and the ingest stays; AlreadyExists if the
        namespace has the blob, and the ingest is removed.
        """
        ...

    def close(self) -> None:
        """Release the reference; the bytes stay. May be called again, and after `commit`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class ContentStore(Protocol):
    """Blobs by digest, and ingests by reference."""

    def info(self, digest: Digest) -> ContentRecord:
        """Return the record of a blob. Raises NotFound."""
        ...

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob: seekable, unbuffered, readable until closed even if the blob is deleted. Raises NotFound."""
        ...

    def walk(self, filters: Sequence[str] = ()) -> Iterator[ContentRecord]:
        """Yield the blobs that pass any of ``filters``, by digest. Raises InvalidInput."""
        ...

    def update(self, digest: Digest, labels: Labels, fields: Sequence[str] = ()) -> ContentRecord:
        """Change the labels that ``fields`` names (``labels.KEY``), or all; an empty value removes a label.

        Raises NotFound, InvalidInput.
        """
        ...

    def delete(self, digest: Digest) -> None:
        """Delete a blob from this namespace, even if other objects refer to it. Raises NotFound."""
        ...

    def ingest(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> Ingest:
        """Open or resume the ingest ``ref``.

        Raises Unavailable (open elsewhere), AlreadyExists (the namespace has ``expected``).
        """
        ...

    def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """Return the ingests in progress, by reference."""
        ...

    def status(self, ref: str) -> IngestStatus:
        """Return the state of an ingest. Raises NotFound."""
        ...

    def abort(self, ref: str) -> None:
        """Remove an ingest. Raises NotFound, Unavailable (open elsewhere)."""
        ...


class ImageRecord(Struct, frozen=True):
    """The name of an image, and its target: a manifest or an index."""

    name: str
    target: Descriptor
    labels: Labels = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ImageStore(Protocol):
    """Images by name. The content store need not have the target."""

    def get(self, name: str) -> ImageRecord:
        """Return the image with this name. Raises NotFound."""
        ...

    def list(self, filters: Sequence[str] = ()) -> list[ImageRecord]:
        """Return the images that pass any of ``filters``, by name. Raises InvalidInput."""
        ...

    def create(self, image: ImageRecord) -> ImageRecord:
        """Add an image; return it with its times. Raises AlreadyExists, InvalidInput."""
        ...

    def update(self, image: ImageRecord, fields: Sequence[str] = ()) -> ImageRecord:
        """Change ``target``, ``labels``, ``labels.KEY``, ``annotations`` or ``annotations.KEY``; all by default.

        Raises NotFound, InvalidInput.
        """
        ...

    def delete(self, name: str, target: Digest | None = None) -> None:
        """Delete a name, if it has the ``target`` given. Raises NotFound (no such name, or another target)."""
        ...


class Resource(Struct, frozen=True, order=True):
    """An object that a lease holds: type (``content``, ``ingests``, ``images``, ``snapshots/NAME``) and id."""

    type: str
    id: str


class Lease(Struct, frozen=True):
    """Keeps the objects that it holds from being collected."""

    id: str
    created_at: int
    labels: Labels = field(default_factory=dict)


class LeaseStore(Protocol):
    """Leases by id."""

    def create(self, id: str = "", labels: Labels = NO_LABELS) -> Lease:  # noqa: A002
        """Create a lease; an empty id lets the store choose one. Raises AlreadyExists."""
        ...

    def delete(self, id: str) -> None:  # noqa: A002
        """Delete a lease; its objects may be collected. Raises NotFound."""
        ...

    def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """Return the leases that pass any of ``filters``, by id."""
        ...

    def add(self, id: str, resource: Resource) -> None:  # noqa: A002
        """Add a resource, which need not exist. Raises NotFound (lease), Unsupported (type)."""
        ...

    def remove(self, id: str, resource: Resource) -> None:  # noqa: A002
        """Remove a resource, if the lease holds it. Raises NotFound (lease), Unsupported (type)."""
        ...

    def resources(self, id: str) -> Sequence[Resource]:  # noqa: A002
        """Return what the lease holds, sorted. Raises NotFound."""
        ...


class SnapshotKind(Enum):
    """The state of a snapshot: read-only mounts, writable mounts, or a parent for others."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


class SnapshotRecord(Struct, frozen=True):
    """A snapshot: a layer above its parent."""

    name: str
    """The name of a committed snapshot, the key of others."""
    parent: str
    """The name of the parent; empty for none."""
    kind: SnapshotKind
    created_at: int
    updated_at: int
    labels: Labels = field(default_factory=dict)


class Usage(Struct, frozen=True):
    """Disk usage of a snapshot without its parents."""

    size: int
    """Allocated bytes."""
    inodes: int


class BindMount(Struct, frozen=True):
    """A bind mount of a directory."""

    source: Path
    readonly: bool = False


class OverlayMount(Struct, frozen=True):
    """An overlay mount; read-only without an upper directory."""

    lower: tuple[Path, ...]
    """Nearest first; may be empty if there is an upper directory."""
    upper: Path | None = None
    work: Path | None = None
    options: tuple[str, ...] = ()
    """Other mount options, as ``index=off`` or ``userxattr``."""


class ErofsMount(Struct, frozen=True):
    """An EROFS image file; always read-only."""

    image: Path
    options: tuple[str, ...] = ()


class WindowsLayerMount(Struct, frozen=True):
    """The folder of a Windows layer. A read-only mount shows the parents only."""

    folder: Path
    parents: tuple[Path, ...] = ()
    """Folders, nearest first."""
    readonly: bool = False


class CimMount(Struct, frozen=True):
    """A Windows layer in a CIM that is forked from its parent's."""

    folder: Path
    """The snapshot's directory: files that the host needs outside of the image, or the writable disk."""
    image: Path | None = None
    """Path of the layer's image, ``DIR/NAME.cim``. It does not exist in a view and before the layer is applied."""
    parents: tuple[Path, ...] = ()
    """Directories of the parents' snapshots, nearest first."""
    images: tuple[Path, ...] = ()
    """Their images, in the same order."""
    readonly: bool = False


class BlockCimMount(Struct, frozen=True):
    """A Windows layer in a block CIM, or the writable disk above such layers."""

    source: Path
    """The layer's image, as ``DIR/layer.vhd/layer.cim``; or the directory of the disk."""
    images: tuple[Path, ...] = ()
    """Images of the parents, nearest first."""
    kind: str = "file"
    """Where the blocks are: in a ``file`` or on a ``device``."""
    merged: Path | None = None
    """The merged image of several parents."""
    integrity: bool = False
    footer: bool = False


class AddedMount(Struct, frozen=True):
    """A layer of a kind that another package adds (`lamella.layers.kinds`)."""

    kind: str
    place: Path
    parents: tuple[Path, ...] = ()
    """Nearest first."""
    readonly: bool = False


Mount: TypeAlias = BindMount | OverlayMount | ErofsMount | WindowsLayerMount | CimMount | BlockCimMount | AddedMount
"""One step of a mount, in typed fields; the gRPC services convert them to containerd's strings."""


class Snapshotter(Protocol):
    """Snapshots by key or name, which are unique together."""

    name: str

    def stat(self, key: str) -> SnapshotRecord:
        """Return the record of a snapshot. Raises NotFound."""
        ...

    def list(self, filters: Sequence[str] = ()) -> list[SnapshotRecord]:
        """Return the snapshots that pass any of ``filters``, by name. Raises InvalidInput."""
        ...

    def update(self, key: str, labels: Labels, fields: Sequence[str] = ()) -> SnapshotRecord:
        """Change the labels that ``fields`` names (``labels.KEY``), or all. Raises NotFound, InvalidInput."""
        ...

    def usage(self, key: str) -> Usage:
        """Return the disk usage of a snapshot without its parents. Raises NotFound."""
        ...

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """Return the mounts of a snapshot, in order. Raises NotFound, Conflict (committed)."""
        ...

    def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        """Make an active snapshot; return its mounts.

        Raises AlreadyExists, NotFound (parent), InvalidInput (parent not committed).
        """
        ...

    def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        """Make a read-only snapshot; return its mounts. Raises as `prepare`."""
        ...

    def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        """Turn the active snapshot ``key`` into the committed one ``name``, with ``labels`` as its only labels.

        ``parent`` sets the parent of a snapshot that was prepared without one. Raises NotFound, AlreadyExists,
        Conflict.
        """
        ...

    def remove(self, key: str) -> None:
        """Remove a snapshot. Raises NotFound, Conflict (it has children)."""
        ...

    def cleanup(self) -> None:
        """Remove the files of removed snapshots and of interrupted work."""
        ...


class NamespaceRecord(Struct, frozen=True):
    """A namespace and its labels."""

    name: str
    labels: Labels = field(default_factory=dict)


class Namespace(Protocol):
    """One namespace of a store. Its lease, if it has one, holds the new objects."""

    name: str
    lease: str | None

    @property
    def content(self) -> ContentStore: ...

    @property
    def images(self) -> ImageStore: ...

    @property
    def leases(self) -> LeaseStore: ...

    def snapshots(self, name: str) -> Snapshotter:
        """Return the snapshotter ``name``. Raises InvalidInput, Unsupported."""
        ...

    def clock(self) -> int:
        """Return the store's time, in nanoseconds since the Unix epoch."""
        ...

    def under(self, lease: str) -> Self:
        """Return the same namespace with another lease. Raises InvalidInput."""
        ...
