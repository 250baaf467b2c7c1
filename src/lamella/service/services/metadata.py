# SPDX-License-Identifier: Apache-2.0
"""The Images, Leases and Namespaces services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from lamella.digests import Digest
from lamella.errors import InvalidInput
from lamella.oci.descriptor import Descriptor
from lamella.protocol.proto import images_pb2, leases_pb2, namespaces_pb2
from lamella.protocol.proto.happenings_pb2 import NamespaceCreate, NamespaceDelete, NamespaceUpdate
from lamella.protocol.wire import descriptor, digest, fields, labels, nanoseconds, sent_descriptor, timestamp
from lamella.service.grpc.rpc import Call, quick
from lamella.store import contract
from lamella.store.contract import ImageRecord
from lamella.store.metadata.images import LocalImages
from lamella.store.metadata.labels import is_label
from lamella.store.metadata.leases import LocalLeases

if TYPE_CHECKING:
    from lamella.service.services.served_store import ServedStore


class Images:
    """The Images service. The target of an image need not exist."""

    def __init__(self, shared: ServedStore) -> None:
        self._shared = shared

    @quick()
    def get(self, request: images_pb2.GetImageRequest, call: Call) -> images_pb2.GetImageResponse:
        return images_pb2.GetImageResponse(image=_image(self._shared.space(call).images.get(request.name)))

    def list(self, request: images_pb2.ListImagesRequest, call: Call) -> images_pb2.ListImagesResponse:
        found = self._shared.space(call).images.list(tuple(request.filters))
        return images_pb2.ListImagesResponse(images=[_image(one) for one in found])

    def create(self, request: images_pb2.CreateImageRequest, call: Call) -> images_pb2.CreateImageResponse:
        sent = request.image
        target = descriptor(sent.target, f"target of image {sent.name!r}")
        record = self._images(request, call).create(ImageRecord(sent.name, target, labels(sent.labels)))
        self._publish(call, "/images/create", images_pb2.ImageCreate(name=record.name, labels=record.labels))
        return images_pb2.CreateImageResponse(image=_image(record))

    def update(self, request: images_pb2.UpdateImageRequest, call: Call) -> images_pb2.UpdateImageResponse:
        """Change the fields of a mask, all by default."""
        sent = request.image
        changed = fields(request.update_mask)
        if not changed or "target" in changed:
            target = descriptor(sent.target, f"target of image {sent.name!r}")
        else:  # only its annotations are used
            annotations = dict(sent.target.annotations)
            target = Descriptor(media_type="", digest=Digest(""), size=0, annotations=annotations)
        record = self._images(request, call).update(ImageRecord(sent.name, target, labels(sent.labels)), changed)
        self._publish(call, "/images/update", images_pb2.ImageUpdate(name=record.name, labels=record.labels))
        return images_pb2.UpdateImageResponse(image=_image(record))

    def delete(self, request: images_pb2.DeleteImageRequest, call: Call) -> Empty:
        """Remove a name, if it still has the given target, and collect garbage."""
        target = digest(request.target.digest) if request.HasField("target") and request.target.digest else None
        self._shared.space(call).images.delete(request.name, target)
        self._publish(call, "/images/delete", images_pb2.ImageDelete(name=request.name))
        self._shared.collect(wait=request.sync)
        return Empty()

    def _images(
        self, request: images_pb2.CreateImageRequest | images_pb2.UpdateImageRequest, call: Call
    ) -> LocalImages:
        """The images of the call's namespace, with the clock at the request's epoch, if it has one."""
        space = self._shared.space(call)
        if not request.HasField("source_date_epoch"):
            return space.images
        epoch = nanoseconds(request.source_date_epoch)
        return space.at(epoch).images

    def _publish(
        self, call: Call, topic: str, event: images_pb2.ImageCreate | images_pb2.ImageUpdate | images_pb2.ImageDelete
    ) -> None:
        self._shared.bus.publish(call.namespace, topic, event)


def _image(record: ImageRecord) -> images_pb2.Image:
    return images_pb2.Image(
        name=record.name,
        labels=record.labels,
        target=sent_descriptor(record.target),
        created_at=timestamp(record.created_at),
        updated_at=timestamp(record.updated_at),
    )


class Leases:
    """The Leases service."""

    def __init__(self, shared: ServedStore) -> None:
        self._shared = shared

    def create(self, request: leases_pb2.CreateRequest, call: Call) -> leases_pb2.CreateResponse:
        """Create a lease, with a new id if the request has none."""
        return leases_pb2.CreateResponse(lease=_lease(self._leases(call).create(request.id, labels(request.labels))))

    def delete(self, request: leases_pb2.DeleteRequest, call: Call) -> Empty:
        """Delete a lease, and collect garbage."""
        self._leases(call).delete(request.id)
        self._shared.collect(wait=request.sync)
        return Empty()

    def list(self, request: leases_pb2.ListRequest, call: Call) -> leases_pb2.ListResponse:
        return leases_pb2.ListResponse(leases=[_lease(one) for one in self._leases(call).list(tuple(request.filters))])

    def add_resource(self, request: leases_pb2.AddResourceRequest, call: Call) -> Empty:
        """Add a resource, which need not exist."""
        self._leases(call).add(request.id, _resource(request.resource))
        return Empty()

    def delete_resource(self, request: leases_pb2.DeleteResourceRequest, call: Call) -> Empty:
        """Remove a resource; no error if the lease does not hold it."""
        self._leases(call).remove(request.id, _resource(request.resource))
        return Empty()

    def list_resources(self, request: leases_pb2.ListResourcesRequest, call: Call) -> leases_pb2.ListResourcesResponse:
        found = self._leases(call).resources(request.id)
        return leases_pb2.ListResourcesResponse(
            resources=[leases_pb2.Resource(id=one.id, type=one.type) for one in found]
        )

    def _leases(self, call: Call) -> LocalLeases:
        return self._shared.space(call).leases


def _lease(lease: contract.Lease) -> leases_pb2.Lease:
    return leases_pb2.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=lease.labels)


def _resource(sent: leases_pb2.Resource) -> contract.Resource:
    return contract.Resource(sent.type, sent.id)


class Namespaces:
    """The Namespaces service. The first object of a namespace creates it."""

    def __init__(self, shared: ServedStore) -> None:
        self._shared = shared
        self._namespaces = shared.store.namespaces

    @quick()
    def get(self, request: namespaces_pb2.GetNamespaceRequest, call: Call) -> namespaces_pb2.GetNamespaceResponse:  # noqa: ARG002
        """A namespace; an unknown one has no labels."""
        return namespaces_pb2.GetNamespaceResponse(namespace=_namespace(self._namespaces.get(request.name)))

    def list(self, request: namespaces_pb2.ListNamespacesRequest, call: Call) -> namespaces_pb2.ListNamespacesResponse:  # noqa: ARG002
        """All namespaces, by name; as in containerd, the request's filter is ignored."""
        return namespaces_pb2.ListNamespacesResponse(namespaces=[_namespace(one) for one in self._namespaces.list()])

    def create(
        self,
        request: namespaces_pb2.CreateNamespaceRequest,
        call: Call,  # noqa: ARG002
    ) -> namespaces_pb2.CreateNamespaceResponse:
        made = self._namespaces.create(request.namespace.name, labels(request.namespace.labels))
        self._publish(made.name, "/namespaces/create", NamespaceCreate(name=made.name, labels=made.labels))
        return namespaces_pb2.CreateNamespaceResponse(namespace=_namespace(made))

    def update(
        self,
        request: namespaces_pb2.UpdateNamespaceRequest,
        call: Call,  # noqa: ARG002
    ) -> namespaces_pb2.UpdateNamespaceResponse:
        """Change the labels named by a mask, or all."""
        changed = fields(request.update_mask)
        for field in changed:
            if not is_label(field):
                raise InvalidInput(f"{field[:200]!r} is not a field of a namespace that can be changed")
        made = self._namespaces.update(request.namespace.name, labels(request.namespace.labels), changed)
        self._publish(made.name, "/namespaces/update", NamespaceUpdate(name=made.name, labels=made.labels))
        return namespaces_pb2.UpdateNamespaceResponse(namespace=_namespace(made))

    def delete(self, request: namespaces_pb2.DeleteNamespaceRequest, call: Call) -> Empty:  # noqa: ARG002
        """Delete an empty namespace."""
        self._namespaces.delete(request.name)
        self._publish(request.name, "/namespaces/delete", NamespaceDelete(name=request.name))
        return Empty()

    def _publish(self, namespace: str, topic: str, event: Message) -> None:
        self._shared.bus.publish(namespace, topic, event)


def _namespace(namespace: contract.NamespaceRecord) -> namespaces_pb2.Namespace:
    return namespaces_pb2.Namespace(name=namespace.name, labels=namespace.labels)
