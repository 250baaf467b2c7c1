# SPDX-License-Identifier: Apache-2.0
"""Contract suite of the snapshot graph: names, parents, labels and states, independent of the files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lamella.changes.apply import apply
from lamella.changes.model import Change
from lamella.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from lamella.store.contract import SnapshotKind
from lamella.store.snapshots.driver import UnpackingSnapshotter
from lamella.testing.builders import file
from lamella.testing.reading import raises

REF = "containerd.io/snapshot.ref"


class SnapshotGraphTests:
    """Contract of names, parents, labels and states. A binding defines ``make``."""

    def make(self, tmp_path: Path) -> UnpackingSnapshotter:
        """Return a snapshotter without snapshots; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    def layer(self, changes: Iterable[Change], parent: str) -> Iterable[Change]:  # noqa: ARG002
        """Return ``changes`` as this kind of layer needs them above ``parent``, which is empty for a base layer."""
        return changes

    def committed(self, snapshots: UnpackingSnapshotter, name: str, *changes: Change, parent: str = "") -> None:
        """Commit a snapshot with ``changes``."""
        key = f"making {name}"
        snapshots.prepare(key, parent)
        apply(self.layer(changes, parent), snapshots.sink(key))
        snapshots.commit(name, key)

    def test_stat_list_and_mounts_agree_on_a_new_snapshot(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        mounts = snapshots.prepare("a key", labels={"k": "v", "none": ""})
        record = snapshots.stat("a key")
        assert (record.name, record.parent, record.kind) == ("a key", "", SnapshotKind.ACTIVE)
        assert record.created_at == record.updated_at > 0
        assert dict(record.labels) == {"k": "v"}
        assert snapshots.list() == [record]
        assert snapshots.mounts("a key") == mounts

    def test_keys_are_arbitrary_text(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        keys = ["1", "../up", "/", "a b/c d", "new-1", "snow ☃", "' OR 1=1 --"]
        for key in keys:
            snapshots.prepare(key)
        assert [one.name for one in snapshots.list()] == sorted(keys)
        with raises(InvalidInput):
            snapshots.prepare("")
        for key in keys:
            snapshots.remove(key)
        assert snapshots.list() == []

    def test_keys_and_names_are_unique(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base")
        snapshots.prepare("active", "base")
        snapshots.view("view", "base")
        for taken in ("base", "active", "view"):
            with raises(AlreadyExists):
                snapshots.prepare(taken)
            with raises(AlreadyExists):
                snapshots.view(taken, "base")
            with raises(AlreadyExists):
                snapshots.commit(taken, "active")
        assert [one.name for one in snapshots.list()] == ["active", "base", "view"]
        assert snapshots.stat("active").kind is SnapshotKind.ACTIVE

    def test_a_parent_must_exist_and_be_committed(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        snapshots.prepare("active")
        snapshots.view("view")
        for make in (snapshots.prepare, snapshots.view):
            with raises(NotFound):
                make("child", "missing")
            for parent in ("active", "view"):
                with raises(InvalidInput):
                    make("child", parent)
        assert [one.name for one in snapshots.list()] == ["active", "view"]

    def test_only_an_active_snapshot_can_be_committed(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        snapshots.view("view")
        self.committed(snapshots, "base")
        with raises(NotFound):
            snapshots.commit("new", "missing")
        for key in ("view", "base"):
            with raises(Conflict):
                snapshots.commit("new", key)
        assert [one.name for one in snapshots.list()] == ["base", "view"]

    def test_a_commit_replaces_the_key_and_its_labels(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        snapshots.prepare("key", labels={"of the key": "1"})
        before = snapshots.stat("key")
        snapshots.commit("name", "key", labels={"of the name": "2"})
        record = snapshots.stat("name")
        assert (record.kind, dict(record.labels)) == (SnapshotKind.COMMITTED, {"of the name": "2"})
        assert record.created_at == record.updated_at > before.created_at
        for ask in (snapshots.stat, snapshots.mounts, snapshots.usage, snapshots.remove):
            with raises(NotFound):
                ask("key")
        snapshots.prepare("key", "name")
        assert snapshots.stat("key").parent == "name"

    def test_a_committed_snapshot_has_no_mounts(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base")
        with raises(Conflict):
            snapshots.mounts("base")

    def test_a_snapshot_with_children_cannot_be_removed(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base", file("f", b"1"))
        snapshots.prepare("child", "base")
        message = ""
        try:
            snapshots.remove("base")
        except Conflict as error:
            message = str(error)
        assert "remove" in message
        snapshots.remove("child")
        snapshots.remove("base")
        assert snapshots.list() == []
        with raises(NotFound):
            snapshots.remove("base")

    def test_labels_are_replaced_together_or_one_by_one(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        snapshots.prepare("key", labels={"a": "1", "b.c/d": "2"})
        before = snapshots.stat("key")
        record = snapshots.update("key", {"b.c/d": "3", "a": "ignored"}, ["labels.b.c/d"])
        assert dict(record.labels) == {"a": "1", "b.c/d": "3"}
        assert record == snapshots.stat("key")
        assert (record.created_at, record.updated_at > before.updated_at) == (before.created_at, True)
        assert dict(snapshots.update("key", {"a": ""}, ["labels.a"]).labels) == {"b.c/d": "3"}
        assert dict(snapshots.update("key", {"z": "9"}).labels) == {"z": "9"}
        for field in ("name", "parent", "kind", "created_at", "labels."):
            with raises(InvalidInput):
                snapshots.update("key", {}, [field])
        with raises(InvalidInput):
            snapshots.update("key", {"k": "v" * 4096})
        with raises(NotFound):
            snapshots.update("missing", {})

    def test_filters_choose_by_name_parent_kind_and_labels(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "base")
        snapshots.prepare("active", "base", labels={"tier/x": "gold"})
        snapshots.view("view", "base")

        def names(*filters: str) -> list[str]:
            return [one.name for one in snapshots.list(filters)]

        assert names("name==base") == ["base"]
        assert names("parent==base") == ["active", "view"]
        assert names('parent==""') == ["base"]
        assert names("parent") == ["active", "base", "view"]
        assert names("kind==committed", "kind==view") == ["base", "view"]
        assert names('labels."tier/x"==gold') == ["active"]
        assert names("kind==active,parent==other") == []
        with raises(InvalidInput):
            names("kind===")

    def test_prepare_for_an_existing_layer_raises_already_exists(self, tmp_path: Path) -> None:
        snapshots = self.make(tmp_path)
        self.committed(snapshots, "layer")
        snapshots.prepare("under way")
        with raises(AlreadyExists):
            snapshots.prepare("other", labels={REF: "layer"})
        with raises(NotFound):
            snapshots.stat("other")
        snapshots.prepare("first", labels={REF: "new layer"})
        snapshots.prepare("second", labels={REF: "under way"})
