# SPDX-License-Identifier: Apache-2.0
"""What refers to a manifest, by the API or by the tag that stands in for it (distribution-spec, "Referrers")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from lamella.digests import Digest
from lamella.errors import InvalidInput, NotFound, Unsupported
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.oci.index import Index, decode_index, new_index
from lamella.oci.manifest import decode_manifest
from lamella.oci.mediatypes import INDEXES, MANIFESTS, OCI_INDEX
from lamella.registry.pagination import pages

if TYPE_CHECKING:
    from lamella.registry.client import Client

MAX_REFERRERS: Final = 100_000


def referrers(client: Client, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
    """The descriptors of what refers to ``digest``, of one type or of all. See `Client.referrers`."""
    try:
        found = _by_api(client, digest, artifact_type)
    except (NotFound, Unsupported):
        found = _fallback(client, digest).manifests
    # A registry need not filter, and one that does need not do it well.
    return [one for one in found if artifact_type is None or one.artifact_type == artifact_type]


def note_referrer(client: Client, referrer: Descriptor, raw: bytes) -> None:
    """Where the manifest in ``raw`` has a subject, list it under the tag that stands in for the API.

    For registries that have not said that they do so themselves. Raises as putting a manifest does.
    """
    if b'"subject"' not in raw:
        return
    if referrer.media_type in INDEXES:
        index = decode_index(raw, referrer.media_type)
        subject, kind, annotations = index.subject, index.artifact_type, index.annotations
    elif referrer.media_type in MANIFESTS:
        manifest = decode_manifest(raw, referrer.media_type)
        subject, annotations = manifest.subject, manifest.annotations
        kind = manifest.artifact_type or manifest.config.media_type
    else:
        return
    if subject is None:
        return
    listed = _fallback(client, subject.digest)
    if any(one.digest == referrer.digest for one in listed.manifests):
        return
    entry = msgspec.structs.replace(referrer, artifact_type=kind, annotations=annotations)
    document = encode(msgspec.structs.replace(listed, manifests=[*listed.manifests, entry]))
    client.put_manifest(fallback_tag(subject.digest), OCI_INDEX, document)


def fallback_tag(digest: Digest) -> str:
    """The tag of the index that lists what refers to ``digest``."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def _by_api(client: Client, digest: Digest, artifact_type: str | None) -> list[Descriptor]:
    from urllib.parse import quote

    query = f"artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    path = f"{client.repository}/referrers/{digest}"
    listed = f"the referrers of {client.repository}@{digest}"
    found: list[Descriptor] = []
    for document, where in pages(client, path, client.pull_scopes, listed, query):
        found += decode_index(msgspec.json.encode(document), OCI_INDEX, where).manifests
        if len(found) > MAX_REFERRERS:
            raise InvalidInput(f"{where}: more than {MAX_REFERRERS}")
    return found


def _fallback(client: Client, digest: Digest) -> Index:
    try:
        descriptor, raw = client.manifest(fallback_tag(digest))
        return decode_index(raw, descriptor.media_type, f"{client.name}: {fallback_tag(digest)}")
    except NotFound:
        return new_index([])
