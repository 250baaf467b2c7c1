# SPDX-License-Identifier: Apache-2.0
"""Writes and verifies dm-verity hash trees (Documentation/admin-guide/device-mapper/verity.rst).

Format 1 with SHA-256, blocks of 4,096 bytes and no salt: a superblock, then the levels from the root down. Each level
has the hashes of the blocks of the level below, the lowest those of the data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from typing import Final

from lamella.errors import FormatError, Integrity, InvalidInput, Unsupported

BLOCK: Final = 4096
_HASH: Final = 32
_EACH: Final = BLOCK // _HASH
"""Hashes per block."""
_STEP: Final = _EACH * BLOCK
_HEAD: Final = struct.Struct("<8sII16s32sIIQH6x256s168x")
"""Signature, version, hash type, UUID, algorithm, sizes of data and hash blocks, data blocks, salt length, salt."""
_SIGNATURE: Final = b"verity\0\0"
_FORM: Final = (1, 1, b"sha256".ljust(32, b"\0"), BLOCK, BLOCK, 0)
"""Version, hash type, algorithm, block sizes, salt length."""

Read = Callable[[int, int], bytes]
"""Reads (offset, length); returns fewer bytes only at the end."""


def write_tree(read: Read, size: int, write: Callable[[int, bytes], None]) -> str:
    """Write the hash tree of data of ``size`` bytes, and return its root hash in hexadecimal.

    The output is that of ``veritysetup format`` with ``--salt=-`` and a zero UUID. Raises InvalidInput unless the data
    are one or more whole blocks, and the errors of the callables.
    """
    blocks = size // BLOCK
    if not blocks or size % BLOCK:
        raise InvalidInput(f"dm-verity needs whole blocks of {BLOCK} bytes, not {size} bytes")
    version, kind, algorithm, data, hashes, salt = _FORM
    head = _HEAD.pack(_SIGNATURE, version, kind, bytes(16), algorithm, data, hashes, blocks, salt, bytes(256))
    write(0, head.ljust(BLOCK, b"\0"))
    digests = _hash_blocks(read, blocks)
    for first, count in _list_levels(blocks):
        above: list[bytes] = []
        for number in range(first, first + count):
            block = b"".join(islice(digests, _EACH)).ljust(BLOCK, b"\0")
            write(number * BLOCK, block)
            above.append(sha256(block).digest())
        digests = iter(above)
    return next(digests).hex()


def check_tree(read: Read, size: int, tree: Read, root: str, step: Callable[[int], object]) -> None:
    """Verify data of ``size`` bytes against its hash tree, from the root hash ``root`` down.

    ``step`` is called with the number of data bytes read, and may raise to stop. Raises Integrity at the first block
    with a wrong hash, FormatError and Unsupported for a malformed tree or another format.
    """
    blocks = _parse_superblock(tree(0, BLOCK))
    if not blocks or blocks * BLOCK != size:
        raise Integrity(f"{size} bytes of data, but hashes of {blocks * BLOCK}")
    expected = iter([bytes.fromhex(root)])
    for first, count in reversed(_list_levels(blocks)):
        expected = _verify_level(tree, first, count, expected)
    for number, digest in enumerate(_hash_blocks(read, blocks, step)):
        if digest != next(expected):
            raise Integrity(f"the block at {number * BLOCK} does not match its hash")


def _verify_level(tree: Read, first: int, count: int, expected: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the hashes of a level, verified against the level above."""
    for number in range(first, first + count):
        block = tree(number * BLOCK, BLOCK)
        if sha256(block).digest() != next(expected):
            raise Integrity(f"damaged hash tree at {number * BLOCK}")
        for at in range(0, BLOCK, _HASH):
            yield block[at : at + _HASH]


def _hash_blocks(read: Read, blocks: int, step: Callable[[int], object] | None = None) -> Iterator[bytes]:
    """Yield the hash of each data block."""
    for start in range(0, blocks * BLOCK, _STEP):
        held = memoryview(read(start, min(_STEP, blocks * BLOCK - start)))
        if len(held) < min(_STEP, blocks * BLOCK - start):
            raise Integrity(f"only {start + len(held)} bytes of data, but hashes of {blocks * BLOCK}")
        if step is not None:
            step(len(held))
        for at in range(0, len(held), BLOCK):
            yield sha256(held[at : at + BLOCK]).digest()


def _list_levels(blocks: int) -> list[tuple[int, int]]:
    """First block and number of blocks of each level, lowest first.

    A single data block has no levels: its hash is the root.
    """
    counts: list[int] = []
    while blocks > 1:
        blocks = -(-blocks // _EACH)
        counts.append(blocks)
    return [(1 + sum(counts[level + 1 :]), count) for level, count in enumerate(counts)]


def _parse_superblock(head: bytes) -> int:
    """Parse the superblock, and return the number of data blocks. Raises FormatError, Unsupported."""
    if len(head) < _HEAD.size:
        raise FormatError("dm-verity superblock", 0, f"only {len(head)} bytes left")
    signature, version, kind, _, algorithm, data, hashes, blocks, salt, _ = _HEAD.unpack_from(head)
    if signature != _SIGNATURE:
        raise FormatError("dm-verity superblock", 0, f"the signature is {signature!r}")
    if (version, kind, algorithm, data, hashes, salt) != _FORM:
        raise Unsupported("unsupported dm-verity tree: only SHA-256, blocks of 4096 bytes and no salt are supported")
    return int(blocks)
