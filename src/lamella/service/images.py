# SPDX-License-Identifier: Apache-2.0
"""The Images service: names and what they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty

from lamella.digests import Digest
from lamella.oci.descriptor import Descriptor
from lamella.protocol.proto import images_pb2 as pb
from lamella.protocol.wire import descriptor, digest, fields, labels, nanoseconds, sent_descriptor, timestamp
from lamella.service.calls import Call, quick
from lamella.store.contract import ImageRecord
from lamella.store.images import Images as StoredImages

if TYPE_CHECKING:
    from lamella.service.direct import Direct


class Images:
    """Images. What a name leads to need not be there."""

    def __init__(self, shared: Direct) -> None:
        self._shared = shared

    @quick()
    def get(self, request: pb.GetImageRequest, call: Call) -> pb.GetImageResponse:
        """The image that has a name."""
        return pb.GetImageResponse(image=_image(self._shared.space(call).images.get(request.name)))

    def list(self, request: pb.ListImagesRequest, call: Call) -> pb.ListImagesResponse:
        """All that pass, by name."""
        found = self._shared.space(call).images.list(tuple(request.filters))
        return pb.ListImagesResponse(images=[_image(one) for one in found])

    def create(self, request: pb.CreateImageRequest, call: Call) -> pb.CreateImageResponse:
        """Give a name."""
        sent = request.image
        target = descriptor(sent.target, f"target of image {sent.name!r}")
        record = self._images(request, call).create(ImageRecord(sent.name, target, labels(sent.labels)))
        self._tell(call, "/images/create", pb.ImageCreate(name=record.name, labels=record.labels))
        return pb.CreateImageResponse(image=_image(record))

    def update(self, request: pb.UpdateImageRequest, call: Call) -> pb.UpdateImageResponse:
        """Change what a mask names: all by default."""
        sent = request.image
        changed = fields(request.update_mask)
        if not changed or "target" in changed:
            target = descriptor(sent.target, f"target of image {sent.name!r}")
        else:  # its annotations are all that is looked at
            annotations = dict(sent.target.annotations)
            target = Descriptor(media_type="", digest=Digest(""), size=0, annotations=annotations)
        record = self._images(request, call).update(ImageRecord(sent.name, target, labels(sent.labels)), changed)
        self._tell(call, "/images/update", pb.ImageUpdate(name=record.name, labels=record.labels))
        return pb.UpdateImageResponse(image=_image(record))

    def delete(self, request: pb.DeleteImageRequest, call: Call) -> Empty:
        """Take a name away, if it still has the target that is given, and collect."""
        target = digest(request.target.digest) if request.HasField("target") and request.target.digest else None
        self._shared.space(call).images.delete(request.name, target)
        self._tell(call, "/images/delete", pb.ImageDelete(name=request.name))
        self._shared.collect(wait=request.sync)
        return Empty()

    def _images(self, request: pb.CreateImageRequest | pb.UpdateImageRequest, call: Call) -> StoredImages:
        """The images of the call's namespace, with the time that the request wants instead of the present."""
        space = self._shared.space(call)
        if not request.HasField("source_date_epoch"):
            return space.images
        epoch = nanoseconds(request.source_date_epoch)
        return StoredImages(space.store.database, space.name, space.lease, lambda: epoch)

    def _tell(self, call: Call, topic: str, event: pb.ImageCreate | pb.ImageUpdate | pb.ImageDelete) -> None:
        self._shared.bus.publish(call.namespace, topic, event)


def _image(record: ImageRecord) -> pb.Image:
    return pb.Image(
        name=record.name,
        labels=record.labels,
        target=sent_descriptor(record.target),
        created_at=timestamp(record.created_at),
        updated_at=timestamp(record.updated_at),
    )
