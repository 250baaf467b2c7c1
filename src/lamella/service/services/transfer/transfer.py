# SPDX-License-Identifier: Apache-2.0
"""The Transfer service: import, export, pull, push and tagging of images."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.empty_pb2 import Empty

from lamella.changes.job import Job
from lamella.errors import AlreadyExists, InvalidInput, NotFound, Unsupported, from_os
from lamella.oci.descriptor import Descriptor
from lamella.protocol.proto import images_pb2
from lamella.protocol.proto import transfers_pb2 as pb
from lamella.protocol.wire import labels, sent_descriptor, type_name
from lamella.service.grpc.rpc import Call
from lamella.service.services.streaming import SOON, ByteSender, Exchange, Streaming, Take, receive_bytes, unpacked
from lamella.service.services.transfer.destination import requested_platform, requested_platforms, whole_names
from lamella.store.contract import ImageRecord
from lamella.store.metadata.leases import under_lease
from lamella.store.store import LocalNamespace

if TYPE_CHECKING:
    from lamella.protocol.proto.transfer_pb2 import TransferRequest
    from lamella.service.services.served_store import ServedStore
    from lamella.service.services.transfer.registry import Report

DEFAULT_SNAPSHOTTER: Final = "containerd.io/defaults/snapshotter"
"""Label of a namespace: the snapshotter that images are unpacked with."""

_TAIL: Final = 128 << 10
"""Zeros after an archive. A client ends when the call returns, and drops data in flight: zeros, not the archive."""
_LINGER: Final = 0.1
"""Seconds between the end of the stream and the response."""
_SEND_TIMEOUT: Final = 10.0
"""Seconds that a client may take for the rest of the stream."""


class Transfer:
    """Transfers images between a source and a destination of a request."""

    def __init__(self, shared: ServedStore, streams: Streaming) -> None:
        self._shared = shared
        self._streams = streams

    def transfer(self, request: TransferRequest, call: Call) -> Empty:
        """Transfer from the source to the destination, then end the streams that were used.

        Raises Unsupported, NotFound (a stream, an image), and as the transfer does.
        """
        kinds = tuple(type_name(side).rpartition(".")[2] for side in (request.source, request.destination))
        with ExitStack() as stack:
            report: Report = _ignore
            progress: Exchange | None = None
            if request.options.progress_stream:
                progress = self._take(stack, call, request.options.progress_stream)
                report = partial(_send_progress, progress)

            match kinds:
                case ("ImageImportStream", "ImageStore"):
                    source = unpacked(request.source, pb.ImageImportStream)
                    exchange = self._take(stack, call, source.stream)
                    self._import(source, exchange, unpacked(request.destination, pb.ImageStore), call, report)
                case ("ImageStore", "ImageExportStream"):
                    destination = unpacked(request.destination, pb.ImageExportStream)
                    exchange = self._take(stack, call, destination.stream)
                    self._export(unpacked(request.source, pb.ImageStore), destination, exchange, call, report)
                case ("ImageStore", "ImageStore"):
                    self._tag(
                        unpacked(request.source, pb.ImageStore), unpacked(request.destination, pb.ImageStore), call
                    )
                case ("OCIRegistry", "ImageStore"):
                    registry = unpacked(request.source, pb.OCIRegistry)
                    take = partial(self._take, stack, call)
                    self._pull(registry, unpacked(request.destination, pb.ImageStore), take, call, report)
                case ("ImageStore", "OCIRegistry"):
                    registry = unpacked(request.destination, pb.OCIRegistry)
                    take = partial(self._take, stack, call)
                    self._push(unpacked(request.source, pb.ImageStore), registry, take, call, report)
                case (source_kind, destination_kind):
                    raise Unsupported(f"no transfer from {source_kind[:100]!r} to {destination_kind[:100]!r} here")
            if progress is not None:
                progress.end()
                progress.await_sent(SOON)
        return Empty()

    def _take(self, stack: ExitStack, call: Call, name: str) -> Exchange:
        exchange = self._streams.take(call, name)
        stack.callback(exchange.end)
        return exchange

    def _import(
        self, source: pb.ImageImportStream, exchange: Exchange, destination: pb.ImageStore, call: Call, report: Report
    ) -> None:
        from lamella.service.services.transfer.archive_import import import_archive

        space = self._shared.space(call)
        report(event="Importing")
        with under_lease(space) as held, tempfile.TemporaryFile(dir=space.store.root, buffering=0) as file:
            try:
                for data in receive_bytes(exchange):
                    file.write(data)
            except OSError as problem:
                raise from_os(problem, "store the archive") from problem
            found = import_archive(
                held,
                file.fileno(),
                destination,
                requested_platforms(destination.platforms),
                compress=source.force_compress,
                job=Job(cancel=call),
            )
            for name, target in found:
                self._set_name(held, name, target, destination, call)
                report(event="saved", name=name, desc=sent_descriptor(target))
            self._unpack(held, destination, [target for _, target in found], call)
        report(event="Completed import")

    def _export(
        self,
        source: pb.ImageStore,
        destination: pb.ImageExportStream,
        exchange: Exchange,
        call: Call,
        report: Report,
    ) -> None:
        import time

        from lamella.service.services.transfer.archive_export import export_archive

        if any(reference.is_prefix for reference in source.extra_references):
            raise Unsupported("prefixes of names are not supported for export; give full names")
        names = [source.name] if source.name else []
        names += [reference.name for reference in source.extra_references]
        if not names:
            raise InvalidInput("no image is named for export")
        report(event="Exporting")
        sender = ByteSender(exchange)
        with under_lease(self._shared.space(call)) as held:
            export_archive(
                held,
                dict.fromkeys(names),
                sender.write,
                None if destination.all_platforms else requested_platforms(destination.platforms),
                saved_file=not destination.skip_compatibility_manifest,
                foreign=not destination.skip_non_distributable,
                job=Job(cancel=call),
            )
        sender.write(bytes(_TAIL))
        sender.flush()
        report(event="Completed export")
        exchange.end()
        exchange.await_sent(_SEND_TIMEOUT)
        time.sleep(_LINGER)

    def _pull(self, source: pb.OCIRegistry, destination: pb.ImageStore, take: Take, call: Call, report: Report) -> None:
        from lamella.service.services.transfer.registry import pull

        if destination.manifest_limit:
            raise Unsupported("max_manifests is not supported; select platforms instead")
        with under_lease(self._shared.space(call)) as held:
            target = pull(held, source, destination, take, report=report, cancel=call)
            self._unpack(held, destination, [target], call)
            for each in whole_names(destination, target):
                self._set_name(held, each, target, destination, call)
                report(event="saved", name=each, desc=sent_descriptor(target))
        report(event=f"Completed pull from OCI Registry ({source.reference})")

    def _push(self, source: pb.ImageStore, destination: pb.OCIRegistry, take: Take, call: Call, report: Report) -> None:
        from lamella.service.services.transfer.registry import push

        if source.platforms:
            raise Unsupported("an image is pushed with all its platforms", hint="leave the platform out")
        with under_lease(self._shared.space(call)) as held:
            push(held, source.name, destination, take, report=report, cancel=call)

    def _tag(self, source: pb.ImageStore, destination: pb.ImageStore, call: Call) -> None:
        space = self._shared.space(call)
        target = space.images.get(source.name).target
        names = whole_names(destination, target)
        if not names:
            raise InvalidInput("no name is given to the image")
        for name in names:
            self._set_name(space, name, target, destination, call)

    def _set_name(
        self, space: LocalNamespace, name: str, target: Descriptor, destination: pb.ImageStore, call: Call
    ) -> None:
        """Give ``target`` the name, which may have belonged to another image."""
        record = ImageRecord(name, target, labels(destination.labels))
        while True:
            try:
                space.images.create(record)
            except AlreadyExists:
                try:
                    space.images.update(record)
                except NotFound:  # deleted meanwhile
                    continue
                event = images_pb2.ImageUpdate(name=name, labels=record.labels)
                self._shared.bus.publish(call.namespace, "/images/update", event)
                return
            self._shared.bus.publish(
                call.namespace, "/images/create", images_pb2.ImageCreate(name=name, labels=record.labels)
            )
            return

    def _unpack(
        self, space: LocalNamespace, destination: pb.ImageStore, targets: Sequence[Descriptor], call: Call
    ) -> None:
        if not destination.unpacks:
            return
        from lamella.store.unpack import image as unpacking

        usual = space.store.namespaces.get(space.name).labels.get(DEFAULT_SNAPSHOTTER) or None
        for wanted in destination.unpacks:
            for target in {target.digest: target for target in targets}.values():
                unpacking.unpack_image(
                    space,
                    target,
                    wanted.snapshotter or usual,
                    platform=requested_platform(wanted.platform),
                    job=Job(cancel=call),
                )


def _ignore(**fields: Any) -> None:
    """The `Report` for a client that requests none."""


def _send_progress(stream: Exchange, **fields: Any) -> None:
    stream.tell(pb.Progress(**fields))
