# SPDX-License-Identifier: Apache-2.0
"""A server in this process, and clients of it by gRPC's own library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from lamella.protocol.proto import (
    containers_pb2,
    content_pb2,
    events_pb2,
    health_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    version_pb2,
)
from lamella.service.endpoints.direct import direct_methods
from lamella.service.gc_scheduler import PAUSE, Collector
from lamella.service.grpc.counters import Counters
from lamella.service.grpc.rpc import Method
from lamella.service.grpc.server import Server, listening
from lamella.service.services.served_store import ServedStore
from lamella.store.store import Store

LARGEST = 16 << 20


class Stub:
    """A service by gRPC's library: an attribute for each RPC."""

    def __init__(self, channel: grpc.Channel, file: FileDescriptor, name: str = "") -> None:
        (service,) = file.services_by_name.values()
        for method in service.methods:
            kind = f"{_arity(method.client_streaming)}_{_arity(method.server_streaming)}"
            request: type[Message] = GetMessageClass(method.input_type)
            answer: type[Message] = GetMessageClass(method.output_type)
            path = f"/{name or service.full_name}/{method.name}"
            self.__dict__[method.name] = getattr(channel, kind)(
                path, request_serializer=request.SerializeToString, response_deserializer=answer.FromString
            )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _arity(many: bool) -> str:
    return "stream" if many else "unary"


class Client:
    """The services of a server, as one client sees them."""

    def __init__(self, address: Path) -> None:
        options = [("grpc.max_receive_message_length", LARGEST), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(f"unix:{address}", options=options)
        self.version = Stub(self.channel, version_pb2.DESCRIPTOR)
        self.introspection = Stub(self.channel, introspection_pb2.DESCRIPTOR)
        self.namespaces = Stub(self.channel, namespaces_pb2.DESCRIPTOR)
        self.content = Stub(self.channel, content_pb2.DESCRIPTOR)
        self.images = Stub(self.channel, images_pb2.DESCRIPTOR)
        self.leases = Stub(self.channel, leases_pb2.DESCRIPTOR)
        self.events = Stub(self.channel, events_pb2.DESCRIPTOR)
        self.containers = Stub(self.channel, containers_pb2.DESCRIPTOR)
        self.health = Stub(self.channel, health_pb2.DESCRIPTOR, "grpc.health.v1.Health")

    def close(self) -> None:
        self.channel.close()


class Served:
    """A server that runs, its store and a client."""

    def __init__(self, address: Path, store: Store, shared: ServedStore, client: Client) -> None:
        self.address = address
        self.store = store
        self.shared = shared
        self.client = client


@contextmanager
def running(
    address: Path,
    methods: Mapping[str, Method],
    *,
    grace: float = 0.2,
    counters: Counters | None = None,
    **limits: int,
) -> Iterator[Server]:
    """A server of methods at an address, in a thread; ``limits`` are those of `Server`."""
    server = Server(counters, **limits)
    with listening(address) as listener:
        server.serve(listener, methods)
        thread = threading.Thread(target=server.run, args=(grace,))
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()


@contextmanager
def serving(folder: Path, *, pause: float = PAUSE) -> Iterator[Served]:
    """A store that is served, in a folder that has no other; see `Collector` for ``pause``."""
    address = folder / "socket"
    with Store.open(folder / "root") as store:
        shared = ServedStore(store)
        shared.collector = Collector(store, shared.bus, pause=pause)
        client = Client(address)
        try:
            with running(address, direct_methods(shared)):
                yield Served(address, store, shared, client)
                client.close()
        finally:
            shared.close()


def within(namespace: str = "default", lease: str = "") -> Sequence[tuple[str, str]]:
    """The metadata of a call about a namespace."""
    found = [("containerd-namespace", namespace)]
    return [*found, ("containerd-lease", lease)] if lease else found


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    """The status that a call fails with."""
    return failure(call).code()


def failure(call: Callable[[], object]) -> grpc.RpcError:
    """What a call fails with; a stream is read to its end."""

    def finish() -> None:
        answer = call()
        if isinstance(answer, Iterator):
            list(answer)

    with pytest.raises(grpc.RpcError) as raised:
        finish()
    return raised.value
