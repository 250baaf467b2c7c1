# SPDX-License-Identifier: Apache-2.0
"""The Snapshots service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from tests.unit.service.serving import Client, Served, Stub, code_of, running, within

from lamella.protocol.proto import snapshots_pb2 as pb
from lamella.protocol.proto.happenings_pb2 import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from lamella.service.endpoints.plugin import Plugin, plugin_methods
from lamella.store.gc.collect import collect
from lamella.store.store import Store

KIND: Final = "overlayfs"
LABELS: Final = {"containerd.io/gc.root": "now"}


class Snapshots:
    """The calls of a client, each with the snapshotter and the namespace filled in."""

    def __init__(
        self, channel: grpc.Channel, kind: str = KIND, metadata: Any = None, labels: Mapping[str, str] = LABELS
    ) -> None:
        self.stub = Stub(channel, pb.DESCRIPTOR)
        self._kind = kind
        self._metadata = within() if metadata is None else metadata
        self._labels = labels

    def prepare(self, key: str, parent: str = "", **labels: str) -> list[Any]:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._kind, key=key, parent=parent, labels={**self._labels, **labels}
        )
        return list(self.stub.Prepare(request, metadata=self._metadata).mounts)

    def view(self, key: str, parent: str = "") -> list[Any]:
        request = pb.ViewSnapshotRequest(snapshotter=self._kind, key=key, parent=parent, labels=self._labels)
        return list(self.stub.View(request, metadata=self._metadata).mounts)

    def mounts(self, key: str) -> list[Any]:
        return list(self.stub.Mounts(pb.MountsRequest(snapshotter=self._kind, key=key), metadata=self._metadata).mounts)

    def commit(self, name: str, key: str, parent: str = "") -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=self._kind, name=name, key=key, parent=parent, labels=self._labels
        )
        self.stub.Commit(request, metadata=self._metadata)

    def remove(self, key: str) -> None:
        self.stub.Remove(pb.RemoveSnapshotRequest(snapshotter=self._kind, key=key), metadata=self._metadata)

    def stat(self, key: str) -> Any:
        return self.stub.Stat(pb.StatSnapshotRequest(snapshotter=self._kind, key=key), metadata=self._metadata).info

    def list(self, *filters: str) -> list[Any]:
        request = pb.ListSnapshotsRequest(snapshotter=self._kind, filters=filters)
        return [info for page in self.stub.List(request, metadata=self._metadata) for info in page.info]

    def base(self, name: str, parent: str = "") -> None:
        self.prepare(f"{name}-key", parent)
        self.commit(name, f"{name}-key", "")


@pytest.fixture
def snapshots(client: Client) -> Snapshots:
    return Snapshots(client.channel)


@pytest.mark.parametrize("kind", ["overlayfs", "native", "overlay", "directory"])
def test_a_snapshot_goes_its_way(kind: str, client: Client) -> None:
    snapshots = Snapshots(client.channel, kind)
    prepared = snapshots.prepare("a key/of sorts")
    assert prepared == snapshots.mounts("a key/of sorts")
    assert [(mount.type, list(mount.options)) for mount in prepared] == [("bind", ["rw", "rbind"])]
    Path(prepared[0].source, "file").write_text("text")
    info = snapshots.stat("a key/of sorts")
    assert (pb.ACTIVE, "", info.created_at) == (info.kind, info.parent, info.updated_at)
    snapshots.commit("base", "a key/of sorts")
    assert grpc.StatusCode.NOT_FOUND is code_of(lambda: snapshots.stat("a key/of sorts"))
    assert snapshots.stat("base").kind == pb.COMMITTED
    (view,) = snapshots.view("look", "base")
    assert (view.type, list(view.options)) == ("bind", ["ro", "rbind"])
    assert Path(view.source, "file").read_text() == "text"
    (upper,) = snapshots.prepare("upper", "base")
    assert upper.type == ("overlay" if kind.startswith("overlay") else "bind")
    assert snapshots.list() == [snapshots.stat(key) for key in ("base", "look", "upper")]


def test_overlay_mounts_have_the_words_of_containerds(snapshots: Snapshots, served: Served) -> None:
    snapshots.base("one")
    snapshots.base("two", "one")
    (mount,) = snapshots.prepare("three", "two")
    home = served.store.root / "snapshots/overlayfs"
    assert [f"workdir={home}/3/work", f"upperdir={home}/3/fs", f"lowerdir={home}/2/fs:{home}/1/fs"] == list(
        mount.options[:3]
    )
    (mount,) = snapshots.view("look", "two")
    assert ("overlay", f"lowerdir={home}/2/fs:{home}/1/fs") == (mount.type, mount.options[0])
    assert not any(option.startswith(("upperdir", "workdir")) for option in mount.options)


def refused(snapshots: Snapshots) -> dict[str, tuple[str, Callable[[], object]]]:
    """Calls that fail, and how."""
    stub, meta = snapshots.stub, within()
    return {
        "taken key": ("ALREADY_EXISTS", lambda: snapshots.prepare("active")),
        "taken name": ("ALREADY_EXISTS", lambda: snapshots.commit("base", "active")),
        "view of a taken key": ("ALREADY_EXISTS", lambda: snapshots.view("base")),
        "unknown parent": ("NOT_FOUND", lambda: snapshots.prepare("new", "nobody")),
        "active parent": ("INVALID_ARGUMENT", lambda: snapshots.prepare("new", "active")),
        "commit of a view": ("FAILED_PRECONDITION", lambda: snapshots.commit("new", "view")),
        "commit of a committed one": ("FAILED_PRECONDITION", lambda: snapshots.commit("new", "base")),
        "commit of an unknown one": ("NOT_FOUND", lambda: snapshots.commit("new", "nobody")),
        "commit of a second parent": ("FAILED_PRECONDITION", lambda: snapshots.commit("new", "child", "other")),
        "mounts of a committed one": ("FAILED_PRECONDITION", lambda: snapshots.mounts("base")),
        "mounts of an unknown one": ("NOT_FOUND", lambda: snapshots.mounts("nobody")),
        "removal of a parent": ("FAILED_PRECONDITION", lambda: snapshots.remove("base")),
        "removal of an unknown one": ("NOT_FOUND", lambda: snapshots.remove("nobody")),
        "unknown": ("NOT_FOUND", lambda: snapshots.stat("nobody")),
        "filter": ("INVALID_ARGUMENT", lambda: snapshots.list("name==")),
        "no snapshotter": ("INVALID_ARGUMENT", lambda: stub.Stat(pb.StatSnapshotRequest(key="base"), metadata=meta)),
        "unknown snapshotter": (
            "INVALID_ARGUMENT",
            lambda: stub.Stat(pb.StatSnapshotRequest(snapshotter="zfs", key="base"), metadata=meta),
        ),
        "no namespace": (
            "FAILED_PRECONDITION",
            lambda: stub.Stat(pb.StatSnapshotRequest(snapshotter=KIND, key="base")),
        ),
        "a mask with a parent": (
            "INVALID_ARGUMENT",
            lambda: update(snapshots, pb.Info(name="base", parent="x"), "parent"),
        ),
    }


def update(snapshots: Snapshots, info: Any, *paths: str) -> Any:
    request = pb.UpdateSnapshotRequest(snapshotter=KIND, info=info, update_mask={"paths": paths})
    return snapshots.stub.Update(request, metadata=within()).info


@pytest.mark.parametrize("case", list(refused(Snapshots(grpc.insecure_channel("unix:none")))))
def test_what_cannot_be_is_refused_as_containerd_does(case: str, snapshots: Snapshots) -> None:
    snapshots.base("base")
    snapshots.base("other")
    snapshots.prepare("child", "base")
    snapshots.prepare("active")
    snapshots.view("view")
    code, call = refused(snapshots)[case]
    assert code == code_of(call).name


def test_a_layer_that_is_there_is_not_made_again(snapshots: Snapshots) -> None:
    snapshots.base("sha256:1")
    label = {"containerd.io/snapshot.ref": "sha256:1"}
    assert grpc.StatusCode.ALREADY_EXISTS is code_of(lambda: snapshots.prepare("again", **label))
    assert [info.name for info in snapshots.list()] == ["sha256:1"]


def test_a_parent_may_come_with_the_commit(snapshots: Snapshots) -> None:
    snapshots.base("base")
    snapshots.prepare("key")
    snapshots.commit("upper", "key", parent="base")
    assert snapshots.stat("upper").parent == "base"


def test_labels_are_changed_and_nothing_else(snapshots: Snapshots) -> None:
    snapshots.base("base")
    before = snapshots.stat("base")
    zero = {"seconds": -62135596800}
    sent = pb.Info(name="base", parent="x", kind=pb.VIEW, created_at=zero, updated_at=zero, labels={"a.b/c": "1"})
    after = update(snapshots, sent, "labels.a.b/c")
    assert {**before.labels, "a.b/c": "1"} == dict(after.labels)
    assert (before.kind, before.parent, before.created_at) == (after.kind, after.parent, after.created_at)
    assert dict(update(snapshots, sent).labels) == {"a.b/c": "1"}


def test_usage_is_of_the_snapshot_alone(snapshots: Snapshots) -> None:
    (mount,) = snapshots.prepare("key")
    Path(mount.source, "file").write_bytes(bytes(100_000))
    snapshots.commit("base", "key")
    snapshots.base("upper", "base")

    def usage(key: str) -> Any:
        return snapshots.stub.Usage(pb.UsageRequest(snapshotter=KIND, key=key), metadata=within())

    assert usage("base").inodes == 2
    assert usage("base").size >= 100_000
    assert usage("upper").inodes == 1
    assert usage("upper").size < 100_000


def test_a_long_list_comes_in_several_messages(client: Client, served: Served) -> None:
    kept = served.store.namespace("default").snapshots(KIND)
    for number in range(101):
        kept.view(f"{number:03}", labels=LABELS)
    request = pb.ListSnapshotsRequest(snapshotter=KIND)
    pages = [len(page.info) for page in Stub(client.channel, pb.DESCRIPTOR).List(request, metadata=within())]
    assert pages == [100, 1]


def test_changes_of_snapshots_are_published(snapshots: Snapshots, served: Served) -> None:
    told: list[tuple[str, object]] = []
    served.shared.bus.publish = lambda namespace, topic, event: told.append((topic, event))  # type: ignore[method-assign]
    snapshots.prepare("key")
    snapshots.commit("base", "key")
    snapshots.view("look", "base")
    snapshots.remove("look")
    assert [
        ("/snapshot/prepare", SnapshotPrepare(key="key", snapshotter=KIND)),
        ("/snapshot/commit", SnapshotCommit(key="key", name="base", snapshotter=KIND)),
        ("/snapshot/remove", SnapshotRemove(key="look", snapshotter=KIND)),
    ] == told


def test_what_broken_off_work_has_left_is_cleaned_up(snapshots: Snapshots, served: Served) -> None:
    snapshots.prepare("key")
    left = served.store.root / "snapshots/overlayfs/new-0123456789abcdef"
    left.mkdir()
    snapshots.stub.Cleanup(pb.CleanupRequest(snapshotter=KIND), metadata=within())
    assert not left.exists()


def test_the_snapshots_of_a_lease_go_with_it(client: Client, served: Served) -> None:
    space = served.store.namespace("default")
    space.leases.create("held")
    leased = Snapshots(client.channel, metadata=within(lease="held"), labels={})
    leased.prepare("key")
    assert not collect(served.store).removed
    space.leases.delete("held")
    collect(served.store)
    assert leased.list() == []
    assert grpc.StatusCode.NOT_FOUND is code_of(lambda: leased.prepare("key"))


class TestPlugin:
    """As containerd's plugin: its names, its keys, and no namespaces."""

    @pytest.fixture
    def plugin(self, tmp_path: Path) -> Any:
        with Store.open(tmp_path / "root") as store, running(tmp_path / "socket", plugin_methods(Plugin(store))):
            channel = grpc.insecure_channel(f"unix:{tmp_path}/socket")
            yield channel
            channel.close()

    def test_what_containerd_names_is_all_that_counts(self, plugin: grpc.Channel) -> None:
        unnamed = Snapshots(plugin, "lamella", (), {})
        unnamed.prepare("one/1/key")
        unnamed.commit("one/2/base", "one/1/key")
        other = Snapshots(plugin, "lamella", within("two", "a lease of containerd's"), {})
        other.prepare("two/3/key", "one/2/base")
        unnamed.view("one/4/view", "one/2/base")
        assert [info.name for info in other.list()] == ["one/2/base", "one/4/view", "two/3/key"]
        unnamed.remove("one/4/view")
        assert [info.name for info in unnamed.list()] == ["one/2/base", "two/3/key"]

    def test_plugins_see_nothing_of_each_other(self, plugin: grpc.Channel) -> None:
        Snapshots(plugin, "lamella", ()).prepare("key")
        assert Snapshots(plugin, "lamella-native", ()).list() == []
        assert grpc.StatusCode.INVALID_ARGUMENT is code_of(lambda: Snapshots(plugin, "overlayfs", ()).list())
