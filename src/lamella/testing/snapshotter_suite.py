# SPDX-License-Identifier: Apache-2.0
"""What every snapshotter promises (`lamella.store.contract.Snapshotter`) through real mounts, and of its graph.

Mounts need the rights to make them. Whoever binds the suite unmounts what is left beneath ``tmp_path`` after each test.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.changes.apply import apply
from lamella.changes.losses import Losses
from lamella.changes.model import Change
from lamella.changes.tree import merge
from lamella.errors import Conflict, Denied, InvalidInput, NotFound, Unsupported
from lamella.layers.directory.tree import DirectoryTree
from lamella.store.contract import Mount
from lamella.store.mounting import mounted
from lamella.store.snapshots.driver import UnpackingSnapshotter
from lamella.testing.builders import WHEN, device, directory, fifo, file, link, opaque, sparse, symlink, whiteout
from lamella.testing.reading import outline, raises, text
from lamella.testing.snapshot_graph_suite import SnapshotGraphTests


class SnapshotterTests(SnapshotGraphTests):
    """A snapshotter whose mounts show files. Inherit and say how to make one."""

    copies = False
    """Whether each snapshot has all that its parents have."""
    depth = 128
    """Layers that it is to manage."""

    def test_what_was_removed_can_be_made_again(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        for content in (b"1", b"2"):
            self.committed(snapshots, "base", file("f", content))
            with _seen(snapshots.view("view", "base")) as root:
                assert (root / "f").read_bytes() == content
            snapshots.remove("view")
            snapshots.remove("base")

    def test_usage_is_that_of_the_snapshot_alone(self, tmp_path: Path) -> None:
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

    def test_a_parent_may_come_with_the_commit_where_the_driver_can_rebase(self, tmp_path: Path) -> None:
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

    # What a mount shows

    def test_the_root_of_a_new_snapshot_is_open_to_all(self, tmp_path: Path) -> None:
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

    def test_the_root_of_a_child_is_that_of_its_parent(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base", directory("", mode=0o1770, uid=5, gid=6, mtime=WHEN))
        for mounts in (snapshots.prepare("active", "base"), snapshots.view("view", "base")):
            with _seen(mounts) as root:
                status = root.stat()
                assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o1770, 5, 6)
                assert status.st_mtime_ns == WHEN

    def test_what_is_written_to_a_mount_is_in_its_children_alone(self, tmp_path: Path) -> None:
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

    def test_removals_and_renames_pass_through_commits(self, tmp_path: Path) -> None:
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
            assert expected == outline(tree)
        with snapshots.tree("3") as unmounted:
            assert expected == outline(unmounted)
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
                assert expected == text(tree)
                assert (root / "d" / "again").stat().st_ino == (root / "d" / "setuid").stat().st_ino
                assert (root / "holes").stat().st_size == 8 << 20
            with snapshots.tree(key) as unmounted:
                assert expected == text(unmounted)
        assert snapshots.usage("base").size < 1 << 20

    def test_layers_that_are_applied_show_what_they_mean(self, tmp_path: Path) -> None:
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
                assert _without_links(expected) == _without_links(text(tree))
            with _seen(snapshots.view(f"view {number}", parent)) as root, DirectoryTree(root) as shown:
                assert _without_links(expected) == _without_links(text(shown))

    def test_as_many_layers_as_images_have(self, tmp_path: Path) -> None:
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

    def test_a_snapshot_goes_although_it_is_mounted(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base", file("f", b"1"))
        with _seen(snapshots.prepare("a", "base")):
            snapshots.remove("a")
            snapshots.remove("base")
        assert snapshots.list() == []
        snapshots.cleanup()


class ReadOnlySnapshotterTests:
    """A snapshotter over a store that nothing may be written to. Inherit and say how to make one."""

    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        """A snapshotter that has the committed snapshot ``base`` with a file ``f``, and its view ``view``."""
        raise NotImplementedError

    def test_what_is_there_can_be_seen_and_nothing_changed(self, tmp_path: Path) -> None:
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
    """Lines of `text` without hard links, which overlays have within one layer alone."""
    return [line for line in lines if not line.startswith("link ")]
