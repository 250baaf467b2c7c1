# SPDX-License-Identifier: Apache-2.0
"""Layers that are EROFS images: the same for the same tree, sealed where asked, and clear errors where that fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from weakref import WeakSet

import pytest
from tests.unit.store.conftest import Mount, fill

from lamella.changes.apply import apply
from lamella.changes.dump import dump
from lamella.changes.model import Change
from lamella.changes.tree import walk
from lamella.errors import Conflict, Exhausted, Unsupported
from lamella.host import files, mounting
from lamella.host.mounting import mount_points, unmount
from lamella.layers.directory_tree import DirectoryTree
from lamella.store.contract import ErofsMount, SnapshotKind
from lamella.store.mounting import mounted
from lamella.store.snapshotters import open_snapshotter
from lamella.store.snapshotters.graph import Snapshots
from lamella.store.store import Store
from lamella.testing.builders import directory, file, sparse, symlink, whiteout
from lamella.testing.reading import outline


@pytest.fixture(autouse=True)
def nothing_stays_mounted(tmp_path: Path, needs: Callable[..., str]) -> Iterator[None]:
    needs("mkfs.erofs")
    yield
    for store in list(_OPENED):  # those that an error still leads to
        store.close()
    for point in reversed(mount_points(str(tmp_path))):
        if not point.startswith(str(tmp_path / "tmpfs")) or point.endswith("/mnt"):
            unmount(point, lazy=True)


_OPENED: WeakSet[Store] = WeakSet()


def opened(root: Path, verity: str = "") -> Snapshots:
    store = Store.open(root / "store")
    _OPENED.add(store)
    return open_snapshotter("erofs", store.namespace("tests"), verity=verity)


def commit(snapshots: Snapshots, name: str, *changes: Change) -> bytes:
    """Make a base layer, and return its image."""
    snapshots.prepare("key")
    apply(changes, snapshots.sink("key"))
    snapshots.commit(name, "key")
    return (snapshots.place(name) / "layer.erofs").read_bytes()


def test_the_same_tree_comes_to_the_same_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = opened(tmp_path)
    changes = [file(f"{number}", os.urandom(8000), xattrs={"user.a": b"1", "user.b": b"2"}) for number in range(40)]
    changes += [directory("d"), file("d/x", b"y" * 100), symlink("l", "d")]
    first = commit(snapshots, "first", directory("", mtime=0), *changes)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    second = commit(snapshots, "second", *reversed(changes[:40]), *changes[40:], directory("", mtime=0))
    assert first == second


@pytest.mark.parametrize("keeps", ["layer.erofs", "mnt"])
def test_a_committed_layer_is_an_image_and_nothing_else(tmp_path: Path, keeps: str) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("f", b"1"))
    assert keeps in os.listdir(snapshots.place("base"))
    assert len(os.listdir(snapshots.place("base"))) == 2


def test_what_only_an_active_snapshot_needs_goes_even_after_a_kill(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("f", b"1"))
    (snapshots.place("base") / "fs").mkdir()
    (snapshots.place("base") / "fs" / "f").write_text("1")
    snapshots.cleanup()
    assert sorted(os.listdir(snapshots.place("base"))) == ["layer.erofs", "mnt"]


def test_holes_do_not_fill_the_store(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    image = commit(snapshots, "base", file("huge", sparse(1 << 42, [(1 << 33, b"middle")])), file("small", b"1"))
    assert len(image) < 32 << 20


@pytest.mark.root
def test_a_single_layer_is_mounted_as_it_is_and_several_go_on_removal(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("f", b"1"))
    assert snapshots.view("view", "base") == (ErofsMount(snapshots.place("base") / "layer.erofs"),)
    assert mount_points(str(tmp_path)) == []
    snapshots.prepare("key", "base")
    apply([file("g", b"2")], snapshots.sink("key"))
    snapshots.commit("top", "key")
    with snapshots.tree("top") as tree:
        assert outline(tree) == {"f": "file 1", "g": "file 2"}
    assert len(mount_points(str(tmp_path))) == 1
    snapshots.prepare("another", "top")
    assert len(mount_points(str(tmp_path))) == 2
    for key in ("another", "top", "view", "base"):
        snapshots.remove(key)
    assert mount_points(str(tmp_path)) == []
    assert os.listdir(tmp_path / "store" / "trash") == []


@pytest.mark.root
def test_what_is_committed_is_read_without_being_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", directory("d"), file("d/gone", b"1"), file("f", sparse(1 << 30, [(1 << 29, b"middle")])))
    snapshots.prepare("key", "base")
    apply([directory("d"), whiteout("d/gone"), file("g", b"2", xattrs={"user.a": b"1"})], snapshots.sink("key"))
    snapshots.commit("top", "key")
    snapshots.view("view", "top")
    with mounted(snapshots.mounts("view")) as root, DirectoryTree(root) as shown:
        expected = list(dump(walk(shown), inline=0, extents=False))
    snapshots.remove("view")
    for point in reversed(mount_points(str(tmp_path))):
        unmount(point, lazy=True)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mounting, "erofs", refuse)
    with snapshots.tree("top") as tree:
        assert list(dump(walk(tree), inline=0, extents=False)) == expected
    assert mount_points(str(tmp_path)) == []


def test_without_mkfs_it_is_said_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = opened(tmp_path)
    snapshots.prepare("key")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Unsupported, match=r"mkfs\.erofs") as caught:
        snapshots.commit("name", "key")
    assert "erofs-utils" in (caught.value.hint or "")
    assert snapshots.stat("key").kind is SnapshotKind.ACTIVE


def test_an_old_mkfs_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mkfs.erofs"
    program.write_text("#!/bin/sh\necho \"mkfs.erofs: unrecognized option '--mkfs-time'\" >&2\nexit 1\n")
    program.chmod(0o755)
    snapshots = opened(tmp_path)
    snapshots.prepare("key")
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    with pytest.raises(Unsupported, match="unrecognized option"):
        snapshots.commit("name", "key")


@pytest.mark.root
def test_a_full_disk_leaves_the_snapshot_as_it_was(tmpfs: Mount) -> None:
    where = tmpfs("size=4m")
    snapshots = opened(where)
    snapshots.prepare("key")
    apply([file("f", os.urandom(1 << 20))], snapshots.sink("key"))
    filler = fill(where)
    with pytest.raises(Exhausted):
        snapshots.commit("name", "key")
    filler.unlink()
    snapshots.commit("name", "key")
    assert sorted(os.listdir(snapshots.place("name"))) == ["layer.erofs", "mnt"]


def test_a_file_system_that_cannot_seal_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "enable_verity", refuse)
    snapshots = opened(tmp_path, "fs-verity")
    snapshots.prepare("key")
    with pytest.raises(Unsupported, match="fs-verity") as caught:
        snapshots.commit("name", "key")
    assert "verity" in (caught.value.hint or "")
    assert snapshots.stat("key").kind is SnapshotKind.ACTIVE
    assert sorted(os.listdir(snapshots.place("key"))) == ["fs", "mnt", "work"]


def test_what_is_not_sealed_is_not_mounted_where_seals_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(opened(tmp_path), "base", file("f", b"1"))
    snapshots = opened(tmp_path, "fs-verity")
    with pytest.raises(Conflict, match="not sealed"):
        snapshots.prepare("key", "base")
    with pytest.raises(Conflict, match="not sealed"):
        snapshots.view("view", "base")
    assert [one.name for one in snapshots.list(["kind==active", "kind==view"])] == []
    sealed: list[str] = []
    monkeypatch.setattr(files, "enable_verity", sealed.append)
    monkeypatch.setattr(files, "verity_digest", lambda _: b"digest")
    commit(snapshots, "sealed", file("f", b"1"))
    assert len(sealed) == 1
    assert len(snapshots.view("of it", "sealed")) == 1


def test_this_systems_answer_about_seals_is_understood(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    try:
        files.enable_verity(str(tmp_path / "file"))
    except OSError:
        assert files.verity_digest(str(tmp_path / "file")) is None
    else:
        assert len(files.verity_digest(str(tmp_path / "file")) or b"") == 32


@pytest.mark.root
def test_what_was_mounted_again_while_it_was_removed_goes_too(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("f", b"1"))
    snapshots.prepare("key", "base")
    place = snapshots.place("base")
    assert mount_points(str(tmp_path)) == [str(place / "mnt")]
    snapshots.remove("key")
    place.rename(tmp_path / "store" / "trash" / "snapshot-left")
    assert mount_points(str(tmp_path)) == [str(tmp_path / "store" / "trash" / "snapshot-left" / "mnt")]
    snapshots.remove("base")
    snapshots.cleanup()
    assert mount_points(str(tmp_path)) == []
    assert os.listdir(tmp_path / "store" / "trash") == []
