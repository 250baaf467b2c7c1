# SPDX-License-Identifier: Apache-2.0
"""Snapshots of an ordinary user: without privileges, and in a user namespace."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Loaded now, because they may be unreadable without privileges.
import pytest
from tests.security.people import as_nobody, person

from lamella.changes.apply import apply
from lamella.changes.model import Change
from lamella.changes.tree import merge
from lamella.errors import Denied
from lamella.layers.directory.tree import DirectoryTree
from lamella.store.contract import BindMount, OverlayMount
from lamella.store.mounting import mount_all, mounted
from lamella.store.snapshots.snapshotter import LocalSnapshots, open_snapshotter
from lamella.store.store import Store
from lamella.testing.builders import device, directory, file, opaque, symlink, whiteout
from lamella.testing.reading import outline, text

LAYERS: list[list[Change]] = [
    [
        directory("", mtime=0),
        directory("locked", mode=0o500, mtime=1),
        file("locked/secret", b"s" * 20, mode=0, mtime=2),
        directory("opaque", mtime=3),
        file("opaque/old", mtime=3),
        file("gone", mtime=4),
        file("mine", b"1", mtime=5),
        symlink("link", "mine", mtime=6),
    ],
    [whiteout("gone"), opaque("opaque"), file("opaque/new", b"2", mtime=7), file("locked/more", mtime=8)],
]

_SET_DUMPABLE = 4
_NEWUSER_AND_NEWNS = 0x10000000 | 0x20000


@pytest.fixture
def own() -> Iterator[Path]:
    """A directory that the unprivileged user owns and can reach."""
    top = Path(tempfile.mkdtemp(prefix="lamella-test-"))
    top.chmod(0o755)
    where = top / "own"
    where.mkdir(mode=0o755)
    os.chown(where, *person())
    yield where
    subprocess.run(["chmod", "-R", "u+rwx", top], check=True)
    shutil.rmtree(top)


def unpacked(kind: str, own: Path, layers: list[list[Change]] = LAYERS) -> LocalSnapshots:
    """A store whose snapshot ``1`` has all layers."""
    snapshots = open_snapshotter(kind, Store.open(own / "store").namespace("tests").context)
    for number, layer in enumerate(layers):
        snapshots.prepare("key", str(number - 1) if number else "")
        apply(layer, snapshots.sink("key"))
        snapshots.commit(str(number), "key")
    return snapshots


def in_namespaces(work: Callable[[], None]) -> None:
    """Run ``work`` as root of a new user and mount namespace."""
    ids = (os.geteuid(), os.getegid())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0)  # a process that changed its user does not own its files in /proc
    if libc.unshare(_NEWUSER_AND_NEWNS):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    Path("/proc/self/setgroups").write_text("deny")
    for name, number in zip(("uid_map", "gid_map"), ids, strict=True):
        Path(f"/proc/self/{name}").write_text(f"0 {number} 1")
    work()


@pytest.mark.parametrize("kind", ["overlay", "directory"])
def test_layers_are_unpacked_and_read_without_rights(kind: str, own: Path) -> None:
    readable = [[*LAYERS[0], file("locked/secret", b"s", mode=0o400, mtime=2)], LAYERS[1]]

    def work() -> dict[str, str]:
        snapshots = unpacked(kind, own, readable)
        snapshots.prepare("top", "1")
        with snapshots.tree("top") as tree:
            return outline(tree)

    assert outline(merge(readable)) == as_nobody(work)


def test_layers_become_images_with_all_owners_without_rights(own: Path) -> None:
    layers = [[*LAYERS[0], file("theirs", b"t", uid=5, gid=70_000), device("null", 1, 3)], LAYERS[1]]

    def work() -> list[str]:
        snapshots = open_snapshotter("erofs", Store.open(own / "store").namespace("tests").context)
        for number, layer in enumerate(layers):
            snapshots.prepare_layer("key", str(number - 1) if number else "")
            apply(layer, snapshots.sink("key"))
            snapshots.commit(str(number), "key")
        with snapshots.tree("1") as tree:
            return text(tree)

    assert text(merge(layers)) == as_nobody(work)


def test_a_copy_includes_unreadable_files_and_leaves_the_original_unchanged(own: Path) -> None:
    def work() -> list[tuple[int, int, int]]:
        snapshots = unpacked("directory", own)
        snapshots.prepare("top", "1")
        found = []
        for key in ("1", "top"):
            root = snapshots.directory(key) / "fs"
            secret = (root / "locked" / "secret").lstat()
            found.append((stat.S_IMODE((root / "locked").stat().st_mode), stat.S_IMODE(secret.st_mode), secret.st_size))
        snapshots.remove("top")
        assert os.listdir(own / "store" / "trash") == []
        return found

    assert as_nobody(work) == [(0o500, 0, 20)] * 2


def test_mounting_is_refused_with_a_hint(own: Path) -> None:
    def work() -> list[str]:
        shutil.which = lambda *_, **__: None
        snapshots = unpacked("overlay", own)
        hints = []
        target = own / "target"
        target.mkdir()
        for mounts in (snapshots.prepare("new"), snapshots.prepare("top", "1"), snapshots.view("view", "1")):
            try:
                mount_all(mounts, target)
            except Denied as error:
                hints.append(error.hint or "")
        return hints

    hints = as_nobody(work)
    assert len(hints) == 3
    assert all("unshare" in hint for hint in hints)


def test_overlays_are_mounted_in_a_user_namespace(own: Path) -> None:
    expected = outline(merge(LAYERS))

    def work() -> None:
        snapshots = unpacked("overlay", own)
        (mount,) = snapshots.prepare("top", "1")
        assert isinstance(mount, OverlayMount)
        assert "userxattr" in mount.options
        with mounted((mount,)) as root:
            with DirectoryTree(root) as tree:
                assert outline(tree) == expected
            (root / "mine").unlink()
            shutil.rmtree(root / "opaque")
            (root / "opaque").mkdir()
            (root / "added").write_text("added")
        snapshots.commit("2", "top")
        changed = expected | {"added": "file added"}
        del changed["mine"], changed["opaque/new"]
        (base,) = snapshots.view("base", "0")
        assert isinstance(base, BindMount)
        for mounts in (snapshots.view("view", "2"), (base,)):
            with mounted(mounts) as root:
                with pytest.raises(OSError, match="Read-only"):
                    (root / "new").touch()
                with DirectoryTree(root) as tree:
                    assert (changed if mounts != (base,) else outline(merge(LAYERS[:1]))) == outline(tree)
        with snapshots.tree("2") as unmounted:
            assert outline(unmounted) == changed
        for key in ("view", "base", "2", "1", "0"):
            snapshots.remove(key)
        assert os.listdir(own / "store" / "trash") == []

    as_nobody(lambda: in_namespaces(work))
