# SPDX-License-Identifier: Apache-2.0
"""Trees of hashes as dm-verity has them, made and checked (Documentation/admin-guide/device-mapper/verity.rst).

Format 1 with SHA-256, blocks of 4,096 bytes and no salt. A first block says so; then come the levels, the uppermost
first, each of them the hashes of the blocks of the level below it, and the lowest those of the data.
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
"""Hashes in a block."""
_STEP: Final = _EACH * BLOCK
_HEAD: Final = struct.Struct("<8sII16s32sIIQH6x256s168x")
"""Signature, version, kind of hash, UUID, algorithm, sizes of blocks of data and of hashes, blocks of data, length of
the salt, salt."""
_SIGNATURE: Final = b"verity\0\0"
_FORM: Final = (1, 1, b"sha256".ljust(32, b"\0"), BLOCK, BLOCK, 0)
"""Version, kind, algorithm, sizes, length of the salt."""

Read = Callable[[int, int], bytes]
"""Gives so many bytes from an offset on, fewer at the end alone."""


def write_tree(read: Read, size: int, write: Callable[[int, bytes], None]) -> str:
    """Write the tree over data of ``size`` bytes, and return its root hash in hexadecimal.

    It is what ``veritysetup format`` writes with ``--salt=-`` and a UUID of zeros. Raises InvalidInput unless the data
    are whole blocks, one at least, and what the callables raise.
    """
    blocks = size // BLOCK
    if not blocks or size % BLOCK:
        raise InvalidInput(f"hashes are of whole blocks of {BLOCK} bytes: there are {size} bytes")
    version, kind, algorithm, data, hashes, salt = _FORM
    head = _HEAD.pack(_SIGNATURE, version, kind, bytes(16), algorithm, data, hashes, blocks, salt, bytes(256))
    write(0, head.ljust(BLOCK, b"\0"))
    digests = _hashes(read, blocks)
    for first, count in _levels(blocks):
        above: list[bytes] = []
        for number in range(first, first + count):
            block = b"".join(islice(digests, _EACH)).ljust(BLOCK, b"\0")
            write(number * BLOCK, block)
            above.append(sha256(block).digest())
        digests = iter(above)
    return next(digests).hex()


def check_tree(read: Read, size: int, tree: Read, root: str, step: Callable[[int], object]) -> None:
    """Check data of ``size`` bytes against the tree over them whose root hash is ``root``, from the root down.

    ``step`` receives the number of data bytes read, and may raise to stop. Raises Integrity at the first block with a
    wrong hash, FormatError for a malformed tree, and Unsupported for a tree of another form.
    """
    blocks = _blocks(tree(0, BLOCK))
    if not blocks or blocks * BLOCK != size:
        raise Integrity(f"there are {size} bytes, and hashes of {blocks * BLOCK}")
    expected = iter([bytes.fromhex(root)])
    for first, count in reversed(_levels(blocks)):
        expected = _checked(tree, first, count, expected)
    for number, digest in enumerate(_hashes(read, blocks, step)):
        if digest != next(expected):
            raise Integrity(f"the block at {number * BLOCK} is not what its hash says")


def _checked(tree: Read, first: int, count: int, expected: Iterator[bytes]) -> Iterator[bytes]:
    """The hashes of a level, once they have been held against the level above."""
    for number in range(first, first + count):
        block = tree(number * BLOCK, BLOCK)
        if sha256(block).digest() != next(expected):
            raise Integrity(f"the hashes themselves are damaged, at {number * BLOCK}")
        for at in range(0, BLOCK, _HASH):
            yield block[at : at + _HASH]


def _hashes(read: Read, blocks: int, step: Callable[[int], object] | None = None) -> Iterator[bytes]:
    """Of each block of the data."""
    for start in range(0, blocks * BLOCK, _STEP):
        held = memoryview(read(start, min(_STEP, blocks * BLOCK - start)))
        if len(held) < min(_STEP, blocks * BLOCK - start):
            raise Integrity(f"only {start + len(held)} bytes are there, and hashes of {blocks * BLOCK}")
        if step is not None:
            step(len(held))
        for at in range(0, len(held), BLOCK):
            yield sha256(held[at : at + BLOCK]).digest()


def _levels(blocks: int) -> list[tuple[int, int]]:
    """Of each level, the lowest first: the block of the tree that it begins with, and how many it has.

    A single block of data has no level: the root is its own hash.
    """
    counts: list[int] = []
    while blocks > 1:
        blocks = -(-blocks // _EACH)
        counts.append(blocks)
    return [(1 + sum(counts[level + 1 :]), count) for level, count in enumerate(counts)]


def _blocks(head: bytes) -> int:
    """How many blocks of data a tree says that it is of. Raises FormatError, Unsupported."""
    if len(head) < _HEAD.size:
        raise FormatError("dm-verity superblock", 0, f"only {len(head)} bytes left")
    signature, version, kind, _, algorithm, data, hashes, blocks, salt, _ = _HEAD.unpack_from(head)
    if signature != _SIGNATURE:
        raise FormatError("dm-verity superblock", 0, f"the signature is {signature!r}")
    if (version, kind, algorithm, data, hashes, salt) != _FORM:
        raise Unsupported("this tree of hashes is not of SHA-256 over blocks of 4096 bytes without salt")
    return int(blocks)
