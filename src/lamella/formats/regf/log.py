# SPDX-License-Identifier: Apache-2.0
"""Transaction logs of registry hives (``.LOG1``, ``.LOG2``), replayed as Windows does when it loads a dirty hive.

Windows 8.1 and later write entries with sequence numbers and hashes (file type 6); earlier versions write one set of
dirty pages (file type 1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from lamella.formats.regf.cells import BASE, BASE_BLOCK, CHECKSUM, LARGEST, PAGE, U32, checksum

_SECTOR: Final = 512
_OLD: Final = (1, 2)
_NEW: Final = 6
_ENTRY: Final = struct.Struct("<4sIIIII8s8s")
"""Signature, size, flags, sequence number, size of the bins, number of pages, two hashes."""
_REFERENCE: Final = struct.Struct("<II")
_HASHED: Final = 32
_SEED: Final = 0x82EF4D887A4E55C5
_MASK: Final = 0xFFFFFFFF


class _Entry(Struct, frozen=True):
    """The pages that one write of the hive has changed, as (offset in the bins, content)."""

    sequence: int
    size: int
    pages: list[tuple[int, bytes]]


def is_dirty(hive: bytes) -> bool:
    """Whether the last changes of ``hive`` are only in its logs."""
    if len(hive) < BASE_BLOCK:
        return False
    fields = BASE.unpack_from(hive)
    return fields[0] == b"regf" and fields[6] == 0 and (fields[1] != fields[2] or not _is_sound(hive))


def replay_logs(hive: bytes, logs: Iterable[bytes]) -> bytes:
    """Return ``hive`` with the changes in ``logs``; unchanged if it is not dirty or no log applies to it.

    Entries apply up to the first that is damaged or out of order.
    """
    if not is_dirty(hive):
        return hive
    sound = [log for log in logs if len(log) >= _SECTOR and log[:4] == b"regf" and _is_sound(log)]
    new = [log for log in sound if BASE.unpack_from(log)[6] == _NEW]
    recovered = _replay_new(hive, new) if new else None
    if recovered is None:
        recovered = _replay_old(hive, [log for log in sound if BASE.unpack_from(log)[6] in _OLD])
    return hive if recovered is None else recovered


def _is_sound(block: bytes) -> bool:
    return bool(U32.unpack_from(block, CHECKSUM)[0] == checksum(block))


def _replay_new(hive: bytes, logs: list[bytes]) -> bytes | None:
    if _is_sound(hive):
        first, head = BASE.unpack_from(hive)[2], hive[:BASE_BLOCK]
    else:
        log = min(logs, key=lambda log: BASE.unpack_from(log)[1])
        first, head = BASE.unpack_from(log)[2], log[:_SECTOR] + hive[_SECTOR:BASE_BLOCK]
    runs = [run for run in ([one for one in _entries(log) if one.sequence >= first] for log in logs) if run]
    runs.sort(key=lambda run: run[0].sequence)
    applied: list[_Entry] = []
    for run in runs:
        if applied and run[0].sequence != applied[-1].sequence + 1:
            break
        applied += run
    if not applied:
        return None
    bins = bytearray(hive[BASE_BLOCK:])
    for entry in applied:
        _resize(bins, entry.size)
        for at, page in entry.pages:
            bins[at : at + len(page)] = page
    return _finish(head, bins, applied[-1].size, applied[-1].sequence)


def _entries(log: bytes) -> Iterator[_Entry]:
    """The sound entries of a log, whose sequence numbers are consecutive."""
    at = _SECTOR
    last: int | None = None
    while at + _ENTRY.size <= len(log):
        signature, size, _, sequence, bins, count, first, second = _ENTRY.unpack_from(log, at)
        if signature != b"HvLE" or size % _SECTOR or not _ENTRY.size <= size <= len(log) - at:
            return
        if bins % PAGE or not 0 < bins <= LARGEST or (last is not None and sequence != last + 1):
            return
        if second != _marvin(log[at : at + _HASHED]) or first != _marvin(log[at + _ENTRY.size : at + size]):
            return
        data = at + _ENTRY.size + count * _REFERENCE.size
        if data > at + size:
            return
        pages = []
        for number in range(count):
            offset, length = _REFERENCE.unpack_from(log, at + _ENTRY.size + number * _REFERENCE.size)
            if offset + length > bins or data + length > at + size:
                return
            pages.append((offset, log[data : data + length]))
            data += length
        yield _Entry(sequence, bins, pages)
        last = sequence
        at += size


def _replay_old(hive: bytes, logs: list[bytes]) -> bytes | None:
    sound = _is_sound(hive)
    # Without a base block, the time of the first bin identifies the log.
    time = BASE.unpack_from(hive)[3] if sound else int.from_bytes(hive[BASE_BLOCK + 20 : BASE_BLOCK + 28], "little")
    for log in logs:
        fields = BASE.unpack_from(log)
        size = fields[9]
        if fields[1] != fields[2] or fields[3] != time or size % PAGE or not 0 < size <= LARGEST:
            continue
        start = _SECTOR + 4
        vector = log[start : start + size // _SECTOR // 8]
        at = -(-(start + len(vector)) // _SECTOR) * _SECTOR
        pages = [8 * number + bit for number, byte in enumerate(vector) if byte for bit in range(8) if byte >> bit & 1]
        if log[_SECTOR:start] != b"DIRT" or len(vector) != size // _SECTOR // 8:
            continue
        if at + len(pages) * _SECTOR > len(log):
            continue
        bins = bytearray(hive[BASE_BLOCK:])
        _resize(bins, size)
        for page in pages:
            bins[page * _SECTOR : (page + 1) * _SECTOR] = log[at : at + _SECTOR]
            at += _SECTOR
        return _finish(log[:_SECTOR] + hive[_SECTOR:BASE_BLOCK], bins, size, fields[1])
    return None


def _resize(bins: bytearray, size: int) -> None:
    if len(bins) < size:
        bins.extend(bytes(size - len(bins)))


def _finish(head: bytes, bins: bytearray, size: int, sequence: int) -> bytes:
    """The recovered hive: a primary file with equal sequence numbers and a new checksum."""
    block = bytearray(head)
    struct.pack_into("<II", block, 4, sequence, sequence)
    U32.pack_into(block, 28, 0)
    U32.pack_into(block, 40, size)
    U32.pack_into(block, CHECKSUM, checksum(block))
    return bytes(block) + bytes(bins[:size])


def _marvin(data: bytes) -> bytes:
    """The Marvin32 hash of ``data`` with the seed of the registry."""
    low, high = _SEED & _MASK, _SEED >> 32
    rest = len(data) & 3
    last = data[len(data) - rest :] + b"\x80" + bytes(3 - rest)
    words = memoryview(data)[: len(data) - rest]
    for (word,) in (*struct.iter_unpack("<I", words), *struct.iter_unpack("<I", last), (0,)):
        low = (low + word) & _MASK
        high ^= low
        low = ((low << 20 | low >> 12) + high) & _MASK
        high = (high << 9 & _MASK | high >> 23) ^ low
        low = ((low << 27 | low >> 5) + high) & _MASK
        high = high << 19 & _MASK | high >> 13
    return struct.pack("<II", low, high)
