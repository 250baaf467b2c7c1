# SPDX-License-Identifier: Apache-2.0
"""What the parts of a store promise, whoever keeps it: this process, or a server at the other end of a socket.

The concepts and their names are containerd's. Times are in nanoseconds since the Unix epoch. Every object lives in a
namespace, which the view that gives these parts has fixed, as it has the lease that new objects are put under.
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
    """A blob that is there."""

    digest: Digest
    size: int
    created_at: int
    updated_at: int
    labels: Labels = field(default_factory=dict)


class IngestStatus(Struct, frozen=True):
    """A blob in the making."""

    ref: str
    offset: int
    """Bytes so far."""
    total: int
    """Bytes that it is to have; 0 where nobody has said."""
    expected: Digest | None
    started_at: int
    updated_at: int


class Ingest(Protocol):
    """A blob that is being written under a reference, which nobody else can open meanwhile.

    Closing it keeps what is there, so that opening the reference again resumes it.
    """

    def status(self) -> IngestStatus:
        """Where it stands."""
        ...

    def digest(self) -> Digest:
        """Of the bytes so far."""
        ...

    def write(self, data: Buffer) -> int:
        """Append all of ``data``; the result is the new offset. Raises Exhausted."""
        ...

    def truncate(self, offset: int = 0) -> None:
        """Drop what is beyond ``offset``. Raises InvalidInput where less is there."""
        ...

    def commit(self, total: int = 0, expected: Digest | None = None, labels: Labels = NO_LABELS) -> ContentRecord:
        """Make the bytes a blob, on the disk before its name; the reference is free again.

        ``total`` above 0 and ``expected`` are checked: Conflict where they differ, and the ingest stays. Raises
        AlreadyExists where the blob is there, and the ingest is gone then.
        """
        ...

    def close(self) -> None:
        """Let go of the reference; what was written stays. May be called again, and after `commit`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class ContentStore(Protocol):
    """Blobs by digest."""

    def info(self, digest: Digest) -> ContentRecord:
        """Raises NotFound."""
        ...

    def open(self, digest: Digest) -> BinaryIO:
        """The bytes, seekable and unbuffered; good until closed, even if the blob is deleted. Raises NotFound."""
        ...

    def walk(self, filters: Sequence[str] = ()) -> Iterator[ContentRecord]:
        """The blobs that any of the filters lets pass, by digest. Raises InvalidInput."""
        ...

    def update(self, digest: Digest, labels: Labels, fields: Sequence[str] = ()) -> ContentRecord:
        """Change labels: those that ``fields`` names (``labels.KEY``), or all of them. An empty value removes one."""
        ...

    def delete(self, digest: Digest) -> None:
        """The blob is gone from this namespace; nobody is asked whether it is needed. Raises NotFound."""
        ...

    def ingest(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> Ingest:
        """Open or resume the ingest ``ref``.

        Raises Unavailable while another has it open, AlreadyExists where ``expected`` is there already.
        """
        ...

    def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """The ingests that are under way, by reference."""
        ...

    def status(self, ref: str) -> IngestStatus:
        """Raises NotFound."""
        ...

    def abort(self, ref: str) -> None:
        """Drop an ingest. Raises NotFound, Unavailable while somebody has it open."""
        ...


class ImageRecord(Struct, frozen=True):
    """A name and what it names."""

    name: str
    target: Descriptor
    labels: Labels = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ImageStore(Protocol):
    """Images by name. What a name leads to need not be there."""

    def get(self, name: str) -> ImageRecord:
        """Raises NotFound."""
        ...

    def list(self, filters: Sequence[str] = ()) -> list[ImageRecord]:
        """Those that any of the filters lets pass, by name. Raises InvalidInput."""
        ...

    def create(self, image: ImageRecord) -> ImageRecord:
        """Raises AlreadyExists, InvalidInput."""
        ...

    def update(self, image: ImageRecord, fields: Sequence[str] = ()) -> ImageRecord:
        """Change ``target``, ``labels``, ``labels.KEY``, ``annotations`` or ``annotations.KEY``; all by default.

        Raises NotFound, InvalidInput.
        """
        ...

    def delete(self, name: str, target: Digest | None = None) -> None:
        """Raises NotFound, also where the name has another target than the one given."""
        ...


class Resource(Struct, frozen=True, order=True):
    """What a lease holds: ``content``, ``ingests``, ``images`` or ``snapshots/NAME``, and its key there."""

    type: str
    id: str


class Lease(Struct, frozen=True):
    """What it holds is not collected while it lasts."""

    id: str
    created_at: int
    labels: Labels = field(default_factory=dict)


class LeaseStore(Protocol):
    """Leases by id."""

    def create(self, id: str = "", labels: Labels = NO_LABELS) -> Lease:  # noqa: A002
        """A lease; an empty id lets the store choose one. Raises AlreadyExists."""
        ...

    def delete(self, id: str) -> None:  # noqa: A002
        """Raises NotFound."""
        ...

    def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """By id."""
        ...

    def add(self, id: str, resource: Resource) -> None:  # noqa: A002
        """The resource need not be there. Raises NotFound (lease), Unsupported (type)."""
        ...

    def remove(self, id: str, resource: Resource) -> None:  # noqa: A002
        """A resource that the lease does not hold is none the matter. Raises NotFound (lease), Unsupported (type)."""
        ...

    def resources(self, id: str) -> Sequence[Resource]:  # noqa: A002
        """What the lease holds, sorted. Raises NotFound."""
        ...


class SnapshotKind(Enum):
    """What can be done with a snapshot."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


class SnapshotRecord(Struct, frozen=True):
    """A snapshot: a layer over the one that is its parent."""

    name: str
    """The key of a view or an active one."""
    parent: str
    """Empty where there is none."""
    kind: SnapshotKind
    created_at: int
    updated_at: int
    labels: Labels = field(default_factory=dict)


class Usage(Struct, frozen=True):
    """What a snapshot takes itself, its parents left out."""

    size: int
    """Bytes that are allocated."""
    inodes: int


class BindMount(Struct, frozen=True):
    """A directory, as it is."""

    source: Path
    readonly: bool = False


class OverlayMount(Struct, frozen=True):
    """An overlay; without an upper directory it is read-only."""

    lower: tuple[Path, ...]
    """Nearest first. Never empty but where there is an upper directory."""
    upper: Path | None = None
    work: Path | None = None
    options: tuple[str, ...] = ()
    """Flags and settings besides the directories, as ``index=off`` or ``userxattr``."""


class ErofsMount(Struct, frozen=True):
    """An EROFS image in a file; always read-only."""

    image: Path
    options: tuple[str, ...] = ()


class WindowsLayerMount(Struct, frozen=True):
    """The folder of a Windows layer; a read-only one shows its parents, and its own folder is of no matter."""

    folder: Path
    parents: tuple[Path, ...] = ()
    """Folders, nearest first."""
    readonly: bool = False


class CimMount(Struct, frozen=True):
    """A Windows layer in an image that is forked from its parent's."""

    folder: Path
    """Of the snapshot: the files that the host needs outside of the image, or the disk that is written to."""
    image: Path | None = None
    """Where the layer's own image is or will be, ``DIR/NAME.cim``; None for what only shows its parents."""
    parents: tuple[Path, ...] = ()
    """Folders of the parents' snapshots, nearest first."""
    images: tuple[Path, ...] = ()
    """Their images, in the same order."""
    readonly: bool = False


class BlockCimMount(Struct, frozen=True):
    """A Windows layer in a block image, or the disk that is written to over such layers."""

    source: Path
    """The layer's own image, as ``DIR/layer.vhd/layer.cim``; or the folder with the disk."""
    images: tuple[Path, ...] = ()
    """Those of the parents, nearest first."""
    kind: str = "file"
    """What holds the blocks: a ``file`` or a ``device``."""
    merged: Path | None = None
    """The image of how the parents lie on each other, where there are several."""
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
"""One step of a mount. Nothing here is a string that must be taken apart again; the gRPC edge makes those."""


class Snapshotter(Protocol):
    """Snapshots by key and name, which share one name space."""

    name: str

    def stat(self, key: str) -> SnapshotRecord:
        """Raises NotFound."""
        ...

    def list(self, filters: Sequence[str] = ()) -> list[SnapshotRecord]:
        """Those that any of the filters lets pass, by name. Raises InvalidInput."""
        ...

    def update(self, key: str, labels: Labels, fields: Sequence[str] = ()) -> SnapshotRecord:
        """Change labels: those that ``fields`` names (``labels.KEY``), or all. Raises NotFound, InvalidInput."""
        ...

    def usage(self, key: str) -> Usage:
        """Of the snapshot alone. Raises NotFound."""
        ...

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """What to mount, in order, to see the snapshot. Raises NotFound, Conflict (a committed one)."""
        ...

    def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        """A snapshot to write to. Raises AlreadyExists, NotFound (parent), InvalidInput (parent not committed)."""
        ...

    def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        """A snapshot to look at. Raises as `prepare`."""
        ...

    def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        """Turn the active snapshot ``key`` into the committed one ``name``, which has these labels alone.

        ``parent`` gives a parent to one that was prepared without. Raises NotFound, AlreadyExists, Conflict.
        """
        ...

    def remove(self, key: str) -> None:
        """Raises NotFound, Conflict where others lie on it."""
        ...

    def cleanup(self) -> None:
        """Free what removed snapshots and broken-off work have left behind."""
        ...


class NamespaceRecord(Struct, frozen=True):
    """A name space and its labels."""

    name: str
    labels: Labels = field(default_factory=dict)


class NamespaceStore(Protocol):
    """Namespaces. One comes into being with its first object."""

    def get(self, name: str) -> NamespaceRecord:
        """One without labels where the name is not known. Raises InvalidInput."""
        ...

    def list(self) -> Sequence[NamespaceRecord]:
        """By name."""
        ...

    def create(self, name: str, labels: Labels = NO_LABELS) -> NamespaceRecord:
        """Raises AlreadyExists, InvalidInput."""
        ...

    def update(self, name: str, labels: Labels, fields: Sequence[str] = ()) -> NamespaceRecord:
        """Change labels; makes the namespace where it is not there."""
        ...

    def delete(self, name: str) -> None:
        """Raises NotFound, Conflict while something is in it."""
        ...


class Namespace(Protocol):
    """One namespace of a store, whoever keeps that. What is made through it is held by its lease, where it has one."""

    name: str
    lease: str | None

    @property
    def content(self) -> ContentStore:
        """Its blobs."""
        ...

    @property
    def images(self) -> ImageStore:
        """Its images."""
        ...

    @property
    def leases(self) -> LeaseStore:
        """Its leases."""
        ...

    def snapshots(self, name: str) -> Snapshotter:
        """Its snapshots that the snapshotter ``name`` keeps. Raises InvalidInput, Unsupported."""
        ...

    def clock(self) -> int:
        """Nanoseconds since the Unix epoch, to say when something is to expire."""
        ...

    def under(self, lease: str) -> Self:
        """The view of the same namespace whose new objects ``lease`` holds."""
        ...
