# SPDX-License-Identifier: Apache-2.0
"""Mark phase of the collector: containerd's rules over the rows of the database.

Roots are leases, images and ingests that have not expired, and all content and snapshots labelled `ROOT`. A live object
keeps alive what it refers to: the objects that a lease holds, the target of an image, the parent of a snapshot, the
expected digest of an ingest, and the objects that its labels name. A label can also point backwards: the labelled
object lives as long as the object that the label names.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct, field

from lamella.errors import Integrity
from lamella.store.gc.labels import (
    CONTENT,
    EXPIRE,
    FLAT,
    GC_PREFIX,
    IMAGES,
    INGESTS,
    LEASES,
    ROOT,
    SNAPSHOTS,
    Node,
    back_references,
    expiration,
    forward_references,
)
from lamella.store.metadata.labels import decode_labels

TARGET: Final = "target"
PARENT: Final = "parent"
EXPECTED: Final = "expected"
HELD: Final = "held"
"""Reasons in `Cause.why` and `ReferenceGraph.edges` other than labels."""


class _Target(msgspec.Struct):
    digest: str


_TARGET_DECODER: Final = msgspec.json.Decoder(_Target)


def _decode_target(name: str, text: str) -> str:
    """Return the digest in the target of the image ``name``. Raises Integrity."""
    try:
        return _TARGET_DECODER.decode(text).digest
    except msgspec.MsgspecError as problem:
        raise Integrity(f"the store's database holds a malformed target of image {name!r}: {problem}") from problem


class Cause(Struct, frozen=True):
    """Why an object is alive."""

    why: str
    """`TARGET`, `PARENT`, `EXPECTED`, `HELD`, or a label; for a root, a predicate such as "is a lease"."""
    by: Node | None
    """The object that refers to it; None for a root."""


class ReferenceGraph(Struct):
    """The objects of a namespace and their references."""

    sizes: dict[Node, int | None] = field(default_factory=dict)
    """Every object, and its bytes; None if they were not measured."""
    roots: list[tuple[Node, str]] = field(default_factory=list)
    """Each with `Cause.why`."""
    flat: list[tuple[Node, Node]] = field(default_factory=list)
    """Pairs of an object and the flat lease that holds it. A flat lease ignores the labels of what it holds."""
    edges: dict[Node, list[tuple[Node, str]]] = field(default_factory=dict)
    """Object -> the objects that it keeps alive, each with the reason."""
    expired: dict[Node, str] = field(default_factory=dict)
    """Objects that were roots until they expired, each with a message that says why."""
    numbers: dict[Node, int] = field(default_factory=dict)
    """Snapshot -> its number, which names its row and its directory."""

    def add_edge(self, from_: Node, to: Node, why: str) -> None:
        """Record that one object keeps another alive."""
        self.edges.setdefault(from_, []).append((to, why))

    def add_labels(self, node: Node, text: str) -> None:
        """Record the references and the root label in an object's labels, given as JSON."""
        labels = decode_labels(text)
        for label, other in forward_references(labels):
            self.add_edge(node, other, label)
        for label, other in back_references(labels):
            self.add_edge(other, node, label)
        if ROOT in labels and node[0] != IMAGES:
            self.roots.append((node, f"is labelled {ROOT}"))


def read_graph(connection: sqlite3.Connection, namespace: str, now: int) -> ReferenceGraph:
    """Read a namespace in the current transaction; ``now`` decides what has expired."""
    graph = ReferenceGraph()
    _read_leases(connection, namespace, now, graph)
    _read_images(connection, namespace, now, graph)
    sizes = graph.sizes
    rows: Iterable[tuple[str, int, str]] = connection.execute(
        "SELECT digest, size, labels FROM blob WHERE namespace = ? ORDER BY digest", (namespace,)
    )
    for digest, size, labels in rows:
        node = (CONTENT, digest)
        sizes[node] = size
        if GC_PREFIX in labels:
            graph.add_labels(node, labels)
    _read_ingests(connection, namespace, now, graph)
    _read_snapshots(connection, namespace, graph)
    return graph


def mark(graph: ReferenceGraph) -> dict[Node, Cause]:
    """Return the live objects, each with the cause nearest to a root; includes referenced objects that are missing."""
    alive: dict[Node, Cause] = {}
    queue: deque[Node] = deque()
    for node, why in graph.roots:
        if node not in alive:
            alive[node] = Cause(why, None)
            queue.append(node)
    edges = graph.edges
    while queue:
        node = queue.popleft()
        for other, why in edges.get(node, ()):
            if other not in alive:
                alive[other] = Cause(why, node)
                queue.append(other)
    # Flat leases come last: an object that is alive by now had its labels followed. The others keep only their
    # parents and targets.
    for held, lease in graph.flat:
        node, cause = held, Cause(HELD, lease)
        while node not in alive:
            alive[node] = cause
            step = next(((to, why) for to, why in edges.get(node, ()) if why in (PARENT, TARGET)), None)
            if step is None:
                break
            node, cause = step[0], Cause(step[1], node)
    return alive


def reference_chain(alive: dict[Node, Cause], node: Node) -> list[tuple[Node, Cause]]:
    """Return the references from a live object back to its root, both included."""
    chain = []
    at: Node | None = node
    while at is not None:
        cause = alive[at]
        chain.append((at, cause))
        at = cause.by
    return chain


def _read_leases(connection: sqlite3.Connection, namespace: str, now: int, graph: ReferenceGraph) -> None:
    flat = set()
    for id_, text in connection.execute("SELECT id, labels FROM lease WHERE namespace = ? ORDER BY id", (namespace,)):
        node = (LEASES, id_)
        graph.sizes[node] = None
        labels = decode_labels(text)
        end = expiration(labels)
        if end is not None and end <= now:
            graph.expired[node] = f"expired at {labels[EXPIRE]}"
            continue
        graph.roots.append((node, "is a lease"))
        if FLAT in labels:
            flat.add(id_)
    for id_, kind, key in connection.execute(
        "SELECT lease, type, id FROM held WHERE namespace = ? ORDER BY lease, type, id", (namespace,)
    ):
        lease, held = (LEASES, id_), (kind, key)
        if lease in graph.expired:
            continue
        if id_ in flat and kind != INGESTS:
            graph.flat.append((held, lease))
        else:
            graph.add_edge(lease, held, HELD)


def _read_images(connection: sqlite3.Connection, namespace: str, now: int, graph: ReferenceGraph) -> None:
    for name, target, text in connection.execute(
        "SELECT name, target, labels FROM image WHERE namespace = ? ORDER BY name", (namespace,)
    ):
        node = (IMAGES, name)
        graph.sizes[node] = None
        graph.add_edge(node, (CONTENT, _decode_target(name, target)), TARGET)
        if GC_PREFIX in text:
            graph.add_labels(node, text)
            labels = decode_labels(text)
            end = expiration(labels)
            if end is not None and end <= now:
                graph.expired[node] = f"expired at {labels[EXPIRE]}"
                continue
        graph.roots.append((node, "is an image"))


def _read_ingests(connection: sqlite3.Connection, namespace: str, now: int, graph: ReferenceGraph) -> None:
    for ref, expected, expires in connection.execute(
        "SELECT ref, expected, expires FROM ingest WHERE namespace = ? ORDER BY ref", (namespace,)
    ):
        node = (INGESTS, ref)
        graph.sizes[node] = None
        if expected:
            graph.add_edge(node, (CONTENT, expected), EXPECTED)
        if expires is None:
            graph.expired[node] = "its lease is gone"
        elif expires <= now:
            graph.expired[node] = "it was not committed in time"
        else:
            graph.roots.append((node, "is in progress"))


def _read_snapshots(connection: sqlite3.Connection, namespace: str, graph: ReferenceGraph) -> None:
    nodes: dict[int, Node] = {}
    parents: list[tuple[Node, int]] = []
    for number, snapshotter, name, parent, size, labels in connection.execute(
        "SELECT number, snapshotter, name, parent, size, labels FROM snapshot WHERE namespace = ? ORDER BY number",
        (namespace,),
    ):
        node = (SNAPSHOTS + snapshotter, name)
        nodes[number] = node
        graph.sizes[node] = size
        graph.numbers[node] = number
        if parent is not None:
            parents.append((node, parent))
        if GC_PREFIX in labels:
            graph.add_labels(node, labels)
    for node, parent in parents:
        if parent in nodes:  # the consistency check reports a missing parent
            graph.add_edge(node, nodes[parent], PARENT)
