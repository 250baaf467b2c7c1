# SPDX-License-Identifier: Apache-2.0
"""Reading a tree in the manner of pathlib."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path, PurePosixPath

import pytest

from lamella.changes.model import Change
from lamella.changes.tree import fold
from lamella.errors import Conflict, InvalidInput, NotFound
from lamella.layers.directory.tree import DirectoryTree
from lamella.operations.trees.filesystem import ContentFile, Filesystem
from lamella.testing.builders import (
    WHEN,
    device,
    directory,
    fifo,
    file,
    link,
    sparse,
    symlink,
)

CHANGES: list[Change] = [
    directory("", mode=0o755),
    directory("usr"),
    directory("usr/lib"),
    file("usr/lib/os-release", b"ID=test\nNAME=Test\n", mode=0o640, uid=3, gid=4),
    file("usr/lib/libc.so", b"\x7fELF"),
    symlink("lib", "usr/lib"),
    directory("etc"),
    symlink("etc/os-release", "/usr/lib/os-release"),
    symlink("etc/up", "../../../etc/os-release"),
    symlink("etc/nowhere", "gone"),
    symlink("etc/round", "round"),
    file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
    link("etc/passwd-", "etc/passwd"),
    device("null", 1, 3, mode=0o666),
    fifo("pipe"),
    file("holes", sparse(1 << 20, [(4096, b"data"), (65536, b"more")])),
]


@pytest.fixture
def fs() -> Filesystem:
    return Filesystem(fold(CHANGES))


def test_names_are_those_of_pathlib(fs: Filesystem) -> None:
    path = fs / "usr/lib/os-release.d.conf"
    assert str(path) == "/usr/lib/os-release.d.conf"
    assert (path.name, path.stem, path.suffix) == ("os-release.d.conf", "os-release.d", ".conf")
    assert path.parts == ("/", "usr", "lib", "os-release.d.conf")
    assert [str(parent) for parent in path.parents] == ["/usr/lib", "/usr", "/"]
    assert path.parent == fs.root / "usr" / "lib"
    assert path.relative_to("/usr") == PurePosixPath("lib/os-release.d.conf")
    assert path.is_relative_to(fs / "usr")
    assert path.with_name("x") == fs.path("/usr/lib/x")
    assert path.match("lib/*.conf")
    assert repr(path) == "TreePath('/usr/lib/os-release.d.conf')"
    assert {path: 1}[fs / "usr/lib/os-release.d.conf"] == 1
    assert sorted([fs / "b", fs / "a"]) == [fs / "a", fs / "b"]


def test_an_absolute_part_starts_again_at_the_root_of_the_tree(fs: Filesystem) -> None:
    assert str(fs / "usr" / "/etc") == "/etc"
    assert str(fs / "//etc") == "/etc"
    assert str((fs / "usr").joinpath("lib", "/null")) == "/null"


def test_paths_of_two_trees_differ(fs: Filesystem) -> None:
    assert fs / "etc" != Filesystem(fold(CHANGES)) / "etc"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("usr", "dir"),
        ("lib", "dir"),
        ("lib/os-release", "file"),
        ("etc/os-release", "file"),
        ("etc/up", "file"),
        ("null", "char"),
        ("pipe", "fifo"),
        ("etc/nowhere", None),
        ("etc/round", None),
        ("gone", None),
        ("etc/passwd/x", None),
        ("lib/../etc", None),  # lib is usr/lib, so this is usr/etc
        ("lib/../../etc", "dir"),
    ],
)
def test_links_are_followed_inside_the_tree(fs: Filesystem, path: str, kind: str | None) -> None:
    at = fs / path
    found = {
        "dir": at.is_dir(),
        "file": at.is_file(),
        "char": at.is_char_device(),
        "block": at.is_block_device(),
        "fifo": at.is_fifo(),
    }
    assert [name for name, yes in found.items() if yes] == ([kind] if kind else [])
    assert at.exists() is (kind is not None)


def test_a_link_is_known_as_one_and_read_as_stored(fs: Filesystem) -> None:
    assert (fs / "etc/nowhere").is_symlink()
    assert not (fs / "etc/passwd").is_symlink()
    assert (fs / "etc/up").readlink() == "../../../etc/os-release"
    with pytest.raises(InvalidInput, match="not a symbolic link"):
        (fs / "etc/passwd").readlink()


def test_resolve_gives_the_path_without_links(fs: Filesystem) -> None:
    assert str((fs / "etc/up").resolve()) == "/usr/lib/os-release"
    assert str((fs / "lib/gone/deeper").resolve(strict=False)) == "/usr/lib/gone/deeper"
    with pytest.raises(NotFound):
        (fs / "lib/gone").resolve()
    with pytest.raises(InvalidInput, match="links"):
        (fs / "etc/round").resolve()


def test_stat_says_what_os_stat_would(fs: Filesystem) -> None:
    found = (fs / "etc/os-release").stat()
    assert found.st_mode == stat.S_IFREG | 0o640
    assert (found.st_uid, found.st_gid, found.st_size) == (3, 4, 18)
    assert found.st_mtime_ns == WHEN
    assert found.st_mtime == WHEN / 1e9
    itself = (fs / "etc/os-release").lstat()
    assert stat.S_ISLNK(itself.st_mode)
    assert itself.st_size == len("/usr/lib/os-release")
    assert (fs / "null").stat().st_rdev == os.makedev(1, 3)
    assert (fs / "etc/passwd-").stat().st_nlink == 2
    with pytest.raises(NotFound):
        (fs / "etc/nowhere").stat()


def test_samefile_knows_hard_links_and_links(fs: Filesystem) -> None:
    assert (fs / "etc/passwd").samefile(fs / "etc/passwd-")
    assert (fs / "lib").samefile(fs / "usr/lib")
    assert not (fs / "usr").samefile(fs / "etc")
    assert not (fs / "etc/passwd").samefile(fs / "usr/lib/libc.so")


def test_iterdir_sorts_by_the_bytes_of_names(fs: Filesystem) -> None:
    assert [str(path) for path in (fs / "lib").iterdir()] == ["/lib/libc.so", "/lib/os-release"]
    with pytest.raises(Conflict, match="not a directory"):
        list((fs / "etc/passwd").iterdir())
    with pytest.raises(NotFound):
        list((fs / "gone").iterdir())


def test_walk_is_top_down_and_can_be_pruned(fs: Filesystem) -> None:
    seen = []
    for at, directories, files in fs.root.walk():
        seen.append((str(at), list(directories), files))
        if str(at) == "/":
            directories.remove("etc")
    assert seen == [
        ("/", ["etc", "usr"], ["holes", "lib", "null", "pipe"]),
        ("/usr", ["lib"], []),
        ("/usr/lib", [], ["libc.so", "os-release"]),
    ]


def test_walk_can_be_bottom_up_and_follow_links(fs: Filesystem) -> None:
    assert [str(at) for at, _, _ in fs.root.walk(top_down=False)] == ["/etc", "/usr/lib", "/usr", "/"]
    assert "/lib" in [str(at) for at, _, _ in fs.root.walk(follow_symlinks=True)]


@pytest.mark.parametrize(
    ("start", "pattern", "expected"),
    [
        ("", "*", ["/etc", "/holes", "/lib", "/null", "/pipe", "/usr"]),
        ("", "*/os-release", ["/etc/os-release", "/lib/os-release"]),
        ("", "**/os-*", ["/etc/os-release", "/usr/lib/os-release"]),
        ("", "usr/**", ["/usr", "/usr/lib", "/usr/lib/libc.so", "/usr/lib/os-release"]),
        ("", "**/**/lib?.so", ["/usr/lib/libc.so"]),
        ("", "**/usr/**/lib?.so", ["/usr/lib/libc.so"]),
        ("etc", "p[a-b]*", ["/etc/passwd", "/etc/passwd-"]),
        ("etc", "nowhere", ["/etc/nowhere"]),
        ("etc", "passwd/*", []),
        ("gone", "*", []),
    ],
)
def test_glob_matches_as_pathlib_does(fs: Filesystem, start: str, pattern: str, expected: list[str]) -> None:
    assert [str(path) for path in (fs / start).glob(pattern)] == expected


def test_rglob_and_malformed_patterns(fs: Filesystem) -> None:
    assert [str(path) for path in fs.root.rglob("*.so")] == ["/usr/lib/libc.so"]
    for pattern in ("", "/usr"):
        with pytest.raises(ValueError, match="relative"):
            list(fs.root.glob(pattern))


def test_glob_agrees_with_pathlib_on_a_real_directory(tmp_path: Path) -> None:
    for name in ("a/b/c.py", "a/d.py", "a/b/e.txt", "f.py", ".hidden/g.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with DirectoryTree(tmp_path) as tree:
        fs = Filesystem(tree)
        for pattern in ("*.py", "**/*.py", "a/*", "*/*", "a/**/*.py", "?.py", "**/b"):
            expected = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern))
            assert sorted(str(path)[1:] for path in fs.root.glob(pattern)) == expected


def test_content_is_read_whole_or_as_text(fs: Filesystem) -> None:
    assert (fs / "etc/up").read_bytes() == b"ID=test\nNAME=Test\n"
    assert (fs / "etc/os-release").read_text() == "ID=test\nNAME=Test\n"
    with (fs / "etc/os-release").open() as text:
        assert text.readlines() == ["ID=test\n", "NAME=Test\n"]
    with pytest.raises(InvalidInput, match="is a directory, not a file"):
        (fs / "usr").read_bytes()
    with pytest.raises(InvalidInput, match="read-only"):
        (fs / "etc/passwd").open("wb")  # type: ignore[call-overload]


def test_an_open_file_can_be_moved_in_and_holes_are_zeros(fs: Filesystem) -> None:
    whole = bytes(4096) + b"data" + bytes(65536 - 4100) + b"more"
    whole += bytes((1 << 20) - len(whole))
    assert (fs / "holes").read_bytes() == whole
    with (fs / "holes").open("rb") as opened:
        opened.seek(65536)
        assert opened.read(4) == b"more"
        opened.seek(4090)
        assert opened.read(10) == whole[4090:4100]
        assert opened.seek(-4, os.SEEK_END) == (1 << 20) - 4
        assert opened.read() == bytes(4)
        assert opened.seek(2 << 20) == 2 << 20
        assert opened.read(1) == b""
        opened.seek(10)
        assert opened.seek(5, os.SEEK_CUR) == 15
        with pytest.raises(ValueError, match="negative"):
            opened.seek(-1)


def test_a_closed_file_raises_value_error(fs: Filesystem) -> None:
    raw = ContentFile((fs / "etc/passwd").content())
    assert raw.readable()
    assert raw.seekable()
    assert raw.read(4) == b"root"
    assert raw.tell() == 4
    raw.close()
    with pytest.raises(ValueError, match="closed"):
        raw.read(1)
    assert isinstance(raw, io.RawIOBase)
