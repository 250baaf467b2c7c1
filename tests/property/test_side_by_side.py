# SPDX-License-Identifier: Apache-2.0
"""Layers unpacked in parallel give the same tree as layers unpacked one after the other."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.dump import dump
from lamella.changes.model import Buffer, Change, Entry, Kind, Link
from lamella.changes.tree import walk
from lamella.errors import LamellaError
from lamella.host.mounting import mount_points, unmount
from lamella.layers.tar.sink import TarSink
from lamella.paths import ROOT
from lamella.progress import Cancellation
from lamella.store.mounting import mounted
from lamella.store.store import Store
from lamella.store.unpack import image as unpacking
from lamella.store.unpack.image import Unpacked, _Unpacking, unpack_image
from lamella.store.unpack.layer import Advance, LayerResult, LayerTask, LayerUnpacker, unpack_layer
from lamella.testing import builders as b
from lamella.testing.images import image_of_tars, put_image, tar_of
from lamella.testing.strategies import stacks


@contextmanager
def no_layer_knows_its_parent(layers: int) -> Iterator[None]:
    """Unpack all layers in threads before the first one is committed."""
    barrier = threading.Barrier(layers, timeout=20)
    make, wait = _Unpacking._make, _Unpacking._wait_for
    met: set[int] = set()

    def make_later(self: _Unpacking, unpacker: LayerUnpacker, at: int, cancel: Cancellation) -> object:
        if at == 0:
            barrier.wait()
        return make(self, unpacker, at, cancel)

    def wait_together(self: _Unpacking, at: int, cancel: Cancellation) -> None:
        if at not in met:
            met.add(at)
            barrier.wait()
        wait(self, at, cancel)

    def in_this_process(self: LayerUnpacker, task: LayerTask, advance: Advance, cancel: Cancellation) -> LayerResult:
        return unpack_layer(task, advance, cancel)

    with (
        patch.object(_Unpacking, "_make", make_later),
        patch.object(_Unpacking, "_wait_for", wait_together),
        patch.object(LayerUnpacker, "unpack", in_this_process),
        patch.object(unpacking, "_LARGE", 0),
        patch.object(unpacking, "can_fork", lambda: False),
    ):
        yield


def written(changes: list[Change]) -> bytes:
    out = bytearray()

    def write(piece: Buffer) -> None:
        out.extend(piece)

    apply(changes, TarSink(write, root=True))
    return bytes(out)


def unmount_all(root: str) -> None:
    for point in reversed(mount_points(root)):
        unmount(point, lazy=True)


def entries_of(tree: Tree) -> Iterator[Entry]:
    todo = [ROOT]
    while todo:
        for entry in tree.entries(todo.pop()):
            yield entry
            if entry.kind is Kind.DIRECTORY:
                todo.append(entry.path)


def both(tars: list[bytes], snapshotter: str = "overlayfs") -> tuple[list[str], list[str], Unpacked]:
    """Return the trees of an image unpacked serially and in parallel, and the results of the latter."""
    trees = []
    unpacked: Unpacked | None = None
    with tempfile.TemporaryDirectory() as root, Store.open(Path(root) / "store") as store, ExitStack() as after:
        after.callback(unmount_all, root)
        for schedule in (1, len(tars)):
            namespace = store.namespace(f"several{schedule}")
            target = put_image(namespace, image_of_tars(tars, compress=False), "image")
            if schedule == 1:
                unpacked = unpack_image(namespace, target, snapshotter, concurrency=1)
            else:
                with no_layer_knows_its_parent(schedule):
                    unpacked = unpack_image(namespace, target, snapshotter, concurrency=schedule)
            snapshots = namespace.snapshots(snapshotter)
            with snapshots.tree(unpacked.snapshot) as tree:
                trees.append(list(dump(walk(tree), inline=16, extents=False)))
                names = sorted(entry.path for entry in entries_of(tree))
            with mounted(snapshots.view("view", unpacked.snapshot)) as shown:
                assert names == sorted(str(path.relative_to(shown)) for path in shown.rglob("*"))
            assert [one for one in namespace.snapshots(snapshotter).list() if one.name.startswith("extract")] == []
            assert not namespace.leases.list()
    assert unpacked is not None
    return trees[0], trees[1], unpacked


@pytest.mark.root
@settings(max_examples=40)
@given(stacks().filter(lambda stack: 2 <= len(stack) <= 4), st.sampled_from(["overlayfs", "erofs"]))
def test_parallel_and_serial_unpacking_agree_for_any_layers(stack: list[list[Change]], snapshotter: str) -> None:
    try:
        tars = [written(layer) for layer in stack]
    except LamellaError:  # a link to a file of a lower layer
        tars = [written([change for change in layer if not isinstance(change, Link)]) for layer in stack]
    one, beside, _ = both(tars, snapshotter)
    assert one == beside


@pytest.mark.root
@pytest.mark.parametrize(
    ("upper", "again"),
    [
        pytest.param([b.directory("a"), b.file("a/new", b"2")], False, id="all stated"),
        pytest.param([b.file("a/new", b"2")], True, id="a directory that is only implied has its metadata below"),
        pytest.param([b.file("l/new", b"2")], True, id="a link below leads elsewhere"),
        pytest.param([b.directory("a"), b.whiteout("a/file")], False, id="a whiteout of something"),
        pytest.param([b.directory("a"), b.whiteout("a/nothing")], False, id="a whiteout of nothing"),
        pytest.param(
            [b.directory("new", mtime=5), b.whiteout("new/no"), b.file("new/x"), b.directory("l"), b.whiteout("l/no")],
            False,
            id="a whiteout of nothing that would show",
        ),
        pytest.param(
            [
                b.directory("a", mtime=7),
                b.whiteout("a/none"),
                b.file("a/none/x"),
                b.whiteout("a/file"),
                b.whiteout("z"),
            ],
            False,
            id="whiteouts of nothing beside others, and in the way of the layer's own",
        ),
        pytest.param([b.whiteout("none/x")], True, id="a whiteout where there is no directory"),
        pytest.param([b.link("hard", "a/file")], True, id="a link to a file below"),
        pytest.param([b.opaque("")], True, id="the root made opaque"),
        pytest.param([b.directory("a"), b.opaque("a"), b.file("a/x", b"3")], False, id="opaque"),
        pytest.param([b.file("a", b"now a file")], False, id="a file in a directory's place"),
        pytest.param([b.directory("a/file"), b.file("a/file/x", b"3")], True, id="a directory in a file's place"),
        pytest.param([b.directory("", mode=0o755, mtime=0), b.file("x")], True, id="a root stated as if it were not"),
        pytest.param([b.directory("", mode=0o711), b.file("x")], False, id="a root of its own"),
    ],
)
@pytest.mark.parametrize("snapshotter", ["overlayfs", "erofs"])
def test_a_layer_that_depends_on_a_lower_one_is_unpacked_over_it(
    upper: list[Change], again: bool, snapshotter: str
) -> None:
    lower: list[Change] = [
        b.directory("", mode=0o700),
        b.directory("a", mode=0o750),
        b.file("a/file", b"1"),
        b.symlink("l", "a"),
        b.directory("d"),
        b.file("d/x"),
    ]
    raw = [written(lower)]
    raw.append(tar_with_links(upper))
    one, beside, unpacked = both(raw, snapshotter)
    assert one == beside
    assert [False, again] == [layer.again for layer in unpacked.layers]


def tar_with_links(changes: list[Change]) -> bytes:
    """Return a tar that may have a hard link to a file that it does not contain."""
    links = [change for change in changes if isinstance(change, Link)]
    if not links:
        return written(changes)
    return tar_of({change.path: (b"1", change.target) for change in links})
