# SPDX-License-Identifier: Apache-2.0
"""The canonical text of changes."""

from __future__ import annotations

import hashlib

import pytest

from lamella.changes.dump import Withheld, dump, escape, parse_dump, unescape
from lamella.changes.model import Change, Entry, Inline, Kind, Posix, Put, Sparse, Stream, Windows
from lamella.errors import InvalidInput, NotFound, SizeMismatch
from lamella.paths import LayerPath
from lamella.testing.builders import (
    device,
    directory,
    fifo,
    file,
    link,
    opaque,
    sparse,
    stream,
    symlink,
    whiteout,
)

DIGEST = hashlib.sha256(b"hello\n").hexdigest()
WINDOWS = Windows(0x20, -1, 2, 3_000_000_000, None, b"\x01\x02", {"$KERNEL.X": b"1"}, b"\x0c\0\0\xa0")

LINES: list[tuple[Change, str]] = [
    (file("a/b", b"hello\n"), f"put file 0644 0:0 1700000000.5 a/b size=6 sha256={DIGEST}"),
    (file("a", b"", mode=0o4755, uid=7, gid=8, mtime=-1), "put file 4755 7:8 -0.000000001 a size=0"),
    (
        file("a", xattrs={"user.b": b"\x00 x", "user.a=c": b""}),
        "put file 0644 0:0 1700000000.5 a xattr.user.a\\x3dc= xattr.user.b=\\x00\\sx size=0",
    ),
    (directory("", mtime=0), "put directory 0755 0:0 0 ."),
    (directory(".", mtime=0), "put directory 0755 0:0 0 \\x2e"),
    (symlink("lib", "usr/my lib", mtime=0), "put symlink 0777 0:0 0 lib target=usr/my\\slib"),
    (symlink("lib", "", mtime=0), "put symlink 0777 0:0 0 lib target="),
    (device("null", 1, 3, mtime=0), "put character 0600 0:0 0 null device=1:3"),
    (device("sda", 8, 0, mtime=0, block=True), "put block 0600 0:0 0 sda device=8:0"),
    (fifo("p", mtime=0), "put fifo 0644 0:0 0 p"),
    (
        Put(Entry(LayerPath("w"), Kind.DIRECTORY, None, windows=Windows(0x10)), None),
        "put directory - - - w attributes=0x10",
    ),
    (
        directory("w", mtime=0, windows=WINDOWS),
        (
            "put directory 0755 0:0 0 w attributes=0x20 created=-0.000000001 accessed=0.000000002 written=3 "
            "sd=AQI= reparse=DAAAoA== ea.$KERNEL.X=1"
        ),
    ),
    (link("b", "a"), "link b target=a"),
    (stream("a", "s", b""), "stream a name=s size=0"),
    (whiteout("x\ny\\\udcff/ü"), "whiteout x\\ny\\\\\\xff/\\xc3\\xbc"),
    (opaque(""), "opaque ."),
]


@pytest.mark.parametrize(("change", "line"), LINES)
def test_each_change_has_one_line_of_visible_ascii(change: Change, line: str) -> None:
    assert [line] == list(dump([change]))
    assert line.isascii()
    assert line.isprintable()


@pytest.mark.parametrize(("change", "line"), LINES)
def test_a_line_read_back_is_written_the_same(change: Change, line: str) -> None:
    assert [line] == list(dump(parse_dump([line + "\n"])))


@pytest.mark.parametrize(("change", "line"), LINES)
def test_a_change_with_inline_content_survives_a_dump(change: Change, line: str) -> None:
    assert [change] == list(parse_dump(dump([change], inline=64)))


def test_small_content_is_written_as_text_or_as_base64() -> None:
    lines = list(dump([file("a", b"hello\n", mtime=0), file("b", b"\xff\0", mtime=0)], inline=6))

    expected = ["put file 0644 0:0 0 a size=6 text=hello\\n", "put file 0644 0:0 0 b size=2 base64=/wA="]
    assert lines == expected
    assert list(dump([file("a", b"hello\n", mtime=0)], inline=5)) == [f"put file 0644 0:0 0 a size=6 sha256={DIGEST}"]


def test_the_size_of_inline_content_may_be_left_out() -> None:
    assert [file("a", b"abc", mtime=0)] == list(parse_dump(["# a comment", "", "put file 0644 0:0 0 a text=abc"]))
    assert [file("a", mtime=0)] == list(parse_dump(["put file 0644 0:0 0 a"]))


def test_holes_are_listed_without_reading_them() -> None:
    content = sparse(1 << 60, [(4096, b"hello"), (1 << 50, b"\n")])
    lines = list(dump([file("a", content, mtime=0)]))

    assert lines == [
        f"put file 0644 0:0 0 a size={1 << 60} data=4096+5,{1 << 50}+1 sha256={DIGEST}",
    ]
    assert list(dump(parse_dump(lines))) == lines
    assert [file("a", content, mtime=0)] == list(parse_dump(dump([file("a", content, mtime=0)], inline=6)))


def test_a_file_that_is_one_hole_has_neither_data_nor_digest() -> None:
    lines = ["put file 0644 0:0 0 a size=4096 data="]

    assert list(dump([file("a", sparse(4096), mtime=0)])) == lines
    assert [file("a", sparse(4096), mtime=0)] == list(parse_dump(lines))


def test_the_same_data_and_holes_give_the_same_text() -> None:
    split = Sparse(8, ((0, 0), (1, 2), (3, 2), (8, 0)), b"abcd")
    whole = Sparse(4, ((0, 2), (2, 2)), b"abcd")

    assert list(dump([file("a", sparse(8, [(1, b"abcd")]))])) == list(dump([file("a", split)]))
    assert list(dump([file("a", b"abcd")])) == list(dump([file("a", whole)]))


def test_holes_can_be_read_as_zeros() -> None:
    holes, zeros = file("a", sparse(9, [(2, b"x")])), file("a", b"\0\0x\0\0\0\0\0\0")

    assert list(dump([zeros], extents=False)) == list(dump([holes], extents=False))
    assert list(dump([zeros], inline=9)) == list(dump([holes], extents=False, inline=9))


def test_content_that_a_dump_omits_has_a_digest_and_cannot_be_read() -> None:
    (change,) = parse_dump([f"put file 0644 0:0 0 a size=6 sha256={DIGEST}"])

    assert isinstance(change, Put)
    assert change.entry.size == 6
    assert change.content == Withheld(6, None, DIGEST)
    with pytest.raises(NotFound, match=DIGEST):
        change.content.chunks()


def test_content_of_the_wrong_length_is_an_error() -> None:
    class Short(Inline):
        @property
        def size(self) -> int:
            return len(self.data) + 1

    with pytest.raises(SizeMismatch, match="expected 4 bytes, got 3"):
        list(dump([file("a", Short(b"abc"))]))
    with pytest.raises(SizeMismatch):
        list(dump([Put(Entry(LayerPath("a"), Kind.FILE, Posix(0, 0, 0, 0), 5), Inline(b"abc"))]))
    with pytest.raises(SizeMismatch):
        list(dump([Put(Entry(LayerPath("a"), Kind.FILE, Posix(0, 0, 0, 0), 5), None)]))
    with pytest.raises(SizeMismatch):
        list(dump([Stream(LayerPath("a"), "s", Short(b"abc"))]))


@pytest.mark.parametrize(
    "line",
    [
        "put",
        "put socket 0644 0:0 0 a",
        "put file 644 0:0 0 a",
        "put file 0888 0:0 0 a",
        "put file 0644 0 0 a",
        "put file 0644 0:0 x a",
        "put file 0644 0:0 0 a size=3",
        "put file 0644 0:0 0 a size=3 sha256=abc",
        "put file 0644 0:0 0 a size=3 text=ab",
        "put file 0644 0:0 0 a size=3 data=0+4 text=abcd",
        "put file 0644 0:0 0 a size=9 data=4+2,5+1 text=abc",
        "put file 0644 0:0 0 a size=-3",
        "put file 0644 0:0 0 a base64=*",
        "put file 0644 0:0 0 a\\q",
        "put file 0644 0:0 0 a\\",
        "put file 0644 0:0 0 a colour=red",
        "put file 0644 0:0 0 a text=a text=a",
        "put file 0644 0:0 0 a word",
        "put file 0644  0:0 0 a",
        "put file - - - a device=1:3",
        "put symlink 0777 0:0 0 a target=b size=1 text=x",
        "put directory 0755 0:0 0 a size=0",
        "link a",
        "link a target=b target2=c",
        "whiteout",
        "whiteout a b",
        "remove a",
    ],
)
def test_a_malformed_line_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(InvalidInput, match="line 2 of the dump"):
        list(parse_dump(["# first", line]))


def test_a_lone_surrogate_survives() -> None:
    for text in ("\ud83d", "a\udcff\ud83db", "\\ud83d", "\\\\x41", "\u2028"):
        assert unescape(escape(text)) == text
        assert escape(text).isprintable()
