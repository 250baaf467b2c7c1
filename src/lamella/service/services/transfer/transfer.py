# SPDX-License-Identifier: Apache-2.0
"""The Transfer service: images from archives and registries into the store and out of it, and further names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.empty_pb2 import Empty

from lamella.errors import AlreadyExists, InvalidInput, NotFound, Unsupported, from_os
from lamella.oci.descriptor import Descriptor
from lamella.oci.platform import Platform
from lamella.protocol.proto import images_pb2, types_pb2
from lamella.protocol.proto import transfers_pb2 as pb
from lamella.protocol.wire import labels, sent_descriptor, type_name
from lamella.service.grpc.rpc import Call
from lamella.service.services.streaming import SOON, ByteSender, Exchange, Streaming, Take, receive_bytes, unpacked
from lamella.store.contract import ImageRecord
from lamella.store.metadata.leases import under_lease
from lamella.store.store import LocalNamespace

if TYPE_CHECKING:
    from lamella.protocol.proto.transfer_pb2 import TransferRequest
    from lamella.service.services.served_store import ServedStore
    from lamella.service.services.transfer.progress import Tell

DEFAULT_SNAPSHOTTER: Final = "containerd.io/defaults/snapshotter"
"""The label of a namespace that says what images are unpacked with."""

_TAIL: Final = 128 << 10
"""Zeros after an archive. Clients end as soon as the call is answered, whatever is still on its way to them then; with
so many bytes after it, what counts has been taken before."""
_LINGER: Final = 0.1
"""Seconds that the answer is held back, once all has been sent."""
_PATIENCE: Final = 10.0


class Transfer:
    """Moves images between what a client names."""

    def __init__(self, shared: ServedStore, streams: Streaming) -> None:
        self._shared = shared
        self._streams = streams

    def transfer(self, request: TransferRequest, call: Call) -> Empty:
        """Do what leads from the source to the destination; streams that take part are over then.

        Raises Unsupported, NotFound (a stream, an image), and whatever it comes to.
        """
        kinds = tuple(type_name(side).rpartition(".")[2] for side in (request.source, request.destination))
        with ExitStack() as stack:
            tell: Tell = _nothing
            news: Exchange | None = None
            if request.options.progress_stream:
                news = self._take(stack, call, request.options.progress_stream)
                tell = partial(_told, news)

            match kinds:
                case ("ImageImportStream", "ImageStore"):
                    source = unpacked(request.source, pb.ImageImportStream)
                    exchange = self._take(stack, call, source.stream)
                    self._import(source, exchange, unpacked(request.destination, pb.ImageStore), call, tell)
                case ("ImageStore", "ImageExportStream"):
                    destination = unpacked(request.destination, pb.ImageExportStream)
                    exchange = self._take(stack, call, destination.stream)
                    self._export(unpacked(request.source, pb.ImageStore), destination, exchange, call, tell)
                case ("ImageStore", "ImageStore"):
                    self._tag(
                        unpacked(request.source, pb.ImageStore), unpacked(request.destination, pb.ImageStore), call
                    )
                case ("OCIRegistry", "ImageStore"):
                    registry = unpacked(request.source, pb.OCIRegistry)
                    take = partial(self._take, stack, call)
                    self._pull(registry, unpacked(request.destination, pb.ImageStore), take, call, tell)
                case ("ImageStore", "OCIRegistry"):
                    registry = unpacked(request.destination, pb.OCIRegistry)
                    take = partial(self._take, stack, call)
                    self._push(unpacked(request.source, pb.ImageStore), registry, take, call, tell)
                case (source_kind, destination_kind):
                    raise Unsupported(f"no transfer from {source_kind[:100]!r} to {destination_kind[:100]!r} here")
            if news is not None:
                news.end()
                news.await_sent(SOON)
        return Empty()

    def _take(self, stack: ExitStack, call: Call, name: str) -> Exchange:
        exchange = self._streams.take(call, name)
        stack.callback(exchange.end)
        return exchange

    def _import(
        self, source: pb.ImageImportStream, exchange: Exchange, destination: pb.ImageStore, call: Call, tell: Tell
    ) -> None:
        from lamella.service.services.transfer.archive_import import import_archive

        space = self._shared.space(call)
        tell(event="Importing")
        with under_lease(space) as held, tempfile.TemporaryFile(dir=space.store.root, buffering=0) as file:
            try:
                for data in receive_bytes(exchange):
                    file.write(data)
            except OSError as problem:
                raise from_os(problem, "keep the archive that is being imported") from problem
            found = import_archive(
                held,
                file.fileno(),
                destination,
                [platform(one) for one in destination.platforms],
                compress=source.force_compress,
                cancel=call,
            )
            for name, target in found:
                self._name(held, name, target, destination, call)
                tell(event="saved", name=name, desc=sent_descriptor(target))
            self._unpack(held, destination, [target for _, target in found], call)
        tell(event="Completed import")

    def _export(
        self,
        source: pb.ImageStore,
        destination: pb.ImageExportStream,
        exchange: Exchange,
        call: Call,
        tell: Tell,
    ) -> None:
        import time

        from lamella.service.services.transfer.archive_export import export_archive

        if any(reference.is_prefix for reference in source.extra_references):
            raise Unsupported("images are exported by their names, not by what these begin with")
        names = [source.name] if source.name else []
        names += [reference.name for reference in source.extra_references]
        if not names:
            raise InvalidInput("no image to export is named")
        tell(event="Exporting")
        sender = ByteSender(exchange)
        with under_lease(self._shared.space(call)) as held:
            export_archive(
                held,
                dict.fromkeys(names),
                sender.write,
                None if destination.all_platforms else [platform(one) for one in destination.platforms],
                saved_file=not destination.skip_compatibility_manifest,
                foreign=not destination.skip_non_distributable,
                cancel=call,
            )
        sender.write(bytes(_TAIL))
        sender.flush()
        tell(event="Completed export")
        exchange.end()
        exchange.await_sent(_PATIENCE)
        time.sleep(_LINGER)

    def _pull(self, source: pb.OCIRegistry, destination: pb.ImageStore, take: Take, call: Call, tell: Tell) -> None:
        from lamella.service.services.transfer.registry import pull

        if destination.manifest_limit:
            raise Unsupported("how many manifests of an index come is said by platforms, not by a number")
        name, _ = next(_names(destination), ("", False))
        if not name:
            raise NotFound("no name is given to the image")
        with under_lease(self._shared.space(call)) as held:
            target = pull(
                held,
                source,
                take,
                [platform(one) for one in destination.platforms],
                documents=destination.all_metadata,
                name=name,
                tell=tell,
                cancel=call,
            )
            self._unpack(held, destination, [target], call)
            for each in whole_names(destination, target):
                self._name(held, each, target, destination, call)
                tell(event="saved", name=each, desc=sent_descriptor(target))
        tell(event=f"Completed pull from OCI Registry ({source.reference})")

    def _push(self, source: pb.ImageStore, destination: pb.OCIRegistry, take: Take, call: Call, tell: Tell) -> None:
        from lamella.service.services.transfer.registry import push

        if source.platforms:
            raise Unsupported("an image is pushed with all its platforms", hint="leave the platform out")
        with under_lease(self._shared.space(call)) as held:
            push(held, source.name, destination, take, tell=tell, cancel=call)

    def _tag(self, source: pb.ImageStore, destination: pb.ImageStore, call: Call) -> None:
        space = self._shared.space(call)
        target = space.images.get(source.name).target
        names = whole_names(destination, target)
        if not names:
            raise InvalidInput("no name is given to the image")
        for name in names:
            self._name(space, name, target, destination, call)

    def _name(
        self, space: LocalNamespace, name: str, target: Descriptor, destination: pb.ImageStore, call: Call
    ) -> None:
        """Let ``name`` be the name of ``target``, whatever it has been before."""
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
                    space, target, wanted.snapshotter or usual, platform=platform(wanted.platform), cancel=call
                )


def whole_names(destination: pb.ImageStore, target: Descriptor) -> list[str]:
    """The names that ``target`` as a whole is to have: those that are no beginnings of others."""
    return list(dict.fromkeys(f"{name}@{target.digest}" if digest else name for name, digest in _names(destination)))


def _names(destination: pb.ImageStore) -> Iterator[tuple[str, bool]]:
    """Whole names, and whether a digest is to be added to each."""
    if destination.name:
        yield destination.name, False
    for reference in destination.extra_references:
        if reference.name and not reference.is_prefix:
            yield reference.name, reference.add_digest


def names_of(references: Iterable[pb.ImageReference], full: str, name: str, target: Descriptor) -> list[str]:
    """The names that an image of an archive is to have, which is called ``full`` there or ``name``, or neither.

    A mere tag is put behind what names are to begin with. A whole name stays as it is, and is taken where it begins so
    or need not.
    """
    found = []
    for reference in references:
        if not reference.is_prefix or not reference.name:
            continue
        given = _cleaned(full, reference) if full else _cleaned(name, reference)
        if full and given != full:
            given = ""
        if given:
            found.append(given)
        if reference.add_digest and not (given and reference.skip_named_digest):
            found.append(f"{reference.name}@{target.digest}")
    return list(dict.fromkeys(found))


def _cleaned(name: str, reference: pb.ImageReference) -> str:
    if not name:
        return ""
    if not any(mark in name for mark in "/:@"):
        return f"{reference.name}:{name}"
    if reference.allow_overwrite:
        return name
    rest = name.removeprefix(reference.name)
    return name if name.startswith(reference.name) and rest[:1] in ("", "/", ":", "@") else ""


def platform(sent: types_pb2.Platform) -> Platform | None:
    """The platform that a client has sent, None for this host's."""
    if not sent.os and not sent.architecture:
        return None
    return Platform(
        architecture=sent.architecture,
        os=sent.os,
        variant=sent.variant,
        os_version=sent.os_version,
        os_features=list(sent.os_features),
    )


def _nothing(**facts: Any) -> None:
    """Nobody wants to know."""


def _told(news: Exchange, **facts: Any) -> None:
    news.tell(pb.Progress(**facts))
