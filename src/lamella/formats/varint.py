# SPDX-License-Identifier: Apache-2.0
"""Numbers as groups of seven bits, the lowest first, the last without the high bit ("varints" of Protocol Buffers)."""

from __future__ import annotations


def encode_varint(value: int) -> bytes:
    """The bytes of a number, which is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
