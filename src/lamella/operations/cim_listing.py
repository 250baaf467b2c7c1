# SPDX-License-Identifier: Apache-2.0
"""All that a composite image says of each file, for another reader of the same image to be compared with."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.changes.model import Content, Entry, Link, Put, Stream, Windows, dense
from lamella.formats.ntfs import extended_attributes, filetime
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.layers.cim.files import CimLayer, OpenCim
from lamella.layers.cim.tree import all_changes

if TYPE_CHECKING:
    from lamella.progress import Cancellation


def cim_listing(path: Path, *, cancel: Cancellation | None = None) -> Iterator[dict[str, Any]]:
    """A document for each name, in the order of a walk: a file with all that it has, or a link with its target.

    Times are FILETIMEs, contents SHA-256, and what is binary is base64. Raises as `verify_cim` does.
    """
    waiting: dict[str, Any] | None = None
    with OpenCim(CimLayer(path)) as image:
        for change in all_changes(image):
            if cancel is not None:
                cancel.check()
            if isinstance(change, Stream):
                assert waiting is not None  # noqa: S101  # streams follow their file
                waiting["streams"][change.name] = _sum(change.content)
                continue
            if waiting is not None:
                yield waiting
                waiting = None
            match change:
                case Put(entry, content):
                    waiting = _document(entry, content)
                case Link(link, target):
                    yield {"path": f"/{link}", "kind": "link", "target": f"/{target}"}
    if waiting is not None:
        yield waiting


def _document(entry: Entry, content: Content | None) -> dict[str, Any]:
    facet = entry.windows
    assert facet is not None  # noqa: S101  # a CIM's files have that one
    document: dict[str, Any] = {"path": f"/{entry.path}", "kind": entry.kind.value, "attributes": facet.attributes}
    for name in ("creation_time", "access_time", "write_time", "change_time"):
        document[name] = filetime.ticks_from_ns(getattr(facet, name))
    document["security"] = b64encode(facet.security_descriptor or b"").decode()
    document["reparse"] = b64encode(facet.reparse or b"").decode()
    document["extended_attributes"] = b64encode(_chain(facet)).decode()
    document["streams"] = {}
    if content is not None:
        document |= {"size": entry.size, "sha256": _sum(content)}
    return document


def _chain(facet: Windows) -> bytes:
    if not facet.extended_attributes:
        return b""
    return extended_attributes.encode(
        [
            ExtendedAttribute(name.encode("utf-8", "surrogateescape"), value)
            for name, value in facet.extended_attributes.items()
        ]
    )


def _sum(content: Content) -> str:
    digest = hashlib.sha256()
    for chunk in dense(content):
        digest.update(chunk)
    return digest.hexdigest()
