# SPDX-License-Identifier: Apache-2.0
"""The requests of the OCI distribution specification 1.1 for one repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

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
from lamella.oci.documents import encode, load
from lamella.oci.mediatypes import DOCKER_LIST, DOCKER_MANIFEST, INDEXES, MANIFESTS, OCI_INDEX, OCI_MANIFEST
from lamella.registry.endpoint import Endpoint, Request
from lamella.registry.http.transport import Response
from lamella.registry.push import Upload

if TYPE_CHECKING:
    from lamella.images.options import Credential
    from lamella.oci.index import Index

DOCUMENTS: Final = MANIFESTS | INDEXES
"""Media types that a registry stores as manifests and not as blobs."""

_ACCEPT: Final = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}"
_SCHEMA_1: Final = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

_TRY_NEXT_HOST: Final = (NotFound, Unavailable, Denied, Unsupported, InvalidInput, DigestMismatch)
"""Errors of a mirror after which the next host is asked."""

T = TypeVar("T")


class Client:
    """Talks to the hosts of ``registry`` about ``repository``. Thread-safe.

    Reads ask the mirrors first, then the registry itself. ``repository`` is empty for requests about the registry as a
    whole.
    """

    def __init__(self, registry: str, repository: str = "", options: RegistryOptions | None = None) -> None:
        self.registry = registry
        self.repository = repository
        self.options = options or DEFAULT_OPTIONS
        self.name = f"{registry}/{repository}" if repository else registry
        self._endpoints = _endpoints(registry, repository, self.options)
        self._unavailable: set[int] = set()
        """Indexes of mirrors that are not asked again."""

    @property
    def pull_scopes(self) -> list[str]:
        """Token scopes for reading the repository."""
        return [f"repository:{self.repository}:pull"] if self.repository else []

    @property
    def push_scopes(self) -> list[str]:
        """Token scopes for writing to the repository."""
        return [f"repository:{self.repository}:pull,push"]

    def ping(self) -> None:
        """Check that the registry itself answers and accepts the credentials. Raises Denied, Unavailable."""
        self.own.send(Request("GET", self.own.url(""), doing="log in")).discard()

    # Manifests -----------------------------------------------------------------------------------------------------

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """The descriptor and the bytes of the manifest or index that a tag or a digest names.

        The descriptor's digest is computed from the bytes. Raises NotFound, Integrity, Denied, Unavailable,
        Unsupported, Exhausted.
        """
        capability = "pull" if ":" in reference else "resolve"
        return self._read(capability, lambda endpoint: self._manifest(endpoint, reference))

    def _manifest(self, endpoint: Endpoint, reference: str) -> tuple[Descriptor, bytes]:
        response = self._request_manifest(endpoint, "GET", reference)
        what = f"{self.name}: {reference}"
        raw = response.document()
        expected = _expected_digest(response, reference, what)
        actual = Digest.of(raw, expected.algorithm if expected else "sha256")
        if expected and expected != actual:
            raise DigestMismatch(what, expected=expected, actual=actual)
        return Descriptor(media_type=_media_type(response, raw, what), digest=actual, size=len(raw)), raw

    def find_manifest(self, reference: str) -> Descriptor | None:
        """The descriptor of a tag or digest on the host that takes pushes, by a HEAD request; None if it is absent.

        Raises as `manifest`.
        """
        endpoint = self._push_endpoint
        try:
            response = self._request_manifest(endpoint, "HEAD", reference)
        except NotFound:
            return None
        response.close()
        digest = _expected_digest(response, reference, f"{self.name}: {reference}")
        media_type = _content_type(response)
        if digest is None or response.length is None or media_type not in DOCUMENTS:
            return self._manifest(endpoint, reference)[0]
        return Descriptor(media_type=media_type, digest=digest, size=response.length)

    def put_manifest(self, reference: str, media_type: str, raw: bytes) -> Descriptor:
        """Store a manifest or index under a tag or its digest.

        Where the registry has no referrers API, a manifest with a subject is listed under the fallback tag too. Raises
        Conflict if the registry lacks a blob or manifest that it names.
        """
        algorithm = parse_digest(reference).algorithm if ":" in reference else "sha256"
        digest = Digest.of(raw, algorithm)
        url = self._push_endpoint.url(f"{self.repository}/manifests/{reference}")
        doing, headers = f"put {self._display(reference)}", {"Content-Type": media_type}
        response = self._push_endpoint.send(Request("PUT", url, doing, self.push_scopes, headers, raw, (201, 202)))
        response.discard()
        stored = response.headers.get("Docker-Content-Digest")
        if stored is not None and stored.startswith(f"{algorithm}:") and stored != digest:
            raise DigestMismatch(f"{self.name}: the manifest as stored", expected=digest, actual=stored[:200])
        descriptor = Descriptor(media_type=media_type, digest=digest, size=len(raw))
        if "OCI-Subject" not in response.headers and b'"subject"' in raw:
            self._add_to_fallback(descriptor, raw)
        return descriptor

    def delete_manifest(self, reference: str) -> None:
        """Delete a manifest by digest, or a tag. Raises NotFound, Unsupported, Denied."""
        try:
            self._delete(f"manifests/{reference}", f"delete {self._display(reference)}")
        except (Unsupported, InvalidInput, Integrity) as problem:
            if ":" in reference:
                raise
            # Registries refuse to delete tags in many ways; some call the tag a malformed digest.
            hint = "many registries delete by digest alone, and then every tag of the image"
            raise Unsupported(str(problem), hint=hint) from None

    def _request_manifest(self, endpoint: Endpoint, method: str, reference: str) -> Response:
        url = endpoint.url(f"{self.repository}/manifests/{reference}")
        doing = f"look for {self._display(reference)}"
        return endpoint.send(Request(method, url, doing, self.pull_scopes, {"Accept": _ACCEPT}))

    # Blobs ---------------------------------------------------------------------------------------------------------

    def blob(self, digest: Digest, start: int = 0, stop: int | None = None) -> Response:
        """The bytes of a blob from ``start`` to before ``stop``, unchecked.

        A range has status 206; a registry without ranges answers 200 with the whole blob. Raises NotFound, Denied,
        Unavailable, Conflict (a range beyond the end).
        """
        headers = {} if not start and stop is None else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}

        def request(endpoint: Endpoint) -> Response:
            url = endpoint.url(f"{self.repository}/blobs/{digest}")
            doing = f"get the blob {self._display(digest)}"
            return endpoint.send(Request("GET", url, doing, self.pull_scopes, headers, accept=(200, 206)))

        return self._read("pull", request)

    def blob_size(self, digest: Digest) -> int | None:
        """The size of a blob on the host that takes pushes; None if it is absent, -1 if the size is not known."""
        try:
            url = self._push_endpoint.url(f"{self.repository}/blobs/{digest}")
            doing = f"look for the blob {self._display(digest)}"
            response = self._push_endpoint.send(Request("HEAD", url, doing, self.push_scopes))
        except NotFound:
            return None
        response.close()
        return -1 if response.length is None else response.length

    def mount_blob(self, digest: Digest, repository: str) -> Upload | None:
        """Mount a blob from another repository of the registry; None if it is mounted.

        A registry that does not mount it begins an upload instead, which is returned.
        """
        return self._post_upload(
            f"?mount={digest}&from={repository}",
            f"mount the blob {digest} from {repository}",
            [*self.push_scopes, f"repository:{repository}:pull"],
        )

    def start_upload(self) -> Upload:
        """Begin to upload a blob. Raises Denied, Unavailable, NotFound."""
        upload = self._post_upload("", f"begin an upload to {self.repository}", self.push_scopes)
        if upload is None:
            raise Unavailable(f"{self.registry}: began an upload with the status of a finished one")
        return upload

    def _post_upload(self, query: str, doing: str, scopes: list[str]) -> Upload | None:
        endpoint = self._push_endpoint
        url = endpoint.url(f"{self.repository}/blobs/uploads/{query}")
        response = endpoint.send(Request("POST", url, doing=doing, scopes=scopes, accept=(201, 202)))
        response.discard()
        return None if response.status == 201 else Upload(endpoint, self.repository, self.push_scopes, response)

    def delete_blob(self, digest: Digest) -> None:
        """Delete a blob from the repository. Raises NotFound, Unsupported, Denied."""
        self._delete(f"blobs/{digest}", f"delete the blob {self._display(digest)}")

    # Lists ---------------------------------------------------------------------------------------------------------

    def tags(self) -> Iterator[str]:
        """The tags of the repository, requested page by page. Raises NotFound, Denied, InvalidInput, Exhausted."""
        from lamella.registry.pagination import pages, parse_names

        listed = f"the tags of {self.repository}"
        for page, what in pages(self.own, f"{self.repository}/tags/list", self.pull_scopes, listed):
            yield from parse_names(page, "tags", what)

    def catalog(self) -> Iterator[str]:
        """The registry's repositories, requested page by page. Raises Denied, Unsupported, InvalidInput, Exhausted."""
        from lamella.registry.pagination import pages, parse_names

        for page, what in pages(self.own, "_catalog", ["registry:catalog:*"], "its repositories"):
            yield from parse_names(page, "repositories", what)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The manifests whose subject is ``digest``: signatures, attestations and the like.

        Registries without the referrers API are asked for the fallback tag (distribution-spec, "Referrers Tag
        Schema"). Raises Denied, Unavailable, InvalidInput, Exhausted.
        """
        from lamella.oci.index import decode_index
        from lamella.registry.pagination import pages

        query = f"artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        path = f"{self.repository}/referrers/{digest}"
        found: list[Descriptor] = []
        try:
            for raw, what in pages(
                self.own, path, self.pull_scopes, f"the referrers of {self._display(digest)}", query
            ):
                found += decode_index(raw, OCI_INDEX, what).manifests
        except (NotFound, Unsupported):
            found = self._fallback_index(digest).manifests
        # Registries need not filter by type.
        return [one for one in found if artifact_type is None or one.artifact_type == artifact_type]

    def _add_to_fallback(self, referrer: Descriptor, raw: bytes) -> None:
        """List a manifest that has a subject in the index of the fallback tag. Raises as `put_manifest`."""
        from lamella.oci.index import decode_index
        from lamella.oci.manifest import decode_manifest

        if referrer.media_type in INDEXES:
            index = decode_index(raw, referrer.media_type)
            subject, artifact_type, annotations = index.subject, index.artifact_type, index.annotations
        elif referrer.media_type in MANIFESTS:
            manifest = decode_manifest(raw, referrer.media_type)
            subject, annotations = manifest.subject, manifest.annotations
            artifact_type = manifest.artifact_type or manifest.config.media_type
        else:
            return
        if subject is None:
            return
        listed = self._fallback_index(subject.digest)
        if any(one.digest == referrer.digest for one in listed.manifests):
            return
        entry = replace(referrer, artifact_type=artifact_type, annotations=annotations)
        document = encode(replace(listed, manifests=[*listed.manifests, entry]))
        self.put_manifest(fallback_tag(subject.digest), OCI_INDEX, document)

    def _fallback_index(self, digest: Digest) -> Index:
        from lamella.oci.index import decode_index, new_index

        tag = fallback_tag(digest)
        try:
            descriptor, raw = self.manifest(tag)
            return decode_index(raw, descriptor.media_type, f"{self.name}: {tag}")
        except NotFound:
            return new_index([])

    # Hosts ---------------------------------------------------------------------------------------------------------

    @property
    def own(self) -> Endpoint:
        """The registry itself."""
        return self._endpoints[-1]

    @property
    def _push_endpoint(self) -> Endpoint:
        for endpoint in self._endpoints:
            if not endpoint.mirror and endpoint.can("push"):
                return endpoint
        raise Unsupported(f"{self.registry}: the settings allow no push")

    def _read(self, capability: str, request: Callable[[Endpoint], T]) -> T:
        """Ask the hosts with a capability in turn; the first success counts."""
        problem: LamellaError | None = None
        for at, endpoint in enumerate(self._endpoints):
            if at in self._unavailable or not endpoint.can(capability):
                continue
            try:
                return request(endpoint)
            except _TRY_NEXT_HOST as refused:
                if not endpoint.mirror:
                    raise
                problem = refused
                if isinstance(refused, Unavailable):
                    self._unavailable.add(at)
        raise problem or Unsupported(f"{self.registry}: the settings allow no {capability}")

    def _delete(self, path: str, doing: str) -> None:
        scopes = [f"repository:{self.repository}:delete", *self.push_scopes]
        url = self._push_endpoint.url(f"{self.repository}/{path}")
        self._push_endpoint.send(Request("DELETE", url, doing=doing, scopes=scopes, accept=(202, 200, 204))).discard()

    def _display(self, reference: str) -> str:
        """The repository with a tag or digest, for messages."""
        return f"{self.repository}{'@' if ':' in reference else ':'}{reference}"

    def close(self) -> None:
        """Close idle connections; open blobs stay open."""
        for endpoint in self._endpoints:
            endpoint.close()


def fallback_tag(digest: Digest) -> str:
    """The tag of the index that lists the referrers of ``digest`` (distribution-spec, "Referrers Tag Schema")."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def check_login(registry: str, credential: Credential, options: RegistryOptions | None = None) -> None:
    """Check that ``registry`` accepts a credential. Raises Denied, Unavailable, Unsupported."""
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

    mirror_options = replace(options, tries=min(options.tries, 2))  # there is another host to ask
    endpoints = [
        Endpoint(host, registry, partial(credential, host.host), mirror_options, mirror=True) for host in mirrors
    ]
    return [*endpoints, Endpoint(own, registry, partial(credential, registry, options.credential), options)]


def _credential(host: str, repository: str, options: RegistryOptions) -> Credential | None:
    """The credential for ``host`` from the login files, which are read when a host first asks for one."""
    from lamella.registry.auth.credentials import Credentials
    from lamella.registry.auth.file import AuthFile

    if options.anonymous:
        return None
    credentials = Credentials.load() if options.auth_file is None else Credentials([AuthFile(options.auth_file)])
    return credentials.for_registry(host, repository)


def _content_type(response: Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _expected_digest(response: Response, reference: str, what: str) -> Digest | None:
    """The digest of a manifest by its name, else by the registry's header; None if neither has one."""
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
    """The media type of a manifest by its header, else by the document itself."""
    media_type = _content_type(response)
    if media_type in DOCUMENTS:
        return media_type
    document = load(raw, what)
    if not isinstance(document, dict):
        raise InvalidInput(f"{what}: expected a manifest")
    if media_type in _SCHEMA_1 or document.get("schemaVersion") == 1:
        raise Unsupported(
            f"{what}: an image manifest of version 2, schema 1",
            hint="the format was deprecated in 2017; push the image again with a current tool",
        )
    own = document.get("mediaType")
    if own in DOCUMENTS:
        return str(own)
    if own is None and isinstance(document.get("manifests"), list):
        return OCI_INDEX
    if own is None and isinstance(document.get("config"), dict):
        return OCI_MANIFEST
    raise Unsupported(f"{what}: {str(own or media_type)[:100]!r} is not the media type of an image")
