# SPDX-License-Identifier: Apache-2.0
"""Removal of trees: nothing beyond links and mounts, no leftovers, at any depth and with any names."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.security.people import mount, with_mounts
from tests.security.routes import apply_tar
from tests.security.surroundings import listing
from tests.security.tars import Tar

from lamella.errors import Conflict
from lamella.layers.directory.dirfd_cache import remove_tree


def remove(parent: Path, name: str) -> None:
    directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        remove_tree(directory, name)
    finally:
        os.close(directory)


def dig(top: Path, depth: int, name: str = "d") -> None:
    """Make nested directories, deeper than the longest path."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_every_kind_of_file_is_removed_and_no_link_is_followed(target: Path, outside: Path) -> None:
    top = target / "d"
    (top / "e" / "empty").mkdir(parents=True)
    (top / "to-file").symlink_to(outside / "secret")
    (top / "e" / "to-directory").symlink_to(outside)
    (top / "e" / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "e" / "fifo")
    (top / "file").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(top / "socket"))
    (target / "kept").touch()
    remove(target, "d")
    assert os.listdir(target) == ["kept"]


def test_a_link_is_removed_but_not_its_target(target: Path, outside: Path) -> None:
    (target / "l").symlink_to(outside)
    remove(target, "l")
    assert os.listdir(target) == []


def test_a_tree_deeper_than_the_longest_path_is_removed(memory: Path) -> None:
    dig(memory / "d", 4000)
    open_before = len(os.listdir("/proc/self/fd"))
    remove(memory, "d")
    assert os.listdir(memory) == []
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_deep_tree_with_names_like_staging_directories_is_removed(memory: Path) -> None:
    dig(memory / "d", 300, name=f".lamella-removing-{os.getpid()}-1")
    for number in range(1, 4):
        (memory / f".lamella-removing-{os.getpid()}-{number}").mkdir()
    (memory / f".lamella-removing-{os.getpid()}-4").touch()
    before = set(os.listdir(memory))
    remove(memory, "d")
    assert before - {"d"} == set(os.listdir(memory))


def test_an_interrupted_removal_leaves_no_staging_directory(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dig(memory / "d", 300)
    real = os.rename
    count = 0

    def rename(old: str, new: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        nonlocal count
        real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        remove(memory, "d")
    assert os.listdir(memory) == ["d"]
    assert len(os.listdir("/proc/self/fd")) == open_before
    monkeypatch.undo()
    remove(memory, "d")
    assert os.listdir(memory) == []


@pytest.mark.root
@pytest.mark.parametrize("depth", [0, 1, 60])
@pytest.mark.parametrize("kind", ["", "tmpfs"], ids=["bound", "tmpfs"])
def test_a_file_system_mounted_below_is_not_emptied(target: Path, outside: Path, depth: int, kind: str) -> None:
    at = target / "d" / "/".join("e" * depth)
    at.mkdir(parents=True)

    def work() -> bool:
        mount(outside, at, kind)
        if kind:
            (at / "etc").mkdir()
            (at / "etc" / "passwd").touch()
        mounted = os.open(at, os.O_PATH)
        with pytest.raises(Conflict, match="something is mounted there"):
            apply_tar(Tar().whiteout("d"), target)
        return stat.S_ISREG(os.stat("etc/passwd", dir_fd=mounted).st_mode)

    assert with_mounts(work)


@pytest.mark.root
def test_a_file_mounted_over_a_file_below_stays(target: Path, outside: Path) -> None:
    (target / "d").mkdir()
    (target / "d" / "f").touch()

    def work() -> None:
        mount(outside / "passwd", target / "d" / "f")
        for tar in (Tar().whiteout("d"), Tar().whiteout("d/f"), Tar().file("d/f"), Tar().opaque()):
            with pytest.raises(Conflict, match="something is mounted there"):
                apply_tar(tar, target)

    with_mounts(work)


@pytest.mark.root
def test_a_mount_point_below_can_be_written_to(target: Path) -> None:
    """Counterpart: a mount point below the target is an ordinary directory unless it is to be removed."""
    (target / "d").mkdir()

    def work() -> dict[str, str]:
        mount("none", target / "d", "tmpfs")
        apply_tar(Tar().directory("d", 0o700, mtime=5).file("d/f").file("g"), target)
        apply_tar(Tar().whiteout("d/f").file("d/h").file("g"), target)
        return listing(target)

    assert with_mounts(work) == {"d": "directory 700", "d/h": "644 layer", "g": "644 layer"}


def test_a_removal_needs_few_descriptors(memory: Path) -> None:
    dig(memory / "d", 500)
    script = (
        "import os, resource, sys; from lamella.layers.directory.dirfd_cache import remove_tree;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "remove_tree(os.open(sys.argv[1], os.O_RDONLY), 'd')"
    )
    subprocess.run([sys.executable, "-P", "-c", script, memory], check=True)
    assert os.listdir(memory) == []


def test_a_tree_that_changes_during_its_removal_is_not_reported_as_removed(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target / "d" / "e").mkdir(parents=True)
    (target / "d" / "f").touch()
    real = os.unlink

    def unlink(name: str, *, dir_fd: int | None = None) -> None:
        real(name, dir_fd=dir_fd)
        if name == "f":
            real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(Conflict, match="changed while it was removed"):
        apply_tar(Tar().whiteout("d"), target)
    assert os.listdir(target) == ["d"]
