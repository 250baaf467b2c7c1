# SPDX-License-Identifier: Apache-2.0
"""The Snapshots service: a store's snapshotters by containerd's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from lamella.errors import InvalidInput
from lamella.protocol import wire
from lamella.protocol.mounts import sent
from lamella.protocol.proto import snapshots_pb2 as pb
from lamella.protocol.proto.happenings_pb2 import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from lamella.service.grpc.rpc import Call, quick
from lamella.store.contract import SnapshotKind, SnapshotRecord, Snapshotter

_KINDS: Final = {
    SnapshotKind.VIEW: pb.VIEW,
    SnapshotKind.ACTIVE: pb.ACTIVE,
    SnapshotKind.COMMITTED: pb.COMMITTED,
}
_PAGE: Final = 100


class Snapshotting(Protocol):
    """The snapshots of an endpoint."""

    def snapshotter(self, name: str, call: Call) -> Snapshotter:
        """The snapshotter for a call. Raises InvalidInput, Conflict (no namespace)."""
        ...

    def happened(self, call: Call, topic: str, event: Message) -> None:
        """Publish an event."""
        ...

    def collect(self, *, wait: bool) -> None:
        """Collect garbage after a removal."""
        ...


class Snapshots:
    """The Snapshots service."""

    def __init__(self, shared: Snapshotting) -> None:
        self._shared = shared

    def prepare(self, request: pb.PrepareSnapshotRequest, call: Call) -> pb.PrepareSnapshotResponse:
        """Raises AlreadyExists, also if the label `containerd.io/snapshot.ref` names a committed snapshot."""
        mounts = self._named(request.snapshotter, call).prepare(
            request.key, request.parent, wire.labels(request.labels)
        )
        event = SnapshotPrepare(key=request.key, parent=request.parent, snapshotter=request.snapshotter)
        self._shared.happened(call, "/snapshot/prepare", event)
        return pb.PrepareSnapshotResponse(mounts=sent(mounts))

    def view(self, request: pb.ViewSnapshotRequest, call: Call) -> pb.ViewSnapshotResponse:
        """Raises as `prepare`."""
        snapshots = self._named(request.snapshotter, call)
        mounts = snapshots.view(request.key, request.parent, wire.labels(request.labels))
        return pb.ViewSnapshotResponse(mounts=sent(mounts))

    def mounts(self, request: pb.MountsRequest, call: Call) -> pb.MountsResponse:
        """Raises NotFound, Conflict (committed)."""
        return pb.MountsResponse(mounts=sent(self._named(request.snapshotter, call).mounts(request.key)))

    def commit(self, request: pb.CommitSnapshotRequest, call: Call) -> Empty:
        """Raises NotFound, AlreadyExists, Conflict; Unsupported (a parent, if the snapshotter cannot rebase)."""
        snapshots = self._named(request.snapshotter, call)
        snapshots.commit(request.name, request.key, wire.labels(request.labels), request.parent)
        event = SnapshotCommit(key=request.key, name=request.name, snapshotter=request.snapshotter)
        self._shared.happened(call, "/snapshot/commit", event)
        return Empty()

    def remove(self, request: pb.RemoveSnapshotRequest, call: Call) -> Empty:
        """Raises NotFound, Conflict (it has children)."""
        self._named(request.snapshotter, call).remove(request.key)
        event = SnapshotRemove(key=request.key, snapshotter=request.snapshotter)
        self._shared.happened(call, "/snapshot/remove", event)
        self._shared.collect(wait=False)
        return Empty()

    @quick()
    def stat(self, request: pb.StatSnapshotRequest, call: Call) -> pb.StatSnapshotResponse:
        """Raises NotFound."""
        return pb.StatSnapshotResponse(info=_info(self._named(request.snapshotter, call).stat(request.key)))

    def update(self, request: pb.UpdateSnapshotRequest, call: Call) -> pb.UpdateSnapshotResponse:
        """Change labels; other fields are read-only. Raises NotFound, InvalidInput."""
        snapshots = self._named(request.snapshotter, call)
        changed = snapshots.update(
            request.info.name, wire.labels(request.info.labels), wire.fields(request.update_mask)
        )
        return pb.UpdateSnapshotResponse(info=_info(changed))

    def list(self, request: pb.ListSnapshotsRequest, call: Call) -> Iterator[pb.ListSnapshotsResponse]:
        """Pages of the snapshots that pass the filters, by name. Raises InvalidInput."""
        records = self._named(request.snapshotter, call).list(tuple(request.filters))
        for at in range(0, len(records), _PAGE):
            yield pb.ListSnapshotsResponse(info=[_info(record) for record in records[at : at + _PAGE]])

    def usage(self, request: pb.UsageRequest, call: Call) -> pb.UsageResponse:
        """Raises NotFound."""
        usage = self._named(request.snapshotter, call).usage(request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def cleanup(self, request: pb.CleanupRequest, call: Call) -> Empty:
        """Free what broken-off work has left."""
        self._named(request.snapshotter, call).cleanup()
        return Empty()

    def _named(self, name: str, call: Call) -> Snapshotter:
        if not name:
            raise InvalidInput("the snapshotter is not named")
        return self._shared.snapshotter(name, call)


def _info(record: SnapshotRecord) -> pb.Info:
    return pb.Info(
        name=record.name,
        parent=record.parent,
        kind=_KINDS[record.kind],
        created_at=wire.timestamp(record.created_at),
        updated_at=wire.timestamp(record.updated_at),
        labels=record.labels,
    )
