# SPDX-License-Identifier: Apache-2.0
"""FILETIME, 100-nanosecond ticks since 1601-01-01 UTC, to and from nanoseconds since the Unix epoch.

Integers are as wide as they need to be, so that no time wraps; what a field of eight bytes cannot hold is refused
where it is packed.
"""

from __future__ import annotations

from typing import Final

from lamella.errors import FormatError, InvalidInput

TICK: Final = 100
"""Nanoseconds."""

UNIX_EPOCH: Final = 116_444_736_000_000_000
"""1970-01-01 in ticks."""

ZERO: Final = -UNIX_EPOCH * TICK
"""1601-01-01, the FILETIME 0, in nanoseconds since the Unix epoch."""

_MAX_TICKS: Final = (1 << 63) - 1
_WORD: Final = 1 << 64


def ns_from_ticks(ticks: int) -> int:
    """Nanoseconds since the Unix epoch."""
    return (ticks - UNIX_EPOCH) * TICK


def ticks_from_ns(ns: int) -> int:
    """The FILETIME of ``ns``, what is under a tick cut off towards the Unix epoch."""
    return (ns // TICK if ns >= 0 else -(-ns // TICK)) + UNIX_EPOCH


def encode(ns: int) -> bytes:
    """The eight bytes of a FILETIME.

    Raises InvalidInput for a time before 1601 or after 30828, which no file of Windows can have.
    """
    ticks = ticks_from_ns(ns)
    if not 0 <= ticks <= _MAX_TICKS:
        raise InvalidInput(f"no FILETIME can hold {ns} ns since 1970")
    return ticks.to_bytes(8, "little")


def decode(data: bytes, at: int = 0) -> int:
    """The nanoseconds since the Unix epoch that the FILETIME at the offset ``at`` says. Raises FormatError."""
    field = data[at : at + 8]
    if len(field) < 8:
        raise FormatError("FILETIME", at, f"only {len(field)} bytes left")
    return ns_from_ticks(int.from_bytes(field, "little"))


def wrap(ns: int) -> int:
    """What becomes of ``ns`` in a 64-bit integer with a sign that overflows without notice.

    go-winio calculates so: a time before 1677-09-21 or after 2262-04-11 comes out some 584 years off.
    """
    return (ns + (_WORD >> 1)) % _WORD - (_WORD >> 1)


def unwrap(ns: int) -> int:
    """Undo `wrap`: return the nanoseconds before the overflow, or ``ns`` if it did not overflow.

    FILETIMEs are whole ticks and 2**64 is not, so the part below a tick reveals a wrapped time. Only times before 1677
    are restored, such as an empty FILETIME; they wrap to times after 2185. Restoring times after 2262 would change
    present times of other systems that have all of their nanoseconds.
    """
    true = ns - _WORD
    return true if ns % TICK and true % TICK == 0 and true >= ZERO and wrap(true) == ns else ns
