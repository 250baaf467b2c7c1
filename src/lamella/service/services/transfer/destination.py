# SPDX-License-Identifier: Apache-2.0
"""Names and platforms that a client requests for images, by the rules of containerd's Transfer service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lamella.oci.platform import Platform, host_platform

if TYPE_CHECKING:
    from lamella.oci.descriptor import Descriptor
    from lamella.protocol.proto import transfers_pb2 as pb
    from lamella.protocol.proto import types_pb2


def whole_names(destination: pb.ImageStore, target: Descriptor) -> list[str]:
    """The names for ``target`` as a whole: those that are not prefixes."""
    return list(
        dict.fromkeys(f"{name}@{target.digest}" if digest else name for name, digest in requested_names(destination))
    )


def requested_names(destination: pb.ImageStore) -> Iterator[tuple[str, bool]]:
    """The names that are not prefixes, each with whether the digest is appended."""
    if destination.name:
        yield destination.name, False
    for reference in destination.extra_references:
        if reference.name and not reference.is_prefix:
            yield reference.name, reference.add_digest


def names_of(references: Iterable[pb.ImageReference], full: str, name: str, target: Descriptor) -> list[str]:
    """The names for an image of an archive whose index annotates it with the full name ``full`` or the tag ``name``.

    A tag is appended to the prefixes among ``references``. A full name is kept if it has such a prefix, or if the
    reference allows any.
    """
    found = []
    for reference in references:
        if not reference.is_prefix or not reference.name:
            continue
        given = _apply_prefix(full, reference) if full else _apply_prefix(name, reference)
        if full and given != full:
            given = ""
        if given:
            found.append(given)
        if reference.add_digest and not (given and reference.skip_named_digest):
            found.append(f"{reference.name}@{target.digest}")
    return list(dict.fromkeys(found))


def _apply_prefix(name: str, reference: pb.ImageReference) -> str:
    if not name:
        return ""
    if not any(mark in name for mark in "/:@"):
        return f"{reference.name}:{name}"
    if reference.allow_overwrite:
        return name
    rest = name.removeprefix(reference.name)
    return name if name.startswith(reference.name) and rest[:1] in ("", "/", ":", "@") else ""


def requested_platform(sent: types_pb2.Platform) -> Platform | None:
    """The platform in a request; None stands for this host's."""
    if not sent.os and not sent.architecture:
        return None
    return Platform(
        architecture=sent.architecture,
        os=sent.os,
        variant=sent.variant,
        os_version=sent.os_version,
        os_features=list(sent.os_features),
    )


def requested_platforms(sent: Iterable[types_pb2.Platform]) -> list[Platform]:
    """The platforms in a request."""
    return [requested_platform(one) or host_platform() for one in sent]
