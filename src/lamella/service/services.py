# SPDX-License-Identifier: Apache-2.0
"""The table of services: which is described where, and what serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.service.calls import Method, methods

if TYPE_CHECKING:
    from lamella.service.direct import Direct


def direct(shared: Direct) -> dict[str, Method]:
    """All methods of the direct endpoint, by path."""
    from lamella.service.plain import Containers, Health, Version
    from lamella.service.proto import containers_pb2, health_pb2, version_pb2

    return {
        **methods(version_pb2.DESCRIPTOR, Version()),
        **methods(containers_pb2.DESCRIPTOR, Containers()),
        **methods(health_pb2.DESCRIPTOR, Health(), name="grpc.health.v1.Health"),
    }
