# SPDX-License-Identifier: Apache-2.0
"""The Version, Health and Containers services, which need no store."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from google.protobuf.empty_pb2 import Empty

from lamella import __version__
from lamella.errors import NotFound
from lamella.protocol.proto.containers_pb2 import ListContainerMessage, ListContainersRequest, ListContainersResponse
from lamella.protocol.proto.health_pb2 import HealthCheckRequest, HealthCheckResponse
from lamella.protocol.proto.version_pb2 import VersionResponse
from lamella.service.grpc.rpc import AnswerQueue, Call, quick


class Version:
    """Version of the server."""

    @quick()
    def version(self, request: Empty, call: Call) -> VersionResponse:  # noqa: ARG002
        """Lamella's version, without a revision."""
        return VersionResponse(version=__version__)


class Containers:
    """Empty lists: Lamella runs no containers."""

    def list(self, request: ListContainersRequest, call: Call) -> ListContainersResponse:  # noqa: ARG002
        return ListContainersResponse()

    def list_stream(self, request: ListContainersRequest, call: Call) -> Iterator[ListContainerMessage]:  # noqa: ARG002
        return iter(())


class Health:
    """Health of the server: SERVING until it is stopped (grpc.health.v1)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watching: dict[AnswerQueue, bool] = {}
        self._left = False

    def leave(self) -> None:
        """Report NOT_SERVING to all that watch, and end their calls."""
        with self._lock:
            self._left = True
            watching, self._watching = self._watching, {}
        for answers, known in watching.items():
            if known:
                answers.put(HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING))
            answers.end()

    @quick()
    def check(self, request: HealthCheckRequest, call: Call) -> HealthCheckResponse:  # noqa: ARG002
        """SERVING. Raises NotFound for a named service, since services have no health of their own."""
        if request.service:
            raise NotFound(f"there is no service {request.service!r}")
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)

    @quick()
    def watch(self, request: HealthCheckRequest, call: Call) -> AnswerQueue:
        """SERVING, and NOT_SERVING at the server's stop; SERVICE_UNKNOWN for a named service."""
        known = not request.service
        status = HealthCheckResponse.SERVING if known else HealthCheckResponse.SERVICE_UNKNOWN
        answers = AnswerQueue()
        answers.put(HealthCheckResponse(status=status))
        with self._lock:
            self._watching[answers] = known
            left = self._left
        if left:
            self.leave()
        call.when_gone(lambda: self._forget(answers))
        return answers

    def _forget(self, answers: AnswerQueue) -> None:
        with self._lock:
            self._watching.pop(answers, None)
