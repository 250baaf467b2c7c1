# SPDX-License-Identifier: Apache-2.0
"""The writer's output equals Go's archive/tar, and wrong amounts of data are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from tests.unit.formats.tar.archives import read

from lamella.errors import Conflict, InvalidInput, SizeMismatch
from lamella.formats.tar import TarWriter, header
from lamella.formats.tar.writer import Buffer

SECOND: Final = 1_000_000_000
GOLDEN: Final[list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("golden").joinpath("headers.json").read_text("utf-8")
)
PLAIN: Final[Mapping[str, Any]] = {"mode": 0o644, "uid": 0, "gid": 0, "size": 0, "mtime": 0}


def plain(name: str = "f", typeflag: str = "0", **arguments: Any) -> bytes:
    return header(name, typeflag, **(dict(PLAIN) | arguments))


def text(raw: str) -> str:
    """A string of the golden file, which has one byte in each character."""
    return raw.encode("latin-1").decode("utf-8", "surrogateescape")


def golden_arguments(case: dict[str, Any]) -> dict[str, Any]:
    same = {key: case[key] for key in ("typeflag", "mode", "uid", "gid", "size", "mtime", "pax")}
    texts = {key: text(case[key]) for key in ("name", "linkname", "uname", "gname")}
    records = {text(key): value.encode("latin-1") for key, value in case["records"].items()}
    return same | texts | {"records": records, "device": tuple(case["device"])}


def golden_bytes(case: dict[str, Any]) -> bytes:
    blocks: list[str] = case["blocks"]
    return b"".join(block.replace("~", "\0").encode("latin-1").ljust(512, b"\0") for block in blocks)


class TestHeader:
    @pytest.mark.parametrize("case", GOLDEN, ids=[case["title"].replace(" ", "-") for case in GOLDEN])
    def test_it_is_byte_for_byte_what_go_writes(self, case: dict[str, Any]) -> None:
        arguments = golden_arguments(case)
        expected = golden_bytes(case)
        assert expected == header(**arguments)
        assert expected == header(**arguments), "the second time too, from what is remembered"

    def test_the_reader_gives_back_what_was_written(self) -> None:
        for case in GOLDEN:
            arguments = golden_arguments(case)
            if arguments["size"]:
                continue
            (one,) = read(header(**arguments) + bytes(1024))
            mtime = arguments["mtime"]
            if not arguments["pax"]:
                mtime = (mtime + SECOND // 2) // SECOND * SECOND
            assert one.name == arguments["name"]
            assert one.member.typeflag == arguments["typeflag"]
            assert one.member.linkname == arguments["linkname"]
            assert one.member.device == arguments["device"]
            assert one.member.facet == (arguments["mode"], arguments["uid"], arguments["gid"], mtime)
            kept = {key: value for key, value in (one.member.records or {}).items() if "." in key}
            assert kept == arguments["records"]

    def test_many_owners_and_devices_are_written_right_though_few_are_remembered(self) -> None:
        for number in range(5000):
            (one,) = read(plain("d", "3", uid=number, device=(1, number)) + bytes(1024))
            assert one.member.facet[1] == number
            assert one.member.device == (1, number)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"typeflag": "7"},
            {"typeflag": "x"},
            {"typeflag": ""},
            {"name": "f/"},
            {"name": "f/", "typeflag": "6"},
            {"name": "a\0b"},
            {"name": "a\0b", "typeflag": "5"},
            {"typeflag": "2", "linkname": "a\0b"},
            {"uname": "a\0b"},
            {"typeflag": "5", "size": 1},
            {"mode": 1 << 21},
            {"mode": -1},
            {"uid": -1},
            {"gid": -1},
            {"size": -1},
            {"size": 1 << 63},
            {"mtime": (1 << 63) * SECOND},
            {"typeflag": "3", "device": (1 << 21, 0)},
            {"typeflag": "3", "device": (0, -1)},
            {"records": {"path": b"x"}},
            {"records": {"mtime": b"1"}},
            {"records": {"GNU.sparse.major": b"1"}},
            {"records": {"": b"x"}},
            {"records": {"a=b": b"x"}},
            {"records": {"a\0b": b"x"}},
            {"records": {"A.b": bytes(1 << 20)}},
        ],
    )
    def test_what_no_header_can_hold_is_refused(self, arguments: dict[str, Any]) -> None:
        plain()
        with pytest.raises(InvalidInput):
            plain(**arguments)


class Pieces:
    """What a writer wrote, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: Buffer) -> None:
        self.pieces.append(bytes(piece))

    @property
    def whole(self) -> bytes:
        return b"".join(self.pieces)


class TestWriter:
    def test_an_archive_is_its_members_their_padding_and_two_zero_blocks(self) -> None:
        out = Pieces()
        writer = TarWriter(out.write)
        writer.member("a", "0", **(dict(PLAIN) | {"size": 5}))
        writer.data(b"he")
        writer.data(memoryview(b"llo"))
        writer.member("d/", "5", **PLAIN)
        writer.member("b", "0", **(dict(PLAIN) | {"size": 512}))
        writer.data(bytearray(b"x" * 512))
        writer.close()
        assert out.whole == (
            plain("a", size=5)
            + b"hello".ljust(512, b"\0")
            + plain("d/", "5")
            + plain("b", size=512)
            + b"x" * 512
            + bytes(1024)
        )

    def test_an_empty_archive_is_the_end_marker(self) -> None:
        out = Pieces()
        TarWriter(out.write).close()
        assert out.whole == bytes(1024)

    def test_data_is_passed_on_as_it_is(self) -> None:
        taken: list[object] = []
        writer = TarWriter(taken.append)
        writer.member("a", "0", **(dict(PLAIN) | {"size": 3}))
        view = memoryview(b"abc")
        writer.data(view)
        assert taken[-1] is view

    def test_the_offset_is_where_the_next_header_goes(self) -> None:
        out = Pieces()
        writer = TarWriter(out.write)
        assert writer.offset == 0
        writer.member("é", "0", **(dict(PLAIN) | {"size": 600}))
        assert writer.offset == 1536
        writer.data(b"x" * 100)
        assert writer.offset == 1636
        writer.data(b"x" * 500)
        assert writer.offset == 2560
        writer.member("b", "0", **PLAIN)
        writer.close()
        assert writer.offset == 4096
        assert writer.offset == len(out.whole)

    def test_more_data_than_stated_is_refused_and_not_written(self) -> None:
        out = Pieces()
        writer = TarWriter(out.write)
        writer.member("a", "0", **(dict(PLAIN) | {"size": 3}))
        writer.data(b"ab")
        with pytest.raises(SizeMismatch) as caught:
            writer.data(b"cd")
        assert caught.value.expected == 3
        assert out.whole == plain("a", size=3) + b"ab"

    def test_less_data_than_stated_is_refused_at_the_next_member_and_at_the_end(self) -> None:
        writer = TarWriter(Pieces().write)
        writer.member("a", "0", **(dict(PLAIN) | {"size": 3}))
        writer.data(b"ab")
        for finish in (writer.finish_member, writer.close, lambda: writer.member("b", "0", **PLAIN)):
            with pytest.raises(SizeMismatch) as caught:
                finish()
            assert (caught.value.expected, caught.value.actual) == (3, 2)

    def test_a_member_that_cannot_be_written_leaves_the_archive_as_it_was(self) -> None:
        out = Pieces()
        writer = TarWriter(out.write)
        writer.member("a", "0", **(dict(PLAIN) | {"size": 1}))
        writer.data(b"x")
        with pytest.raises(InvalidInput):
            writer.member("b/", "0", **PLAIN)
        writer.member("c", "0", **PLAIN)
        writer.close()
        assert [one.name for one in read(out.whole)] == ["a", "c"]

    def test_nothing_follows_the_end(self) -> None:
        writer = TarWriter(Pieces().write)
        writer.close()
        for further in (writer.close, writer.finish_member, lambda: writer.member("b", "0", **PLAIN)):
            with pytest.raises(Conflict):
                further()
