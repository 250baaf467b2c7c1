# SPDX-License-Identifier: Apache-2.0
"""Trees copied exactly, and measured."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings

from lamella.changes.apply import apply
from lamella.changes.dump import dump
from lamella.changes.model import Change, Put
from lamella.changes.tree import MemoryTree, fold, walk
from lamella.errors import AlreadyExists, NotFound
from lamella.layers.directory.dirfd_cache import remove_tree
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.paths import LayerPath
from lamella.store.snapshots import copy_tree as copying
from lamella.store.snapshots.copy_tree import copy_tree, measure
from lamella.store.store import Store
from lamella.testing.builders import directory, file, link, sparse
from lamella.testing.strategies import trees


def lines(root: Path) -> list[str]:
    with DirectoryTree(root) as tree:
        return list(dump(walk(tree), inline=64))


BLOCK = 4096


def readable(made: MemoryTree) -> MemoryTree:
    """The tree without modes that lock an ordinary user out of files of their own."""
    changes = list(walk(made))
    for change in changes:
        if os.geteuid() and isinstance(change, Put) and change.entry.posix is not None:
            change.entry.posix.mode |= 0o700
    return fold(changes)


def tree(root: Path, *changes: Change) -> Path:
    root.mkdir()
    apply(changes, DirectorySink(root))
    return root


@settings(max_examples=60)
@given(made=trees().map(readable))
def test_a_copy_equals_its_source(made: MemoryTree) -> None:
    with tempfile.TemporaryDirectory() as where:
        source = Path(where, "source")
        source.mkdir()
        apply(walk(made), DirectorySink(source))
        before = lines(source)
        copy_tree(source, Path(where, "copy"))
        assert before == lines(Path(where, "copy"))
        assert before == lines(source)
        usage, expected = measure(Path(where, "copy")).usage, measure(source).usage
        assert usage.inodes == expected.inodes
        # Where attributes record owners, the file system puts them in the inode or in a block, as they come.
        assert abs(usage.size - expected.size) <= (0 if os.geteuid() == 0 else BLOCK * usage.inodes)


def test_hard_links_are_kept(tmp_path: Path) -> None:
    source = tree(tmp_path / "source", file("a", b"1"), directory("d"), link("d/b", "a"), link("c", "a"))
    copy_tree(source, tmp_path / "copy")
    copied = {(tmp_path / "copy" / name).stat().st_ino for name in ("a", "d/b", "c")}
    assert (len(copied), copied & {(source / "a").stat().st_ino}) == (1, set())


def test_holes_and_the_data_between_them_are_kept(tmp_path: Path) -> None:
    pieces = [(0, b"start"), (3 << 20, b"x" * 5000), ((64 << 20) - 10, b"end")]
    source = tree(tmp_path / "source", file("holes", sparse(64 << 20, pieces)), file("nothing", sparse(1 << 20)))
    copy_tree(source, tmp_path / "copy")
    assert lines(source) == lines(tmp_path / "copy")
    assert measure(tmp_path / "copy").sparse == 64 << 20
    assert measure(tmp_path / "copy").usage.size < 1 << 20


@pytest.mark.parametrize("kernel", [True, False], ids=["by the kernel", "by hand"])
def test_large_files_are_copied_whole(tmp_path: Path, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    if not kernel:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    content = os.urandom(3_333_333)
    source = tree(tmp_path / "source", file("a", content), file("b", content))
    copy_tree(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "a").read_bytes() == content
    assert (tmp_path / "copy" / "b").read_bytes() == content


def test_blocks_are_shared_if_the_file_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloned: list[str] = []

    def clone(source: int, target: int) -> bool:
        cloned.append(os.path.basename(os.readlink(f"/proc/self/fd/{source}")))
        os.write(target, os.pread(source, 100, 0))
        return True

    monkeypatch.setattr(copying, "clone_file", clone)
    source = tree(tmp_path / "source", file("a", b"1"), file("b", b"2"), file("empty"))
    copy_tree(source, tmp_path / "copy")
    assert sorted(cloned) == ["a", "b"]
    assert lines(source) == lines(tmp_path / "copy")


@pytest.mark.root
@pytest.mark.interop
def test_snapshots_on_btrfs_share_the_blocks_of_their_parents(tmp_path: Path, needs: Callable[..., str]) -> None:
    disk, where = tmp_path / "disk", tmp_path / "btrfs"
    with disk.open("wb") as made:
        made.truncate(256 << 20)
    subprocess.run([needs("mkfs.btrfs"), "-q", str(disk)], check=True)
    where.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(where)], check=True)
    try:
        with Store.open(where / "store") as store:
            snapshots = store.namespace("tests").snapshots("directory")
            snapshots.prepare("key")
            apply([file("big", os.urandom(16 << 20)), file("small", b"1")], snapshots.sink("key"))
            snapshots.commit("base", "key")
            os.sync()
            before = os.statvfs(where)
            for number in range(8):
                snapshots.prepare(f"child {number}", "base")
            os.sync()
            after = os.statvfs(where)
            assert (before.f_bfree - after.f_bfree) * after.f_frsize < 8 << 20
            with snapshots.tree("base") as base, snapshots.tree("child 7") as child:
                assert base.open(LayerPath("big")).size == child.open(LayerPath("big")).size == 16 << 20
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_sockets_and_attributes_of_overlayfs_are_copied_too(tmp_path: Path) -> None:
    source = tree(tmp_path / "source", directory("d"))
    os.setxattr(source / "d", "user.overlay.opaque", b"y")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(source)
        try:
            one.bind("socket")
        finally:
            os.chdir(here)
    copy_tree(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "socket").is_socket()
    assert os.getxattr(tmp_path / "copy" / "d", "user.overlay.opaque") == b"y"


def test_a_tree_deeper_than_paths_reach_is_copied(tmp_path: Path) -> None:
    deep = "/".join(["d" * 40] * 150)
    source = tree(tmp_path / "source", file(f"{deep}/f", b"at the bottom"))
    try:
        copy_tree(source, tmp_path / "copy")
        assert lines(source) == lines(tmp_path / "copy")
        assert measure(source).usage.inodes == 152
    finally:
        parent = os.open(tmp_path, os.O_RDONLY)
        for name in ("source", "copy"):
            remove_tree(parent, name)
        os.close(parent)


def test_a_copy_does_not_replace_an_existing_directory(tmp_path: Path) -> None:
    source = tree(tmp_path / "source", file("a"))
    (tmp_path / "copy").mkdir()
    with pytest.raises(AlreadyExists):
        copy_tree(source, tmp_path / "copy")
    with pytest.raises(NotFound):
        copy_tree(tmp_path / "missing", tmp_path / "other")
    assert os.listdir(tmp_path / "copy") == []


def test_files_removed_during_the_measurement_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tree(tmp_path / "source", file("a", b"1" * 5000), directory("d"), file("d/b"))
    scandir = os.scandir

    @contextmanager
    def meanwhile(descriptor: int) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(descriptor) as scan:
            found = list(scan)
        for name in ("a", "d/b", "d"):
            if name != "a" or (source / name).exists():
                remove(source / name)
        yield found

    def remove(path: Path) -> None:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)

    monkeypatch.setattr(os, "scandir", meanwhile)
    assert measure(source).usage.inodes == 1


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    source = tree(tmp_path / "source")
    (source / "link").symlink_to(tmp_path / "outside")
    copy_tree(source, tmp_path / "copy")
    assert os.readlink(tmp_path / "copy" / "link") == str(tmp_path / "outside")
    assert measure(source).usage.inodes == 2
