# SPDX-License-Identifier: Apache-2.0
"""The requests of the distribution specification 1.1, for one repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec.structs import replace

from lamella.digests import Digest, parse_digest
from lamella.errors import (
    Denied,
    DigestMismatch,
    Integrity,
    InvalidInput,
    LamellaError,
    NotFound,
    Unavailable,
    Unsupported,
)
from lamella.images.options import DEFAULT_OPTIONS, RegistryOptions
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import load
from lamella.oci.mediatypes import DOCKER_LIST, DOCKER_MANIFEST, INDEXES, MANIFESTS, OCI_INDEX, OCI_MANIFEST
from lamella.registry.endpoint import Endpoint
from lamella.registry.http.transport import Response
from lamella.registry.push import Upload

if TYPE_CHECKING:
    from lamella.images.options import Credential

DOCUMENTS: Final = MANIFESTS | INDEXES
"""Media types of what is kept as manifests rather than as blobs."""

_ACCEPT: Final = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}"
_OLD: Final = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

_ELSEWHERE: Final = (NotFound, Unavailable, Denied, Unsupported, InvalidInput, DigestMismatch)
"""What a mirror may answer without that being the last word."""

T = TypeVar("T")


class Client:
    """Talks to the hosts of ``registry`` about ``repository``. Usable from several threads.

    Mirrors are asked first where they are set up, and what they do not give is asked of the registry itself.
    ``repository`` may be empty for what concerns a registry as a whole.
    """

    def __init__(self, registry: str, repository: str = "", options: RegistryOptions | None = None) -> None:
        self.registry = registry
        self.repository = repository
        self.options = options or DEFAULT_OPTIONS
        self.name = f"{registry}/{repository}" if repository else registry
        self._endpoints = _endpoints(registry, repository, self.options)
        self._broken: set[int] = set()

    # What it may do ------------------------------------------------------------------------------------------------

    @property
    def pull_scopes(self) -> list[str]:
        """What reading the repository takes."""
        return [f"repository:{self.repository}:pull"] if self.repository else []

    @property
    def push_scopes(self) -> list[str]:
        """What writing to the repository takes."""
        return [f"repository:{self.repository}:pull,push"]

    def ping(self) -> None:
        """Ask the registry itself whether it is one, and takes our credentials. Raises Denied, Unavailable."""
        self.own.request("GET", self.own.url(""), doing="log in").discard()

    # Manifests -----------------------------------------------------------------------------------------------------

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """The manifest or index that a tag or a digest names, and its description.

        Its digest is that of the bytes. Raises NotFound, Integrity, Denied, Unavailable, Unsupported, Exhausted.
        """
        capability = "pull" if ":" in reference else "resolve"
        return self._read(capability, lambda endpoint: self._manifest(endpoint, reference))

    def _manifest(self, endpoint: Endpoint, reference: str) -> tuple[Descriptor, bytes]:
        response = self._ask_manifest(endpoint, "GET", reference)
        what = f"{self.name}: {reference}"
        raw = response.document()
        promised = _promised_digest(response, reference, what)
        actual = Digest.of(raw, promised.algorithm if promised else "sha256")
        if promised and promised != actual:
            raise DigestMismatch(what, expected=promised, actual=actual)
        return Descriptor(media_type=_media_type(response, raw, what), digest=actual, size=len(raw)), raw

    def find_manifest(self, reference: str) -> Descriptor | None:
        """What a tag or a digest names where pushes go, without reading it; None where that is nothing.

        Raises as `manifest`.
        """
        endpoint = self._target
        try:
            response = self._ask_manifest(endpoint, "HEAD", reference)
        except NotFound:
            return None
        response.close()
        what = f"{self.name}: {reference}"
        digest = _promised_digest(response, reference, what)
        kind = _content_type(response)
        if digest is None or response.length is None or kind not in DOCUMENTS:
            return self._manifest(endpoint, reference)[0]
        return Descriptor(media_type=kind, digest=digest, size=response.length)

    def put_manifest(self, reference: str, media_type: str, raw: bytes) -> Descriptor:
        """Store a manifest or index under a tag or its digest. Raises Conflict where something that it names lacks."""
        algorithm = parse_digest(reference).algorithm if ":" in reference else "sha256"
        digest = Digest.of(raw, algorithm)
        response = self._target.request(
            "PUT",
            self._target.url(f"{self.repository}/manifests/{reference}"),
            doing=f"put {self._called(reference)}",
            scopes=self.push_scopes,
            headers={"Content-Type": media_type},
            body=raw,
            accept=(201, 202),
        )
        response.discard()
        stored = response.headers.get("Docker-Content-Digest")
        if stored is not None and stored.startswith(f"{algorithm}:") and stored != digest:
            raise DigestMismatch(f"{self.name}: the manifest as stored", expected=digest, actual=stored[:200])
        descriptor = Descriptor(media_type=media_type, digest=digest, size=len(raw))
        if "OCI-Subject" not in response.headers:
            from lamella.registry.referrers import note_referrer

            note_referrer(self, descriptor, raw)
        return descriptor

    def delete_manifest(self, reference: str) -> None:
        """Delete a manifest by digest, or a tag. Raises NotFound, Unsupported, Denied."""
        try:
            self._delete(f"manifests/{reference}", f"delete {self._called(reference)}")
        except (Unsupported, InvalidInput, Integrity) as problem:
            if ":" in reference:
                raise
            # A registry that takes digests alone says so in many ways, one of them that a tag is a wrong digest.
            hint = "many registries delete by digest alone, and then every tag of the image"
            raise Unsupported(str(problem), hint=hint) from None

    def _ask_manifest(self, endpoint: Endpoint, method: str, reference: str) -> Response:
        return endpoint.request(
            method,
            endpoint.url(f"{self.repository}/manifests/{reference}"),
            doing=f"look for {self._called(reference)}",
            scopes=self.pull_scopes,
            headers={"Accept": _ACCEPT},
        )

    # Blobs ---------------------------------------------------------------------------------------------------------

    def blob(self, digest: Digest, start: int = 0, stop: int | None = None) -> Response:
        """The bytes of a blob, or of a part of it.

        A part is answered with status 206, or by a registry that gives whole blobs alone with 200. The bytes are not
        checked. Raises NotFound, Denied, Unavailable, Conflict (beyond the end).
        """
        headers = {} if not start and stop is None else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}

        def ask(endpoint: Endpoint) -> Response:
            return endpoint.request(
                "GET",
                endpoint.url(f"{self.repository}/blobs/{digest}"),
                doing=f"get the blob {self._called(digest)}",
                scopes=self.pull_scopes,
                headers=headers,
                accept=(200, 206),
            )

        return self._read("pull", ask)

    def blob_size(self, digest: Digest) -> int | None:
        """The size of a blob where the registry pushes go to has it, else None; -1 where it does not say."""
        try:
            response = self._target.request(
                "HEAD",
                self._target.url(f"{self.repository}/blobs/{digest}"),
                doing=f"look for the blob {self._called(digest)}",
                scopes=self.push_scopes,
            )
        except NotFound:
            return None
        response.close()
        return -1 if response.length is None else response.length

    def mount_blob(self, digest: Digest, repository: str) -> Upload | None:
        """Take a blob over from another repository of the same registry, without its bytes; None where that is done.

        Where the registry would rather have the bytes, the upload that it began instead.
        """
        response = self._target.request(
            "POST",
            self._target.url(f"{self.repository}/blobs/uploads/?mount={digest}&from={repository}"),
            doing=f"take the blob {digest} over from {repository}",
            scopes=[*self.push_scopes, f"repository:{repository}:pull"],
            accept=(201, 202),
        )
        response.discard()
        return None if response.status == 201 else Upload(self._target, self.repository, self.push_scopes, response)

    def start_upload(self) -> Upload:
        """Begin to put a blob. Raises Denied, Unavailable, NotFound."""
        response = self._target.request(
            "POST",
            self._target.url(f"{self.repository}/blobs/uploads/"),
            doing=f"begin an upload to {self.repository}",
            scopes=self.push_scopes,
            accept=(202,),
        )
        response.discard()
        return Upload(self._target, self.repository, self.push_scopes, response)

    def delete_blob(self, digest: Digest) -> None:
        """Delete a blob from the repository. Raises NotFound, Unsupported, Denied."""
        self._delete(f"blobs/{digest}", f"delete the blob {self._called(digest)}")

    # Lists ---------------------------------------------------------------------------------------------------------

    def tags(self) -> Iterator[str]:
        """The tags of the repository, page by page. Raises NotFound, Denied, InvalidInput."""
        from lamella.registry.pagination import pages, texts

        listed = f"the tags of {self.repository}"
        for page, what in pages(self, f"{self.repository}/tags/list", self.pull_scopes, listed):
            yield from texts(page, "tags", what)

    def catalog(self) -> Iterator[str]:
        """The repositories of the registry, page by page. Raises Denied, Unsupported, InvalidInput."""
        from lamella.registry.pagination import pages, texts

        for page, what in pages(self, "_catalog", ["registry:catalog:*"], "its repositories"):
            yield from texts(page, "repositories", what)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """What says of itself that it is about the manifest ``digest``: signatures, attestations and the like.

        A registry without the API is asked by the tag that stands in for it. Raises Denied, Unavailable, InvalidInput.
        """
        from lamella.registry.referrers import referrers

        return referrers(self, digest, artifact_type)

    def _called(self, reference: str) -> str:
        """What a tag or a digest names, for messages."""
        return f"{self.repository}{'@' if ':' in reference else ':'}{reference}"

    # The hosts -----------------------------------------------------------------------------------------------------

    @property
    def own(self) -> Endpoint:
        """The registry itself."""
        return self._endpoints[-1]

    @property
    def _target(self) -> Endpoint:
        """Who takes pushes."""
        for endpoint in self._endpoints:
            if not endpoint.mirror and endpoint.can("push"):
                return endpoint
        raise Unsupported(f"{self.registry}: the settings let nothing be pushed there")

    def _read(self, capability: str, ask: Callable[[Endpoint], T]) -> T:
        """The first answer that is one, of the hosts that may be asked."""
        problem: LamellaError | None = None
        for at, endpoint in enumerate(self._endpoints):
            if at in self._broken or not endpoint.can(capability):
                continue
            try:
                return ask(endpoint)
            except _ELSEWHERE as refused:
                if not endpoint.mirror:
                    raise
                problem = refused
                if isinstance(refused, Unavailable):
                    self._broken.add(at)
        raise problem or Unsupported(f"{self.registry}: the settings let nothing be pulled from there")

    def _delete(self, path: str, doing: str) -> None:
        scopes = [f"repository:{self.repository}:delete", *self.push_scopes]
        url = self._target.url(f"{self.repository}/{path}")
        self._target.request("DELETE", url, doing=doing, scopes=scopes, accept=(202, 200, 204)).discard()

    def close(self) -> None:
        """Close idle connections; blobs that are being read stay open."""
        for endpoint in self._endpoints:
            endpoint.close()


def check_login(registry: str, credential: Credential, options: RegistryOptions | None = None) -> None:
    """Whether ``registry`` takes a credential. Raises Denied, Unavailable, Unsupported."""
    client = Client(registry, options=replace(options or DEFAULT_OPTIONS, credential=credential))
    try:
        client.ping()
    except Denied as refused:
        refused.hint = "the user or the password may be wrong"
        raise
    finally:
        client.close()


def _endpoints(registry: str, repository: str, options: RegistryOptions) -> list[Endpoint]:
    from lamella.registry.hosts import hosts_for

    *mirrors, own = hosts_for(registry, plain_http=bool(options.plain_http), directory=options.certs_dir)
    if options.plain_http is False:
        own = replace(own, scheme="https")

    def credential(host: str, only: Credential | None = None) -> Credential | None:
        return only or _credential(host, repository, options)

    # Whoever asks a mirror should not wait for it long: there is another to ask.
    brief = replace(options, tries=min(options.tries, 2))
    found = [Endpoint(host, registry, partial(credential, host.host), brief, mirror=True) for host in mirrors]
    return [*found, Endpoint(own, registry, partial(credential, registry, options.credential), options)]


def _credential(host: str, repository: str, options: RegistryOptions) -> Credential | None:
    """Who to be at ``host``, by the login files; they are read when a host first wants to know."""
    from lamella.registry.auth.credentials import Credentials
    from lamella.registry.auth.file import AuthFile

    if options.anonymous:
        return None
    known = Credentials.load() if options.auth_file is None else Credentials([AuthFile(options.auth_file)])
    return known.for_registry(host, repository)


def _content_type(response: Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _promised_digest(response: Response, reference: str, what: str) -> Digest | None:
    """What the bytes of a manifest must come to: by its name, or by what the registry says."""
    if ":" in reference:
        return parse_digest(reference)
    text = response.headers.get("Docker-Content-Digest")
    if text is None:
        return None
    try:
        return parse_digest(text.strip())
    except Unsupported:
        return None
    except InvalidInput:
        raise InvalidInput(f"{what}: the registry gives a malformed digest") from None


def _media_type(response: Response, raw: bytes, what: str) -> str:
    """What kind of document this is: by the answer's header, or where that is of no use by the document itself."""
    kind = _content_type(response)
    if kind in DOCUMENTS:
        return kind
    document = load(raw, what)
    if not isinstance(document, dict):
        raise InvalidInput(f"{what}: expected a manifest")
    if kind in _OLD or document.get("schemaVersion") == 1:
        raise Unsupported(
            f"{what}: an image manifest of version 2, schema 1",
            hint="the form was given up in 2017; push the image again with a current tool",
        )
    own = document.get("mediaType")
    if own in DOCUMENTS:
        return str(own)
    if own is None and isinstance(document.get("manifests"), list):
        return OCI_INDEX
    if own is None and isinstance(document.get("config"), dict):
        return OCI_MANIFEST
    raise Unsupported(f"{what}: {str(own or kind)[:100]!r} is not the media type of an image")
