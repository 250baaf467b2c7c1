# SPDX-License-Identifier: Apache-2.0
"""containerd's labels for the collector: references, back references, roots and expiry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from lamella.errors import InvalidInput
from lamella.store.contract import Labels
from lamella.times import parse_rfc3339

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.oci.descriptor import Descriptor
    from lamella.oci.manifest import Manifest

CONTENT: Final = "content"
INGESTS: Final = "ingests"
IMAGES: Final = "images"
SNAPSHOTS: Final = "snapshots/"
"""The name of a snapshotter follows."""
LEASES: Final = "leases"
"""Not a resource type, unlike the others: a lease cannot hold a lease."""

GC_PREFIX: Final = "containerd.io/gc."
"""The prefix of all labels below."""

ROOT: Final = "containerd.io/gc.root"
"""On content and snapshots: never collect them; the value does not matter."""

EXPIRE: Final = "containerd.io/gc.expire"
"""On leases and images: the time (RFC 3339) from which they are no roots any more."""

FLAT: Final = "containerd.io/gc.flat"
"""On leases: hold the objects only, not what they refer to."""

REF_CONTENT: Final = "containerd.io/gc.ref.content"
"""The value is a digest; ``.x`` or ``/x`` may follow the name, as with the others."""
REF_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot."
"""The name of a snapshotter follows; the value is a key."""
REF_IMAGE: Final = "containerd.io/gc.ref.image"

_BACK_CONTENT: Final = "containerd.io/gc.bref.content"
_BACK_SNAPSHOT: Final = "containerd.io/gc.bref.snapshot."
_BACK_IMAGE: Final = "containerd.io/gc.bref.image"

Node = tuple[str, str]
"""An object of a namespace: resource type and id."""


def forward_references(labels: Labels) -> Iterator[tuple[str, Node]]:
    """Yield the objects that these labels keep alive, each after its label."""
    return _references(labels, REF_CONTENT, REF_SNAPSHOT, REF_IMAGE)


def back_references(labels: Labels) -> Iterator[tuple[str, Node]]:
    """Yield the objects that keep alive the object with these labels, each after its label."""
    return _references(labels, _BACK_CONTENT, _BACK_SNAPSHOT, _BACK_IMAGE)


def expiration(labels: Labels) -> int | None:
    """Return when the object with these labels expires, in nanoseconds since the epoch; None without a valid time."""
    text = labels.get(EXPIRE)
    if text is None:
        return None
    try:
        return parse_rfc3339(text)
    except InvalidInput:
        return None


def reference_labels(parts: Mapping[str, Digest]) -> dict[str, str]:
    """Return the labels that keep the parts of a document alive, by keys of `manifest_parts` or `manifest_key`."""
    return {f"{REF_CONTENT}.{key}": str(digest) for key, digest in parts.items()}


def manifest_parts(manifest: Manifest) -> dict[str, Descriptor]:
    """Return config and layers of a manifest by their label keys."""
    return {"config": manifest.config, **{f"l.{at}": layer for at, layer in enumerate(manifest.layers)}}


def manifest_key(number: int) -> str:
    """Return the label key of an entry of an index."""
    return f"m.{number}"


def snapshot_type(snapshotter: str) -> str:
    """Return the resource type of a snapshotter's snapshots."""
    return SNAPSHOTS + snapshotter


def _references(labels: Labels, content: str, snapshot: str, image: str) -> Iterator[tuple[str, Node]]:
    for label, value in labels.items():
        if not label.startswith(GC_PREFIX):
            continue
        if _has_name(label, content):
            yield label, (CONTENT, value)
        elif label.startswith(snapshot):
            yield label, (SNAPSHOTS + label[len(snapshot) :].partition("/")[0], value)
        elif _has_name(label, image):
            yield label, (IMAGES, value)


def _has_name(label: str, name: str) -> bool:
    return label.startswith(name) and (len(label) == len(name) or label[len(name)] in "./")
