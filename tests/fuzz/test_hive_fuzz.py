# SPDX-License-Identifier: Apache-2.0
"""A damaged hive is read or refused with an expected error, in bounded time."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.formats.regf.hives import changed, small, summed

from lamella.errors import FormatError, InvalidInput, Unsupported
from lamella.formats.regf import Hive, Key, Layering, MemoryKey, encode_hive, merge_keys
from lamella.formats.regf.text import dump


def delta() -> MemoryKey:
    root = MemoryKey("D", inherit_class=True)
    root.make("control").hide("start")
    root.make("services").layering = Layering.SUPERSEDE_LOCAL
    root.make("日本").layering = Layering.TOMBSTONE
    root.make("new").put("v", 3, bytes(20_000))
    return root


HIVE = encode_hive(small())
SEEDS = (HIVE, encode_hive(delta()))
DUMP = list(dump(Hive(HIVE).root_key))
LONGEST = 2  # seconds; each input takes some milliseconds


def seeds() -> Iterator[bytes]:
    yield from SEEDS


def fuzz_hive(data: bytes) -> None:
    """One input as a hive, as a base and as a delta; with the checksum made right, so that the rest is reached."""
    data = summed(data) if len(data) >= 512 else data
    start = time.process_time()
    try:
        root = Hive(data, dirty=True, layered=True).root_key
        lines = list(dump(root))
        assert list(dump(root)) == lines
    except (FormatError, Unsupported):
        pass
    for lower, upper in ((data, SEEDS[1]), (HIVE, data)):
        try:
            below = Hive(lower, dirty=True).root_key
            merge: Key = merge_keys(below, Hive(upper, dirty=True, layered=True).root_key)
            result = encode_hive(merge)
        except (FormatError, Unsupported, InvalidInput):
            continue
        assert list(dump(merge)) == list(dump(Hive(result).root_key))
        assert len(result) < 2 * (len(lower) + len(upper)) + 65536
    assert time.process_time() - start < LONGEST


def read(data: bytes) -> list[str] | None:
    """Return the dump; None where the hive is refused."""
    try:
        return list(dump(Hive(data, dirty=True).root_key))
    except (FormatError, Unsupported):
        return None


def test_a_hive_that_is_cut_anywhere_is_refused() -> None:
    for length in range(len(HIVE)):
        assert read(HIVE[:length]) is None


def test_a_hive_that_says_it_is_shorter_is_refused() -> None:
    for size in range(0, len(HIVE) - 4096, 8):
        assert read(changed(HIVE, 40, struct.pack("<I", size))) is None


def words_in_use() -> list[int]:
    """Return the positions of all words of a hive that are not data, and some of those that are."""
    base, bins = range(0, 512, 4), range(4096, len(HIVE), 4)
    return [*base, *(at for at in bins if HIVE[at : at + 4] != bytes(4) and not b"db" < HIVE[at - 4 : at] < b"dc")]


def test_each_word_made_zero_all_ones_or_off_by_one_gives_keys_or_an_error() -> None:
    """A change is refused or shows; where it shows in no key it was in a field that means nothing on a disk."""
    start = time.process_time()
    positions = words_in_use()
    # Of the large blob every 50th word will do: there is nothing to be read wrongly in it.
    blob = HIVE.index(bytes(range(256)) * 2)
    positions = [at for at in positions if not blob <= at < blob + 60_000 or at % 400 == 0]
    refused = 0
    for at in positions:
        word = struct.unpack_from("<I", HIVE, at)[0]
        for other in {0, 0xFFFFFFFF, (word + 1) & 0xFFFFFFFF, (word - 1) & 0xFFFFFFFF, word ^ 0x80000000}:
            data = bytearray(HIVE)
            struct.pack_into("<I", data, at, other)
            lines = read(summed(data))
            if lines is None:
                refused += 1
            else:
                assert len(lines) <= len(DUMP)
    assert refused > len(positions) // 2
    assert time.process_time() - start < 60


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    offsets = st.integers(0, len(data) // 8).map(lambda number: struct.pack("<I", number * 8))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(0, 511), st.integers(4096, min(len(data) - 1, 6500))))
        piece = draw(
            st.one_of(st.binary(min_size=1, max_size=8), offsets, st.sampled_from([b"nk", b"vk", b"lh", b"ri"]))
        )
        data[at : at + len(piece)] = piece
    return bytes(data)


@settings(max_examples=250)
@given(damaged())
def test_hives_that_are_damaged(data: bytes) -> None:
    fuzz_hive(data)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_hive(data: bytes) -> None:
    fuzz_hive(data)
    fuzz_hive(HIVE[:4096] + data)
