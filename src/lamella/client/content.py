# SPDX-License-Identifier: Apache-2.0
"""Blobs of a remote store."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lamella.client.connection import Connection, Headers
from lamella.digests import Digest, parse_digest
from lamella.errors import Conflict, InvalidInput, NotFound, SizeMismatch, Unsupported
from lamella.protocol import wire
from lamella.protocol.proto import content_pb2 as pb
from lamella.store.contract import NO_LABELS, Buffer, ContentRecord, Ingest, IngestStatus, Labels

PIECE: Final = 1 << 20
"""Bytes of a blob in one message."""

_SERVICE: Final = "content.v1.Content"

_PATIENCE: Final = 2.0
"""Seconds to wait for a server to release an ingest."""


class RemoteContent:
    """The blobs of a namespace (`ContentStore`), with two restrictions.

    After a blob is deleted, an open file can be read on but not sought. An ingest can be truncated to 0 bytes only.
    """

    def __init__(self, connection: Connection, headers: Headers, files: Callable[[], Path | None]) -> None:
        """``files`` gives the directory of the server's blobs if this process can read it."""
        self._connection = connection
        self._headers = headers
        self._files = files

    def info(self, digest: Digest) -> ContentRecord:
        return _record(self._ask("Info", pb.InfoRequest(digest=digest), pb.InfoResponse.FromString).info)

    def open(self, digest: Digest) -> BinaryIO:
        """The server's file of the blob if this process can read it, else a stream over the socket.

        The server has sent the first bytes when this returns.
        """
        size = self.info(digest).size
        file = _own_file(self._files(), digest, size)
        if file is not None:
            return file
        return cast("BinaryIO", _Blob(self._connection, digest, size, self._headers))

    def walk(self, filters: Sequence[str] = ()) -> Iterator[ContentRecord]:
        request = pb.ListContentRequest(filters=filters)
        call = self._connection.stream(f"{_SERVICE}/List", request, pb.ListContentResponse.FromString, self._headers)
        with self._connection.translating_errors():
            # All at once: the server may hold a lock while it lists, and the caller may change blobs.
            found = [_record(one) for page in call for one in page.info]
        found.sort(key=lambda record: record.digest)
        yield from found

    def update(self, digest: Digest, labels: Labels, fields: Sequence[str] = ()) -> ContentRecord:
        request = pb.UpdateRequest(info=pb.Info(digest=digest, labels=labels), update_mask=FieldMask(paths=fields))
        return _record(self._ask("Update", request, pb.UpdateResponse.FromString).info)

    def delete(self, digest: Digest) -> None:
        self._ask("Delete", pb.DeleteContentRequest(digest=digest))

    def ingest(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> Ingest:
        if not ref or total < 0:
            raise InvalidInput(f"an ingest {ref[:200]!r} of {total} bytes cannot be opened")
        return RemoteIngest(self._connection, self, ref, self._headers, total=total, expected=expected)

    def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        found = self._ask("ListStatuses", pb.ListStatusesRequest(filters=filters), pb.ListStatusesResponse.FromString)
        return sorted((_status(one) for one in found.statuses), key=lambda status: status.ref)

    def status(self, ref: str) -> IngestStatus:
        return _status(self._ask("Status", pb.StatusRequest(ref=ref), pb.StatusResponse.FromString).status)

    def abort(self, ref: str) -> None:
        self._ask("Abort", pb.AbortRequest(ref=ref))

    def _ask(self, name: str, request: Message, decode: Callable[[bytes], Any] = bytes) -> Any:
        return self._connection.ask(f"{_SERVICE}/{name}", request, decode, self._headers)


def _own_file(folder: Path | None, digest: Digest, size: int) -> BinaryIO | None:
    """The server's file of a blob, which never changes; None if it cannot be opened."""
    if folder is None:
        return None
    path = folder / digest.algorithm / digest.hex
    try:
        file = io.FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return None
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        file.close()
        return None
    return cast("BinaryIO", file)


class _Blob(io.RawIOBase):
    """A blob read over the socket. Closing or seeking cancels the call under way."""

    def __init__(self, connection: Connection, digest: Digest, size: int, headers: Headers) -> None:
        self._connection = connection
        self._digest = digest
        self._size = size
        self._headers = headers
        self._at = 0
        self._piece = memoryview(b"")
        self._call: Any = None
        connection.share()  # until `close`
        if size:
            # The server keeps the blob open once it has sent a part of it.
            try:
                self._ask_from(0)
                self._next_piece()
            except BaseException:
                self.close()
                raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"negative position {at}")
        ahead = at - self._at
        if 0 <= ahead <= len(self._piece):
            self._piece = self._piece[ahead:]
        else:
            self._drop()
        self._at = at
        return at

    def readinto(self, buffer: Any, /) -> int:
        """Read what is left of one message; 0 at the end. Raises SizeMismatch if the stream ends early."""
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not view:
            return 0
        if not self._piece:
            if self._call is None:
                self._ask_from(self._at)
            self._next_piece()
        count = min(len(view), len(self._piece), self._size - self._at)
        view[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._drop()
            self._connection.leave()
        super().close()

    def _ask_from(self, offset: int) -> None:
        request = pb.ReadContentRequest(digest=self._digest, offset=offset)
        decode = pb.ReadContentResponse.FromString
        self._call = self._connection.stream(f"{_SERVICE}/Read", request, decode, self._headers)

    def _next_piece(self) -> None:
        while not self._piece:
            with self._connection.translating_errors():
                message = next(self._call, None)
            if message is None:
                self._drop()
                what = f"containerd at {self._connection.address!r}: {self._digest}"
                raise SizeMismatch(what, expected=self._size, actual=self._at)
            self._piece = memoryview(message.data)

    def _drop(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._piece = memoryview(b"")


class RemoteIngest:
    """An ingest (`Ingest`): one stream, in which each request is answered."""

    def __init__(
        self,
        connection: Connection,
        content: RemoteContent,
        ref: str,
        headers: Headers,
        *,
        total: int = 0,
        expected: Digest | None = None,
    ) -> None:
        self._connection = connection
        self._content = content
        self._ref = ref
        self._expected = expected
        self._requests: SimpleQueue[pb.WriteContentRequest | None] = SimpleQueue()
        self._answers = connection.exchange(
            f"{_SERVICE}/Write", iter(self._requests.get, None), pb.WriteContentResponse.FromString, headers
        )
        self._open = True
        self._last = pb.WriteContentResponse()
        self._send(pb.WriteContentRequest(action=pb.STAT, ref=ref, total=total, expected=expected or ""))

    def status(self) -> IngestStatus:
        last = self._last
        started, updated = wire.nanoseconds(last.started_at), wire.nanoseconds(last.updated_at)
        return IngestStatus(self._ref, last.offset, last.total, self._expected, started, updated)

    def digest(self) -> Digest:
        return parse_digest(self._last.digest)

    def write(self, data: Buffer) -> int:
        rest = memoryview(data).cast("B")
        while rest:
            piece = bytes(rest[:PIECE])
            self._send(pb.WriteContentRequest(action=pb.WRITE, ref=self._ref, offset=self._last.offset, data=piece))
            rest = rest[len(piece) :]
        return self._last.offset

    def truncate(self, offset: int = 0) -> None:
        """Raises Unsupported unless ``offset`` is 0 or the end, for lack of a message (`Ingest.truncate`)."""
        if not 0 <= offset <= self._last.offset:
            raise InvalidInput(f"the ingest {self._ref!r} has {self._last.offset} bytes, and cannot be cut at {offset}")
        if offset == self._last.offset:
            return
        if offset:
            raise Unsupported("an ingest of a server is cut to nothing, or not at all")
        self._send(pb.WriteContentRequest(action=pb.WRITE, ref=self._ref))

    def commit(self, total: int = 0, expected: Digest | None = None, labels: Labels = NO_LABELS) -> ContentRecord:
        self._send(
            pb.WriteContentRequest(
                action=pb.COMMIT,
                ref=self._ref,
                offset=self._last.offset,
                total=total,
                expected=expected or "",
                labels=labels,
            )
        )
        self.close()
        try:
            return self._content.info(self.digest())
        except NotFound:  # deleted meanwhile
            now = wire.nanoseconds(self._last.updated_at)
            return ContentRecord(self.digest(), self._last.offset, now, now, {k: v for k, v in labels.items() if v})

    def close(self) -> None:
        """The server has released the reference when this returns, unless it takes longer than 2 s (`Ingest.close`)."""
        if self._open:
            self._open = False
            self._requests.put(None)
            limit = threading.Timer(_PATIENCE, self._answers.cancel)
            limit.start()
            try:
                for _ in self._answers:  # containerd repeats the last one
                    pass
            except grpc.RpcError:
                pass
            finally:
                limit.cancel()
                self._answers.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(self, request: pb.WriteContentRequest) -> None:
        if not self._open:
            raise Conflict(f"the ingest {self._ref!r} is closed")
        self._requests.put(request)
        try:
            with self._connection.translating_errors():
                answer = next(self._answers, None)
            if answer is None:
                raise Conflict(f"containerd has ended the ingest {self._ref!r}")
        except BaseException:
            self._answers.cancel()  # do not wait for further answers
            self.close()
            raise
        self._last = answer


def _record(sent: pb.Info) -> ContentRecord:
    return ContentRecord(
        wire.digest(sent.digest),
        sent.size,
        wire.nanoseconds(sent.created_at),
        wire.nanoseconds(sent.updated_at if sent.HasField("updated_at") else sent.created_at),  # a list lacks it
        dict(sent.labels),
    )


def _status(sent: pb.Status) -> IngestStatus:
    return IngestStatus(
        sent.ref,
        sent.offset,
        sent.total,
        wire.digest(sent.expected) if sent.expected else None,
        wire.nanoseconds(sent.started_at),
        wire.nanoseconds(sent.updated_at),
    )
