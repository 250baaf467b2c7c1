# SPDX-License-Identifier: Apache-2.0
"""Transaction logs of hives, replayed as Windows does."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from tests.unit.formats.regf.hives import changed, summed

from lamella.errors import Unsupported
from lamella.formats.regf import Hive, MemoryKey, encode_hive
from lamella.formats.regf.log import _marvin, is_dirty, replay_logs

BASE_BLOCK = 4096


def hive(*names: str, size: int = 0) -> bytes:
    root = MemoryKey("ROOT")
    for name in names:
        root.make(name)
    if size:
        root.put("large", 3, bytes(range(256)) * (size // 256))
    return encode_hive(root)


def dirty(data: bytes, primary: int = 3, secondary: int = 2) -> bytes:
    return changed(data, 4, struct.pack("<II", primary, secondary))


def keys(data: bytes) -> list[str]:
    return [key.name for key in Hive(data).root_key.subkeys()]


def head(target: bytes, kind: int, sequence: int) -> bytes:
    block = bytearray(target[:BASE_BLOCK])
    struct.pack_into("<II", block, 4, sequence, sequence)
    struct.pack_into("<I", block, 28, kind)
    return summed(block)[:512]


def entry(target: bytes, sequence: int) -> bytes:
    """Return a log entry that has all pages of ``target``."""
    bins = target[BASE_BLOCK:]
    offsets = range(0, len(bins), 4096)
    body = b"".join(struct.pack("<II", at, 4096) for at in offsets) + bins
    body += bytes(-(40 + len(body)) % 512)
    start = struct.pack("<4sIIIII", b"HvLE", 40 + len(body), 0, sequence, len(bins), len(offsets)) + _marvin(body)
    return start + _marvin(start) + body


def new_log(*targets: bytes, sequence: int = 2) -> bytes:
    return head(targets[0], 6, sequence) + b"".join(entry(one, sequence + at) for at, one in enumerate(targets))


def old_log(before: bytes, target: bytes, sequence: int = 3) -> bytes:
    bins, pages = target[BASE_BLOCK:], range(0, len(target) - BASE_BLOCK, 512)
    known = before[BASE_BLOCK:]
    marks = [bins[at : at + 512] != known[at : at + 512] for at in pages]
    vector = bytearray(len(marks) // 8)
    for number, mark in enumerate(marks):
        vector[number // 8] |= mark << number % 8
    start = b"DIRT" + vector
    parts = [bins[at : at + 512] for at, mark in zip(pages, marks, strict=True) if mark]
    return head(target, 1, sequence) + start + bytes(-len(start) % 512) + b"".join(parts)


@pytest.mark.parametrize(
    ("text", "hashed"), [(b"", 0xB00892AC), (b"h", 0xF41A608E), (b"hel", 0x24056A46), (b"hello, world!", 0x00C18515)]
)
def test_the_hash_is_marvin32_with_the_seed_of_the_registry(text: bytes, hashed: int) -> None:
    low, high = struct.unpack("<II", _marvin(text))
    assert low ^ high == hashed


@pytest.mark.parametrize("size", [0, 40_000], ids=["same-size", "grown"])
def test_a_dirty_hive_gets_the_changes_of_a_new_log(size: int) -> None:
    before, after = dirty(hive("old")), hive("new", size=size)
    found = replay_logs(before, [new_log(after)])
    assert keys(found) == ["new"]
    assert is_dirty(found) is False


@pytest.mark.parametrize("size", [0, 40_000], ids=["same-size", "grown"])
def test_a_dirty_hive_gets_the_changes_of_an_old_log(size: int) -> None:
    before, after = dirty(hive("old")), hive("new", size=size)
    assert keys(replay_logs(before, [old_log(before, after)])) == ["new"]


def test_the_entries_of_two_logs_apply_in_the_order_of_their_numbers() -> None:
    first, second = new_log(hive("1"), hive("2"), sequence=2), new_log(hive("3"), sequence=4)
    for logs in ((first, second), (second, first)):
        assert keys(replay_logs(dirty(hive("old")), logs)) == ["3"]


def test_a_log_after_a_gap_is_not_applied() -> None:
    logs = [new_log(hive("1"), sequence=2), new_log(hive("9"), sequence=7)]
    assert keys(replay_logs(dirty(hive("old")), logs)) == ["1"]


def test_entries_from_before_the_last_write_are_not_applied() -> None:
    before = dirty(hive("old"), 9, 8)
    assert replay_logs(before, [new_log(hive("1"), sequence=2)]) == before


def test_a_damaged_entry_and_all_after_it_are_not_applied() -> None:
    log = bytearray(new_log(hive("1"), hive("2"), hive("3")))
    log[512 + 2 * len(entry(hive("2"), 3)) - 600] ^= 1
    assert keys(replay_logs(dirty(hive("old")), [bytes(log)])) == ["1"]


def test_a_hive_with_a_wrong_checksum_gets_the_base_block_of_its_log() -> None:
    before = bytearray(hive("old"))
    before[36] ^= 0xFF
    assert keys(replay_logs(bytes(before), [new_log(hive("new"))])) == ["new"]
    assert keys(replay_logs(bytes(before), [old_log(bytes(before), hive("new"))])) == ["new"]


def test_a_clean_hive_stays_as_it_is() -> None:
    data = hive("old")
    assert replay_logs(data, [new_log(hive("new"))]) == data


@pytest.mark.parametrize("logs", [[], [b""], [bytes(8192)], [new_log(hive("new"))[:600]]])
def test_without_a_log_that_applies_the_hive_stays_dirty(logs: Sequence[bytes]) -> None:
    before = dirty(hive("old"))
    assert replay_logs(before, logs) == before
    with pytest.raises(Unsupported, match="dirty"):
        Hive(before)


def test_every_truncation_of_a_log_gives_whole_entries_or_none() -> None:
    before = dirty(hive("old"))
    for whole in (new_log(hive("1"), hive("2")), old_log(before, hive("1"))):
        for end in range(0, len(whole), 97):
            found = replay_logs(before, [whole[:end]])
            assert found == before or keys(found) == ["1"]
