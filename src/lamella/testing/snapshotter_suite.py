# SPDX-License-Identifier: Apache-2.0
"""Contract suites of snapshotters (`lamella.store.contract.Snapshotter`), through real mounts.

Mounting needs privileges. The binding unmounts what remains beneath ``tmp_path`` after each test.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from lamella.changes.apply import apply
from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.changes.model import Change
from lamella.changes.tree import merge
from lamella.errors import Conflict, Denied, InvalidInput, NotFound, Unsupported
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.store.contract import (
    NO_LABELS,
    BindMount,
    Labels,
    Mount,
    OverlayMount,
    SnapshotKind,
    SnapshotRecord,
    Snapshotter,
    Usage,
)
from lamella.store.mounting import mounted
from lamella.store.snapshots.driver import OpenTree, UnpackingSnapshotter
from lamella.testing.builders import WHEN, device, directory, fifo, file, link, opaque, sparse, symlink, whiteout
from lamella.testing.reading import outline, raises, text
from lamella.testing.snapshot_graph_suite import SnapshotGraphTests


class MountedSnapshots:
    """Adds ``sink`` and ``tree`` to a plain `Snapshotter`, by way of its mounts, as a differ does.

    Set ``whole`` for a snapshotter whose snapshots are full copies of their parents; it cannot rebase.
    """

    def __init__(self, snapshots: Snapshotter, *, whole: bool = False) -> None:
        self.name = snapshots.name
        self.can_rebase = not whole
        self._snapshots = snapshots

    def sink(
        self, key: str, *, policy: Policy | None = None, losses: Losses | None = None, parents_known: bool = True
    ) -> Sink[Losses]:
        if not (parents_known or self.can_rebase):
            raise Unsupported("this snapshotter needs the parent before the layer is unpacked")
        match self._snapshots.mounts(key):
            case (BindMount(source, False),) if not self.can_rebase:
                return DirectorySink(source, policy=policy, losses=losses)
            case (BindMount(source, False),):
                none: LayerStack[OverlayLayer] = LayerStack(())
                parents = none if parents_known else None
                return OverlaySink(OverlayLayer(source), parents=parents, policy=policy, losses=losses)
            case (OverlayMount(lower, upper, _, _),) if upper is not None:
                below = LayerStack.from_nearest([OverlayLayer(path) for path in lower])
                return OverlaySink(OverlayLayer(upper), parents=below, policy=policy, losses=losses)
            case mounts:
                raise Conflict(f"no writable mount in {mounts}")

    @contextmanager
    def _tree(self, key: str) -> Iterator[DirectoryTree]:
        view = ""
        if self.stat(key).kind is SnapshotKind.COMMITTED:
            view = f"view {secrets.token_hex(8)}"
            mounts = self.view(view, key)
        else:
            mounts = self.mounts(key)
        try:
            with mounted(mounts) as root, DirectoryTree(root, owners="actual") as tree:
                yield tree
        finally:
            if view:
                self.remove(view)

    def tree(self, key: str) -> OpenTree:
        return cast("OpenTree", self._tree(key))

    def stat(self, key: str) -> SnapshotRecord:
        return self._snapshots.stat(key)

    def list(self, filters: Sequence[str] = ()) -> list[SnapshotRecord]:
        return self._snapshots.list(filters)

    def update(self, key: str, labels: Labels, fields: Sequence[str] = ()) -> SnapshotRecord:
        return self._snapshots.update(key, labels, fields)

    def usage(self, key: str) -> Usage:
        return self._snapshots.usage(key)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        return self._snapshots.mounts(key)

    def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        return self._snapshots.prepare(key, parent, labels)

    def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        return self._snapshots.view(key, parent, labels)

    def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        self._snapshots.commit(name, key, labels, parent)

    def remove(self, key: str) -> None:
        self._snapshots.remove(key)

    def cleanup(self) -> None:
        self._snapshots.cleanup()


class SnapshotterTests(SnapshotGraphTests):
    """Contract of snapshotters, files included. A binding defines ``make``."""

    copies = False
    """Whether each snapshot is a full copy of its parent."""
    depth = 128
    """Number of layers that the snapshotter must support in one chain."""

    def test_a_removed_name_can_be_used_again(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        for content in (b"1", b"2"):
            self.committed(snapshots, "base", file("f", content))
            with _seen(snapshots.view("view", "base")) as root:
                assert (root / "f").read_bytes() == content
            snapshots.remove("view")
            snapshots.remove("base")

    def test_usage_excludes_the_parents(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "empty")
        block = os.urandom(300_000)
        self.committed(snapshots, "base", directory(""), file("big", block), link("again", "big"))
        base = snapshots.usage("base")
        assert 300_000 <= base.size < 400_000
        snapshots.prepare("top", "base")
        apply([file("small", b"1")], snapshots.sink("top"))
        assert snapshots.usage("top").inodes == (3 if self.copies else 2)
        snapshots.commit("layer", "top")
        layer, empty = snapshots.usage("layer"), snapshots.usage("empty")
        assert (layer.size > 300_000) is self.copies
        assert (empty.inodes, empty.size <= layer.size) == (1, True)
        with raises(NotFound):
            snapshots.usage("missing")

    def test_commit_accepts_a_parent_if_the_snapshotter_can_rebase(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base", directory("", mode=0o750), file("f", b"1"), file("gone"))
        self.committed(snapshots, "other")
        snapshots.prepare("alone")
        if not snapshots.can_rebase:
            with raises(Unsupported):
                snapshots.sink("alone", parents_known=False)
            with raises(Unsupported):
                snapshots.commit("top", "alone", parent="base")
            assert snapshots.stat("alone").parent == ""
            return
        apply([file("g", b"2"), whiteout("gone")], snapshots.sink("alone", parents_known=False))
        with raises(NotFound):
            snapshots.commit("top", "alone", parent="missing")
        snapshots.view("view")
        with raises(InvalidInput):
            snapshots.commit("top", "alone", parent="view")
        snapshots.commit("top", "alone", parent="base")
        assert snapshots.stat("top").parent == "base"
        with _seen(snapshots.view("seen", "top")) as root:
            assert sorted(os.listdir(root)) == ["f", "g"]
            assert stat.S_IMODE(root.stat().st_mode) == 0o750
        snapshots.prepare("on base", "base")
        with raises(Conflict):
            snapshots.commit("third", "on base", parent="other")
        snapshots.commit("third", "on base", parent="base")

    # Content of the mounts

    def test_the_root_of_a_new_snapshot_has_mode_0755(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        before = os.umask(0o077)
        try:
            mounts = snapshots.prepare("new")
        finally:
            os.umask(before)
        with _seen(mounts) as root:
            status = root.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o755, 0, 0)
            assert os.listdir(root) == []

    def test_the_root_of_a_child_has_the_metadata_of_its_parent(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base", directory("", mode=0o1770, uid=5, gid=6, mtime=WHEN))
        for mounts in (snapshots.prepare("active", "base"), snapshots.view("view", "base")):
            with _seen(mounts) as root:
                status = root.stat()
                assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o1770, 5, 6)
                assert status.st_mtime_ns == WHEN

    def test_writes_to_a_mount_appear_only_in_its_children(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        with _seen(snapshots.prepare("a")) as root:
            (root / "dir").mkdir()
            (root / "dir" / "file").write_text("one")
        snapshots.commit("base", "a")
        with _seen(snapshots.prepare("b", "base")) as root:
            assert (root / "dir" / "file").read_text() == "one"
            (root / "dir" / "file").write_text("two")
            (root / "new").write_text("new")
        with _seen(snapshots.mounts("b")) as root:
            assert (root / "dir" / "file").read_text() == "two"
        with _seen(snapshots.prepare("c", "base")) as root:
            assert sorted(os.listdir(root)) == ["dir"]
            assert (root / "dir" / "file").read_text() == "one"
        snapshots.commit("top", "b")
        with _seen(snapshots.view("v", "top")) as root:
            assert ((root / "dir" / "file").read_text(), (root / "new").read_text()) == ("two", "new")

    def test_commits_keep_removals_and_renames(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        with _seen(snapshots.prepare("1")) as root:
            for name in ("gone", "moved", "was file"):
                (root / name).write_text(name)
            for name in ("tree", "again", "was directory"):
                (root / name).mkdir()
                (root / name / "old").write_text(name)
        snapshots.commit("layer 1", "1")
        with _seen(snapshots.prepare("2", "layer 1")) as root:
            (root / "gone").unlink()
            (root / "moved").rename(root / "here")
            (root / "was file").unlink()
            (root / "was file").mkdir()
            _remove(root / "again")
            (root / "again").mkdir()
            (root / "again" / "new").write_text("new")
            _remove(root / "was directory")
            (root / "was directory").write_text("file")
            _remove(root / "tree")
        snapshots.commit("layer 2", "2")
        expected = {
            "again": "directory",
            "again/new": "file new",
            "here": "file moved",
            "was directory": "file file",
            "was file": "directory",
        }
        with _seen(snapshots.view("3", "layer 2")) as root, DirectoryTree(root) as tree:
            assert outline(tree) == expected
        with snapshots.tree("3") as unmounted:
            assert outline(unmounted) == expected
        self.committed(snapshots, "layer 3", file("again/newer", b"3"), parent="layer 2")
        with _seen(snapshots.prepare("4", "layer 3")) as root:
            assert sorted(os.listdir(root / "again")) == ["new", "newer"]

    def test_a_view_refuses_writes(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "one", file("f", b"1"))
        self.committed(snapshots, "two", file("g", b"2"), parent="one")
        for parent in ("", "one", "two"):
            with _seen(snapshots.view(f"view of {parent}", parent)) as root:
                for attempt in (
                    lambda root=root: (root / "new").write_text("x"),
                    lambda root=root: root.chmod(0o700),
                    lambda root=root: (root / "f").unlink(),
                    lambda root=root: os.utime(root, (1, 1)),
                ):
                    with raises(OSError):
                        attempt()
            with raises(Conflict):
                snapshots.sink(f"view of {parent}")

    def test_all_metadata_is_kept(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        capability = bytes.fromhex("0100000202000000000000000000000000000000")
        layer: list[Change] = [
            directory("", mtime=WHEN + 1),
            directory("d", mode=0o2750, uid=10, gid=11, mtime=WHEN + 2, xattrs={"user.d": b"1"}),
            file("d/setuid", b"x", mode=0o4755, uid=12, gid=13, mtime=WHEN + 3),
            file("capable", b"y", mode=0o755, xattrs={"security.capability": capability, "user.a": b"\0\xff"}),
            file("secret", mode=0, mtime=-5_000_000_001),
            file("old", uid=70_000, gid=80_000),
            symlink("link", "d/setuid", uid=14, mtime=WHEN + 4),
            fifo("fifo"),
            device("null", 1, 3),
            file("holes", sparse(8 << 20, [(1 << 20, b"data" * 1024)])),
            link("d/again", "d/setuid"),
        ]
        self.committed(snapshots, "base", *layer)
        expected = text(merge([layer]))
        for key, mounts in (("a", snapshots.prepare("a", "base")), ("v", snapshots.view("v", "base"))):
            with _seen(mounts) as root, DirectoryTree(root, owners="actual") as tree:
                assert text(tree) == expected
                assert (root / "d" / "again").stat().st_ino == (root / "d" / "setuid").stat().st_ino
                assert (root / "holes").stat().st_size == 8 << 20
            with snapshots.tree(key) as unmounted:
                assert text(unmounted) == expected
        assert snapshots.usage("base").size < 1 << 20

    def test_applied_layers_show_their_merged_tree(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        layers: list[list[Change]] = [
            [
                directory("", mtime=0),
                directory("usr", mode=0o700, mtime=1),
                directory("usr/lib", mtime=2),
                symlink("lib", "usr/lib"),
                file("usr/lib/a", b"a"),
                file("usr/lib/b", b"b"),
                directory("opaque"),
                file("opaque/old", b"old"),
                file("gone"),
                directory("replaced"),
                file("replaced/inside"),
            ],
            [
                file("lib/c", b"c"),
                whiteout("lib/a"),
                opaque("opaque"),
                file("opaque/new", b"new"),
                whiteout("gone"),
                file("replaced", b"now a file"),
                link("b again", "usr/lib/b"),
            ],
            [whiteout("opaque"), directory("opaque", mode=0o711), file("gone", b"back"), whiteout("b again")],
        ]
        parent = ""
        losses = Losses()
        for number, layer in enumerate(layers):
            snapshots.prepare(f"key {number}", parent)
            apply(layer, snapshots.sink(f"key {number}", losses=losses))
            snapshots.commit(f"layer {number}", f"key {number}")
            parent = f"layer {number}"
            expected = text(merge(layers[: number + 1]))
            with snapshots.tree(parent) as tree:
                assert _without_links(text(tree)) == _without_links(expected)
            with _seen(snapshots.view(f"view {number}", parent)) as root, DirectoryTree(root) as shown:
                assert _without_links(text(shown)) == _without_links(expected)

    def test_a_chain_of_the_maximum_depth_works(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        parent = ""
        for number in range(self.depth - 1):
            snapshots.prepare("key", parent)
            changes = [file("all", str(number).encode()), file(f"f{number}")]
            if number % 2:
                changes.append(file("shared/odd", str(number).encode()))
            apply(changes if number else [directory(""), directory("shared"), *changes], snapshots.sink("key"))
            parent = f"layer {number}"
            snapshots.commit(parent, "key")
        with _seen(snapshots.prepare("top", parent)) as root:
            assert len(os.listdir(root)) == self.depth - 1 + 2
            assert (root / "all").read_text() == str(self.depth - 2)
            (root / "f0").unlink()
            (root / "f1").write_text("changed")
        with _seen(snapshots.mounts("top")) as root:
            assert not (root / "f0").exists()
            assert (root / "f1").read_text() == "changed"
        snapshots.remove("top")
        with _seen(snapshots.view("view", parent)) as root:
            assert len(os.listdir(root)) == self.depth - 1 + 2
            with raises(OSError):
                (root / "new").write_text("")

    def test_a_mounted_snapshot_can_be_removed(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base", file("f", b"1"))
        with _seen(snapshots.prepare("a", "base")):
            snapshots.remove("a")
            snapshots.remove("base")
        assert snapshots.list() == []
        snapshots.cleanup()


class ReadOnlySnapshotterTests:
    """Contract of snapshotters over a read-only store. A binding defines ``make``."""

    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        """Return a snapshotter with the committed snapshot ``base``, which has a file ``f``, and its view ``view``."""
        raise NotImplementedError

    def test_snapshots_can_be_mounted_but_not_changed(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        assert [one.name for one in snapshots.list()] == ["base", "view"]
        with _seen(snapshots.mounts("view")) as root:
            assert os.listdir(root) == ["f"]
        for change in (
            lambda: snapshots.prepare("new"),
            lambda: snapshots.view("new", "base"),
            lambda: snapshots.remove("view"),
            lambda: snapshots.update("view", {"a": "b"}),
            lambda: snapshots.commit("new", "view"),
            snapshots.cleanup,
        ):
            with raises(Denied):
                change()


@contextmanager
def _seen(mounts: tuple[Mount, ...]) -> Iterator[Path]:
    with mounted(mounts) as root:
        yield root


def _remove(tree: Path) -> None:
    for inside in tree.iterdir():
        inside.unlink()
    tree.rmdir()


def _without_links(lines: Iterable[str]) -> list[str]:
    """Drop hard links from lines of `text`: an overlay keeps them only within one layer."""
    return [line for line in lines if not line.startswith("link ")]
