# SPDX-License-Identifier: Apache-2.0
"""Garbage collection against a model that works backwards: for each object it searches for an object that needs it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lamella.store.database import Database
from lamella.store.gc.labels import Node
from lamella.store.gc.mark import mark, read_graph, reference_chain

NOW = 1_800_000_000_000_000_000
PAST, NEVER, FUTURE = "2020-01-01T00:00:00Z", "in a while", "2100-01-01T00:00:00+01:00"

BLOBS = [("content", f"sha256:{number:064x}") for number in range(5)]
IMAGES = [("images", f"image{number}") for number in range(3)]
OVERLAYS = [("snapshots/overlayfs", f"s {number}/x") for number in range(4)]
COPIES = [("snapshots/native", f"s {number}/x") for number in range(3)]
INGESTS = [("ingests", f"ref{number}") for number in range(3)]
LEASES = [("leases", f"lease{number}") for number in range(3)]
THINGS = [*BLOBS, *IMAGES, *OVERLAYS, *COPIES, *INGESTS]


@dataclass
class Thing:
    """An object of the model: its references, as plain lists."""

    labels: dict[str, str] = field(default_factory=dict)
    target: Node | None = None
    """Target of an image, parent of a snapshot or expected digest of an ingest."""
    expires: int | None = None
    """Expiry time of an ingest."""
    holds: list[Node] = field(default_factory=list)
    """Resources of a lease."""


World = dict[Node, Thing]


def named_by(labels: dict[str, str], way: str) -> set[Node]:
    """Return the objects that labels refer to; parses labels from their end."""
    found: set[Node] = set()
    for label, value in labels.items():
        head = label.removesuffix(".l.0").removesuffix("/x")
        if head == f"containerd.io/gc.{way}.content":
            found.add(("content", value))
        if head == f"containerd.io/gc.{way}.image":
            found.add(("images", value))
        for name in ("overlayfs", "native"):
            if head == f"containerd.io/gc.{way}.snapshot.{name}":
                found.add((f"snapshots/{name}", value))
    return found


def model(world: World) -> set[Node]:
    """Return the objects that stay: repeat until no further object is needed by a live one."""
    leases = {n for n, t in world.items() if n[0] == "leases" and t.labels.get("containerd.io/gc.expire") != PAST}
    full = {n for n in leases if "containerd.io/gc.flat" not in world[n].labels}
    names = {n: named_by(t.labels, "ref") for n, t in world.items()}
    named = {n: named_by(t.labels, "bref") for n, t in world.items()}

    def is_root(node: Node, thing: Thing) -> bool:
        if node[0] == "images":
            return thing.labels.get("containerd.io/gc.expire") != PAST
        if node[0] == "ingests":
            held = any(node in world[lease].holds for lease in leases)
            return held or (thing.expires is not None and thing.expires > NOW)
        if node[0] == "leases":
            return node in leases
        return "containerd.io/gc.root" in thing.labels

    # References through missing objects count too.
    every = set(world) | {one for t in world.values() for one in t.holds}
    every |= {one for group in (*names.values(), *named.values()) for one in group}
    every |= {t.target for t in world.values() if t.target}
    alive: set[Node] = set()
    while True:
        more = {
            node
            for node in every - alive
            if (node in world and is_root(node, world[node]))
            or any(node in world[lease].holds for lease in full)
            or any(node in names[other] or node == world[other].target for other in alive if other in world)
            or (node in world and named[node] & alive)
        }
        if not more:
            break
        alive |= more
    flat = {one for lease in leases - full for one in world[lease].holds}
    while True:
        targets = [world[node].target for node in flat if node in world and node[0] != "ingests"]
        further = {one for one in targets if one is not None} - flat
        if not further:
            break
        flat |= further
    return (alive | flat) & set(world)


def labels_of(node: Node) -> SearchStrategy[dict[str, str]]:
    keys: list[tuple[str, SearchStrategy[str]]] = []
    for way in ("ref", "bref"):
        for tail in ("", ".l.0", "/x"):
            keys.append((f"containerd.io/gc.{way}.content{tail}", st.sampled_from([one for _, one in BLOBS])))
            keys.append((f"containerd.io/gc.{way}.image{tail}", st.sampled_from([one for _, one in IMAGES])))
        for name in ("overlayfs", "native"):
            some = st.sampled_from([one for _, one in OVERLAYS])
            keys += [(f"containerd.io/gc.{way}.snapshot.{name}{tail}", some) for tail in ("", "/x")]
    keys.append(("containerd.io/gc.root", st.just("yes")))
    keys.append(("containerd.io/gc.references", st.just(BLOBS[0][1])))  # not a label that the collector reads
    keys.append(("containerd.io/gc.ref.contents", st.just(BLOBS[0][1])))
    keys.append(("other", st.just("containerd.io/gc.root")))
    if node[0] in ("images", "leases"):
        keys.append(("containerd.io/gc.expire", st.sampled_from([PAST, NEVER, FUTURE])))
    if node[0] == "leases":
        keys = [one for one in keys if "ref" not in one[0]]
        keys.append(("containerd.io/gc.flat", st.just("true")))
    one = st.sampled_from(keys).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1]))
    return st.lists(one, max_size=2).map(dict)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world: World = {}
    for node in draw(st.lists(st.sampled_from([*THINGS, *LEASES]), unique=True, max_size=14)):
        thing = Thing(draw(labels_of(node)) if node[0] != "ingests" else {})
        if node[0] == "images":
            thing.target = draw(st.sampled_from(BLOBS))
        elif node[0] == "ingests":
            thing.target = draw(st.sampled_from([None, *BLOBS]))
            thing.expires = draw(st.sampled_from([None, NOW, NOW + 1]))
        elif node[0] == "leases":
            thing.holds = draw(st.lists(st.sampled_from(THINGS), unique=True, max_size=3))
        elif node[0].startswith("snapshots/"):
            below = [one for one in world if one[0] == node[0]]
            thing.target = draw(st.sampled_from([None, *below]))
        world[node] = thing
    return world


def write(world: World, database: Database) -> None:
    numbers: dict[Node, int] = {}
    with database.write() as connection:
        for table in ("held", "lease", "image", "blob", "ingest", "snapshot"):
            connection.execute("PRAGMA defer_foreign_keys = ON")
            connection.execute(f"DELETE FROM {table}")
        for node, thing in world.items():
            kind, key = node
            labels = json.dumps(thing.labels)
            rest: tuple[str | int | None, ...]
            if kind == "content":
                table, rest = "blob(digest, size, created, updated, labels, namespace)", (1, 0, 0, labels)
            elif kind == "images":
                assert thing.target is not None
                target = json.dumps({"mediaType": "m", "digest": thing.target[1], "size": 1})
                table, rest = "image(name, target, created, updated, labels, namespace)", (target, 0, 0, labels)
            elif kind == "ingests":
                expected = thing.target[1] if thing.target else ""
                table = "ingest(ref, folder, expected, started, updated, expires, namespace)"
                rest = (key, expected, 0, 0, thing.expires)
            elif kind == "leases":
                table, rest = "lease(id, created, labels, namespace)", (0, labels)
            else:
                numbers[node] = len(numbers) + 1
                parent = numbers[thing.target] if thing.target else None
                table = "snapshot(name, number, snapshotter, parent, kind, created, updated, labels, namespace)"
                rest = (numbers[node], kind.partition("/")[2], parent, "committed", 0, 0, labels)
            marks = ", ".join("?" * (len(rest) + 2))
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", (key, *rest, "space"))
        for (_, lease), thing in ((n, t) for n, t in world.items() if n[0] == "leases"):
            connection.executemany(
                "INSERT INTO held VALUES ('space', ?, ?, ?)", [(lease, kind, key) for kind, key in thing.holds]
            )


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as place:
        found = Database(Path(place, "lamella.db"))
        yield found
        found.close()


@settings(max_examples=300)
@given(world=worlds())
def test_exactly_the_needed_objects_stay(database: Database, world: World) -> None:
    write(world, database)
    with database.read() as connection:
        found = read_graph(connection, "space", NOW)
    assert set(world) == set(found.sizes)
    alive = mark(found)
    assert model(world) == set(alive) & set(world)
    for node in alive:
        way = reference_chain(alive, node)
        assert node == way[0][0]
        assert way[-1][1].by is None
        assert len(way) == len({at for at, _ in way})


def test_a_flat_lease_keeps_the_target_of_an_image_but_not_its_labelled_objects(database: Database) -> None:
    image, target, labelled, lease = IMAGES[0], BLOBS[0], BLOBS[1], LEASES[0]
    labels = {"containerd.io/gc.expire": PAST, "containerd.io/gc.ref.content.l.0": labelled[1]}
    world = {
        image: Thing(labels, target),
        target: Thing(),
        labelled: Thing(),
        lease: Thing({"containerd.io/gc.flat": "true"}, holds=[image]),
    }
    write(world, database)
    with database.read() as connection:
        alive = set(mark(read_graph(connection, "space", NOW)))
    assert alive == model(world) == {image, target, lease}


def test_an_object_with_a_back_reference_to_a_live_object_stays(database: Database) -> None:
    keeper, kept, other = IMAGES[0], BLOBS[1], BLOBS[2]
    world = {
        keeper: Thing(target=BLOBS[0]),
        kept: Thing({"containerd.io/gc.bref.image": keeper[1]}),
        other: Thing({"containerd.io/gc.bref.image": IMAGES[1][1]}),
    }
    write(world, database)
    with database.read() as connection:
        alive = set(mark(read_graph(connection, "space", NOW))) & set(world)
    assert alive == model(world) == {keeper, kept}
