# SPDX-License-Identifier: Apache-2.0
"""One changed bit anywhere in data or in the tree of hashes is found."""

from __future__ import annotations

from hashlib import shake_128

import pytest

from lamella.errors import FormatError, Integrity, InvalidInput, LamellaError, Unsupported
from lamella.formats.verity import BLOCK, check_tree, write_tree

SIZES = [1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1]
"""Blocks of data with no level, one, two and three."""
BLOCKS_AT = 72
"""Where the first block says how many blocks of data there are."""


def data_of(blocks: int) -> bytes:
    return shake_128(b"%d" % blocks).digest(blocks * BLOCK)


def tree_of(data: bytes) -> tuple[bytes, str]:
    written = bytearray()

    def write(offset: int, block: bytes) -> None:
        written[len(written) :] = bytes(max(0, offset - len(written)))
        written[offset : offset + len(block)] = block

    root = write_tree(lambda offset, length: data[offset : offset + length], len(data), write)
    return bytes(written), root


def check(data: bytes, tree: bytes, root: str) -> int:
    seen: list[int] = []
    check_tree(
        lambda offset, length: data[offset : offset + length],
        len(data),
        lambda offset, length: tree[offset : offset + length],
        root,
        seen.append,
    )
    return sum(seen)


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]


@pytest.mark.parametrize("blocks", SIZES)
def test_what_is_as_it_was_is_read_whole_and_nothing_is_said(blocks: int) -> None:
    data = data_of(blocks)
    assert check(data, *tree_of(data)) == len(data)


@pytest.mark.parametrize("blocks", [1, 2, 129, 300])
def test_a_bit_that_changed_is_found_and_told_by_its_block(blocks: int) -> None:
    data = data_of(blocks)
    tree, root = tree_of(data)
    for block in {0, blocks // 2, blocks - 1}:
        with pytest.raises(Integrity, match=f"the block at {block * BLOCK} does not match"):
            check(flipped(data, block * BLOCK + 4095), tree, root)
    for block in range(1, len(tree) // BLOCK):
        for at in (0, 4095):
            with pytest.raises(Integrity, match=f"damaged hash tree at {block * BLOCK}"):
                check(data, flipped(tree, block * BLOCK + at), root)
    with pytest.raises(Integrity):
        check(data, tree, "00" * 32)


def test_another_size_is_told() -> None:
    data = data_of(3)
    tree, root = tree_of(data)
    for other in (data[:-BLOCK], data + bytes(BLOCK), data + bytes(40), data[:-1], b""):
        with pytest.raises(Integrity, match="hashes of 12288"):
            check(other, tree, root)


def test_no_data_are_not_what_any_hashes_are_of() -> None:
    tree, root = tree_of(data_of(3))
    forged = tree[:BLOCKS_AT] + bytes(8) + tree[BLOCKS_AT + 8 :]
    for data in (b"", bytes(40)):
        with pytest.raises(Integrity, match="hashes of 0"):
            check(data, forged, root)


@pytest.mark.parametrize("size", [0, 40, BLOCK - 1, BLOCK + 1])
def test_no_hashes_are_made_of_less_than_whole_blocks(size: int) -> None:
    with pytest.raises(InvalidInput, match="whole blocks"):
        tree_of(bytes(size))


def test_a_tree_that_is_cut_or_none_is_an_error() -> None:
    data = data_of(200)
    tree, root = tree_of(data)
    for length in range(0, len(tree), 512):
        with pytest.raises(LamellaError):
            check(data, tree[:length], root)
    with pytest.raises(FormatError, match="signature"):
        check(data, bytes(BLOCK) + tree[BLOCK:], root)
    with pytest.raises(Unsupported):
        check(data, flipped(tree, 8), root)
