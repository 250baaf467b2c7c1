# SPDX-License-Identifier: Apache-2.0
"""Layers that are EROFS images: the same for the same tree, sealed where asked, and clear errors where that fails."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from msgspec.structs import replace
from tests.unit.store.conftest import Mount, fill

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.dump import dump
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Put
from lamella.changes.tree import merge, walk
from lamella.errors import Conflict, Exhausted, Unsupported
from lamella.host import linux, mounting
from lamella.host.mounting import mount_points, unmount
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.erofs.tree import ErofsChanges, ErofsImage, ErofsLayer
from lamella.layers.policy import Devices, Owners, Policy
from lamella.paths import ROOT
from lamella.store.contract import ErofsMount, SnapshotKind
from lamella.store.mounting import mounted
from lamella.store.snapshots.snapshotter import LocalSnapshots, open_snapshotter
from lamella.store.store import Store
from lamella.testing.builders import device, directory, fifo, file, link, opaque, sparse, symlink, whiteout
from lamella.testing.reading import outline, text

ALL_KINDS: list[Change] = [
    directory("", mode=0o751, mtime=-5),
    directory("d", mode=0o2750, uid=10, gid=11, mtime=2, xattrs={"user.d": b"1"}),
    file("d/setuid", b"x" * 9000, mode=0o4755, uid=12, gid=70_000, mtime=1_700_000_000_123_456_789),
    file("capable", b"y", xattrs={"security.capability": b"\1\0\0\2" + bytes(16), "user.a": b"\0\xff"}),
    file("block", b"z" * 4096),
    file("empty"),
    file("holes", sparse(8 << 20, [(1 << 20, b"data" * 1024)])),
    symlink("link", "d/setuid", uid=14),
    symlink("long", "t" * 4090),
    fifo("fifo"),
    device("null", 1, 3),
    link("d/again", "d/setuid"),
]
LAYERS: list[list[Change]] = [
    [
        directory("", mtime=0),
        directory("usr", mode=0o700, mtime=1),
        directory("usr/lib", mtime=2),
        symlink("lib", "usr/lib"),
        file("usr/lib/a", b"a"),
        file("usr/lib/b", b"b" * 5000),
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
    [opaque(""), file("lib/d", b"d"), directory("usr")],
]


MKFS = ("--quiet", "-T0", "--mkfs-time", "--preserve-mtime")


def plain(tree: Tree) -> list[str]:
    """Without hard links, which overlays have within one layer alone."""
    return [line for line in text(tree) if not line.startswith("link ")]


@pytest.fixture(autouse=True)
def nothing_stays_mounted(tmp_path: Path) -> Iterator[None]:
    yield
    while _OPENED:
        _OPENED.pop().close()
    for point in reversed(mount_points(str(tmp_path))):
        if not point.startswith(str(tmp_path / "tmpfs")) or point.endswith("/mnt"):
            unmount(point, lazy=True)


_OPENED: list[Store] = []


def opened(root: Path, verity: str = "") -> LocalSnapshots:
    store = Store.open(root / "store")
    _OPENED.append(store)
    return open_snapshotter("erofs", store.namespace("tests").context, verity=verity)


def commit(snapshots: LocalSnapshots, name: str, *changes: Change) -> bytes:
    """Make a base layer, and return its image."""
    snapshots.prepare("key")
    apply(changes, snapshots.sink("key"))
    snapshots.commit(name, "key")
    return (snapshots.directory(name) / "layer.erofs").read_bytes()


def test_the_same_layer_or_tree_gives_the_same_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = opened(tmp_path)
    changes = [file(f"{number}", os.urandom(8000), xattrs={"user.a": b"1", "user.b": b"2"}) for number in range(40)]
    changes += [directory("d"), file("d/x", b"y" * 100), symlink("l", "d"), directory("", mtime=0)]

    def written(name: str, changes: Sequence[Change]) -> bytes:
        snapshots.prepare("key")
        apply(changes, DirectorySink(snapshots.directory("key") / "fs"))
        snapshots.commit(name, "key")
        return (snapshots.directory(name) / "layer.erofs").read_bytes()

    first, tree = commit(snapshots, "first", *changes), written("tree", changes)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert commit(snapshots, "second", *changes) == first
    assert written("again", [*reversed(changes[:40]), *changes[40:]]) == tree


@pytest.mark.parametrize("keeps", ["layer.erofs", "mnt"])
def test_a_committed_layer_is_an_image_and_nothing_else(tmp_path: Path, keeps: str) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("f", b"1"))
    assert keeps in os.listdir(snapshots.directory("base"))
    assert len(os.listdir(snapshots.directory("base"))) == 2


def test_directories_of_an_active_snapshot_are_removed_even_after_a_kill(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("f", b"1"))
    (snapshots.directory("base") / "fs").mkdir()
    (snapshots.directory("base") / "fs" / "f").write_text("1")
    snapshots.cleanup()
    assert sorted(os.listdir(snapshots.directory("base"))) == ["layer.erofs", "mnt"]


def test_holes_do_not_fill_the_store(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("huge", sparse(1 << 42, [(1 << 33, b"middle")])), file("small", b"1"))
    assert snapshots.usage("base").size < 1 << 20
    snapshots.prepare("key")
    with (snapshots.directory("key") / "fs" / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
        huge.seek(1 << 33)
        huge.write(b"middle")
    snapshots.commit("written", "key")
    assert snapshots.usage("written").size < 1 << 20


@pytest.mark.root
def test_a_single_layer_is_mounted_directly_and_several_are_unmounted_on_removal(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("f", b"1"))
    assert snapshots.view("view", "base") == (ErofsMount(snapshots.directory("base") / "layer.erofs"),)
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
def test_committed_snapshots_are_read_without_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_unpacking_a_layer_needs_no_program_no_privileges_and_no_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = opened(tmp_path)

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("nothing is to be run or mounted")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(mounting, "erofs", refuse)
    for number, layer in enumerate(LAYERS):
        snapshots.prepare_layer("key", str(number - 1) if number else "")
        apply(layer, snapshots.sink("key"))
        with snapshots.tree("key") as tree:
            assert plain(tree) == plain(merge(LAYERS[: number + 1]))
        snapshots.commit(str(number), "key")
    with snapshots.tree(str(len(LAYERS) - 1)) as tree:
        assert plain(tree) == plain(merge(LAYERS))


@pytest.mark.root
def test_the_kernel_shows_the_tree_of_the_layers_and_fsck_finds_no_error(
    tmp_path: Path, needs: Callable[..., str]
) -> None:
    snapshots = opened(tmp_path)
    for number, layer in enumerate(LAYERS):
        parent = str(number - 1) if number else ""
        snapshots.prepare_layer("key", parent)
        apply(layer, snapshots.sink("key"))
        snapshots.commit(str(number), "key")
        image = snapshots.directory(str(number)) / "layer.erofs"
        said = subprocess.run([needs("fsck.erofs"), "-d1", image], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr + said.stdout
    snapshots.view("view", str(len(LAYERS) - 1))
    with mounted(snapshots.mounts("view")) as root, DirectoryTree(root) as shown:
        assert plain(shown) == plain(merge(LAYERS))


@pytest.mark.root
@pytest.mark.parametrize("layer", [LAYERS[0], ALL_KINDS])
def test_mkfs_makes_the_same_tree_from_a_mount(tmp_path: Path, needs: Callable[..., str], layer: list[Change]) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", *layer)
    snapshots.view("view", "base")
    theirs = tmp_path / "theirs.erofs"
    with mounted(snapshots.mounts("view")) as root:
        subprocess.run([needs("mkfs.erofs"), *MKFS, theirs, root], check=True)
    with ErofsImage(ErofsLayer(theirs)) as tree, snapshots.tree("base") as ours:
        assert text(tree) == text(ours)


@pytest.mark.root
def test_files_written_to_a_mount_give_the_tree_that_mkfs_makes(tmp_path: Path, needs: Callable[..., str]) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", *LAYERS[0])
    with mounted(snapshots.prepare("key", "base")) as root:
        apply(ALL_KINDS[1:], DirectorySink(root))
        (root / "opaque/old").unlink()
        (root / "opaque").rmdir()
        (root / "opaque").mkdir()
        (root / "gone").unlink()
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.fspath(root / "socket"))
    upper, theirs = snapshots.directory("key") / "fs", tmp_path / "theirs.erofs"
    subprocess.run([needs("mkfs.erofs"), *MKFS, theirs, upper], check=True)
    snapshots.commit("top", "key")
    ours = snapshots.directory("top") / "layer.erofs"
    with ErofsChanges(ErofsLayer(theirs)) as expected, ErofsChanges(ErofsLayer(ours)) as actual:
        assert list(dump(expected, inline=16, extents=False)) == list(dump(actual, inline=16, extents=False))
    with mounted([ErofsMount(ours)]) as root:
        assert stat.S_ISSOCK((root / "socket").stat().st_mode)
        assert os.stat(root / "gone").st_rdev == 0
        assert os.getxattr(root / "opaque", "trusted.overlay.opaque") == b"y"


def test_a_snapshot_with_the_image_of_a_layer_is_not_writable(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    snapshots.prepare("key")
    apply([file("f")], snapshots.sink("key"))
    for refused in (lambda: snapshots.mounts("key"), lambda: snapshots.sink("key")):
        with pytest.raises(Conflict):
            refused()
    (snapshots.directory("key") / "fs" / "slipped in").touch()
    with pytest.raises(Conflict, match="and other files"):
        snapshots.commit("name", "key")
    (snapshots.directory("key") / "fs" / "slipped in").unlink()
    snapshots.commit("name", "key")
    assert sorted(os.listdir(snapshots.directory("name"))) == ["layer.erofs", "mnt"]


@pytest.mark.root
@pytest.mark.parametrize("xattrs", [{}, {"user.of": b"root" * 100}])
def test_an_unstated_root_is_that_of_the_parent_given_at_the_commit(tmp_path: Path, xattrs: dict[str, bytes]) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", directory("", mode=0o1750, uid=70_000, gid=6, mtime=-5, xattrs=xattrs), file("gone"))
    for name, root in (("unstated", []), ("stated", [directory("", mode=0o711, mtime=9)])):
        snapshots.prepare_layer(name)
        apply(
            [*root, file("f", b"x" * 5000), link("g", "f"), whiteout("gone")], snapshots.sink(name, parents_known=False)
        )
        snapshots.commit(f"{name} layer", name, parent="base")
        snapshots.view(f"{name} view", f"{name} layer")
        expected = merge(
            [
                [directory("", mode=0o1750, uid=70_000, gid=6, mtime=-5, xattrs=xattrs)],
                [*root, file("f", b"x" * 5000), link("g", "f")],
            ]
        )
        with snapshots.tree(f"{name} layer") as tree:
            assert text(tree) == text(expected)
        with mounted(snapshots.mounts(f"{name} view")) as shown, DirectoryTree(shown) as tree:
            assert text(tree) == text(expected)


def test_links_have_the_mode_that_they_have_on_linux(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    odd = symlink("l", "f")
    assert odd.entry.posix is not None
    commit(snapshots, "base", Put(replace(odd.entry, posix=replace(odd.entry.posix, mode=0o644)), None))
    with snapshots.tree("base") as tree:
        assert [entry.posix.mode for entry in tree.entries(ROOT) if entry.posix] == [0o777]


def test_choices_about_owners_and_devices_are_kept(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    losses = Losses()
    snapshots.prepare_layer("key")
    policy = Policy(Owners.IGNORE, Devices.SKIP)
    apply([file("f", uid=5, gid=6), device("d", 1, 3)], snapshots.sink("key", policy=policy, losses=losses))
    with snapshots.tree("key") as tree:
        (entry,) = tree.entries(ROOT)
    assert entry.posix is not None
    assert (entry.path, entry.posix.uid, entry.posix.gid) == ("f", os.geteuid(), os.getegid())
    assert [loss.path for loss in losses.kept] == ["d"]


def test_a_file_truncated_while_its_image_is_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = opened(tmp_path)
    snapshots.prepare("key")
    path = snapshots.directory("key") / "fs" / "log"
    path.write_bytes(b"x" * 100_000)
    read = os.pread

    def shrinking(file: int, length: int, offset: int) -> bytes:
        os.truncate(path, 10)
        return read(file, length, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    with pytest.raises(Conflict, match="changed while it was read"):
        snapshots.commit("name", "key")
    monkeypatch.undo()
    snapshots.commit("name", "key")
    with snapshots.tree("name") as tree:
        assert outline(tree) == {"log": "file " + "x" * 10}


@pytest.mark.parametrize("verity", ["", "dm-verity"])
@pytest.mark.parametrize("applied", [True, False])
def test_an_image_and_its_hashes_are_durable_before_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verity: str, applied: bool
) -> None:
    snapshots = opened(tmp_path, verity)
    snapshots.prepare("key")
    if applied:
        apply([file("f", b"1")], snapshots.sink("key"))
    else:
        (snapshots.directory("key") / "fs" / "f").write_bytes(b"1")
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(file: int) -> None:
        calls.append("fsync " + Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    def renamed(old: Path, new: Path, **named: int) -> None:
        calls.append(f"rename {Path(old).name} {Path(new).name}")
        rename(old, new, **named)

    def all_synced(file: int) -> None:
        calls.append(f"syncfs, the row being {snapshots.stat('key').kind.value}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(linux, "sync_file_system", all_synced)
    snapshots.commit("name", "key")
    sealing = ["fsync layer.verity", "fsync layer.roothash.new", "rename layer.roothash.new layer.roothash"]
    assert calls[: 3 + 3 * bool(verity)] == [
        "fsync layer.erofs.new",
        *(sealing if verity else []),
        "rename layer.erofs.new layer.erofs",
        "syncfs, the row being active",
    ]
    assert snapshots.stat("name").kind is SnapshotKind.COMMITTED


def test_an_interrupted_commit_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = opened(tmp_path)
    for key in ("applied", "written"):
        snapshots.prepare(key)
        if key == "applied":
            apply([file("f", b"1")], snapshots.sink(key))
        else:
            (snapshots.directory(key) / "fs" / "f").write_bytes(b"1")
        monkeypatch.setattr(linux, "sync_file_system", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            snapshots.commit("name " + key, key)
        monkeypatch.undo()
        snapshots.commit("name " + key, key)
        with snapshots.tree("name " + key) as tree:
            assert outline(tree) == {"f": "file 1"}


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
    assert sorted(os.listdir(snapshots.directory("name"))) == ["layer.erofs", "mnt"]
    _OPENED.pop().close()  # before the file system goes


def test_a_file_system_that_cannot_seal_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(linux, "enable_verity", refuse)
    snapshots = opened(tmp_path, "fs-verity")
    snapshots.prepare("key")
    with pytest.raises(Unsupported, match="fs-verity") as caught:
        snapshots.commit("name", "key")
    assert "verity" in (caught.value.hint or "")
    assert snapshots.stat("key").kind is SnapshotKind.ACTIVE
    assert sorted(os.listdir(snapshots.directory("key"))) == ["fs", "mnt", "work"]


def test_an_unsealed_image_is_not_mounted_with_verity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(opened(tmp_path), "base", file("f", b"1"))
    snapshots = opened(tmp_path, "fs-verity")
    with pytest.raises(Conflict, match="not sealed"):
        snapshots.prepare("key", "base")
    with pytest.raises(Conflict, match="not sealed"):
        snapshots.view("view", "base")
    assert [one.name for one in snapshots.list(["kind==active", "kind==view"])] == []
    sealed: list[str] = []
    monkeypatch.setattr(linux, "enable_verity", sealed.append)
    monkeypatch.setattr(linux, "verity_digest", lambda _: b"digest")
    commit(snapshots, "sealed", file("f", b"1"))
    assert len(sealed) == 1
    assert len(snapshots.view("of it", "sealed")) == 1


def test_the_answer_of_this_kernel_about_seals_is_understood(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    try:
        linux.enable_verity(str(tmp_path / "file"))
    except OSError:
        assert linux.verity_digest(str(tmp_path / "file")) is None
    else:
        assert len(linux.verity_digest(str(tmp_path / "file")) or b"") == 32


@pytest.mark.root
def test_an_image_mounted_again_during_its_removal_is_unmounted(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    commit(snapshots, "base", file("f", b"1"))
    snapshots.prepare("key", "base")
    place = snapshots.directory("base")
    assert mount_points(str(tmp_path)) == [str(place / "mnt")]
    snapshots.remove("key")
    place.rename(tmp_path / "store" / "trash" / "snapshot-left")
    assert mount_points(str(tmp_path)) == [str(tmp_path / "store" / "trash" / "snapshot-left" / "mnt")]
    snapshots.remove("base")
    snapshots.cleanup()
    assert mount_points(str(tmp_path)) == []
    assert os.listdir(tmp_path / "store" / "trash") == []
