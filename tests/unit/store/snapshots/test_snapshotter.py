# SPDX-License-Identifier: Apache-2.0
"""Snapshots in the database and on the disk: what belongs together, and what a broken-off piece of work leaves."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.errors import AlreadyExists, Conflict, Denied, Exhausted, InvalidInput, LamellaError, NotFound, Unsupported
from lamella.layers.stack import LayerStack
from lamella.store.contract import Resource, SnapshotKind
from lamella.store.snapshots.directories import SnapshotDirectories, locked
from lamella.store.snapshots.driver import Purpose
from lamella.store.snapshots.drivers.overlay import OverlayDriver
from lamella.store.snapshots.snapshotter import LocalSnapshots, open_snapshotter
from lamella.store.store import Store
from lamella.testing.builders import file
from lamella.testing.reading import outline


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


@pytest.fixture
def snapshots(store: Store) -> LocalSnapshots:
    return open_snapshotter("overlay", store.namespace("tests").context)


def places(store: Store, name: str = "overlayfs") -> list[str]:
    home = store.root / "snapshots" / name
    return sorted(os.listdir(home)) if home.exists() else []


def make(snapshots: LocalSnapshots, name: str, parent: str = "") -> None:
    snapshots.prepare(f"making {name}", parent)
    apply([file(name, name.encode())], snapshots.sink(f"making {name}"))
    snapshots.commit(name, f"making {name}")


def held(store: Store, lease: str) -> Sequence[Resource]:
    return store.namespace("tests").leases.resources(lease)


def failing(store: Store, method: str, error: Exception) -> LocalSnapshots:
    """The snapshots of a driver whose ``method`` raises."""

    def fail(*_: object, **__: object) -> None:
        raise error

    driver = OverlayDriver()
    setattr(driver, method, fail)
    return LocalSnapshots(store.namespace("tests").context, driver)


def test_snapshotters_have_containerds_names_and_ours(store: Store) -> None:
    namespace = store.namespace("tests")
    assert [
        open_snapshotter(name, namespace.context).name
        for name in ("overlay", "overlayfs", "directory", "native", "erofs")
    ] == [*("overlayfs", "overlayfs", "native", "native", "erofs")]
    with pytest.raises(InvalidInput, match="unknown snapshotter 'zfs'"):
        open_snapshotter("zfs", namespace.context)
    with pytest.raises(Unsupported, match="fs-verity"):
        open_snapshotter("overlay", namespace.context, verity="fs-verity")
    with pytest.raises(Unsupported, match="sha-verity"):
        open_snapshotter("erofs", namespace.context, verity="sha-verity")


def test_other_users_cannot_reach_snapshots(store: Store, snapshots: LocalSnapshots) -> None:
    snapshots.prepare("key")
    place = snapshots.directory("key")
    assert place.stat().st_mode & 0o777 == 0o700
    assert place.parent.stat().st_mode & 0o777 == 0o700
    assert (place / "fs").stat().st_mode & 0o777 == 0o755


def test_a_lease_holds_snapshots_that_are_made_or_found(store: Store) -> None:
    namespace = store.namespace("tests")
    namespace.leases.create("first")
    namespace.leases.create("second")
    first = open_snapshotter("overlay", store.namespace("tests", lease="first").context)
    first.prepare("key")
    assert held(store, "first") == [Resource("snapshots/overlayfs", "key")]
    first.commit("name", "key")
    assert held(store, "first") == [Resource("snapshots/overlayfs", "name")]
    second = open_snapshotter("overlay", store.namespace("tests", lease="second").context)
    second.prepare("other")
    with pytest.raises(AlreadyExists):
        second.commit("name", "other")
    with pytest.raises(AlreadyExists):
        second.prepare("third", labels={"containerd.io/snapshot.ref": "name"})
    assert held(store, "second") == [
        Resource("snapshots/overlayfs", "name"),
        Resource("snapshots/overlayfs", "other"),
    ]
    second.remove("other")
    assert held(store, "second") == [Resource("snapshots/overlayfs", "name")]


def test_nothing_is_made_under_a_missing_lease(store: Store) -> None:
    snapshots = open_snapshotter("overlay", store.namespace("tests", lease="missing").context)
    with pytest.raises(NotFound, match="lease"):
        snapshots.prepare("key")
    assert snapshots.list() == []
    assert places(store) == []


def test_namespaces_and_snapshotters_do_not_see_each_others_snapshots(store: Store, snapshots: LocalSnapshots) -> None:
    other = open_snapshotter("overlay", store.namespace("other").context)
    copies = open_snapshotter("directory", store.namespace("tests").context)
    for one in (snapshots, other, copies):
        make(one, "base")
        one.prepare("key", "base")
    snapshots.remove("key")
    snapshots.remove("base")
    snapshots.cleanup()
    assert snapshots.list() == []
    for one in (other, copies):
        assert [record.name for record in one.list()] == ["base", "key"]
        with one.tree("key") as tree:
            assert outline(tree) == {"base": "file base"}


def test_cleanup_removes_directories_that_no_row_names_and_no_process_uses(
    store: Store, snapshots: LocalSnapshots
) -> None:
    make(snapshots, "base")
    kept = places(store)
    home = store.root / "snapshots" / "overlayfs"
    for left in ("77", "new-left", "new-busy"):
        (home / left / "fs" / "deep").mkdir(parents=True)
    (store.root / "trash" / "snapshot-left" / "fs").mkdir(parents=True)
    (store.root / "trash" / "another's").mkdir()
    with locked(home / "new-busy"):
        snapshots.cleanup()
        assert places(store) == [*kept, "new-busy"]
    snapshots.cleanup()
    assert places(store) == kept
    assert os.listdir(store.root / "trash") == ["another's"]
    with snapshots.tree("base") as tree:
        assert outline(tree) == {"base": "file base"}


def test_a_snapshot_that_cannot_be_made_leaves_nothing(store: Store, snapshots: LocalSnapshots) -> None:
    with pytest.raises(Exhausted):
        failing(store, "create", OSError(28, "No space left on device")).prepare("key")
    assert (snapshots.list(), places(store), os.listdir(store.root / "trash")) == ([], [], [])


def test_the_number_of_a_row_that_was_rolled_back_is_used_again(
    store: Store, snapshots: LocalSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = SnapshotDirectories.install

    def install_and_fail(self: SnapshotDirectories, new: Path, number: int) -> None:
        install(self, new, number)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotDirectories, "install", install_and_fail)
        with pytest.raises(LamellaError):
            snapshots.prepare("key")
    assert snapshots.list() == []
    left = places(store)
    assert len(left) == 1
    (store.root / "snapshots" / "overlayfs" / left[0] / "fs" / "old").touch()
    snapshots.prepare("key")
    assert places(store) == left
    with snapshots.tree("key") as tree:
        assert outline(tree) == {}


def test_a_commit_that_fails_leaves_the_snapshot_active(store: Store, snapshots: LocalSnapshots) -> None:
    snapshots.prepare("key")
    for method in ("commit", "usage"):
        with pytest.raises(Exhausted):
            failing(store, method, OSError(28, "No space left on device")).commit("name", "key")
    assert [(one.name, one.kind) for one in snapshots.list()] == [("key", SnapshotKind.ACTIVE)]
    snapshots.commit("name", "key")


def test_files_are_durable_before_the_row_of_the_committed_snapshot(
    store: Store, snapshots: LocalSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, object]] = []
    fsync = os.fsync

    def path_of(descriptor: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return "new" if path.name.startswith("new-") else str(path.relative_to(store.root))

    def recorded(descriptor: int) -> None:
        calls.append((path_of(descriptor), _names(store)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(
        "lamella.host.linux.sync_file_system", lambda descriptor: calls.append((path_of(descriptor), _names(store)))
    )
    snapshots.prepare("key")
    assert calls == [("snapshots", []), ("new", []), ("snapshots/overlayfs", [])]
    calls.clear()
    number = snapshots.directory("key").name
    snapshots.commit("name", "key")
    assert calls == [(f"snapshots/overlayfs/{number}", ["key"])]


def _names(store: Store) -> list[str]:
    """What another process would see."""
    with sqlite3.connect(store.root / "lamella.db") as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM snapshot")]
    connection.close()
    return names


def test_a_directory_is_removed_after_its_row(
    store: Store, snapshots: LocalSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(snapshots, "base")
    seen: list[list[str]] = []
    remove = SnapshotDirectories.remove

    def recorded(self: SnapshotDirectories, path: Path) -> None:
        seen.append(_names(store))
        remove(self, path)

    monkeypatch.setattr(SnapshotDirectories, "remove", recorded)
    snapshots.remove("base")
    assert seen == [[]]


def test_one_of_several_threads_makes_the_same_snapshot(store: Store, snapshots: LocalSnapshots) -> None:
    outcomes: list[str] = []

    def work() -> None:
        try:
            snapshots.prepare("same")
            outcomes.append("made")
        except AlreadyExists:
            outcomes.append("there")
        try:
            snapshots.commit("name", "same")
            outcomes.append("committed")
        except (NotFound, AlreadyExists, Conflict):
            outcomes.append("too late")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("committed") == 1
    rows = snapshots.list()
    assert "name" in [one.name for one in rows]
    assert len(places(store)) == len(rows)


def test_cleanup_removes_nothing_of_concurrent_writers(store: Store, snapshots: LocalSnapshots) -> None:
    done = threading.Event()
    failures: list[BaseException] = []

    def clean() -> None:
        try:
            while not done.is_set():
                open_snapshotter("overlay", store.namespace("tests").context).cleanup()
        except BaseException as failure:  # noqa: BLE001  # whatever it is, the test is to fail
            failures.append(failure)

    cleaners = [threading.Thread(target=clean) for _ in range(2)]
    for cleaner in cleaners:
        cleaner.start()
    try:
        for number in range(20):
            make(snapshots, f"layer {number}", f"layer {number - 1}" if number else "")
        snapshots.remove("layer 19")
    finally:
        done.set()
        for cleaner in cleaners:
            cleaner.join()
    assert failures == []
    with snapshots.tree("layer 18") as tree:
        assert len(outline(tree)) == 19
    assert len(places(store)) == 19


def test_a_parent_that_is_replaced_while_its_child_is_made_is_noticed(store: Store, snapshots: LocalSnapshots) -> None:
    make(snapshots, "base")

    class Meanwhile(OverlayDriver):
        def create(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path], purpose: Purpose) -> None:
            super().create(directory, kind, parents, purpose)
            snapshots.remove("base")
            make(snapshots, "base")

    slow = LocalSnapshots(store.namespace("tests").context, Meanwhile())
    with pytest.raises(NotFound, match="another"):
        slow.prepare("child", "base")
    assert [one.name for one in snapshots.list()] == ["base"]
    assert len(places(store)) == 1


def test_a_readonly_store_refuses_changes_of_snapshots(store: Store, snapshots: LocalSnapshots) -> None:
    make(snapshots, "base")
    snapshots.prepare("key", "base")
    before = places(store)
    with Store.open(store.root, readonly=True) as readonly:
        reading = open_snapshotter("overlay", readonly.namespace("tests").context)
        assert [one.name for one in reading.list()] == ["base", "key"]
        with reading.tree("base") as tree:
            assert outline(tree) == {"base": "file base"}
        for change in (
            lambda: reading.prepare("new"),
            lambda: reading.view("new"),
            lambda: reading.commit("new", "key"),
            lambda: reading.update("key", {}),
            lambda: reading.remove("key"),
            reading.cleanup,
        ):
            with pytest.raises(Denied):
                change()
    assert places(store) == before


def test_ten_thousand_snapshots_are_listed_in_a_second(store: Store, snapshots: LocalSnapshots) -> None:
    with store.database.write() as connection:
        connection.executemany(
            "INSERT INTO snapshot (namespace, snapshotter, name, parent, kind, created, updated, labels)"
            " VALUES ('tests', 'overlayfs', ?, ?, 'committed', 1, 1, '{\"a\":\"b\"}')",
            [(f"sha256:{number:064}", number - 1 or None) for number in range(1, 10_001)],
        )
    took = []
    for _ in range(5):  # noise only ever adds
        start = time.perf_counter()
        assert len(snapshots.list(['labels.a==b,name~="^sha256:"'])) == 10_000
        took.append(time.perf_counter() - start)
    assert min(took) < 1


def _churn(root: Path, seed: int) -> None:
    """Make, commit and remove snapshots for ever."""
    chance = random.Random(seed)
    with Store.open(root) as store:
        kinds = [open_snapshotter(kind, store.namespace("tests").context) for kind in ("overlay", "directory")]
        count = 0
        while True:
            count += 1
            snapshots = chance.choice(kinds)
            names = [one.name for one in snapshots.list(["kind==committed"])]
            try:
                if len(names) > 5 or (names and chance.random() < 0.3):
                    snapshots.remove(chance.choice(names))
                else:
                    make(snapshots, f"{seed}-{count}", chance.choice(["", *names]))
                if chance.random() < 0.1:
                    snapshots.cleanup()
            except (Conflict, AlreadyExists):
                pass


def test_a_kill_at_any_moment_leaves_rows_with_their_directories(store: Store) -> None:
    chance = random.Random(5)
    for seed in range(12):
        child = os.fork()
        if child == 0:
            try:
                _churn(store.root, seed)
            finally:
                os._exit(1)
        time.sleep(0.05 + chance.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        for kind in ("overlay", "directory"):
            snapshots = open_snapshotter(kind, store.namespace("tests").context)
            for record in snapshots.list():
                assert (snapshots.directory(record.name) / "fs").is_dir()
                if record.kind is SnapshotKind.COMMITTED:
                    with snapshots.tree(record.name) as tree:
                        assert f"file {record.name}" == outline(tree)[record.name]
            snapshots.cleanup()
            assert len(places(store, snapshots.name)) == len(snapshots.list())
        assert os.listdir(store.root / "trash") == []
