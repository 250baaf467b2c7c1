# SPDX-License-Identifier: Apache-2.0
"""Owners and devices kept in extended attributes, in the forms that other tools write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.changes.model import Kind, Posix
from lamella.errors import InvalidInput
from lamella.layers.directory.attrs import Override, decode_override, decode_owner, encode_override, encode_owner

ids = st.integers(0, 0xFFFFFFFE)


def test_an_owner_is_written_as_umoci_writes_it() -> None:
    assert bytes.fromhex("08e80710e807") == encode_owner(1000, 1000)


def test_an_id_of_zero_is_written_as_the_id_that_changes_nothing() -> None:
    assert bytes.fromhex("08ffffffff0f102a") == encode_owner(0, 42)


@given(ids, ids)
def test_an_owner_reads_back_with_zero_as_no_change(uid: int, gid: int) -> None:
    assert (uid or None, gid or None) == decode_owner(encode_owner(uid, gid))


@pytest.mark.parametrize(
    ("record", "owner"),
    [
        ("", (0, 0)),
        ("0805", (5, 0)),
        ("1005", (0, 5)),
        ("10050806", (6, 5)),
        ("08050806", (6, 0)),
        ("08ffffffff0f", (None, 0)),
        ("0885808080808080808001", (5, 0)),  # protobuf drops what is above 32 bits
        ("08051a03616263", (5, 0)),  # unknown fields are passed over
        ("1d00000000210000000000000000" + "0805", (5, 0)),
    ],
)
def test_what_any_protobuf_writer_may_write_is_read(record: str, owner: tuple[int | None, int | None]) -> None:
    assert owner == decode_owner(bytes.fromhex(record))


@pytest.mark.parametrize(
    "record",
    ["08", "0880", "08" + "ff" * 10, "0a0500", "0d00000000", "1a05", "1d0000", "0b", "0f", "00" * 300, "0005"],
)
def test_a_malformed_owner_is_refused(record: str) -> None:
    with pytest.raises(InvalidInput):
        decode_owner(bytes.fromhex(record))


@given(st.binary(max_size=300))
def test_reading_an_owner_gives_ids_or_a_refusal(record: bytes) -> None:
    try:
        owner = decode_owner(record)
    except InvalidInput:
        return
    assert all(number is None or 0 <= number < 0xFFFFFFFF for number in owner)


@pytest.mark.parametrize(
    ("kind", "posix", "record"),
    [
        (Kind.CHARACTER, Posix(0o666, 0, 5, 0, device=(1, 3)), b"0:5:0666:char-1-3"),
        (Kind.BLOCK, Posix(0o60, 0, 6, 0, device=(259, 1048575)), b"0:6:0060:block-259-1048575"),
        (Kind.FILE, Posix(0o4755, 1, 2, 0), b"1:2:4755:file"),
        (Kind.DIRECTORY, Posix(0o1777, 0, 0, 0), b"0:0:1777:dir"),
        (Kind.FIFO, Posix(0o644, 0, 0, 0), b"0:0:0644:pipe"),
    ],
)
def test_an_override_is_written_as_containers_storage_writes_it(kind: Kind, posix: Posix, record: bytes) -> None:
    assert record == encode_override(kind, posix)
    assert Override(posix.uid, posix.gid, posix.mode, kind, posix.device) == decode_override(record)


def test_an_override_without_a_type_says_nothing_about_the_kind() -> None:
    assert Override(1, 2, 0o755, None) == decode_override(b"1:2:0755")


def test_type_bits_in_the_mode_are_dropped() -> None:
    assert Override(0, 0, 0o4755, None) == decode_override(b"0:0:0104755")


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"0:0",
        b"0:0:0800",
        b"0:0:644:socket",
        b"0:0:644:char",
        b"0:0:644:char-1",
        b"-1:0:644",
        b"4294967296:0:644",
        b"0:0:644:file\n",
        b"0:0:644:char-1-3:more",
        b" 0:0:644",
    ],
)
def test_a_malformed_override_is_refused(record: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_override(record)
