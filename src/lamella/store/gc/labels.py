# SPDX-License-Identifier: Apache-2.0
"""Labels that tell the collector what an object needs, what needs it, and how long it lasts. All are containerd's."""

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
"""Before the name of a snapshotter."""
LEASES: Final = "leases"
"""No lease can hold one; all the others are types of resources too."""

ABOUT: Final = "containerd.io/gc."
"""What the names of all labels below begin with."""

ROOT: Final = "containerd.io/gc.root"
"""On content and snapshots: never collected, whatever the value."""

EXPIRE: Final = "containerd.io/gc.expire"
"""On leases and images: a time of RFC 3339, from which on it is as if they were not there."""

FLAT: Final = "containerd.io/gc.flat"
"""On leases: what the held objects refer to is not held."""

REF_CONTENT: Final = "containerd.io/gc.ref.content"
"""The value is a digest; ``.x`` or ``/x`` may follow, as it may for the others."""
REF_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot."
"""The name of a snapshotter follows; the value is a key."""
REF_IMAGE: Final = "containerd.io/gc.ref.image"

_BACK_CONTENT: Final = "containerd.io/gc.bref.content"
_BACK_SNAPSHOT: Final = "containerd.io/gc.bref.snapshot."
_BACK_IMAGE: Final = "containerd.io/gc.bref.image"

Node = tuple[str, str]
"""An object of a namespace: its type as leases name it, and its key."""


def needed(labels: Labels) -> Iterator[tuple[str, Node]]:
    """The objects that live as long as the one with these labels, each after the label that says so."""
    return _named(labels, REF_CONTENT, REF_SNAPSHOT, REF_IMAGE)


def needing(labels: Labels) -> Iterator[tuple[str, Node]]:
    """The objects that keep the one with these labels alive, each after the label that says so."""
    return _named(labels, _BACK_CONTENT, _BACK_SNAPSHOT, _BACK_IMAGE)


def expiry(labels: Labels) -> int | None:
    """When what has these labels ends, in nanoseconds since the epoch; None, that is never, for what is no time."""
    text = labels.get(EXPIRE)
    if text is None:
        return None
    try:
        return parse_rfc3339(text)
    except InvalidInput:
        return None


def references(needs: Mapping[str, Digest]) -> dict[str, str]:
    """The labels by which a document keeps what it needs, each of which has a key: `parts_by_key`, `entry_key`."""
    return {f"{REF_CONTENT}.{key}": str(digest) for key, digest in needs.items()}


def parts_by_key(manifest: Manifest) -> dict[str, Descriptor]:
    """Config and layers of a manifest."""
    return {"config": manifest.config, **{f"l.{at}": layer for at, layer in enumerate(manifest.layers)}}


def entry_key(number: int) -> str:
    """The key of an entry of an index."""
    return f"m.{number}"


def snapshots(snapshotter: str) -> str:
    """The type of a snapshotter's snapshots."""
    return SNAPSHOTS + snapshotter


def _named(labels: Labels, content: str, snapshot: str, image: str) -> Iterator[tuple[str, Node]]:
    for label, value in labels.items():
        if not label.startswith(ABOUT):
            continue
        if _is(label, content):
            yield label, (CONTENT, value)
        elif label.startswith(snapshot):
            yield label, (SNAPSHOTS + label[len(snapshot) :].partition("/")[0], value)
        elif _is(label, image):
            yield label, (IMAGES, value)


def _is(label: str, name: str) -> bool:
    return label.startswith(name) and (len(label) == len(name) or label[len(name)] in "./")
