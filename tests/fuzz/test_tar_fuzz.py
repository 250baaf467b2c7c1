# SPDX-License-Identifier: Apache-2.0
"""Any input gives members or an expected error in the tar reader, in bounded time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.formats.tar.archives import (
    END,
    GNU,
    V7,
    Facet,
    base256,
    block,
    buffers,
    facet,
    file,
    long_name,
    padded,
    pax,
    with_checksum,
)

from lamella.errors import Exhausted, FormatError
from lamella.formats.tar import TarMember, TarReader

TYPES = frozenset("0123456ABCDEFGHIJNOPQRTUVWYZ")


def seeds() -> Iterator[bytes]:
    """Valid archives as seeds: one for each kind of header."""
    for magic in (b"ustar\x0000", GNU, V7):
        yield (
            file(b"a/b", b"hello", magic=magic)
            + block(b"d/", b"5", magic=magic)
            + block(b"l", b"2", linkname=b"t")
            + END
        )
    yield pax((b"path", b"p"), (b"uid", b"1"), (b"mtime", b"1.5")) + file(b"f", b"x" * 600) + END
    yield pax((b"comment", b"c"), (b"mtime", b"1"), flag=b"g") + block(b"c", b"3", devmajor=1, devminor=3) + END
    yield long_name(b"n" * 200) + long_name(b"t" * 200, b"K") + block(b"l", b"1", magic=GNU) + END
    cell = b"00000000000\x0000000000005\0"
    yield block(b"s", b"S", magic=GNU, size=5, at={386: cell, 483: b"00000000010\0"}) + padded(b"hello") + END
    records = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")
    yield pax(*records) + file(b"s", padded(b"1\n4\n5\n") + b"hello") + END
    records = (b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"4,5")
    yield pax(*records) + file(b"s", b"hello") + END


def check_member(member: TarMember[Facet], length: int) -> None:
    """Check the invariants of every member."""
    assert member.typeflag in TYPES
    mode, uid, gid, mtime = member.facet
    assert 0 <= mode <= 0o7777
    assert 0 <= uid < 1 << 63
    assert 0 <= gid < 1 << 63
    assert abs(mtime) <= (1 << 63) * 1_000_000_000
    assert "\0" not in member.name
    assert "\0" not in member.linkname
    assert 0 <= member.header_offset < member.data_offset <= length
    assert member.header_offset % 512 == member.data_offset % 512 == 0
    assert 0 <= member.stored_size <= member.size < 1 << 63
    if member.extents is None:
        assert member.stored_size == member.size
    else:
        position = stored = 0
        for offset, count in member.extents:
            assert offset >= position
            assert count > 0
            position, stored = offset + count, stored + count
        assert position <= member.size
        assert stored == member.stored_size


def check_wording(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 1000
    return text


def outcome(data: bytes, step: int, read_every: int) -> tuple[list[tuple[object, ...]], str]:
    """What a reader makes of ``data`` in buffers of ``step`` bytes, asking every so many members for their data."""
    found: list[tuple[object, ...]] = []
    try:
        for index, member in enumerate(TarReader(buffers(data, step), facet=facet)):
            check_member(member, len(data))
            found.append((member.name, member.typeflag, member.size, member.facet, member.linkname, member.device))
            if index % read_every == 0:
                count = sum(map(len, member.chunks()))
                assert count == member.stored_size
    except (FormatError, Exhausted) as error:
        return found, check_wording(error)
    return found, ""


def fuzz_tar(data: bytes) -> None:
    """Read one input; the buffer size and the data that is read make no difference."""
    members, problem = outcome(data, 1 << 20, 1)
    assert (members, problem) == outcome(data, 512, 1)
    passed, later = outcome(data, 1536, 1 << 30)
    assert (members, bool(problem)) == (passed, bool(later))


KEYS = [
    *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"comment", b"SCHILY.xattr.user.a", b"SCHILY.realsize"),
    *(b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"GNU.sparse.size", b"GNU.sparse.realsize"),
    *(b"GNU.sparse.map", b"GNU.sparse.numblocks", b"GNU.sparse.offset", b"GNU.sparse.numbytes"),
]
VALUES = [b"", b"0", b"1", b"2", b"512", b"-1", b"1.5", b"9" * 19, b"0,1", b"0,0,1,1", b"a/b", b"a\0"]
RECORDS = st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES) | st.binary(max_size=8))
NUMBERS = (
    st.integers(0, 8**7 - 1)
    | st.integers(-(1 << 62), 1 << 62).map(lambda number: base256(number, 8))
    | st.binary(max_size=8)
    | st.sampled_from([b" 12 ", b"7777777", b"\x80", b"\xff" * 8])
)
MAPS = st.lists(st.integers(0, 4000), max_size=8).map(
    lambda numbers: padded(b"%d\n" % (len(numbers) // 2) + b"".join(b"%d\n" % number for number in numbers))
)
HEADERS = st.builds(
    block,
    name=st.binary(max_size=100),
    flag=st.sampled_from([b"0", b"\0", b"1", b"2", b"3", b"5", b"7", b"S", b"V", b"M", b"x", b"g", b"L", b"K", b"?"]),
    size=st.integers(0, 2000) | NUMBERS,
    mode=NUMBERS,
    uid=NUMBERS,
    mtime=NUMBERS,
    linkname=st.binary(max_size=100),
    magic=st.sampled_from([b"ustar\x0000", GNU, V7]),
    prefix=st.binary(max_size=155),
    at=st.dictionaries(
        st.sampled_from([386, 410, 434, 482, 483, 495, 508]), st.sampled_from([b"1", b"tar\0", b"0" * 11])
    ),
)
PIECES = (
    HEADERS
    | st.binary(max_size=1024)
    | st.builds(
        lambda records, flag: pax(*records, flag=flag), st.lists(RECORDS, max_size=6), st.sampled_from([b"x", b"g"])
    )
    | st.builds(long_name, st.binary(max_size=300), st.sampled_from([b"L", b"K"]))
    | st.builds(file, st.binary(max_size=20), st.binary(max_size=1200))
    | st.builds(lambda data: file(b"s", data), MAPS)
    | st.sampled_from([bytes(512), END])
)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    data = bytearray(b"".join(draw(st.lists(PIECES, max_size=8))))
    for position in draw(st.lists(st.integers(0, max(0, len(data) - 1)), max_size=3)):
        if data:
            data[position] = draw(st.integers(0, 255))
            start = position // 512 * 512
            if draw(st.booleans()) and start + 512 <= len(data):
                data[start : start + 512] = with_checksum(data[start : start + 512])
    return bytes(data[: draw(st.integers(0, len(data))) or len(data)])


@settings(max_examples=300)
@given(archives())
def test_archives_made_to_be_almost_right(data: bytes) -> None:
    fuzz_tar(data)


@pytest.mark.parametrize("data", list(seeds()))
def test_the_seeds_are_good_archives(data: bytes) -> None:
    members, problem = outcome(data, 1024, 1)
    assert problem == ""
    assert members != []
    fuzz_tar(data)


@settings(max_examples=100)
@given(st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    fuzz_tar(data)


def test_no_part_of_an_archive_is_read_over_and_over() -> None:
    """Each of these would take minutes with quadratic steps."""
    for data in long_archives():
        outcome(data, 1 << 16, 1 << 30)


def long_archives() -> Iterator[bytes]:
    count = 20_000
    yield b"".join(block(b"%d" % number, uid=number, mtime=number) for number in range(count))
    yield b"".join(pax((b"uid", b"%d" % number), flag=b"g") for number in range(count // 2)) + block()
    yield b"".join(pax((b"mtime", b"%d.5" % number)) + block() for number in range(count // 2))
    yield b"".join(long_name(b"n" * 400) + block() for _ in range(count // 4))
    yield pax(*[(b"GNU.sparse.offset", b""), (b"GNU.sparse.numbytes", b"")] * 20_000) + block()
    yield block(b"s", b"S", magic=GNU, at={482: b"\1"}) + (b"1" * 504 + b"\1" + bytes(7)) * count
    yield block(b"a", size=8**10) + bytes(4_000_000)
