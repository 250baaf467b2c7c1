# SPDX-License-Identifier: Apache-2.0
"""Images, leases and namespaces of a remote store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lamella.client.connection import Connection, Headers
from lamella.digests import Digest
from lamella.errors import NotFound
from lamella.oci.descriptor import Descriptor
from lamella.protocol import wire
from lamella.protocol.proto import images_pb2, leases_pb2, namespaces_pb2, types_pb2
from lamella.store.contract import NO_LABELS, ImageRecord, Labels, Lease, NamespaceRecord, Resource

_IMAGES: Final = "images.v1.Images"
_LEASES: Final = "leases.v1.Leases"
_NAMESPACES: Final = "namespaces.v1.Namespaces"


class _Service:
    """A service, called with constant headers."""

    def __init__(self, connection: Connection, headers: Headers = ()) -> None:
        self._connection = connection
        self._headers = headers

    def _ask(self, method: str, request: Message, decode: Callable[[bytes], Any] = bytes) -> Any:
        return self._connection.ask(method, request, decode, self._headers)


class RemoteImages(_Service):
    """The images of a namespace (`ImageStore`)."""

    def get(self, name: str) -> ImageRecord:
        decode = images_pb2.GetImageResponse.FromString
        return _image(self._ask(f"{_IMAGES}/Get", images_pb2.GetImageRequest(name=name), decode).image)

    def list(self, filters: Sequence[str] = ()) -> list[ImageRecord]:
        request = images_pb2.ListImagesRequest(filters=filters)
        found = self._ask(f"{_IMAGES}/List", request, images_pb2.ListImagesResponse.FromString)
        return sorted((_image(one) for one in found.images), key=lambda image: image.name)

    def create(self, image: ImageRecord) -> ImageRecord:
        """The times are the server's (`ImageStore.create`)."""
        request = images_pb2.CreateImageRequest(image=_sent_image(image))
        return _image(self._ask(f"{_IMAGES}/Create", request, images_pb2.CreateImageResponse.FromString).image)

    def update(self, image: ImageRecord, fields: Sequence[str] = ()) -> ImageRecord:
        request = images_pb2.UpdateImageRequest(image=_sent_image(image), update_mask=FieldMask(paths=fields))
        return _image(self._ask(f"{_IMAGES}/Update", request, images_pb2.UpdateImageResponse.FromString).image)

    def delete(self, name: str, target: Digest | None = None) -> None:
        wanted = None
        if target is not None:
            # Servers before containerd 2 ignore the target, so it is also checked here, without atomicity.
            if self.get(name).target.digest != target:
                raise NotFound(f"image {name!r} is not {target} any more")
            wanted = types_pb2.Descriptor(digest=target)
        self._ask(f"{_IMAGES}/Delete", images_pb2.DeleteImageRequest(name=name, target=wanted))


class RemoteLeases(_Service):
    """The leases of a namespace (`LeaseStore`)."""

    def create(self, id: str = "", labels: Labels = NO_LABELS) -> Lease:  # noqa: A002
        request = leases_pb2.CreateRequest(id=id, labels=labels)
        return _lease(self._ask(f"{_LEASES}/Create", request, leases_pb2.CreateResponse.FromString).lease)

    def delete(self, id: str) -> None:  # noqa: A002
        self._ask(f"{_LEASES}/Delete", leases_pb2.DeleteRequest(id=id))

    def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        request = leases_pb2.ListRequest(filters=filters)
        found = self._ask(f"{_LEASES}/List", request, leases_pb2.ListResponse.FromString)
        return sorted((_lease(one) for one in found.leases), key=lambda lease: lease.id)

    def add(self, id: str, resource: Resource) -> None:  # noqa: A002
        sent = leases_pb2.Resource(id=resource.id, type=resource.type)
        self._ask(f"{_LEASES}/AddResource", leases_pb2.AddResourceRequest(id=id, resource=sent))

    def remove(self, id: str, resource: Resource) -> None:  # noqa: A002
        sent = leases_pb2.Resource(id=resource.id, type=resource.type)
        self._ask(f"{_LEASES}/DeleteResource", leases_pb2.DeleteResourceRequest(id=id, resource=sent))

    def resources(self, id: str) -> Sequence[Resource]:  # noqa: A002
        request = leases_pb2.ListResourcesRequest(id=id)
        found = self._ask(f"{_LEASES}/ListResources", request, leases_pb2.ListResourcesResponse.FromString)
        return sorted(Resource(one.type, one.id) for one in found.resources)


class RemoteNamespaces(_Service):
    """The namespaces of a store (`lamella.store.metadata.namespaces.LocalNamespaces`)."""

    def get(self, name: str) -> NamespaceRecord:
        request = namespaces_pb2.GetNamespaceRequest(name=name)
        found = self._ask(f"{_NAMESPACES}/Get", request, namespaces_pb2.GetNamespaceResponse.FromString)
        return _namespace(found.namespace)

    def list(self) -> Sequence[NamespaceRecord]:
        request = namespaces_pb2.ListNamespacesRequest()
        found = self._ask(f"{_NAMESPACES}/List", request, namespaces_pb2.ListNamespacesResponse.FromString)
        return sorted((_namespace(one) for one in found.namespaces), key=lambda namespace: namespace.name)

    def create(self, name: str, labels: Labels = NO_LABELS) -> NamespaceRecord:
        request = namespaces_pb2.CreateNamespaceRequest(namespace=namespaces_pb2.Namespace(name=name, labels=labels))
        made = self._ask(f"{_NAMESPACES}/Create", request, namespaces_pb2.CreateNamespaceResponse.FromString)
        return _namespace(made.namespace)

    def update(self, name: str, labels: Labels, fields: Sequence[str] = ()) -> NamespaceRecord:
        request = namespaces_pb2.UpdateNamespaceRequest(
            namespace=namespaces_pb2.Namespace(name=name, labels=labels), update_mask=FieldMask(paths=fields)
        )
        self._ask(f"{_NAMESPACES}/Update", request)
        return self.get(name)  # containerd's answer lacks the namespace

    def delete(self, name: str) -> None:
        self._ask(f"{_NAMESPACES}/Delete", namespaces_pb2.DeleteNamespaceRequest(name=name))


def _image(sent: images_pb2.Image) -> ImageRecord:
    target = sent.target
    return ImageRecord(
        sent.name,
        Descriptor(
            media_type=target.media_type,
            digest=wire.digest(target.digest, f"target of image {sent.name!r}"),
            size=target.size,
            annotations=dict(target.annotations),
        ),
        dict(sent.labels),
        wire.nanoseconds(sent.created_at),
        wire.nanoseconds(sent.updated_at),
    )


def _sent_image(image: ImageRecord) -> images_pb2.Image:
    return images_pb2.Image(name=image.name, labels=image.labels, target=wire.sent_descriptor(image.target))


def _lease(sent: leases_pb2.Lease) -> Lease:
    return Lease(sent.id, wire.nanoseconds(sent.created_at), dict(sent.labels))


def _namespace(sent: namespaces_pb2.Namespace) -> NamespaceRecord:
    return NamespaceRecord(sent.name, dict(sent.labels))
