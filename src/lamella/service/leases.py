# SPDX-License-Identifier: Apache-2.0
"""The Leases service: what clients make is safe until they have given it its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty

from lamella.protocol.proto import leases_pb2 as pb
from lamella.protocol.wire import labels, timestamp
from lamella.service.calls import Call
from lamella.store import contract
from lamella.store.leases import Leases as StoredLeases

if TYPE_CHECKING:
    from lamella.service.direct import Direct


class Leases:
    """Leases, and what they hold."""

    def __init__(self, shared: Direct) -> None:
        self._shared = shared

    def create(self, request: pb.CreateRequest, call: Call) -> pb.CreateResponse:
        """A lease; an id is made for one without."""
        return pb.CreateResponse(lease=_lease(self._leases(call).create(request.id, labels(request.labels))))

    def delete(self, request: pb.DeleteRequest, call: Call) -> Empty:
        """End a lease, and collect."""
        self._leases(call).delete(request.id)
        self._shared.collect(wait=request.sync)
        return Empty()

    def list(self, request: pb.ListRequest, call: Call) -> pb.ListResponse:
        """All that pass, by id."""
        return pb.ListResponse(leases=[_lease(one) for one in self._leases(call).list(tuple(request.filters))])

    def add_resource(self, request: pb.AddResourceRequest, call: Call) -> Empty:
        """Have a lease hold something, which need not be there."""
        self._leases(call).add(request.id, _resource(request.resource))
        return Empty()

    def delete_resource(self, request: pb.DeleteResourceRequest, call: Call) -> Empty:
        """Have a lease let go of something, whether it held it or not."""
        self._leases(call).remove(request.id, _resource(request.resource))
        return Empty()

    def list_resources(self, request: pb.ListResourcesRequest, call: Call) -> pb.ListResourcesResponse:
        """What a lease holds."""
        found = self._leases(call).resources(request.id)
        return pb.ListResourcesResponse(resources=[pb.Resource(id=one.id, type=one.type) for one in found])

    def _leases(self, call: Call) -> StoredLeases:
        return self._shared.space(call).leases


def _lease(lease: contract.Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=lease.labels)


def _resource(sent: pb.Resource) -> contract.Resource:
    return contract.Resource(sent.type, sent.id)
