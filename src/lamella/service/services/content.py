# SPDX-License-Identifier: Apache-2.0
"""The Content service: clients read and write the blobs of a namespace."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Final

from google.protobuf.empty_pb2 import Empty

from lamella.digests import Digest
from lamella.errors import Integrity, InvalidInput, NotFound, Unavailable
from lamella.formats.container import encode_varint
from lamella.protocol.proto import content_pb2 as pb
from lamella.protocol.proto.happenings_pb2 import ContentCreate, ContentDelete
from lamella.protocol.wire import digest, fields, labels, timestamp
from lamella.service.grpc.rpc import Call, Encoded, quick
from lamella.service.grpc.status import OutOfRange
from lamella.store.contract import ContentRecord, Ingest, IngestStatus
from lamella.store.store import LocalNamespace

if TYPE_CHECKING:
    from lamella.service.services.served_store import ServedStore

MAX_OPEN: Final = 64
"""Files kept open."""

FRESH: Final = 1.0
"""Seconds after which the store is asked again for a blob: another process may have deleted it."""


class OpenBlob:
    """An open file and its size in bytes. The last reference closes it."""

    __slots__ = ("checked", "file", "size")

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.checked = time.monotonic()

    def __del__(self) -> None:
        self.file.close()


class OpenBlobs:
    """Cache of the open files of the blobs read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: OrderedDict[tuple[str, str], OpenBlob] = OrderedDict()

    def get(self, namespace: str, digest: Digest, find: Callable[[], BinaryIO]) -> OpenBlob:
        """The blob, opened by ``find`` if it is not cached. Raises the errors of ``find``."""
        key = (namespace, digest)
        blob = self._blobs.get(key)
        if blob is not None and time.monotonic() - blob.checked < FRESH:
            return blob
        self.forget(namespace, digest)
        blob = OpenBlob(find())
        with self._lock:
            self._blobs[key] = blob
            # Drop the oldest, so that deleted blobs free their space soon.
            while len(self._blobs) > MAX_OPEN:
                self._blobs.popitem(last=False)
        return blob

    def forget(self, namespace: str, digest: Digest) -> None:
        """Drop a deleted blob."""
        with self._lock:
            self._blobs.pop((namespace, digest), None)


CHUNK: Final = 1 << 20
"""Bytes of a blob in one message."""

QUICK: Final = 64 << 10
"""Bytes of a read that the reading thread of the connection answers."""

_PAGE: Final = 100
_PATIENCE: Final = 5.0
"""Seconds to wait until the call of a client that has gone releases its ingest."""
_OVERTAKEN: Final = 0.1
"""Seconds to wait for a call under way: clients may cancel a call after they begin the next one."""


class Content:
    """The Content service. Reads of a blob share one open file."""

    def __init__(self, shared: ServedStore) -> None:
        self._shared = shared
        self._blobs = OpenBlobs()
        self._writers: dict[tuple[str, str], Call] = {}
        self._changed = threading.Condition()
        self._buffers: list[bytearray] = []

    @quick()
    def info(self, request: pb.InfoRequest, call: Call) -> pb.InfoResponse:
        return pb.InfoResponse(info=_info(self._shared.space(call).content.info(digest(request.digest))))

    def update(self, request: pb.UpdateRequest, call: Call) -> pb.UpdateResponse:
        content = self._shared.space(call).content
        wanted = request.info
        record = content.update(digest(wanted.digest), labels(wanted.labels), fields(request.update_mask))
        return pb.UpdateResponse(info=_info(record))

    def list(self, request: pb.ListContentRequest, call: Call) -> Iterator[pb.ListContentResponse]:
        """Pages of the blobs that pass the filters, by digest."""
        page = pb.ListContentResponse()
        for record in self._shared.space(call).content.walk(tuple(request.filters)):
            page.info.append(_info(record))
            if len(page.info) >= _PAGE:
                yield page
                page = pb.ListContentResponse()
        if page.info:
            yield page

    def delete(self, request: pb.DeleteContentRequest, call: Call) -> Empty:
        """Remove a blob from the namespace."""
        space = self._shared.space(call)
        which = digest(request.digest)
        space.content.delete(which)
        self._blobs.forget(space.name, which)
        self._shared.bus.publish(space.name, "/content/delete", ContentDelete(digest=which))
        self._shared.collect(wait=False)
        return Empty()

    @quick(lambda request: 0 < request.size <= QUICK)
    def read(self, request: pb.ReadContentRequest, call: Call) -> Iterator[Encoded] | tuple[Encoded, ...]:
        """The bytes of a blob from an offset. Raises OutOfRange."""
        space = self._shared.space(call)
        which = digest(request.digest)
        blob = self._blobs.get(space.name, which, lambda: space.content.open(which))
        offset = max(0, request.offset)
        if request.size < 0:
            raise InvalidInput(f"{request.size} bytes cannot be read")
        if offset > blob.size:
            raise OutOfRange(f"offset {offset} is past the end of blob {which}, which has {blob.size} bytes")
        size = min(request.size or blob.size, blob.size - offset)
        if size <= QUICK:
            data = os.pread(blob.file.fileno(), size, offset)
            if len(data) < size:
                raise _cut_short(which)
            return (_piece(0, data),) if size else ()
        return self._pieces(blob.file.fileno(), which, offset, size, blob)

    def _pieces(self, file: int, which: Digest, offset: int, size: int, keep: object) -> Iterator[Encoded]:
        """Messages with parts of a file, which share a buffer; ``keep`` keeps the file open."""
        buffer = self._buffers.pop() if self._buffers else bytearray(CHUNK)
        try:
            with memoryview(buffer) as view:
                sent = 0
                while sent < size:
                    with view[: min(CHUNK, size - sent)] as piece:
                        if os.preadv(file, [piece], offset + sent) < len(piece):
                            raise _cut_short(which)
                        yield _piece(sent, piece)
                        sent += len(piece)
        finally:
            del keep
            if len(self._buffers) < 4:
                self._buffers.append(buffer)

    @quick()
    def status(self, request: pb.StatusRequest, call: Call) -> pb.StatusResponse:
        return pb.StatusResponse(status=_status(self._shared.space(call).content.status(request.ref)))

    def list_statuses(self, request: pb.ListStatusesRequest, call: Call) -> pb.ListStatusesResponse:
        found = self._shared.space(call).content.statuses(tuple(request.filters))
        return pb.ListStatusesResponse(statuses=[_status(one) for one in found])

    def abort(self, request: pb.AbortRequest, call: Call) -> Empty:
        space = self._shared.space(call)
        self._await_leaving((space.name, request.ref))
        space.content.abort(request.ref)
        return Empty()

    def write(self, requests: Iterator[pb.WriteContentRequest], call: Call) -> Iterator[pb.WriteContentResponse]:
        """Write one blob: each request has one answer, and COMMIT ends the stream.

        The end of the stream releases the ingest.
        """
        first = next(requests, None)
        if first is None:
            return
        if not first.ref:
            raise InvalidInput("the first message must carry a reference")
        space = self._shared.space(call)
        key = (space.name, first.ref)
        self._become_writer(key, call)
        try:
            yield from self._written(space, first, requests)
        finally:
            with self._changed:
                del self._writers[key]
                self._changed.notify_all()

    def _written(
        self, space: LocalNamespace, first: pb.WriteContentRequest, requests: Iterator[pb.WriteContentRequest]
    ) -> Iterator[pb.WriteContentResponse]:
        writer = _Writer(space, first)
        try:
            request: pb.WriteContentRequest | None = first
            while request is not None:
                answer = writer.take(request)
                if answer.action == pb.COMMIT:
                    event = ContentCreate(digest=answer.digest, size=answer.offset)
                    self._shared.bus.publish(space.name, "/content/create", event)
                    yield answer
                    return
                yield answer
                request = next(requests, None)
        finally:
            writer.close()

    def _become_writer(self, key: tuple[str, str], call: Call) -> None:
        """Register as the writer of an ingest. Raises Unavailable if another call holds it and goes on."""
        began = time.monotonic()
        with self._changed:
            while (holder := self._writers.get(key)) is not None:
                ending = holder.ending
                left = began + (_PATIENCE if ending else _OVERTAKEN) - time.monotonic()
                if not self._changed.wait(left) and holder.ending is ending:
                    raise Unavailable(f"the ingest {key[1]!r} is open in another call", hint="wait until it is done")
            self._writers[key] = call

    def _await_leaving(self, key: tuple[str, str]) -> None:
        """Wait for the call that holds an ingest, if its client is done or gone."""
        with self._changed:
            holder = self._writers.get(key)
            if holder is not None and holder.ending:
                self._changed.wait_for(lambda: self._writers.get(key) is not holder, _PATIENCE)


class _Writer:
    """An ingest of one Write call."""

    def __init__(self, space: LocalNamespace, first: pb.WriteContentRequest) -> None:
        self._content = space.content
        self._ref = first.ref
        self._total = _total(first)
        self._expected = _expected(first)
        self._ingest: Ingest = self._content.ingest(first.ref, total=self._total, expected=self._expected)
        self._begun = False

    def take(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        """Handle a request; returns its answer."""
        self._total = _total(request) or self._total
        self._expected = _expected(request) or self._expected
        if request.expected and self._begun:
            self._look_for(digest(request.expected))
        self._begun = True
        if request.action in (pb.WRITE, pb.COMMIT):
            self._write(request)
        elif request.action != pb.STAT:
            raise InvalidInput(f"unknown action {request.action}")
        status = self._ingest.status()
        running = self._ingest.digest()
        answer = pb.WriteContentResponse(
            action=request.action,
            started_at=timestamp(status.started_at),
            updated_at=timestamp(status.updated_at),
            offset=status.offset,
            # An ingest with the expected digest is complete, such as a blob of another namespace.
            total=self._total or status.total or (status.offset if running == status.expected else 0),
            digest=running,
        )
        if request.action == pb.COMMIT:
            record = self._ingest.commit(self._total, self._expected, labels(request.labels))
            answer.updated_at.CopyFrom(timestamp(record.updated_at))
            answer.offset, answer.total, answer.digest = record.size, record.size, record.digest
        return answer

    def close(self) -> None:
        self._ingest.close()

    def _write(self, request: pb.WriteContentRequest) -> None:
        at = self._ingest.status().offset
        if request.offset < 0 or (request.offset and request.offset != at):
            raise OutOfRange(f"the ingest {self._ref!r} has {at} bytes, and cannot be written at {request.offset}")
        if not request.offset and at:
            self._ingest.truncate()
        if request.data:
            self._ingest.write(request.data)

    def _look_for(self, expected: Digest) -> None:
        """Drop the ingest and raise AlreadyExists if the blob exists by now."""
        try:
            self._content.info(expected)
        except NotFound:
            return
        self._ingest.close()
        # Reopening finds the blob, adds it to the lease, and drops the bytes of the ingest.
        self._ingest = self._content.ingest(self._ref, total=self._total, expected=expected)


def _total(request: pb.WriteContentRequest) -> int:
    if request.total < 0:
        raise InvalidInput(f"negative size {request.total}")
    return request.total


def _expected(request: pb.WriteContentRequest) -> Digest | None:
    return digest(request.expected, "the expected digest") if request.expected else None


def _piece(offset: int, data: bytes | memoryview) -> Encoded:
    """An encoded ReadContentResponse, without a copy of its data."""
    head = b"\x08" + encode_varint(offset) if offset else b""
    return Encoded((head + b"\x12" + encode_varint(len(data)), data))


def _cut_short(which: Digest) -> Integrity:
    return Integrity(f"the file of blob {which} is cut short")


def _info(record: ContentRecord) -> pb.Info:
    return pb.Info(
        digest=record.digest,
        size=record.size,
        created_at=timestamp(record.created_at),
        updated_at=timestamp(record.updated_at),
        labels=record.labels,
    )


def _status(status: IngestStatus) -> pb.Status:
    return pb.Status(
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected or "",
    )
