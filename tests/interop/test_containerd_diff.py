# SPDX-License-Identifier: Apache-2.0
"""The tar of a diff has the very bytes that containerd gives for the same two trees."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.containerd import Containerd

from lamella.changes.apply import apply
from lamella.changes.diff import CONTAINERD, diff
from lamella.changes.model import Buffer
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.tar.sink import TarSink

pytestmark = [pytest.mark.interop, pytest.mark.root]

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
WHEN = 1_600_000_000_000_000_123
MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
def containerd(needs: Callable[..., str]) -> Iterator[Containerd]:
    needs("containerd", "ctr")
    # Its socket has a path of at most 106 bytes, which pytest's own directories are too long for.
    where = Path(tempfile.mkdtemp(prefix="lamella-"))
    try:
        with Containerd(where / "containerd") as running:
            yield running
    finally:
        shutil.rmtree(where)


def file(root: Path, name: str, data: bytes, *, mode: int = 0o644, mtime: int = WHEN) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(mtime, mtime))
    return path


def settle(root: Path) -> None:
    for directory, _, _ in os.walk(root):
        os.utime(directory, ns=(WHEN, WHEN))


def lower(root: Path) -> None:
    """All that a layer can hold, and what tars are odd about."""
    file(root, "a/one", b"hello" * 1000)
    file(root, "a/two", b"", mode=0o4755)
    file(root, "b/" + "n" * 120, b"q")
    file(root, f"b/{'d' * 90}/{'e' * 90}", b"long")
    file(root, "b/é\u4e00", b"u")
    file(root, "b/\udcff", b"no utf-8")
    os.chown(file(root, "big", b"z"), 3_000_000, 70_000)
    for name in ("b/link", "zz"):
        os.link(root / "a/one", root / name)
    (root / "l").symlink_to("x" * 150)
    os.link(root / "l", root / "l2", follow_symlinks=False)
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.link(root / "null", root / "null2")
    os.mknod(root / "disk", 0o60660, os.makedev(8, 300))
    os.setxattr(file(root, "cap", b"c"), "security.capability", CAPABILITY)
    os.link(root / "cap", root / "cap2")
    os.truncate(file(root, "sparse", b""), 1 << 20)
    file(root, "old", b"o", mtime=-5_000_000_003)
    for name in ("gone", "gd/x", "same/deep/er/f", "was-directory/x", "was-file", "filed"):
        file(root, name, b"1")
    (root / "only" / "empty").mkdir(parents=True)


def upper(root: Path) -> None:
    """The same, changed in many ways."""
    lower(root)
    file(root, "a/three", b"new")
    file(root, "same/deep/er/g", b"2")
    file(root, "big", b"zz")
    for name in ("gone", "was-file", "cap"):
        (root / name).unlink()
    for name in ("gd", "was-directory"):
        shutil.rmtree(root / name)
    file(root, "was-directory", b"now")
    file(root, "was-file/y", b"1")
    os.link(root / "a/two", root / "a/further")


def ours(upper: Path, lower: Path | None) -> bytes:
    out = io.BytesIO()

    def write(piece: Buffer) -> None:
        out.write(piece)

    with DirectoryTree(upper, xattrs="capability") as tree:
        if lower is None:
            apply(diff(None, tree), TarSink(write, lookup=tree.lookup))
        else:
            with DirectoryTree(lower, xattrs="capability") as below:
                apply(diff(below, tree, compare=CONTAINERD), TarSink(write, lookup=tree.lookup))
    return out.getvalue()


def timeless(data: bytes) -> bytes:
    """The archive without the times of its whiteouts, which are those of the day before containerd 2."""
    blocks = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.name.rpartition("/")[2].startswith(".wh."):
                blocks[member.offset + 136 : member.offset + 156] = bytes(20)
    return bytes(blocks)


def test_the_bytes_are_those_of_containerd(containerd: Containerd) -> None:
    below = containerd.commit_tree("below", lower)
    above = containerd.commit_tree("above", upper)
    settle(below)
    settle(above)
    for names, trees in ((("above",), (above, None)), (("below", "above"), (above, below))):
        call = ("snapshots", "--snapshotter", "native", "diff", "--media-type", MEDIA_TYPE, *names)
        theirs = subprocess.run([*containerd._ctr, *call], capture_output=True, check=True).stdout
        assert timeless(theirs) == timeless(ours(*trees))
