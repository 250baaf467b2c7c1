# SPDX-License-Identifier: Apache-2.0
"""Keys and values as text."""

from __future__ import annotations

import pytest
from tests.unit.formats.regf.hives import TIME, small, utf16

from lamella.errors import Exhausted
from lamella.formats.regf import Layering, MemoryKey, Value, text
from lamella.formats.regf.text import dump, time_text, value_line

DUMP = """\
[\\] time=2024-01-17T21:20:00Z security=e9fe1e9abe13
@=REG_SZ:"default"

[\\Control] time=2024-01-17T21:20:00Z security=e9fe1e9abe13 class="a class" control=0x12
"Start"=REG_DWORD:0x00000003
"Empty"=REG_BINARY:
"Gr\\u00f6\\u00dfe"=REG_BINARY:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324252627
"\\u5927\\u304d\\u3055"=REG_MULTI_SZ:["a", "b"]
"""


def test_a_dump_tells_all_that_keys_have() -> None:
    root = small()
    lines = list(dump(root))
    shown = "\n".join(line for line in lines if not line.startswith('"Blob"'))
    assert shown.startswith(DUMP)
    assert shown.isascii()
    assert "[\\services] time=2024-01-17T21:20:00Z security=" in shown
    assert " flags=0x0010\n" in shown
    assert lines[-1] == "[\\\\u65e5\\u672c\\\\ud83d\\udcbe] time=2024-01-17T21:20:00.0000001Z security=e9fe1e9abe13"
    assert time_text(TIME) == "2024-01-17T21:20:00Z"


def test_marks_of_a_delta_are_shown() -> None:
    root = MemoryKey("", inherit_class=True)
    for name, layering in (("a", 1), ("b", 2), ("c", 3)):
        root.make(name).layering = Layering(layering)
    root.hide("gone")
    root.hide("")
    head = "time=1601-01-01T00:00:00Z security=e9fe1e9abe13"
    assert list(dump(root)) == [
        f"[\\] {head} inherit-class",
        '"gone"=-',
        "@=-",
        "",
        f"[\\a] {head} layer=tombstone",
        "",
        f"[\\b] {head} layer=supersede",
        "",
        f"[\\c] {head} layer=supersede-tree",
    ]


def test_equal_hives_have_equal_dumps_in_whatever_order_keys_were_made() -> None:
    first, second = MemoryKey(""), MemoryKey("")
    for name in ("a", "B", "c"):
        first.make(name)
    for name in ("c", "B", "a"):
        second.make(name)
    assert list(dump(first)) == list(dump(second))


@pytest.mark.parametrize(
    ("kind", "data", "shown"),
    [
        (0, b"", "REG_NONE:"),
        (1, utf16('C:\\ "x"\n\x7f\0'), 'REG_SZ:"C:\\\\ \\"x\\"\\n\\u007f"'),
        (1, utf16("\0"), 'REG_SZ:""'),
        (1, utf16("no end"), "REG_SZ:6e006f00200065006e006400"),
        (1, b"", "REG_SZ:"),
        (1, b"\0", "REG_SZ:00"),
        (2, utf16("%x%\0"), 'REG_EXPAND_SZ:"%x%"'),
        (3, b"\xab", "REG_BINARY:ab"),
        (4, b"\1\0\0\x80", "REG_DWORD:0x80000001"),
        (4, b"\1\0", "REG_DWORD:0100"),
        (5, b"\1\0\0\x80", "REG_DWORD_BIG_ENDIAN:0x01000080"),
        (6, utf16("\\Registry"), 'REG_LINK:"\\\\Registry"'),
        (7, utf16("a\0b\0\0"), 'REG_MULTI_SZ:["a", "b"]'),
        (7, utf16("\0"), "REG_MULTI_SZ:[]"),
        (7, utf16("a\0"), "REG_MULTI_SZ:61000000"),
        (7, utf16("\0\0"), "REG_MULTI_SZ:00000000"),
        (7, utf16("a\0\0b\0\0"), "REG_MULTI_SZ:610000000000620000000000"),
        (8, b"\1", "REG_RESOURCE_LIST:01"),
        (11, bytes(7) + b"\1", "REG_QWORD:0x0100000000000000"),
        (0xFFFF0012, b"\1", "REG_0xffff0012:01"),
        (1, b"\x00\xd8\0\0", 'REG_SZ:"\\ud800"'),
    ],
)
def test_data_is_shown_by_its_type_where_that_tells_each_byte(kind: int, data: bytes, shown: str) -> None:
    assert value_line(Value("v", kind, data)) == f'"v"={shown}'


def test_times_without_a_year_are_numbers() -> None:
    assert time_text(0) == "1601-01-01T00:00:00Z"
    assert time_text((1 << 64) - 1) == str((1 << 64) - 1)


def test_paths_of_deep_keys_are_not_printed_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_LONGEST", 100_000)
    root = key = MemoryKey("")
    for _ in range(100):
        key = key.make("x" * 255)
    with pytest.raises(Exhausted, match="the paths of all keys exceed"):
        list(dump(root))
