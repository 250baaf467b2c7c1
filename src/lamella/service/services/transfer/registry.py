# SPDX-License-Identifier: Apache-2.0
"""Pull and push of images between registries and a namespace, with the credentials of the client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from lamella.changes.job import Job
from lamella.errors import Conflict, InvalidInput, LamellaError, NotFound, Unsupported
from lamella.images.graph import ImageGraph
from lamella.images.options import RegistryOptions
from lamella.oci.descriptor import Descriptor
from lamella.oci.reference import Reference, parse_reference
from lamella.operations.copy import BlobObserver, put_missing
from lamella.progress import NoProgress
from lamella.protocol.proto import transfers_pb2 as pb
from lamella.protocol.wire import sent_descriptor
from lamella.registry.client import Client
from lamella.registry.errors import Refused
from lamella.registry.hosts import name_of_host
from lamella.registry.reader import RegistryReader
from lamella.registry.writer import RegistryWriter
from lamella.service.grpc.status import RefusedByPeer
from lamella.service.services.streaming import SOON, ByteSender, Exchange, Take, unpacked
from lamella.service.services.transfer.destination import requested_names, requested_platforms
from lamella.service.services.transfer.selection import Parts
from lamella.store.content.put import label_blob
from lamella.store.contract import Resource
from lamella.store.gc.labels import CONTENT, reference_labels
from lamella.store.image_reader import StoreReader
from lamella.store.image_writer import StoreWriter, ingest_ref
from lamella.store.metadata.labels import MAX_LABEL

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.progress import Cancellation
    from lamella.store.store import LocalNamespace

SOURCE: Final = "containerd.io/distribution.source."
"""Prefix of a label of blobs, before the name of a host; the value lists repositories there, separated by commas."""

INTERVAL: Final = 0.3
"""Seconds between two messages about the bytes of one blob."""

Report: TypeAlias = Callable[..., None]
"""Sends a message of the type ``containerd.types.transfer.Progress``, given its fields."""

_PLAIN: Final[dict[str, bool | None]] = {"": None, "http": True, "https": False}

_QUIET, _DUMP = 0, 1
"""Values of ``http_debug`` in a resolver; 2 and 3 request traces of connections."""

_LOGIN_HINT: Final = "give the server a login for the registry"


def pull(
    space: LocalNamespace,
    source: pb.OCIRegistry,
    destination: pb.ImageStore,
    take: Take,
    *,
    report: Report,
    cancel: Cancellation,
) -> Descriptor:
    """Fetch the image that ``source`` names into ``space``, which has a lease; it gets no name yet.

    ``take`` opens a stream of the client by its name. Of an index, the images for the platforms of ``destination`` are
    fetched, or all, and with ``all_metadata`` the manifests and configs of the others. Raises NotFound (also no name),
    Denied, InvalidInput, Unsupported, Integrity, Exhausted, Unavailable, Cancelled.
    """
    name, _ = next(requested_names(destination), ("", False))
    if not name:
        raise NotFound("no name is given to the image")
    reference = _reference(source)
    where = f"OCI Registry ({source.reference})"
    report(event=f"Resolving from {where}")
    with ExitStack() as stack:
        stack.enter_context(_explain_refusals())
        options = stack.enter_context(_options(source, reference, take, cancel))
        client = Client(reference.registry, reference.repository, options)
        reader = stack.enter_context(RegistryReader(client, reference.tag, reference.digest))
        target = reader.images()[0].descriptor
        report(event=f"Pulling from {where}")
        report(event="fetching image content", name=name, desc=sent_descriptor(target))
        graph = ImageGraph(reader, cancel=cancel)
        parts = Parts(graph, requested_platforms(destination.platforms), documents=destination.all_metadata)
        parts.add([target])
        progress = ImageProgress(report, name, "downloading")
        progress.announce(parts.found.values(), {digest: needs.values() for digest, needs in parts.children.items()})
        writer = stack.enter_context(StoreWriter(space))
        put_missing(writer, [(reader, part) for part in parts.found.values()], Job(cancel=cancel), progress)
        for digest in parts.found:
            cancel.check()
            labels = {**reference_labels(parts.children.get(digest, {})), **_source_label(space, digest, reference)}
            label_blob(space.content, digest, labels)
    return target


def push(
    space: LocalNamespace,
    name: str,
    destination: pb.OCIRegistry,
    take: Take,
    *,
    report: Report,
    cancel: Cancellation,
) -> None:
    """Send the image ``name`` of ``space``, which has a lease, to ``destination``, with all its platforms.

    Raises as `pull` does.
    """
    reference = _reference(destination)
    where = f"OCI Registry ({destination.reference})"
    target = space.images.get(name).target
    assert space.lease is not None  # noqa: S101  # the image must not be collected meanwhile
    space.leases.add(space.lease, Resource(CONTENT, target.digest))
    if reference.digest is not None and reference.digest != target.digest:
        raise Conflict(f"image {name!r} is {target.digest}, and its destination names {reference.digest}")
    report(event=f"Pushing to {where}")
    report(event="pushing content", name=name, desc=sent_descriptor(target))
    reader = StoreReader(space)
    parts = Parts(ImageGraph(reader, cancel=cancel), [])
    parts.add([target])
    progress = ImageProgress(report, name, "uploading")
    progress.announce(parts.found.values(), {digest: needs.values() for digest, needs in parts.children.items()})
    with (
        _options(destination, reference, take, cancel) as options,
        _explain_refusals(),
        RegistryWriter(Client(reference.registry, reference.repository, options), reference.digest) as writer,
    ):
        put_missing(writer, [(reader, part) for part in parts.found.values()], Job(cancel=cancel), progress)
        bare = Descriptor(media_type=target.media_type, digest=target.digest, size=target.size)
        writer.commit(reference.tag, bare)
    report(event="pushed content", name=name, desc=sent_descriptor(target))
    report(event=f"Completed push to {where}", desc=sent_descriptor(target))


@contextmanager
def _explain_refusals() -> Iterator[None]:
    """Raise refusals of a registry with a hint for the client, which has no use for the login files of this host."""
    try:
        yield
    except Refused as problem:
        raise RefusedByPeer(str(problem), hint=_LOGIN_HINT) from problem


def _reference(named: pb.OCIRegistry) -> Reference:
    reference = parse_reference(named.reference)
    if not reference.tag and not reference.digest:
        raise InvalidInput(f"{named.reference[:300]!r} names a repository", hint="add a tag or a digest")
    return reference


@contextmanager
def _options(
    named: pb.OCIRegistry, reference: Reference, take: Take, cancel: Cancellation
) -> Iterator[RegistryOptions]:
    """The options that the client gives, with its credentials alone.

    Leaving the block flushes the log of requests to the client.
    """
    resolver = named.resolver
    if resolver.default_scheme not in _PLAIN:
        raise InvalidInput(f"{resolver.default_scheme[:40]!r} is not a scheme for registries: http or https")
    if resolver.headers:
        raise Unsupported("headers from clients are not supported")
    if resolver.http_debug not in (_QUIET, _DUMP):
        raise Unsupported("http_debug is supported up to 1: connections are not traced")
    if resolver.http_debug and not resolver.logs_stream:
        raise Unsupported("http_debug needs a stream for the log")
    credential = None
    if resolver.auth_stream:
        credential = _ClientCredential(take(resolver.auth_stream), name_of_host(reference.registry), named.reference)
    log = take(resolver.logs_stream) if resolver.logs_stream else None
    try:
        yield RegistryOptions(
            plain_http=_PLAIN[resolver.default_scheme],
            credential=credential,
            anonymous=True,
            certs_dir=Path(resolver.host_dir) if resolver.host_dir else None,
            cancel=cancel,
            trace=_RequestLog(log) if log is not None and resolver.http_debug else None,
        )
    finally:
        if log is not None:
            log.end()
            log.await_sent(SOON)


class _RequestLog:
    """Sends the log of requests to the client, at the pace at which the client reads."""

    def __init__(self, exchange: Exchange) -> None:
        self._sender = ByteSender(exchange)
        self._lock = threading.Lock()
        self._open = True

    def __call__(self, text: str) -> None:
        with self._lock:
            if not self._open:
                return
            try:
                self._sender.write(text.encode(errors="replace"))
                self._sender.flush()
            except LamellaError:  # the client has closed the stream; whether the call is cancelled is checked elsewhere
                self._open = False


class _ClientCredential:
    """A `Credential` that is requested from the client when a registry first asks for one."""

    def __init__(self, exchange: Exchange, host: str, reference: str) -> None:
        self._exchange = exchange
        self._request = pb.AuthRequest(host=host, reference=reference)
        self._lock = threading.Lock()

    @property
    def username(self) -> str | None:
        return self._response.username if self._response.authType == pb.CREDENTIALS else None

    @property
    def password(self) -> str | None:
        return self._response.secret if self._response.authType == pb.CREDENTIALS else None

    @property
    def identity_token(self) -> str | None:
        return self._response.secret if self._response.authType == pb.REFRESH else None

    @property
    def _response(self) -> pb.AuthResponse:
        with self._lock:
            return self._received

    @cached_property
    def _received(self) -> pb.AuthResponse:
        self._exchange.send(self._request)
        message = self._exchange.receive()
        if message is None:
            raise RefusedByPeer(f"{self._request.host} requires a login, and the client gives none", hint=_LOGIN_HINT)
        answer = unpacked(message, pb.AuthResponse)
        if answer.authType == pb.HEADER and answer.secret:
            raise Unsupported("an authorization header is not supported", hint="give a name and a password, or a token")
        return answer


def _source_label(space: LocalNamespace, digest: Digest, reference: Reference) -> dict[str, str]:
    """The label of the source repositories of a blob with ``reference`` added, or nothing if the label is full."""
    key = SOURCE + (urlsplit(f"//{reference.registry}").hostname or reference.registry)
    before = space.content.info(digest).labels.get(key, "")
    value = ",".join(sorted({*filter(None, before.split(",")), reference.repository}))
    return {key: value} if len((key + value).encode()) <= MAX_LABEL else {}


class ImageProgress(BlobObserver):
    """Reports the blobs of one image."""

    def __init__(self, report: Report, image: str, activity: str) -> None:
        """``image`` is the root of the tree, ``activity`` the event of blobs in transfer."""
        self._report = report
        self._image = image
        self._activity = activity
        self._parents: dict[Digest, list[str]] = {}

    def announce(self, blobs: Iterable[Descriptor], children: Mapping[Digest, Iterable[Digest]]) -> None:
        """Report waiting blobs, parts before what lists them; ``children`` are the parts of each document."""
        known = {blob.digest: blob for blob in blobs}
        for parent, listed in children.items():
            for child in listed:
                self._parents.setdefault(child, []).append(ingest_ref(known[parent]))
        for blob in reversed(known.values()):
            self._send("waiting", blob, 0)

    def present(self, blob: Descriptor) -> None:
        self._send("already exists", blob, blob.size)

    def start(self, blob: Descriptor) -> _BlobProgress:
        return _BlobProgress(lambda count: self._send(self._activity, blob, count))

    def finish(self, blob: Descriptor) -> None:
        self._send("complete", blob, blob.size)

    def _send(self, event: str, blob: Descriptor, count: int) -> None:
        fields: dict[str, Any] = {"event": event, "name": ingest_ref(blob), "progress": count, "total": blob.size}
        parents = self._parents.get(blob.digest) or [self._image]
        self._report(**fields, parents=parents, desc=sent_descriptor(blob))


class _BlobProgress(NoProgress):
    """Reports the bytes of one blob, at most once per `INTERVAL`."""

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send = send
        self._count = 0
        self._sent_at = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, amount: int) -> None:
        now = time.monotonic()
        with self._lock:
            self._count += amount
            if now - self._sent_at < INTERVAL:
                return
            self._sent_at = now
        self._send(self._count)
