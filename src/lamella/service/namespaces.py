# SPDX-License-Identifier: Apache-2.0
"""The Namespaces service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from lamella.errors import InvalidInput
from lamella.protocol.proto import namespaces_pb2 as pb
from lamella.protocol.proto.happenings_pb2 import NamespaceCreate, NamespaceDelete, NamespaceUpdate
from lamella.protocol.wire import fields, labels
from lamella.service.calls import Call, quick
from lamella.store import contract
from lamella.store.labels import is_label

if TYPE_CHECKING:
    from lamella.service.direct import Direct


class Namespaces:
    """Namespaces. One comes into being with its first object."""

    def __init__(self, shared: Direct) -> None:
        self._shared = shared
        self._namespaces = shared.store.namespaces

    @quick()
    def get(self, request: pb.GetNamespaceRequest, call: Call) -> pb.GetNamespaceResponse:  # noqa: ARG002
        """One, without labels where it is not known."""
        return pb.GetNamespaceResponse(namespace=_namespace(self._namespaces.get(request.name)))

    def list(self, request: pb.ListNamespacesRequest, call: Call) -> pb.ListNamespacesResponse:  # noqa: ARG002
        """All, by name; the filter of the request means nothing."""
        return pb.ListNamespacesResponse(namespaces=[_namespace(one) for one in self._namespaces.list()])

    def create(self, request: pb.CreateNamespaceRequest, call: Call) -> pb.CreateNamespaceResponse:  # noqa: ARG002
        """Make one."""
        made = self._namespaces.create(request.namespace.name, labels(request.namespace.labels))
        self._tell(made.name, "/namespaces/create", NamespaceCreate(name=made.name, labels=made.labels))
        return pb.CreateNamespaceResponse(namespace=_namespace(made))

    def update(self, request: pb.UpdateNamespaceRequest, call: Call) -> pb.UpdateNamespaceResponse:  # noqa: ARG002
        """Change the labels that a mask names, or all."""
        changed = fields(request.update_mask)
        for field in changed:
            if not is_label(field):
                raise InvalidInput(f"{field[:200]!r} is not a field of namespaces that can be changed")
        made = self._namespaces.update(request.namespace.name, labels(request.namespace.labels), changed)
        self._tell(made.name, "/namespaces/update", NamespaceUpdate(name=made.name, labels=made.labels))
        return pb.UpdateNamespaceResponse(namespace=_namespace(made))

    def delete(self, request: pb.DeleteNamespaceRequest, call: Call) -> Empty:  # noqa: ARG002
        """Remove one that is empty."""
        self._namespaces.delete(request.name)
        self._tell(request.name, "/namespaces/delete", NamespaceDelete(name=request.name))
        return Empty()

    def _tell(self, namespace: str, topic: str, event: Message) -> None:
        self._shared.bus.publish(namespace, topic, event)


def _namespace(namespace: contract.Namespace) -> pb.Namespace:
    return pb.Namespace(name=namespace.name, labels=namespace.labels)
