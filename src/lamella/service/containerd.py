# SPDX-License-Identifier: Apache-2.0
"""A containerd that is called back: for the blobs that its own store has, and to put new ones there."""

from __future__ import annotations

import io
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lamella.digests import Digest, parse_digest
from lamella.errors import EXIT_STATUS, Conflict, InvalidInput, LamellaError, Unavailable
from lamella.service import wire
from lamella.service.calls import LEASE, NAMESPACE
from lamella.service.connection import MAX_MESSAGE
from lamella.service.proto import content_pb2 as pb
from lamella.service.proto import introspection_pb2, leases_pb2, namespaces_pb2
from lamella.store.contract import NO_LABELS, Buffer, ContentRecord, IngestStatus, Labels
from lamella.times import SECOND, format_rfc3339

LASTING: Final = 600
"""Seconds that a lease lasts which keeps a new blob until whoever asked for it has made use of it."""

_EXPIRE: Final = "containerd.io/gc.expire"
_PIECE: Final = 1 << 20
_CODES: Final[dict[str, type[LamellaError]]] = {
    **{name: category for category, _, name in EXIT_STATUS},
    "OUT_OF_RANGE": InvalidInput,
}


class Containerd:
    """The services of a containerd that listens at a socket. It need not be there before it is asked something."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(
            f"unix:{os.path.abspath(address)}",
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.default_authority", "localhost"),
            ),
        )

    def close(self) -> None:
        """Calls that are under way are broken off."""
        self._channel.close()

    def namespaces(self) -> list[str]:
        """Their names. Raises Unavailable."""
        answer = self.ask("namespaces.v1.Namespaces/List", namespaces_pb2.ListNamespacesRequest(), _NAMESPACES, ())
        return [one.name for one in answer.namespaces]

    @cached_property
    def content_root(self) -> Path | None:
        """The directory that its blobs are in, where it tells and this process sees one. Raises Unavailable."""
        wanted = introspection_pb2.PluginsRequest(filters=("type==io.containerd.content.v1",))
        try:
            answer = self.ask("introspection.v1.Introspection/Plugins", wanted, _PLUGINS, ())
        except Unavailable:
            raise
        except LamellaError:
            return None
        for plugin in answer.plugins:
            root = plugin.exports.get("root", "")
            if root.startswith("/") and os.path.isdir(f"{root}/blobs"):
                return Path(root)
        return None

    def blobs(self, namespace: str, lease: str | None = None) -> RemoteBlobs:
        """The blobs of a namespace; new ones are put under ``lease``."""
        return RemoteBlobs(self, ((NAMESPACE, namespace), *(((LEASE, lease),) if lease else ())))

    @contextmanager
    def leased(self, namespace: str) -> Iterator[RemoteBlobs]:
        """The blobs of a namespace, new ones under a lease that lasts some time longer than the block."""
        name = f"lamella-{secrets.token_hex(8)}"
        expire = format_rfc3339((time.time_ns() // SECOND + LASTING) * SECOND)
        request = leases_pb2.CreateRequest(id=name, labels={_EXPIRE: expire})
        self.ask("leases.v1.Leases/Create", request, leases_pb2.CreateResponse.FromString, ((NAMESPACE, namespace),))
        yield self.blobs(namespace, name)

    def ask(
        self, method: str, request: Message, decode: Callable[[bytes], Any], metadata: Sequence[tuple[str, str]]
    ) -> Any:
        """The answer to one call of ``/containerd.services.METHOD``. Raises by its status."""
        call = self._channel.unary_unary(_path(method), _encode, decode)
        with _told(self.address):
            return call(request, metadata=tuple(metadata))

    def read(self, digest: Digest, metadata: Sequence[tuple[str, str]]) -> Any:
        """The messages that a blob comes in."""
        call = self._channel.unary_stream(_path("content.v1.Content/Read"), _encode, pb.ReadContentResponse.FromString)
        return call(pb.ReadContentRequest(digest=digest), metadata=tuple(metadata))

    def write(self, requests: Iterator[pb.WriteContentRequest], metadata: Sequence[tuple[str, str]]) -> Any:
        """The answers to ``requests``."""
        call = self._channel.stream_stream(
            _path("content.v1.Content/Write"), _encode, pb.WriteContentResponse.FromString
        )
        return call(requests, metadata=tuple(metadata))


_NAMESPACES: Final = namespaces_pb2.ListNamespacesResponse.FromString
_PLUGINS: Final = introspection_pb2.PluginsResponse.FromString


class RemoteBlobs:
    """Blobs of a containerd (`lamella.service.diff.Blobs`)."""

    def __init__(self, containerd: Containerd, metadata: Sequence[tuple[str, str]]) -> None:
        self._containerd = containerd
        self._metadata = metadata

    def info(self, digest: Digest) -> ContentRecord:
        """Raises NotFound."""
        info = self._ask("Info", pb.InfoRequest(digest=digest), pb.InfoResponse.FromString).info
        return ContentRecord(
            parse_digest(info.digest),
            info.size,
            wire.nanoseconds(info.created_at),
            wire.nanoseconds(info.updated_at),
            dict(info.labels),
        )

    def open(self, digest: Digest) -> BinaryIO:
        """The bytes, in order: from containerd's own file where it can be reached. Raises NotFound."""
        size = self.info(digest).size
        root = self._containerd.content_root
        if root is not None:
            try:
                file = open(root / "blobs" / digest.algorithm / digest.hex, "rb", buffering=0)  # noqa: SIM115
            except OSError:
                pass  # then it comes by way of the socket
            else:
                if os.fstat(file.fileno()).st_size == size:
                    return cast("BinaryIO", file)
                file.close()
        return cast("BinaryIO", _Streamed(self._containerd, digest, self._metadata))

    def update(self, digest: Digest, labels: Labels, fields: tuple[str, ...] = ()) -> None:
        """Change the labels that ``fields`` names. Raises NotFound."""
        request = pb.UpdateRequest(info=pb.Info(digest=digest, labels=labels), update_mask=FieldMask(paths=fields))
        self._ask("Update", request, pb.UpdateResponse.FromString)

    def ingest(self, ref: str) -> RemoteIngest:
        """Open or resume an ingest. Raises Unavailable while somebody has it open."""
        return RemoteIngest(self._containerd, ref, self._metadata)

    def abort(self, ref: str) -> None:
        """Drop an ingest. Raises NotFound."""
        self._ask("Abort", pb.AbortRequest(ref=ref), bytes)

    def _ask(self, name: str, request: Message, decode: Callable[[bytes], Any]) -> Any:
        return self._containerd.ask(f"content.v1.Content/{name}", request, decode, self._metadata)


class _Streamed(io.RawIOBase):
    """A blob as it comes over the socket; what is not wanted any more is not sent."""

    def __init__(self, containerd: Containerd, digest: Digest, metadata: Sequence[tuple[str, str]]) -> None:
        self._address = containerd.address
        self._call = containerd.read(digest, metadata)
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._piece:
            with _told(self._address):
                message = next(self._call, None)
            if message is None:
                return 0
            self._piece = memoryview(message.data)
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def close(self) -> None:
        self._call.cancel()
        super().close()


class RemoteIngest:
    """An ingest of a containerd (`lamella.store.contract.Ingest`): one stream, each message of which is answered."""

    def __init__(self, containerd: Containerd, ref: str, metadata: Sequence[tuple[str, str]]) -> None:
        self._address = containerd.address
        self._ref = ref
        self._requests: SimpleQueue[pb.WriteContentRequest | None] = SimpleQueue()
        self._answers = containerd.write(iter(self._requests.get, None), metadata)
        self._last: pb.WriteContentResponse = self._say(pb.WriteContentRequest(action=pb.STAT, ref=ref))

    def status(self) -> IngestStatus:
        """Where it stands."""
        last = self._last
        started, updated = wire.nanoseconds(last.started_at), wire.nanoseconds(last.updated_at)
        return IngestStatus(self._ref, last.offset, last.total, None, started, updated)

    def digest(self) -> Digest:
        """Of the bytes so far."""
        return parse_digest(self._last.digest)

    def write(self, data: Buffer) -> int:
        """Append all of ``data``; the result is the new offset."""
        rest = memoryview(data)
        while rest:
            piece = bytes(rest[:_PIECE])
            self._say(pb.WriteContentRequest(action=pb.WRITE, ref=self._ref, offset=self._last.offset, data=piece))
            rest = rest[len(piece) :]
        return self._last.offset

    def truncate(self, offset: int = 0) -> None:
        """Drop what is there; nothing but all of it can be."""
        if offset == self._last.offset:
            return
        if offset:
            raise InvalidInput("an ingest of a containerd is cut to nothing, or not at all")
        self._say(pb.WriteContentRequest(action=pb.WRITE, ref=self._ref))

    def commit(self, total: int = 0, expected: Digest | None = None, labels: Labels = NO_LABELS) -> ContentRecord:
        """Make the bytes a blob. Raises Conflict, and AlreadyExists where it is there."""
        last = self._say(
            pb.WriteContentRequest(
                action=pb.COMMIT,
                ref=self._ref,
                offset=self._last.offset,
                total=total,
                expected=expected or "",
                labels=labels,
            )
        )
        now = wire.nanoseconds(last.updated_at)
        return ContentRecord(parse_digest(last.digest), last.offset, now, now, labels)

    def close(self) -> None:
        """Let go of the reference; what was written stays."""
        self._requests.put(None)
        self._answers.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _say(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        self._requests.put(request)
        with _told(self._address):
            answer = next(self._answers, None)
        if answer is None:
            raise Conflict(f"containerd has ended the ingest {self._ref!r}")
        self._last = answer
        return self._last


def _path(method: str) -> str:
    return f"/containerd.services.{method}"


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Put statuses into the categories."""
    try:
        yield
    except grpc.RpcError as problem:
        code, text = problem.code(), problem.details()
        raise _CODES.get(code.name, LamellaError)(f"containerd at {address!r}: {text}") from problem
