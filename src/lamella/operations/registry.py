# SPDX-License-Identifier: Apache-2.0
"""Logins at registries, lists of their content, and deletion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import InvalidInput, LamellaError, Unsupported
from lamella.images.options import RegistryOptions, current_options
from lamella.images.transports import ImageName, Syntax, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.reference import Reference, parse_reference

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.oci.platform import Platform
    from lamella.registry.auth.credentials import Credential
    from lamella.registry.client import Client


def log_in(
    registry: str, credential: Credential, options: RegistryOptions | None = None, *, path: Path | None = None
) -> str:
    """Check ``credential`` at ``registry`` and store it, in the file ``path`` if given. Returns where it is stored.

    The request goes to the registry itself, never to a mirror. Raises Denied if the registry refuses; InvalidInput,
    NotFound, Unavailable, Cancelled, and as `lamella.registry.auth.credentials.login`.
    """
    from lamella.registry.auth.credentials import login
    from lamella.registry.client import check_login

    registry = registry_name(registry)
    check_login(registry, credential, options)
    return login(registry, credential, path)


def log_out(registry: str, path: Path | None = None) -> None:
    """Delete the stored credential of ``registry``, from ``path`` or from any login file.

    Raises as `lamella.registry.auth.credentials.logout`.
    """
    from lamella.registry.auth.credentials import logout

    logout(registry_name(registry), path)


def registry_name(text: str) -> str:
    """Parse the name of a registry, HOST or HOST:PORT. Raises InvalidInput."""
    try:
        reference = parse_reference(f"{text}/name")
    except LamellaError:
        reference = None
    if reference is None or (text != reference.registry and text != "index.docker.io"):
        hint = "write its host, and its port if it has one, as in quay.io or localhost:5000"
        raise InvalidInput(f"{text[:100]!r} is not a registry", hint=hint)
    return reference.registry


_FORM: Final = "docker://"


class Deleted(Struct, frozen=True):
    """The result of a deletion."""

    repository: str
    tag: str | None
    """The deleted tag; None if the image was deleted, with every tag of it."""
    digest: Digest | None
    """The deleted image."""


def list_tags(repository: str) -> Iterator[str]:
    """The tags of ``docker://HOST/NAME`` in the registry's order; pages are requested as needed.

    Raises InvalidInput, NotFound, Denied, Unavailable, Unsupported.
    """
    reference = repository_reference(repository)
    if reference.tag or reference.digest:
        raise InvalidInput(f"{repository[:300]!r} is an image", hint=f"name its repository: {_FORM}{reference.name}")
    with closing(_client(reference)) as client:
        yield from client.tags()


def list_repositories(registry: str) -> Iterator[str]:
    """The repositories that a registry lists; pages are requested as needed.

    Raises InvalidInput, Denied, Unavailable, Unsupported: many registries have no catalog.
    """
    from lamella.registry.client import Client

    with closing(Client(registry_name(registry.removeprefix(_FORM)), options=current_options())) as client:
        yield from client.catalog()


def list_referrers(
    image: str | ImageName, artifact_type: str | None = None, platform: str | Platform | None = None
) -> tuple[Descriptor, list[Descriptor]]:
    """The manifest or index that ``image`` names in a registry, and its referrers: signatures, attestations and so on.

    ``platform`` chooses an image of an index, whose referrers are listed instead of those of the index. Raises
    InvalidInput, NotFound, Unsupported, Denied, Unavailable, Integrity.
    """
    from lamella.images.graph import ImageGraph
    from lamella.images.resolve import choose_platform
    from lamella.oci.platform import parse_platform
    from lamella.registry.reader import open_registry

    name = parse_image_name(image) if isinstance(image, str) else image
    if name.syntax is not Syntax.REGISTRY:
        raise Unsupported(f"{name}: only registries list referrers", hint=f"name it as {_FORM}HOST/NAME")
    with open_registry(name, current_options()) as reader:
        if platform is None:
            subject = reader.images()[0].descriptor
        else:
            wanted = parse_platform(platform) if isinstance(platform, str) else platform
            subject = choose_platform(ImageGraph(reader), name.tag, wanted).descriptor
        return subject, reader.client.referrers(subject.digest, artifact_type)


def delete(image: str, *, whole: bool = False) -> Deleted:
    """Delete the tag that ``docker://HOST/NAME:TAG`` names, or the image that a digest names.

    ``whole`` deletes the image of the tag, and so every tag of it. Blobs stay until the registry collects garbage.
    Raises InvalidInput, NotFound, Denied, Unavailable, Unsupported (many registries remove no tags).
    """
    reference = repository_reference(image)
    if not reference.tag and not reference.digest:
        raise InvalidInput(f"{image[:300]!r} names no tag and no digest", hint="give its tag or its digest")
    with closing(_client(reference)) as client:
        digest = reference.digest
        if digest is None and whole:
            found = client.find_manifest(str(reference.tag))
            if found is None:
                client.manifest(str(reference.tag))  # raises with the reason
            digest = None if found is None else found.digest
        if digest is not None:
            client.delete_manifest(digest)
            return Deleted(reference.name, None, digest)
        try:
            client.delete_manifest(str(reference.tag))
        except Unsupported as problem:
            problem.hint = "many registries delete images alone, and each tag of them: do so with --image"
            raise
        return Deleted(reference.name, reference.tag, None)


def repository_reference(text: str) -> Reference:
    """Parse ``docker://HOST/NAME[:TAG][@DIGEST]`` without a default tag. Raises InvalidInput, Unsupported."""
    if not text.startswith(_FORM):
        raise InvalidInput(f"{text[:300]!r} names no registry", hint=f"write {_FORM}HOST/NAME")
    return parse_reference(text.removeprefix(_FORM))


def _client(reference: Reference) -> Client:
    from lamella.registry.client import Client

    return Client(reference.registry, reference.repository, current_options())
