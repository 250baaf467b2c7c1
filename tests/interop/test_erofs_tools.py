# SPDX-License-Identifier: Apache-2.0
"""EROFS images beside those who know them: the kernel mounts ours, fsck.erofs checks them, mkfs.erofs makes others."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.dump import dump
from lamella.changes.model import Change
from lamella.changes.tree import MemoryTree, fold, merge, walk
from lamella.errors import Unsupported
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.erofs.sink import ErofsSink
from lamella.layers.erofs.tree import ErofsImage, ErofsLayer, ErofsTree
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.testing.builders import device, directory, fifo, file, link, sparse, symlink, whiteout
from lamella.testing.strategies import stacks, trees

pytestmark = [pytest.mark.interop, pytest.mark.root]

LONG = "n" * 251
MANY: tuple[Change, ...] = (
    directory("", mode=0o751, mtime=-5),
    directory("big"),
    *(file(f"big/{LONG}{number:04}", b"x" * number) for number in range(40)),
    device("c", 4, 70000),
    fifo("f"),
    file("exact", b"y" * 8192),
    file("full", b"z" * 4096, xattrs={"user.long": b"v" * 5000, "security.capability": b"\1\0\0\2" + bytes(16)}),
    file("holes", sparse(3 << 20, [(8192, b"a" * 5000), (1 << 20, b"b")])),
    file("nothing", sparse(1 << 20)),
    file("tail", b"t" * 9000, mode=0o4755, mtime=1_700_000_000_123_456_789),
    link("hard", "tail"),
    symlink("long", "t" * 4090),
    symlink("short", "tail"),
)


@pytest.fixture(scope="module", autouse=True)
def tools(needs: Callable[..., str]) -> None:
    needs("mkfs.erofs", "fsck.erofs", "mount", "umount")


def run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@contextmanager
def shown(*images: Path) -> Iterator[Path]:
    """What the kernel shows of ``images``, the base first: one as it is, several by an overlay."""
    with tempfile.TemporaryDirectory() as where:
        points = [Path(where, str(number)) for number in range(len(images))]
        mounted: list[Path] = []
        try:
            for image, point in zip(images, points, strict=True):
                point.mkdir()
                run("mount", "-t", "erofs", "-o", "loop,ro", image, point)
                mounted.append(point)
            top = points[0]
            if len(points) > 1:
                top = Path(where, "merged")
                top.mkdir()
                lower = ":".join(map(str, reversed(points)))
                run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},redirect_dir=off,metacopy=off", top)
                mounted.append(top)
            yield top
        finally:
            for point in reversed(mounted):
                run("umount", point)


def lines(tree: Tree) -> list[str]:
    return list(dump(walk(tree), inline=16, extents=False))


def image(where: Path, name: str, changes: Sequence[Change], *below: Path) -> Path:
    path = where / f"{name}.erofs"
    apply(changes, ErofsSink(ErofsLayer(path), parents=LayerStack(map(ErofsLayer, below))))
    return path


def test_the_kernel_shows_what_an_image_holds(tmp_path: Path) -> None:
    path = image(tmp_path, "a", MANY)
    run("fsck.erofs", path)
    with shown(path) as top, DirectoryTree(top) as seen:
        assert lines(fold(MANY)) == lines(seen)
    with ErofsImage(ErofsLayer(path)) as read:
        assert lines(fold(MANY)) == lines(read)


def test_the_kernel_shows_layers_over_each_other(tmp_path: Path) -> None:
    layers: list[list[Change]] = [
        [directory("a", mode=0o700), file("a/b", b"1"), file("a/c", b"2"), symlink("s", "a"), file("x", b"3")],
        [whiteout("a/b"), file("s/d", b"4"), directory("x"), file("x/y", b"5")],
        [whiteout("a"), directory("a/e"), link("l", "x/y"), whiteout("s")],
    ]
    paths: list[Path] = []
    for number, layer in enumerate(layers):
        paths.append(image(tmp_path, str(number), layer, *paths))
    with shown(*paths) as top, DirectoryTree(top) as seen:
        assert lines(merge(layers)) == lines(seen)


@settings(max_examples=20)
@given(trees())
def test_any_tree_comes_through_the_kernel(tree: MemoryTree) -> None:
    with tempfile.TemporaryDirectory() as where:
        path = image(Path(where), "a", list(walk(tree)))
        run("fsck.erofs", path)
        with shown(path) as top, DirectoryTree(top) as seen:
            assert lines(tree) == lines(seen)


@settings(max_examples=20)
@given(stacks())
def test_any_stack_is_what_it_means(stack: list[list[Change]]) -> None:
    with tempfile.TemporaryDirectory() as where:
        paths: list[Path] = []
        for number, layer in enumerate(stack):
            paths.append(image(Path(where), str(number), layer, *paths))
        with ErofsTree(LayerStack(map(ErofsLayer, paths))) as read:
            assert lines(merge(stack)) == lines(read)
        with shown(*paths) as top, DirectoryTree(top) as seen:
            # An overlay links within a layer only, so a name below is a file of its own there.
            assert outline(merge(stack)) == outline(seen)


def outline(tree: Tree) -> list[str]:
    """What is where, each name as a file of its own."""
    found: list[str] = []
    todo = [LayerPath("")]
    while todo:
        path = todo.pop()
        for entry in tree.entries(path):
            content = b"".join(map(bytes, tree.open(entry.path).chunks())) if entry.size else b""
            found.append(f"{entry} {content.strip(bytes(1))!r}")
            if entry.kind.value == "directory":
                todo.append(entry.path)
    return found


@pytest.mark.parametrize(
    "options",
    [(), ("-E", "force-inode-compact"), ("--chunksize=4096",), ("-b", "512"), ("-x", "1"), ("-E", "noinline_data")],
    ids=lambda options: " ".join(options) or "plain",
)
def test_images_of_mkfs_are_read(tmp_path: Path, options: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    apply(
        MANY if "512" not in options else [change for change in MANY if "long" not in str(change)],
        DirectorySink(source),
    )
    for number in range(3):  # the same attribute in several files is shared between them
        os.setxattr(source / "exact", f"user.shared{number}", b"same" * 20)
        os.setxattr(source / "tail", f"user.shared{number}", b"same" * 20)
    path = tmp_path / "a.erofs"
    run("mkfs.erofs", "--quiet", *options, path, source)
    with shown(path) as top, DirectoryTree(top) as seen, ErofsImage(ErofsLayer(path)) as read:
        assert lines(seen) == lines(read)
    if not options:
        with DirectoryTree(source) as kept, ErofsImage(ErofsLayer(path)) as read:
            assert lines(kept) == lines(read)


def test_a_compressed_image_is_listed_and_its_files_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"a" * 100_000)
    path = tmp_path / "a.erofs"
    run("mkfs.erofs", "--quiet", "-zlz4", path, source)
    with ErofsImage(ErofsLayer(path)) as read:
        assert [entry.path for entry in read.entries(LayerPath(""))] == ["a"]
        with pytest.raises(Unsupported, match="compressed"):
            list(read.open(LayerPath("a")).chunks())
