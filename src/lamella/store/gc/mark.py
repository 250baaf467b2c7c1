# SPDX-License-Identifier: Apache-2.0
"""What is needed of a namespace's objects, and why: the rules of containerd's collector over rows of the database.

Alive are leases and what they hold, images, content and snapshots labelled as roots, ingests that are young or held;
and what any of them refers to, by its labels, as its target, its parent or its expected digest.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct, field

from lamella.store.gc.labels import (
    ABOUT,
    CONTENT,
    EXPIRE,
    FLAT,
    IMAGES,
    INGESTS,
    LEASES,
    ROOT,
    SNAPSHOTS,
    Node,
    expiry,
    needed,
    needing,
)
from lamella.store.metadata.labels import decode

TARGET: Final = "target"
PARENT: Final = "parent"
EXPECTED: Final = "expected"
HELD: Final = "held"
"""Reasons that are not the name of a label."""


class _Target(msgspec.Struct):
    digest: str


_target: Final = msgspec.json.Decoder(_Target).decode


class Cause(Struct, frozen=True):
    """Why an object stays: ``by`` needs it, or it is a root where that is None."""

    why: str
    """``target``, ``parent``, ``expected``, ``held``, or the label; of a root what makes it one, in words."""
    by: Node | None


class Picture(Struct):
    """The objects of a namespace and what leads from one to another."""

    sizes: dict[Node, int | None] = field(default_factory=dict)
    """Each object that is there, and its bytes; None where nobody has counted."""
    roots: list[tuple[Node, str]] = field(default_factory=list)
    flat: list[tuple[Node, Node]] = field(default_factory=list)
    """An object that is held without what its labels name, and the lease that does."""
    edges: dict[Node, list[tuple[Node, str]]] = field(default_factory=dict)
    ended: dict[Node, str] = field(default_factory=dict)
    """What would be a root if its time were not over, and what is to be said of it."""
    numbers: dict[Node, int] = field(default_factory=dict)
    """Of the snapshots."""

    def lead(self, from_: Node, to: Node, why: str) -> None:
        """Note that the one needs the other."""
        self.edges.setdefault(from_, []).append((to, why))

    def refer(self, node: Node, text: str) -> None:
        """Note what an object's labels, as JSON, have to say."""
        labels = decode(text)
        for label, other in needed(labels):
            self.lead(node, other, label)
        for label, other in needing(labels):
            self.lead(other, node, label)
        if ROOT in labels and node[0] != IMAGES:
            self.roots.append((node, f"is labelled {ROOT}"))


def picture(connection: sqlite3.Connection, namespace: str, now: int) -> Picture:
    """Read a namespace as it is within the transaction that is open."""
    found = Picture()
    _leases(connection, namespace, now, found)
    _images(connection, namespace, now, found)
    sizes = found.sizes
    rows: Iterable[tuple[str, int, str]] = connection.execute(
        "SELECT digest, size, labels FROM blob WHERE namespace = ? ORDER BY digest", (namespace,)
    )
    for digest, size, labels in rows:
        node = (CONTENT, digest)
        sizes[node] = size
        if ABOUT in labels:
            found.refer(node, labels)
    _ingests(connection, namespace, now, found)
    _snapshots(connection, namespace, found)
    return found


def mark(found: Picture) -> dict[Node, Cause]:
    """All that is alive, each with the cause that is nearest to a root; also what is referred to and is not there."""
    alive: dict[Node, Cause] = {}
    queue: deque[Node] = deque()
    for node, why in found.roots:
        if node not in alive:
            alive[node] = Cause(why, None)
            queue.append(node)
    edges = found.edges
    while queue:
        node = queue.popleft()
        for other, why in edges.get(node, ()):
            if other not in alive:
                alive[other] = Cause(why, node)
                queue.append(other)
    # By now nothing else reaches what a flat lease holds, so it matters to nobody that its labels are not followed.
    for held, lease in found.flat:
        node, cause = held, Cause(HELD, lease)
        while node not in alive:
            alive[node] = cause
            step = next(((to, why) for to, why in edges.get(node, ()) if why in (PARENT, TARGET)), None)
            if step is None:
                break
            node, cause = step[0], Cause(step[1], node)
    return alive


def chain(alive: dict[Node, Cause], node: Node) -> list[tuple[Node, Cause]]:
    """The way from an object that is alive to its root, both included."""
    way = []
    at: Node | None = node
    while at is not None:
        cause = alive[at]
        way.append((at, cause))
        at = cause.by
    return way


def _leases(connection: sqlite3.Connection, namespace: str, now: int, found: Picture) -> None:
    flat = set()
    for id_, text in connection.execute("SELECT id, labels FROM lease WHERE namespace = ? ORDER BY id", (namespace,)):
        node = (LEASES, id_)
        found.sizes[node] = None
        labels = decode(text)
        end = expiry(labels)
        if end is not None and end <= now:
            found.ended[node] = f"expired at {labels[EXPIRE]}"
            continue
        found.roots.append((node, "is a lease"))
        if FLAT in labels:
            flat.add(id_)
    for id_, kind, key in connection.execute(
        "SELECT lease, type, id FROM held WHERE namespace = ? ORDER BY lease, type, id", (namespace,)
    ):
        lease, held = (LEASES, id_), (kind, key)
        if lease in found.ended:
            continue
        if id_ in flat and kind != INGESTS:
            found.flat.append((held, lease))
        else:
            found.lead(lease, held, HELD)


def _images(connection: sqlite3.Connection, namespace: str, now: int, found: Picture) -> None:
    for name, target, text in connection.execute(
        "SELECT name, target, labels FROM image WHERE namespace = ? ORDER BY name", (namespace,)
    ):
        node = (IMAGES, name)
        found.sizes[node] = None
        found.lead(node, (CONTENT, _target(target).digest), TARGET)
        if ABOUT in text:
            found.refer(node, text)
            labels = decode(text)
            end = expiry(labels)
            if end is not None and end <= now:
                found.ended[node] = f"expired at {labels[EXPIRE]}"
                continue
        found.roots.append((node, "is an image"))


def _ingests(connection: sqlite3.Connection, namespace: str, now: int, found: Picture) -> None:
    for ref, expected, expires in connection.execute(
        "SELECT ref, expected, expires FROM ingest WHERE namespace = ? ORDER BY ref", (namespace,)
    ):
        node = (INGESTS, ref)
        found.sizes[node] = None
        if expected:
            found.lead(node, (CONTENT, expected), EXPECTED)
        if expires is None:
            found.ended[node] = "its lease is gone"
        elif expires <= now:
            found.ended[node] = "nobody has finished it in time"
        else:
            found.roots.append((node, "is under way"))


def _snapshots(connection: sqlite3.Connection, namespace: str, found: Picture) -> None:
    nodes: dict[int, Node] = {}
    parents: list[tuple[Node, int]] = []
    for number, snapshotter, name, parent, size, labels in connection.execute(
        "SELECT number, snapshotter, name, parent, size, labels FROM snapshot WHERE namespace = ? ORDER BY number",
        (namespace,),
    ):
        node = (SNAPSHOTS + snapshotter, name)
        nodes[number] = node
        found.sizes[node] = size
        found.numbers[node] = number
        if parent is not None:
            parents.append((node, parent))
        if ABOUT in labels:
            found.refer(node, labels)
    for node, parent in parents:
        if parent in nodes:  # a row whose parent is gone is for the check to find
            found.lead(node, nodes[parent], PARENT)
