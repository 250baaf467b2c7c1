# SPDX-License-Identifier: Apache-2.0
"""Images of directories: what changes while it is read is an error, and holes are told in one way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.errors import Conflict
from lamella.layers.erofs.from_directory import write_image
from lamella.layers.erofs.tree import ErofsImage, ErofsLayer
from lamella.paths import LayerPath

SIZE = 3 << 20


def rewritten(file: Path) -> None:
    with file.open("r+b") as open_file:
        open_file.write(b"new" * 100)


def grown(file: Path) -> None:
    with file.open("ab") as open_file:
        open_file.write(b"more")


def shorter(file: Path) -> None:
    os.truncate(file, 1 << 20)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(os.urandom(SIZE))
    os.utime(root / "f", (1, 1))
    return root


def once_called(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], object]) -> None:
    """Have ``change`` happen after the first call of that function of `os`."""
    call, todo = getattr(os, name), [change]

    def called(*arguments: object, **named: object) -> object:
        result = call(*arguments, **named)
        while todo:
            todo.pop()()
        return result

    monkeypatch.setattr(os, name, called)


@pytest.mark.parametrize("change", [rewritten, grown, shorter])
@pytest.mark.parametrize("holes", [False, True])
def test_a_file_that_changes_while_it_is_read_is_an_error_and_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], holes: bool
) -> None:
    if holes:
        os.truncate(root / "f", 4 * SIZE)
        os.utime(root / "f", (1, 1))
    once_called(monkeypatch, "pread", lambda: change(root / "f"))
    with pytest.raises(Conflict, match="'f' changed while it was read"):
        write_image(root, tmp_path / "image")
    assert os.listdir(tmp_path) == ["root"]


@pytest.mark.parametrize("by", ["another", "fifo", "link", "nothing"])
def test_a_file_that_gives_way_once_it_is_listed_is_an_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    def give_way() -> None:
        (root / "f").rename(tmp_path / "old")
        match by:
            case "another":
                (root / "f").write_bytes(b"another")
            case "fifo":
                os.mkfifo(root / "f")
            case "link":
                (root / "f").symlink_to("elsewhere")

    once_called(monkeypatch, "stat", give_way)
    with pytest.raises(Conflict, match="'f' changed while it was read"):
        write_image(root, tmp_path / "image")
    assert sorted(os.listdir(tmp_path)) == ["old", "root"]


def test_a_file_system_that_does_not_tell_holes_is_read_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (root / "f").read_bytes() + bytes(SIZE)
    os.truncate(root / "f", 2 * SIZE)
    seek = os.lseek

    def lseek(file: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return seek(file, offset, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    write_image(root, tmp_path / "image")
    with ErofsImage(ErofsLayer(tmp_path / "image")) as image:
        assert b"".join(image.open(LayerPath("f")).chunks()) == content
