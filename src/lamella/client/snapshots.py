# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a remote store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lamella.client.connection import Connection, Headers
from lamella.errors import InvalidInput, Unsupported
from lamella.protocol import wire
from lamella.protocol.mounts import typed
from lamella.protocol.proto import snapshots_pb2 as pb
from lamella.store.contract import NO_LABELS, Labels, Mount, SnapshotKind, SnapshotRecord, Usage

_SERVICE: Final = "snapshots.v1.Snapshots"
_KINDS: Final = {
    pb.VIEW: SnapshotKind.VIEW,
    pb.ACTIVE: SnapshotKind.ACTIVE,
    pb.COMMITTED: SnapshotKind.COMMITTED,
}


class RemoteSnapshots:
    """The snapshots of a namespace in one of the server's snapshotters (`Snapshotter`).

    Mounts are valid on the server's machine.
    """

    def __init__(self, connection: Connection, headers: Headers, name: str) -> None:
        if not name:
            raise InvalidInput("the snapshotter has no name")
        self.name = name
        self._connection = connection
        self._headers = headers

    def stat(self, key: str) -> SnapshotRecord:
        request = pb.StatSnapshotRequest(snapshotter=self.name, key=key)
        return _record(self._ask("Stat", request, pb.StatSnapshotResponse.FromString).info)

    def list(self, filters: Sequence[str] = ()) -> list[SnapshotRecord]:
        request = pb.ListSnapshotsRequest(snapshotter=self.name, filters=filters)
        call = self._connection.stream(f"{_SERVICE}/List", request, pb.ListSnapshotsResponse.FromString, self._headers)
        with self._connection.translating_errors():
            found = [_record(one) for page in call for one in page.info]
        return sorted(found, key=lambda record: record.name)

    def update(self, key: str, labels: Labels, fields: Sequence[str] = ()) -> SnapshotRecord:
        request = pb.UpdateSnapshotRequest(
            snapshotter=self.name, info=pb.Info(name=key, labels=labels), update_mask=FieldMask(paths=fields)
        )
        return _record(self._ask("Update", request, pb.UpdateSnapshotResponse.FromString).info)

    def usage(self, key: str) -> Usage:
        request = pb.UsageRequest(snapshotter=self.name, key=key)
        found = self._ask("Usage", request, pb.UsageResponse.FromString)
        return Usage(found.size, found.inodes)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """Raises Unsupported for unknown types of mounts (`Snapshotter.mounts`)."""
        request = pb.MountsRequest(snapshotter=self.name, key=key)
        return typed(self._ask("Mounts", request, pb.MountsResponse.FromString).mounts)

    def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        request = pb.PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=labels)
        return typed(self._ask("Prepare", request, pb.PrepareSnapshotResponse.FromString).mounts)

    def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        request = pb.ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=labels)
        return typed(self._ask("View", request, pb.ViewSnapshotResponse.FromString).mounts)

    def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        """Servers before containerd 2 ignore ``parent`` (`Snapshotter.commit`)."""
        request = pb.CommitSnapshotRequest(snapshotter=self.name, name=name, key=key, labels=labels, parent=parent)
        self._ask("Commit", request)

    def remove(self, key: str) -> None:
        self._ask("Remove", pb.RemoveSnapshotRequest(snapshotter=self.name, key=key))

    def cleanup(self) -> None:
        try:
            self._ask("Cleanup", pb.CleanupRequest(snapshotter=self.name))
        except Unsupported:  # this snapshotter has nothing to clean up
            pass

    def _ask(self, name: str, request: Message, decode: Callable[[bytes], Any] = bytes) -> Any:
        return self._connection.ask(f"{_SERVICE}/{name}", request, decode, self._headers)


def _record(sent: pb.Info) -> SnapshotRecord:
    kind = _KINDS.get(sent.kind)
    if kind is None:
        raise Unsupported(f"snapshot {sent.name!r} is of an unknown kind: {sent.kind}")
    return SnapshotRecord(
        sent.name,
        sent.parent,
        kind,
        wire.nanoseconds(sent.created_at),
        wire.nanoseconds(sent.updated_at),
        dict(sent.labels),
    )
