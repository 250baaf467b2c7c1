# SPDX-License-Identifier: Apache-2.0
"""Images between registries and a namespace. The client says which registry, and who it is there when that is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from lamella.errors import Conflict, InvalidInput, LamellaError, Unsupported
from lamella.images.graph import ImageGraph
from lamella.images.options import RegistryOptions
from lamella.oci.descriptor import Descriptor
from lamella.oci.platform import Platform, host_platform
from lamella.oci.reference import Reference, parse_reference
from lamella.operations.copy import put_missing
from lamella.protocol.proto import transfers_pb2 as pb
from lamella.protocol.wire import sent_descriptor
from lamella.registry.client import Client
from lamella.registry.errors import Refused
from lamella.registry.hosts import name_of_host
from lamella.registry.reader import RegistryReader
from lamella.registry.writer import RegistryWriter
from lamella.service.grpc.status import TurnedAway
from lamella.service.services.streaming import SOON, ByteSender, Exchange, Take, unpacked
from lamella.service.services.transfer.collect import Parts
from lamella.service.services.transfer.progress import News, Tell
from lamella.store.content.put import label_blob
from lamella.store.contract import Resource
from lamella.store.gc.labels import CONTENT, reference_labels
from lamella.store.image_reader import StoreReader
from lamella.store.image_writer import StoreWriter
from lamella.store.metadata.labels import MAX_LABEL

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.progress import Cancellation
    from lamella.store.store import LocalNamespace

SOURCE: Final = "containerd.io/distribution.source."
"""Before the name of a host: the label of a blob that says of which repositories there it is, with commas between."""

_PLAIN: Final[dict[str, bool | None]] = {"": None, "http": True, "https": False}

_QUIET, _DUMP = 0, 1
"""Of a resolver's ``http_debug``; two and three ask for traces of connections."""

_WHO: Final = "tell the server who you are at the registry"


def pull(
    space: LocalNamespace,
    source: pb.OCIRegistry,
    take: Take,
    platforms: Sequence[Platform | None],
    *,
    documents: bool = False,
    name: str = "",
    tell: Tell,
    cancel: Cancellation,
) -> Descriptor:
    """Fetch the image that ``source`` names into ``space``, which has a lease; it has no name there yet.

    ``take`` gives the stream of a name. Of an index come the images for ``platforms``, all where there are none, and
    with ``documents`` the manifests and configs of the others. ``tell`` is told what happens, of an image ``name``.
    Raises NotFound, Denied, InvalidInput, Unsupported, Integrity, Exhausted, Unavailable, Cancelled.
    """
    reference = _reference(source)
    where = f"OCI Registry ({source.reference})"
    tell(event=f"Resolving from {where}")
    with ExitStack() as stack:
        stack.enter_context(_for_clients())
        options = stack.enter_context(_options(source, reference, take, cancel))
        client = Client(reference.registry, reference.repository, options)
        reader = stack.enter_context(RegistryReader(client, reference.tag, reference.digest))
        target = reader.images()[0].descriptor
        tell(event=f"Pulling from {where}")
        tell(event="fetching image content", name=name, desc=sent_descriptor(target))
        graph = ImageGraph(reader, cancel=cancel)
        parts = Parts(graph, [one or host_platform() for one in platforms], documents=documents)
        parts.add([target])
        news = News(tell, name, "downloading")
        news.expected(parts.found.values(), {digest: needs.values() for digest, needs in parts.children.items()})
        writer = stack.enter_context(StoreWriter(space))
        put_missing(writer, [(reader, part) for part in parts.found.values()], watcher=news, cancel=cancel)
        for digest in parts.found:
            cancel.check()
            labels = {**reference_labels(parts.children.get(digest, {})), **_from(space, digest, reference)}
            label_blob(space.content, digest, labels)
    return target


def push(
    space: LocalNamespace,
    name: str,
    destination: pb.OCIRegistry,
    take: Take,
    *,
    tell: Tell,
    cancel: Cancellation,
) -> None:
    """Send the image ``name`` of ``space``, which has a lease, to where ``destination`` says, with all its platforms.

    Raises as `pull` does.
    """
    reference = _reference(destination)
    where = f"OCI Registry ({destination.reference})"
    target = space.images.get(name).target
    assert space.lease is not None  # noqa: S101  # what is being sent must not go meanwhile
    space.leases.add(space.lease, Resource(CONTENT, target.digest))
    if reference.digest is not None and reference.digest != target.digest:
        raise Conflict(f"image {name!r} is {target.digest}, and is to be sent as {reference.digest}")
    tell(event=f"Pushing to {where}")
    tell(event="pushing content", name=name, desc=sent_descriptor(target))
    reader = StoreReader(space)
    parts = Parts(ImageGraph(reader, cancel=cancel), [])
    parts.add([target])
    news = News(tell, name, "uploading")
    news.expected(parts.found.values(), {digest: needs.values() for digest, needs in parts.children.items()})
    with (
        _options(destination, reference, take, cancel) as options,
        _for_clients(),
        RegistryWriter(Client(reference.registry, reference.repository, options), reference.digest) as writer,
    ):
        put_missing(writer, [(reader, part) for part in parts.found.values()], watcher=news, cancel=cancel)
        bare = Descriptor(media_type=target.media_type, digest=target.digest, size=target.size)
        writer.commit(reference.tag, bare)
    tell(event="pushed content", name=name, desc=sent_descriptor(target))
    tell(event=f"Completed push to {where}", desc=sent_descriptor(target))


@contextmanager
def _for_clients() -> Iterator[None]:
    """What helps a client whom a registry turns away: the logins of this machine are nothing to it."""
    try:
        yield
    except Refused as problem:
        raise TurnedAway(str(problem), hint=_WHO) from problem


def _reference(named: pb.OCIRegistry) -> Reference:
    reference = parse_reference(named.reference)
    if not reference.tag and not reference.digest:
        raise InvalidInput(f"{named.reference[:300]!r} names a repository", hint="add a tag or a digest")
    return reference


@contextmanager
def _options(
    named: pb.OCIRegistry, reference: Reference, take: Take, cancel: Cancellation
) -> Iterator[RegistryOptions]:
    """How the registry is talked to: as the client says, and with nobody's credentials but the client's.

    When the block ends, the client has been shown all that it wanted to see of what was said.
    """
    resolver = named.resolver
    if resolver.default_scheme not in _PLAIN:
        raise InvalidInput(f"{resolver.default_scheme[:40]!r} is not a scheme of registries")
    if resolver.headers:
        raise Unsupported("headers of a client's own are not sent to registries")
    if resolver.http_debug not in (_QUIET, _DUMP):
        raise Unsupported("tracing of connections to registries is not done for clients")
    if resolver.http_debug and not resolver.logs_stream:
        raise Unsupported("what is said to a registry is shown on a stream of the client's, and it names none")
    asked = None
    if resolver.auth_stream:
        asked = _Asked(take(resolver.auth_stream), name_of_host(reference.registry), named.reference)
    log = take(resolver.logs_stream) if resolver.logs_stream else None
    try:
        yield RegistryOptions(
            plain_http=_PLAIN[resolver.default_scheme],
            credential=asked,
            anonymous=True,
            certs_dir=Path(resolver.host_dir) if resolver.host_dir else None,
            cancel=cancel,
            trace=_Shown(log) if log is not None and resolver.http_debug else None,
        )
    finally:
        if log is not None:
            log.end()
            log.await_sent(SOON)


class _Shown:
    """Shows a client what is said to a registry, as fast as it reads that."""

    def __init__(self, exchange: Exchange) -> None:
        self._sender = ByteSender(exchange)
        self._lock = threading.Lock()
        self._wanted = True

    def __call__(self, text: str) -> None:
        with self._lock:
            if not self._wanted:
                return
            try:
                self._sender.write(text.encode(errors="replace"))
                self._sender.flush()
            except LamellaError:  # it takes no more of the stream; whether it has gone from the call, others find
                self._wanted = False


class _Asked:
    """A credential that the client is asked for when a registry first wants one; see `Credential`."""

    def __init__(self, exchange: Exchange, host: str, reference: str) -> None:
        self._exchange = exchange
        self._request = pb.AuthRequest(host=host, reference=reference)
        self._lock = threading.Lock()

    @property
    def username(self) -> str | None:
        """See `Credential`."""
        return self._said.username if self._said.authType == pb.CREDENTIALS else None

    @property
    def password(self) -> str | None:
        """See `Credential`."""
        return self._said.secret if self._said.authType == pb.CREDENTIALS else None

    @property
    def identity_token(self) -> str | None:
        """See `Credential`."""
        return self._said.secret if self._said.authType == pb.REFRESH else None

    @property
    def _said(self) -> pb.AuthResponse:
        with self._lock:
            return self._answer

    @cached_property
    def _answer(self) -> pb.AuthResponse:
        self._exchange.send(self._request)
        message = self._exchange.receive()
        if message is None:
            raise TurnedAway(f"{self._request.host} wants to know who asks, and the client does not say", hint=_WHO)
        answer = unpacked(message, pb.AuthResponse)
        if answer.authType == pb.HEADER and answer.secret:
            raise Unsupported(
                "a header is not taken for who somebody is", hint="give a name and a password, or a token"
            )
        return answer


def _from(space: LocalNamespace, digest: Digest, reference: Reference) -> dict[str, str]:
    """The label that says of which repository a blob is, besides those that it has come from before.

    Where there is no room for one more it stays as it is.
    """
    key = SOURCE + (urlsplit(f"//{reference.registry}").hostname or reference.registry)
    before = space.content.info(digest).labels.get(key, "")
    value = ",".join(sorted({*filter(None, before.split(",")), reference.repository}))
    return {key: value} if len((key + value).encode()) <= MAX_LABEL else {}
