# SPDX-License-Identifier: Apache-2.0
"""Sparse files in the four formats of GNU tar."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

import pytest
from tests.unit.formats.tar.archives import END, GNU, base256, block, only, padded, pax, read, reader

from lamella.errors import Exhausted, FormatError
from lamella.formats.tar import TarLimits

Form: TypeAlias = Callable[..., bytes]

EXTENTS = [(512, 3), (2048, 4)]
STORED = b"abcdefg"
WHOLE = bytes(512) + b"abc" + bytes(1533) + b"defg" + bytes(948)
SIZE = 3000


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def old(extents: list[tuple[int, int]], stored: bytes = STORED, size: int = SIZE, **fields: bytes | int) -> bytes:
    """The old GNU format: four pairs in the header, 21 in each block that follows."""
    cells = [octal(offset) + octal(length) for offset, length in extents]
    at = {386: b"".join(cells[:4]), 482: bytes([len(cells) > 4]), 483: octal(size)}
    out = block(b"s", b"S", at=at, **({"magic": GNU, "size": len(stored)} | fields))
    rest = cells[4:]
    while rest:
        out += b"".join(rest[:21]).ljust(504, b"\0") + bytes([len(rest) > 21]) + bytes(7)
        rest = rest[21:]
    return out + padded(stored)


def sparse_00(extents: list[tuple[int, int]], stored: bytes = STORED, size: int = SIZE) -> bytes:
    pairs = []
    for offset, length in extents:
        pairs += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    return (
        pax((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(extents)), *pairs)
        + block(b"s", size=len(stored))
        + padded(stored)
    )


def sparse_01(extents: list[tuple[int, int]], stored: bytes = STORED, size: int = SIZE) -> bytes:
    return (
        pax(
            (b"GNU.sparse.size", b"%d" % size),
            (b"GNU.sparse.numblocks", b"%d" % len(extents)),
            (b"GNU.sparse.name", b"s"),
            (b"GNU.sparse.map", b",".join(b"%d,%d" % pair for pair in extents)),
        )
        + block(b"GNUSparseFile/s", size=len(stored))
        + padded(stored)
    )


def version_10(*more: tuple[bytes, bytes], name: bytes = b"s", size: int = SIZE) -> bytes:
    return pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % size),
        *more,
    )


def sparse_10(extents: list[tuple[int, int]], stored: bytes = STORED, size: int = SIZE) -> bytes:
    lines = b"%d\n" % len(extents) + b"".join(b"%d\n%d\n" % pair for pair in extents)
    data = padded(lines) + stored
    return version_10(size=size) + block(b"GNUSparseFile/s", size=len(data)) + padded(data)


FORMS = pytest.mark.parametrize("form", [old, sparse_00, sparse_01, sparse_10])


class TestForms:
    @FORMS
    @pytest.mark.parametrize("step", [512, 1024, 1 << 20])
    def test_a_sparse_file_is_a_regular_file_with_extents(self, form: Form, step: int) -> None:
        first, second = read(form(EXTENTS) + block(b"b") + END, step)
        assert first.name == "s"
        assert first.member.typeflag == "0"
        assert first.member.size == SIZE
        assert first.member.stored_size == len(STORED)
        assert first.member.extents == EXTENTS
        assert first.data == WHOLE
        assert second.name == "b"

    @FORMS
    def test_stored_data_begins_after_the_map(self, form: Form) -> None:
        archive = block(b"a") + form(EXTENTS) + END
        member = read(archive)[1].member
        assert member.header_offset == 512
        assert archive[member.data_offset :].startswith(STORED)

    @FORMS
    def test_empty_extents_are_left_out(self, form: Form) -> None:
        assert only(form([(0, 0), *EXTENTS, (SIZE, 0)]) + END).member.extents == EXTENTS

    @FORMS
    def test_a_file_may_be_one_hole(self, form: Form) -> None:
        one = only(form([(SIZE, 0)], b"") + END)
        assert (one.member.extents, one.member.stored_size, one.data) == ([], 0, bytes(SIZE))

    @FORMS
    def test_a_file_without_a_hole_is_not_sparse(self, form: Form) -> None:
        one = only(form([(0, 3), (3, 4)], size=7) + END)
        assert (one.member.extents, one.data) == (None, STORED)

    @FORMS
    @pytest.mark.parametrize("step", [512, 1 << 20])
    def test_a_map_may_be_long(self, form: Form, step: int) -> None:
        extents = [(offset * 1024, 2) for offset in range(60)]
        first, second = read(form(extents, b"ab" * 60, 61 * 1024) + block(b"b") + END, step)
        assert first.member.extents == extents
        assert first.data == (b"ab".ljust(1024, b"\0") * 60).ljust(61 * 1024, b"\0")
        assert second.name == "b"

    @FORMS
    @pytest.mark.parametrize(
        "extents", [[(512, 4), (514, 3)], [(2048, 4), (512, 3)], [(512, 3), (2998, 4)], [(SIZE + 1, 7)]]
    )
    def test_extents_that_overlap_or_lead_out_of_the_file_are_refused(
        self, form: Form, extents: list[tuple[int, int]]
    ) -> None:
        with pytest.raises(FormatError, match="sparse map"):
            read(form(extents) + END)

    @FORMS
    @pytest.mark.parametrize("stored", [b"abcdef", b"abcdefgh"])
    def test_extents_that_do_not_add_up_to_the_stored_data_are_refused(self, form: Form, stored: bytes) -> None:
        with pytest.raises(FormatError, match="are stored"):
            read(form(EXTENTS, stored) + END)

    @FORMS
    def test_extents_over_the_limit_are_refused(self, form: Form) -> None:
        extents = [(offset * 2, 1) for offset in range(60)]
        assert only(form(extents, b"x" * 60) + END, limits=TarLimits(extents=60)).member.extents == extents
        with pytest.raises(Exhausted, match="more than 10 extents"):
            read(form(extents, b"x" * 60) + END, limits=TarLimits(extents=10))


class TestOldGnu:
    def test_numbers_may_be_in_base_256(self) -> None:
        size = 60_000_000_000
        far = size - 3
        cells = base256(far, 12) + base256(3, 12)
        archive = block(b"s", b"S", magic=GNU, size=3, at={386: cells, 483: base256(size, 12)}) + padded(b"abc") + END
        first = next(iter(reader(archive)))
        assert (first.size, first.extents) == (size, [(far, 3)])

    def test_the_map_ends_at_an_offset_that_begins_with_nul(self) -> None:
        cells = octal(0) + octal(7) + bytes(24) + octal(1) + octal(1)
        archive = block(b"s", b"S", magic=GNU, size=7, at={386: cells, 483: octal(8)}) + padded(STORED) + END
        assert only(archive).data == STORED + b"\0"

    def test_extension_blocks_may_be_empty(self) -> None:
        head = block(b"s", b"S", magic=GNU, size=0, at={482: b"\1", 483: octal(5)})
        assert only(head + bytes(512) + END).data == bytes(5)

    def test_empty_extension_blocks_without_end_are_refused(self) -> None:
        head = block(b"s", b"S", magic=GNU, size=0, at={482: b"\1", 483: octal(5)})
        with pytest.raises(Exhausted, match="extents"):
            read(head + (bytes(504) + b"\1" + bytes(7)) * 100, limits=TarLimits(extents=1000))

    def test_extension_blocks_that_break_off_are_refused(self) -> None:
        with pytest.raises(FormatError, match="truncated"):
            read(old([(n * 2, 1) for n in range(30)], b"x" * 30)[:512])

    def test_another_magic_is_refused(self) -> None:
        with pytest.raises(FormatError, match="outside the GNU format"):
            read(old(EXTENTS, magic=b"ustar\x0000") + END)

    def test_a_malformed_number_is_refused(self) -> None:
        archive = block(b"s", b"S", magic=GNU, size=1, at={386: b"9".ljust(12) + octal(1), 483: octal(9)})
        with pytest.raises(FormatError, match="sparse map"):
            read(archive + padded(b"x") + END)


class TestPax:
    @pytest.mark.parametrize(
        "records",
        [
            [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")],
            [(b"GNU.sparse.major", b"1")],
            [(b"GNU.sparse.name", b"other")],
            [(b"GNU.sparse.size", b"3"), (b"GNU.sparse.map", b"0,3")],
            [(b"GNU.sparse.size", b"3"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"0")],
            [(b"GNU.sparse.size", b"3"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"0,3,4")],
            [(b"GNU.sparse.size", b"3"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"0,-3")],
            [(b"GNU.sparse.size", b"3"), (b"GNU.sparse.numblocks", b"x"), (b"GNU.sparse.map", b"0,3")],
            [(b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.numbytes", b"3"), (b"GNU.sparse.offset", b"0")],
            [(b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.offset", b"0,3"), (b"GNU.sparse.numbytes", b"3")],
            [(b"GNU.sparse.size", b"3"), (b"GNU.sparse.realsize", b"4"), (b"GNU.sparse.numblocks", b"0")],
        ],
    )
    def test_records_that_are_none_of_the_forms_are_refused(self, records: list[tuple[bytes, bytes]]) -> None:
        with pytest.raises(FormatError):
            read(pax(*records) + block(b"s", size=3) + padded(b"abc") + END)

    def test_the_name_in_the_records_is_the_name(self) -> None:
        archive = (
            version_10((b"path", b"GNUSparseFile/x"), name=b"real", size=0) + block(size=512) + padded(b"0\n") + END
        )
        assert only(archive).name == "real"

    @pytest.mark.parametrize("flag", [b"1", b"2", b"5", b"V"])
    def test_only_a_regular_file_can_be_sparse(self, flag: bytes) -> None:
        with pytest.raises(FormatError, match="cannot be sparse"):
            read(version_10() + block(b"s", flag, size=512) + padded(b"0\n") + END)

    @pytest.mark.parametrize(
        "lines",
        [
            b"",
            b"x\n",
            b"-1\n",
            b"1\n0\n",
            b"1\nx\n1\n",
            b"1\n0\n+1\n",
            b"9" * 600,
            b"1\n" + b"0" * 600 + b"\n1\n",
            b"\n",
        ],
    )
    def test_a_malformed_map_before_the_data_is_refused(self, lines: bytes) -> None:
        data = lines.ljust(2048, b"\0")
        with pytest.raises(FormatError, match="sparse map"):
            read(version_10() + block(b"s", size=len(data)) + data + END)

    def test_a_map_longer_than_its_data_is_refused(self) -> None:
        with pytest.raises(FormatError, match="sparse map"):
            read(version_10(size=512) + block(b"s", size=2) + padded(b"1\n0\n512\n") + END)

    def test_a_map_at_the_limit_costs_time_in_proportion(self) -> None:
        extents = [(n * 1000, 1) for n in range(1 << 17)]
        begin = time.process_time()
        members = iter(reader(sparse_10(extents, b"x" * len(extents), 1 << 30) + END, 4096))
        assert next(members).extents == extents
        assert time.process_time() - begin < 30

    def test_a_count_over_the_limit_is_refused_before_the_map_is_read(self) -> None:
        head = version_10() + block(b"s", size=1 << 32) + padded(b"131073\n")
        with pytest.raises(Exhausted, match="more than 131072 extents"):
            read(head)
