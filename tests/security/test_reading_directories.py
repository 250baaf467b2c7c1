# SPDX-License-Identifier: Apache-2.0
"""Reading a tree while another process changes it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.changes.dump import dump
from lamella.changes.model import Kind, Put
from lamella.changes.tree import walk
from lamella.errors import Conflict, InvalidInput, LamellaError, NotFound
from lamella.layers.directory.content import FileOnDisk
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.tar.sink import TarSink
from lamella.paths import LayerPath

LARGE = 3 << 20


def path(text: str) -> LayerPath:
    return LayerPath(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "root"
    top.mkdir()
    return top


def test_nothing_but_directories_and_files_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"x")
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("fifo")
    (root / "dangling").symlink_to("/nonexistent")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        opened: list[str] = []
        real = os.open

        def record(file: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            opened.append(os.fspath(file))
            return real(file, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", record)
        pieces: list[bytes] = []
        with DirectoryTree(root) as tree:
            apply(walk(tree), TarSink(lambda piece: pieces.append(bytes(piece)), lookup=tree.lookup))
            apply(tree.changes(), TarSink(lambda piece: pieces.append(bytes(piece)), lookup=tree.lookup))
    assert opened == [str(root), "d", "f", "f"]


def test_links_to_directories_outside_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "way").symlink_to(outside)
    (root / "up").symlink_to("..")
    (root / "secret").symlink_to(outside / "secret")
    with DirectoryTree(root) as tree:
        assert all(change.entry.kind in (Kind.SYMLINK, Kind.DIRECTORY) for change in walk(tree))  # type: ignore[union-attr]
        assert tree.lookup(path("way/secret")) is None
        assert tree.lookup(path("up/outside")) is None
        for raw in ("way/secret", "up/outside/secret"):
            with pytest.raises(NotFound):
                tree.open(path(raw))
        for raw in ("way", "up"):
            with pytest.raises(InvalidInput):
                tree.entries(path(raw))
        with pytest.raises(InvalidInput):
            tree.open(path("secret"))


def replace_by_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_link(file: Path) -> None:
    other = file.parent.parent / "outside"
    other.write_bytes(file.read_bytes())
    status = file.stat()
    os.utime(other, ns=(status.st_mtime_ns, status.st_mtime_ns))
    file.unlink()
    file.symlink_to(other)


def replace_by_twin(file: Path) -> None:
    status = file.stat()
    data = file.read_bytes()
    keep = os.open(file, os.O_RDONLY)  # so that the inode number is not reused
    file.unlink()
    file.write_bytes(data)
    os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))
    os.close(keep)


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def grow(file: Path) -> None:
    with open(file, "ab") as end:
        end.write(b"more")


def shrink(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


CHANGES: list[Callable[[Path], None]] = [
    Path.unlink,
    replace_by_fifo,
    replace_by_link,
    replace_by_twin,
    replace_by_directory,
    grow,
    shrink,
    touch,
]


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_listed_is_an_error(
    tmp_path: Path, size: int, change: Callable[[Path], None]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(b"x" * size)
    with DirectoryTree(root) as tree:
        tree.entries(path(""))
        content = tree.open(path("f"))
        change(root / "f")
        with pytest.raises(Conflict, match="'f' changed while it was read"):
            for _ in content.chunks():
                pass


@pytest.mark.parametrize("change", [grow, shrink, touch])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, change: Callable[[Path], None]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(b"x" * LARGE)
    with DirectoryTree(root) as tree:
        chunks = iter(tree.open(path("f")).chunks())
        next(chunks)
        change(root / "f")
        with pytest.raises(Conflict, match="'f' changed while it was read"):
            for _ in chunks:
                pass


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_during_a_comparison_is_never_equal(tmp_path: Path, change: Callable[[Path], None]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"x" * 1000)
    with DirectoryTree(tmp_path / "one") as one, DirectoryTree(tmp_path / "two") as two:
        one.entries(path(""))
        two.entries(path(""))
        change(tmp_path / "two" / "f")
        with pytest.raises(Conflict, match="'f' changed while it was read"):
            one.same_content(path("f"), two, path("f"))


def test_an_archive_is_not_completed_when_a_file_changes(root: Path) -> None:
    (root / "a").write_bytes(b"x" * LARGE)
    pieces: list[bytes] = []

    def write(piece: bytes | bytearray | memoryview) -> None:
        pieces.append(bytes(piece))
        if len(pieces) == 2:
            grow(root / "a")

    with DirectoryTree(root) as tree, pytest.raises(Conflict):
        apply(walk(tree), TarSink(write, lookup=tree.lookup))
    assert not b"".join(pieces).endswith(bytes(1024))


def test_a_directory_removed_during_a_walk_is_an_error(root: Path) -> None:
    (root / "d").mkdir()
    with DirectoryTree(root) as tree:
        changes = walk(tree)
        next(changes)
        next(changes)
        (root / "d").rmdir()
        with pytest.raises(LamellaError):
            list(changes)


def test_a_file_removed_while_its_directory_is_listed_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "f").touch()
    real = os.listdir

    def listdir(directory: int) -> list[str]:
        names = real(directory)
        (root / "f").unlink(missing_ok=True)
        return names

    with DirectoryTree(root) as tree, monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        with pytest.raises(Conflict, match="changed while it was listed"):
            tree.entries(path(""))


def test_directories_swapped_for_links_during_a_walk_are_not_followed(tmp_path: Path) -> None:
    """A thread keeps swapping a directory and a link to the outside; the secret is never read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for number in range(5):
        (outside / f"f{number}").write_bytes(b"secret")
        os.setxattr(outside / f"f{number}", "user.secret", b"1")
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    for number in range(5):
        (root / "d" / f"f{number}").write_bytes(b"public")
    (root / "l").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(root / "d", root / "t")
            os.rename(root / "l", root / "d")
            os.rename(root / "d", root / "l")
            os.rename(root / "t", root / "d")

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes: set[type] = set()
    try:
        for _ in range(300):
            try:
                with DirectoryTree(root) as tree:
                    text = "\n".join(dump(walk(tree), inline=64))
            except LamellaError as error:
                outcomes.add(type(error))
                continue
            outcomes.add(str)
            assert "secret" not in text
    finally:
        stop.set()
        thread.join()
    assert outcomes


def test_a_fifo_instead_of_a_file_does_not_block_reading(root: Path) -> None:
    (root / "f").write_bytes(b"x")
    with DirectoryTree(root) as tree:
        content = tree.open(path("f"))
        assert isinstance(content, FileOnDisk)
        replace_by_fifo(root / "f")
        writer = os.open(root / "f", os.O_RDWR | os.O_NONBLOCK)
        try:
            with pytest.raises(Conflict):
                list(content.chunks())
        finally:
            os.close(writer)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_file_that_changes_before_it_is_read_is_read_whole_or_an_error(
    root: Path, size: int, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes between any two of the calls that read it."""
    real = {name: getattr(os, name) for name in ("scandir", "open", "fstat", "readv", "lstat", "preadv", "read")}
    for at in range(1, 12):
        for old in root.iterdir():
            old.rmdir() if old.is_dir() and not old.is_symlink() else old.unlink()
        (root / "f").write_bytes(b"x" * size)
        calls = 0

        def counted(name: str, at: int = at) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                result = real[name](*arguments, **options)
                if calls == at:
                    change(root / "f")
                return result

            return call

        with DirectoryTree(root) as tree:
            changes = iter(tree.changes())
            next(changes)
            with monkeypatch.context() as patch:
                for name in real:
                    patch.setattr(os, name, counted(name))
                try:
                    for put in changes:
                        assert isinstance(put, Put)
                        if put.content is not None:
                            data = b"".join(map(bytes, put.content.chunks()))
                            assert len(data) == put.entry.size
                            assert set(data) <= set(b"xmore")
                except LamellaError:
                    continue


def test_content_kept_for_later_is_read_again(root: Path) -> None:
    for name in "abc":
        (root / name).write_bytes(name.encode() * 1000)
    with DirectoryTree(root) as tree:
        puts = [change for change in tree.changes() if isinstance(change, Put) and change.content is not None]
        for put in puts:
            assert put.content is not None
            assert b"".join(map(bytes, put.content.chunks())) == put.entry.path.encode() * 1000
        grow(root / "a")
        first = puts[0].content
        assert first is not None
        with pytest.raises(Conflict):
            list(first.chunks())
