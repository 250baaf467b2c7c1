# SPDX-License-Identifier: Apache-2.0
"""Services that need no store: Version, Health, and Containers, of which there are none."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from google.protobuf.empty_pb2 import Empty

from lamella import __version__
from lamella.errors import NotFound
from lamella.protocol.proto.containers_pb2 import ListContainerMessage, ListContainersRequest, ListContainersResponse
from lamella.protocol.proto.health_pb2 import HealthCheckRequest, HealthCheckResponse
from lamella.protocol.proto.version_pb2 import VersionResponse
from lamella.service.grpc.rpc import Call, quick


class Version:
    """Which Lamella this is."""

    @quick()
    def version(self, request: Empty, call: Call) -> VersionResponse:  # noqa: ARG002
        """Its version; there is no revision."""
        return VersionResponse(version=__version__)


class Containers:
    """There are none: Lamella runs nothing."""

    def list(self, request: ListContainersRequest, call: Call) -> ListContainersResponse:  # noqa: ARG002
        """None."""
        return ListContainersResponse()

    def list_stream(self, request: ListContainersRequest, call: Call) -> Iterator[ListContainerMessage]:  # noqa: ARG002
        """None."""
        return iter(())


class Health:
    """Whether the server serves: it does, whenever it answers at all, until it is being stopped (grpc.health.v1)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watching: set[threading.Event] = set()
        self._left = False

    def leave(self) -> None:
        """Tell those who watch that it serves no more."""
        with self._lock:
            self._left = True
            for over in self._watching:
                over.set()

    @quick()
    def check(self, request: HealthCheckRequest, call: Call) -> HealthCheckResponse:  # noqa: ARG002
        """Serving. Raises NotFound for a service that is named, since none is watched by itself."""
        if request.service:
            raise NotFound(f"there is no service {request.service!r}")
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)

    def watch(self, request: HealthCheckRequest, call: Call) -> Iterator[HealthCheckResponse]:
        """Serving, and in the end not serving; until the client goes."""
        known = not request.service
        status = HealthCheckResponse.SERVING if known else HealthCheckResponse.SERVICE_UNKNOWN
        over = threading.Event()
        call.when_gone(over.set)
        with self._lock:
            self._watching.add(over)
            if self._left:
                over.set()
        try:
            yield HealthCheckResponse(status=status)
            over.wait()
            if known and not call.cancelled:
                yield HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        finally:
            with self._lock:
                self._watching.discard(over)
