# SPDX-License-Identifier: Apache-2.0
"""The direct endpoint: all of containerd's services over one store."""

from __future__ import annotations

from lamella.service.grpc.rpc import Method, methods
from lamella.service.services.served_store import ServedStore


def direct_methods(shared: ServedStore) -> dict[str, Method]:
    """The methods of the direct endpoint, by path."""
    from lamella.protocol.proto import (
        containers_pb2,
        content_pb2,
        diff_pb2,
        events_pb2,
        health_pb2,
        images_pb2,
        introspection_pb2,
        leases_pb2,
        namespaces_pb2,
        snapshots_pb2,
        streaming_pb2,
        transfer_pb2,
        version_pb2,
    )
    from lamella.service.services.content import Content
    from lamella.service.services.diff import Diff
    from lamella.service.services.events import Events
    from lamella.service.services.health import Containers, Health, Version
    from lamella.service.services.introspection import Introspection
    from lamella.service.services.metadata import Images, Leases, Namespaces
    from lamella.service.services.snapshots import Snapshots
    from lamella.service.services.streaming import Streaming
    from lamella.service.services.transfer.transfer import Transfer

    streams, health = Streaming(), Health()
    shared.endings += (streams.leave, health.leave)
    return {
        **methods(version_pb2.DESCRIPTOR, Version()),
        **methods(introspection_pb2.DESCRIPTOR, Introspection(shared)),
        **methods(namespaces_pb2.DESCRIPTOR, Namespaces(shared)),
        **methods(content_pb2.DESCRIPTOR, Content(shared)),
        **methods(images_pb2.DESCRIPTOR, Images(shared)),
        **methods(leases_pb2.DESCRIPTOR, Leases(shared)),
        **methods(events_pb2.DESCRIPTOR, Events(shared.bus)),
        **methods(snapshots_pb2.DESCRIPTOR, Snapshots(shared)),
        **methods(diff_pb2.DESCRIPTOR, Diff(shared)),
        **methods(streaming_pb2.DESCRIPTOR, streams),
        **methods(transfer_pb2.DESCRIPTOR, Transfer(shared, streams)),
        **methods(containers_pb2.DESCRIPTOR, Containers()),
        **methods(health_pb2.DESCRIPTOR, health, name="grpc.health.v1.Health"),
    }
