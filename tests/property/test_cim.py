# SPDX-License-Identifier: Apache-2.0
"""Windows layers in composite images keep their tar and their tree, forked or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.property.test_windows_formats import layers, written
from tests.unit.formats.tar.archives import buffers

from lamella.changes.apply import apply
from lamella.changes.dump import dump
from lamella.changes.model import Buffer, Change, Entry, Inline, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.changes.tree import MemorySink, MemoryTree, walk
from lamella.errors import InvalidInput, NotFound
from lamella.formats.ntfs import basic_information, reparse
from lamella.formats.ntfs.basic_information import ARCHIVE, DIRECTORY, REPARSE_POINT
from lamella.formats.ntfs.names import usual_upcase
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.import_rules import NO_DESCRIPTOR
from lamella.layers.cim.sink import CimSink
from lamella.layers.cim.source import all_changes, changes_since
from lamella.layers.cim.tree import KEPT, CimTree
from lamella.layers.stack import LayerStack
from lamella.layers.windows.folder.reader import FolderChanges
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.sink import WindowsSink
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.paths import LayerPath

TOP = Put(Entry(LayerPath("Files"), Kind.DIRECTORY, None, 0, "", Windows(0x10, 0, 0, 0, 0, b"sd")), None)
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]


def sayable(change: Change) -> Change:
    """Return the part of the change that an image can store."""
    if not isinstance(change, Put) or change.entry.windows is None:
        return change
    facet = change.entry.windows
    attributes = facet.attributes & (KEPT | DIRECTORY)
    if facet.reparse is not None:
        attributes |= REPARSE_POINT
    written_at = filetime_of(facet.write_time or 0)
    made, read, changed = (
        written_at if time is None else filetime_of(time)
        for time in (facet.creation_time, facet.access_time, facet.change_time)
    )
    descriptor = facet.security_descriptor or NO_DESCRIPTOR
    facet = Windows(attributes, made, read, written_at, changed, descriptor, facet.extended_attributes, facet.reparse)
    return Put(replace(change.entry, windows=facet), change.content)


def filetime_of(ns: int) -> int:
    """Return the nearest time that a FILETIME can represent."""
    return basic_information.ns_from_ticks(min(max(basic_information.ticks_from_ns(ns), 0), (1 << 63) - 1))


def tree_of(*stack: list[Change]) -> MemoryTree:
    tree = MemoryTree(streams=True)
    for layer in stack:
        apply(layer, MemorySink(tree))
    return tree


def without_root(changes: list[Change]) -> list[Change]:
    return [change for change in changes if not isinstance(change, Put) or change.entry.path]


def cim(path: Path, changes: list[Change], parent: CimLayer | None = None) -> CimLayer:
    layer = CimLayer(path)
    apply(changes, CimSink(layer, parents=None if parent is None else LayerStack([parent]), windows=False))
    return layer


def lines(layer: CimLayer) -> list[str]:
    with CimTree(layer) as tree:
        return list(dump(without_root(list(walk(tree))), inline=1 << 20, extents=False))


def stated_by(changes: list[Change]) -> list[Change]:
    """Return a base layer as an image stores it, with alternate streams sorted by name."""
    found: list[Change] = [TOP]
    streams: list[Stream] = []
    ends: list[Change] = [*changes, TOP]
    for change in ends:
        if isinstance(change, Stream):
            streams.append(change)
            streams.sort(key=lambda stream: usual_upcase().fold(stream.name))
            continue
        found += streams
        streams.clear()
        if not isinstance(change, Whiteout) and change is not TOP:
            found.append(sayable(change))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(changes=layers())
def test_a_tar_in_walk_order_survives_an_image_unchanged(
    changes: list[Change], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stated = stated_by(changes)
    place = tmp_path_factory.mktemp("cim")
    data = written(without_root(list(walk(tree_of(stated)))))
    layer = CimLayer(place / "x.cim")
    try:
        apply(windows_tar_changes(buffers(data, 4096)), CimSink(layer, windows=False))
    except InvalidInput as error:
        if "is a directory" not in str(error):  # a hard link to a mount point
            raise
        reject()
    out = bytearray()

    def take(piece: Buffer) -> None:
        out.extend(piece)

    with OpenCim(layer) as image:
        found = without_root(list(all_changes(image)))
        apply(found, WindowsTarSink(take, lookup=CimTree(image).lookup))
    assert bytes(out) == data
    assert list(dump(walk(tree_of(stated)), inline=1 << 20))[1:] == lines(layer)


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(changes=layers())
def test_an_image_and_a_layer_folder_show_the_same_tree(
    changes: list[Change], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stated = stated_by(changes)
    place = tmp_path_factory.mktemp("both")
    folder = WindowsLayer(place / "folder")
    try:
        layer = cim(place / "x.cim", stated)
        apply(stated, WindowsSink(folder))
    except InvalidInput:
        reject()  # hard links to mount points
    with FolderChanges(folder) as found:
        below = list(dump(without_root(list(walk(tree_of(list(found))))), inline=1 << 20, extents=False))
    assert lines(layer) == below


NAMES = st.sampled_from(["a", "b", "c"])
KINDS = st.sampled_from(["file", "file", "directory", "link", "symlink", "whiteout", "stream"])
STEPS = st.lists(st.tuples(KINDS, NAMES, st.one_of(st.none(), NAMES), st.binary(max_size=8)), max_size=8)


def entry(path: str, kind: Kind, size: int, mark: int) -> Entry:
    time = mark * 100
    attributes = {Kind.FILE: ARCHIVE, Kind.DIRECTORY: DIRECTORY, Kind.SYMLINK: REPARSE_POINT}[kind]
    target = "..\\x" if kind is Kind.SYMLINK else ""
    point = reparse.encode(reparse.symlink(target)) if target else None
    facet = Windows(attributes, time, time, time, time, b"sd%d" % (mark % 3), reparse=point)
    return Entry(LayerPath(path), kind, None, size, target, facet)


def layer_of(steps: list[tuple[str, str, str | None, bytes]], number: int) -> list[Change]:
    """Return a layer that states every parent directory."""
    mark = number * 1000
    changes: list[Change] = [Put(entry("Files", Kind.DIRECTORY, 0, mark), None)]
    stated = {"Files"}
    last: LayerPath | None = None
    for kind, one, two, data in steps:
        mark += 1
        path = LayerPath(f"Files/{one}" if two is None else f"Files/{one}/{two}")
        parent = path.rpartition("/")[0]
        if kind == "whiteout":
            changes.append(Whiteout(path))
            continue
        if kind == "stream":
            if last is not None:
                changes.append(Stream(last, "s" + one, Inline(data)))
                last = None
            continue
        if parent not in stated:
            changes.append(Put(entry(parent, Kind.DIRECTORY, 0, mark), None))
            stated.add(parent)
        stated.discard(path)
        last = None
        if kind == "link":
            changes.append(Link(path, LayerPath("Files/" + "abc"[len(data) % 3])))
        elif kind == "file":
            changes.append(Put(entry(path, Kind.FILE, len(data), mark), Inline(data)))
            last = path
        else:
            changes.append(Put(entry(path, Kind.DIRECTORY if kind == "directory" else Kind.SYMLINK, 0, mark), None))
            if kind == "directory":
                stated.add(path)
    return changes


@settings(max_examples=120, deadline=None, suppress_health_check=SLOW)
@given(stack=st.lists(STEPS, min_size=2, max_size=4))
def test_a_fork_shows_the_merged_tree_and_yields_its_changes(
    stack: list[list[tuple[str, str, str | None, bytes]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    layers = [layer_of(steps, number) for number, steps in enumerate(stack)]
    try:
        trees = [list(dump(walk(tree_of(*layers[: n + 1])), inline=64, extents=False)) for n in range(len(layers))]
    except (InvalidInput, NotFound):
        reject()
    place = tmp_path_factory.mktemp("forks")
    images: list[CimLayer] = []
    for number, layer in enumerate(layers):
        images.append(cim(place / f"{number}.cim", layer, images[-1] if images else None))
        assert trees[number][1:] == lines(images[-1])
    for low in range(len(images) - 1):
        with OpenCim(images[-1]) as image, OpenCim(images[low]) as below:
            changes = list(changes_since(image, below))
            again = cim(place / f"again{low}.cim", changes, images[low])
        assert lines(images[-1]) == lines(again)
