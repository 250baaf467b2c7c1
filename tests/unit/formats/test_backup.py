# SPDX-License-Identifier: Apache-2.0
"""Win32 backup streams, and the footer of virtual disks."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import pytest

from lamella.errors import FormatError, InvalidInput, SizeMismatch, StreamConsumed
from lamella.formats import backup
from lamella.formats.backup import BackupReader, BackupWriter, Surveyed, data_streams, stream_name, survey
from lamella.formats.vhd import VhdFooter


def header(id_: int, size: int, *, attributes: int = 0, name: str = "", offset: int | None = None) -> bytes:
    encoded = name.encode("utf-16-le")
    fixed = struct.pack("<IIqI", id_, attributes, size + (0 if offset is None else 8), len(encoded)) + encoded
    return fixed if offset is None else fixed + struct.pack("<q", offset)


PLAIN = (
    header(3, 2) + b"SD" + header(1, 5) + b"hello" + header(2, 2) + b"EA" + header(4, 6, name=":ads:$DATA") + b"stream"
)
SPARSE = (
    header(1, 0, attributes=8)
    + header(9, 4, offset=0)
    + b"aaaa"
    + header(9, 2, offset=20)
    + b"bb"
    + header(9, 0, offset=30)
    + header(4, 1, name=":s:$DATA")
    + b"x"
)


def short_reads(data: bytes) -> Callable[[int], bytes]:
    source = io.BytesIO(data)
    return lambda size: source.read(min(size, 3))


def surveyed(data: bytes) -> Surveyed:
    source = io.BytesIO(data)
    found = survey(BackupReader(source.read))
    skipping = io.BytesIO(data)

    def skip(count: int) -> int:
        passed = min(count, len(data) - skipping.tell())
        skipping.seek(passed, io.SEEK_CUR)
        return passed

    assert survey(BackupReader(skipping.read, skip=skip)) == found
    assert survey(BackupReader(short_reads(data))) == found
    return found


class TestReading:
    def test_each_stream_comes_with_its_body(self) -> None:
        found = [(stream.id, stream.name, stream.read()) for stream in BackupReader(short_reads(PLAIN))]
        assert found == [(3, "", b"SD"), (1, "", b"hello"), (2, "", b"EA"), (4, ":ads:$DATA", b"stream")]

    def test_bodies_can_be_left_alone_or_half_read(self) -> None:
        ids = []
        for stream in BackupReader(short_reads(PLAIN)):
            ids.append(stream.id)
            if stream.id == backup.DATA:
                assert next(iter(stream.chunks())) == b"hel"
        assert ids == [3, 1, 2, 4]

    def test_a_body_can_be_read_once_and_in_time(self) -> None:
        reader = BackupReader(io.BytesIO(PLAIN).read)
        streams = iter(reader)
        first = next(streams)
        late = first.chunks()
        with pytest.raises(StreamConsumed):
            first.chunks()
        second = next(streams)
        with pytest.raises(StreamConsumed):
            list(late)
        next(streams)
        with pytest.raises(StreamConsumed):
            second.chunks()
        with pytest.raises(StreamConsumed):
            iter(reader)

    def test_a_survey_leaves_content_where_it_is(self) -> None:
        found = surveyed(PLAIN)
        assert (found.security_descriptor, found.extended_attributes, found.reparse) == (b"SD", b"EA", None)
        assert (found.size, found.has_data, found.sparse) == (5, True, False)
        ((offset, length, at),) = found.pieces
        assert (offset, PLAIN[at : at + length]) == (0, b"hello")
        ((name, length, at),) = found.alternates
        assert (name, PLAIN[at : at + length]) == ("ads", b"stream")

    def test_a_survey_of_a_sparse_file(self) -> None:
        found = surveyed(SPARSE)
        assert (found.size, found.sparse) == (30, True)
        assert [(offset, SPARSE[at : at + length]) for offset, length, at in found.pieces] == [
            (0, b"aaaa"),
            (20, b"bb"),
        ]
        assert [name for name, _, _ in found.alternates] == ["s"]

    @pytest.mark.parametrize(
        ("data", "size", "has_data", "sparse"),
        [
            (b"", 0, False, False),
            (header(1, 0), 0, True, False),
            (header(1, 0, attributes=8), 0, True, True),
            (header(1, 0, attributes=8) + header(9, 0, offset=99), 99, True, True),
            (header(1, 0, attributes=8) + header(2, 1) + b"E", 0, True, True),
            (header(1, 1, attributes=8) + b"x", 1, True, True),
        ],
    )
    def test_the_shapes_of_empty_and_sparse_files(self, data: bytes, size: int, has_data: bool, sparse: bool) -> None:
        found = surveyed(data)
        assert (found.size, found.has_data, found.sparse) == (size, has_data, sparse)

    def test_streams_that_layers_have_no_use_for_are_named(self) -> None:
        assert surveyed(b"".join(header(id_, 1) + b"x" for id_ in (5, 6, 7, 10))).ignored == [5, 6, 7, 10]

    @pytest.mark.parametrize("data", [PLAIN, SPARSE])
    def test_a_file_cut_anywhere_is_refused_or_ends_at_a_stream(self, data: bytes) -> None:
        ends = {0}
        for stream in BackupReader(io.BytesIO(data).read):
            ends.add(stream.body_at + stream.size)
        for cut in range(len(data)):
            if cut in ends:
                list(BackupReader(io.BytesIO(data[:cut]).read))
                continue
            with pytest.raises(FormatError, match="truncated"):
                surveyed(data[:cut])

    @pytest.mark.parametrize(
        "data",
        [
            header(0, 0),
            header(11, 0),
            header(1, -1),
            struct.pack("<IIqI", 4, 0, 0, 3) + b"abc",
            struct.pack("<IIqI", 4, 0, 0, 1 << 17),
            struct.pack("<IIqI", 9, 0, 7, 0) + bytes(8),
            header(9, 0, offset=-1),
            header(9, 1, offset=(1 << 63) - 1),
        ],
    )
    def test_malformed_headers_are_refused(self, data: bytes) -> None:
        with pytest.raises(FormatError):
            list(BackupReader(io.BytesIO(data).read))

    @pytest.mark.parametrize(
        "data",
        [
            header(1, 0) * 2,
            header(2, 0) * 2,
            header(3, 0) * 2,
            header(8, 0) * 2,
            header(9, 0, offset=0),
            header(1, 0) + header(9, 0, offset=0),
            header(1, 0, attributes=8) + header(9, 0, offset=4) * 2,
            header(1, 0, attributes=8) + header(9, 2, offset=4) + b"ab",
            header(1, 0, attributes=8) + header(9, 2, offset=4) + b"ab" + header(2, 0),
            header(1, 0, attributes=8) + header(9, 2, offset=4) + b"ab" + header(9, 0, offset=5),
            header(4, 0, name=":a:$DATA", attributes=8),
            *(header(4, 0, name=name) for name in ("", ":a", "a:$DATA", "::$DATA", ":$DATA")),
            header(3, 1 << 18) + bytes(1 << 18),
        ],
    )
    def test_streams_that_make_no_file_are_refused(self, data: bytes) -> None:
        with pytest.raises(FormatError):
            surveyed(data)


class TestWriting:
    def test_what_is_written(self) -> None:
        out = io.BytesIO()
        writer = BackupWriter(out.write)
        writer.small(backup.SECURITY_DATA, b"SD")
        writer.stream(backup.DATA, 5)
        writer.data(b"he")
        writer.data(b"llo")
        writer.small(backup.EA_DATA, b"EA")
        writer.stream(backup.ALTERNATE_DATA, 6, name=stream_name("ads"))
        writer.data(b"stream")
        writer.finish()
        assert out.getvalue() == PLAIN

    def test_the_shapes_of_content(self) -> None:
        def shape(size: int, extents: list[tuple[int, int]] | None) -> list[tuple[int, int, int, int]]:
            return [
                (stream.id, stream.attributes, stream.size, stream.offset) for stream in data_streams(size, extents)
            ]

        assert shape(5, None) == shape(5, [(0, 5)]) == [(1, 0, 5, 0)]
        assert shape(0, None) == [(1, 0, 0, 0)]
        assert shape(0, []) == [(1, 8, 0, 0)]
        assert shape(99, []) == [(1, 8, 0, 0), (9, 0, 0, 99)]
        assert shape(30, [(0, 4), (20, 2)]) == [(1, 8, 0, 0), (9, 0, 4, 0), (9, 0, 2, 20), (9, 0, 0, 30)]

    def test_a_body_of_another_size_is_refused(self) -> None:
        writer = BackupWriter(lambda piece: None)
        writer.stream(backup.DATA, 2)
        with pytest.raises(SizeMismatch):
            writer.finish()
        with pytest.raises(SizeMismatch):
            writer.data(b"abc")
        with pytest.raises(SizeMismatch):
            writer.stream(backup.EA_DATA, 0)

    @pytest.mark.parametrize(
        "fields",
        [
            {"id_": 0, "size": 0},
            {"id_": 11, "size": 0},
            {"id_": 1, "size": -1},
            {"id_": 1, "size": 1 << 63},
            {"id_": 1, "size": 0, "offset": 1},
            {"id_": 1, "size": 0, "attributes": 1 << 32},
            {"id_": 9, "size": 0, "offset": -1},
            {"id_": 9, "size": 1, "offset": (1 << 63) - 9},
            {"id_": 4, "size": 0, "name": "a" * 40000},
        ],
    )
    def test_what_no_header_can_hold_is_refused(self, fields: dict[str, int | str]) -> None:
        with pytest.raises(InvalidInput):
            BackupWriter(lambda piece: None).stream(**fields)  # type: ignore[arg-type]


class TestVirtualDiskFooter:
    FOOTER = VhdFooter(1 << 20, bytes(range(16)))

    def test_the_fields_lie_where_they_should(self) -> None:
        data = self.FOOTER.encode()
        assert len(data) == 512
        expected = bytearray(512)
        for at, value in (
            (0, b"conectix"),
            (8, b"\0\0\0\2\0\1\0\0" + b"\xff" * 8),
            (32, b"\0\x0a\0\0"),
            (40, (1 << 20).to_bytes(8, "big") * 2),
            (60, b"\0\0\0\2"),
            (68, bytes(range(16))),
        ):
            expected[at : at + len(value)] = value
        expected[64:68] = (0xFFFFFFFF - sum(expected)).to_bytes(4, "big")
        assert data == expected

    def test_it_is_read_back(self) -> None:
        found = VhdFooter.decode(self.FOOTER.encode())
        assert (found.current_size, found.original_size, found.unique_id) == (1 << 20, 1 << 20, bytes(range(16)))
        assert found.encode() == self.FOOTER.encode()

    def test_any_changed_byte_of_its_fields_is_noticed(self) -> None:
        data = self.FOOTER.encode()
        for at in range(85):
            with pytest.raises(FormatError):
                VhdFooter.decode(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
        for cut in (0, 511):
            with pytest.raises(FormatError):
                VhdFooter.decode(data[:cut])

    def test_what_does_not_fit_is_refused(self) -> None:
        for footer in (VhdFooter(-1, bytes(16)), VhdFooter(1 << 64, bytes(16)), VhdFooter(1, b"short")):
            with pytest.raises(InvalidInput):
                footer.encode()
