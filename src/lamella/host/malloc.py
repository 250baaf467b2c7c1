# SPDX-License-Identifier: Apache-2.0
"""Settings of malloc: how much freed memory the C library keeps."""

from __future__ import annotations

from typing import Final

# Options of mallopt
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8


def share_arenas(count: int = 2) -> None:
    """Limit malloc to ``count`` arenas; call it before threads start.

    By default glibc uses eight for each processor, and free memory in one arena is useless to threads of another.
    Does nothing if the C library has no such setting.
    """
    _set(_ARENA_MAX, count)


def return_large_blocks(size: int) -> None:
    """Return freed blocks of at least ``size`` bytes to the system at once.

    By default glibc raises this threshold, up to 32 MiB, whenever a large block is freed. Does nothing if the C library
    has no such setting.
    """
    _set(_MMAP_THRESHOLD, size)
    # Otherwise this becomes 128 KiB, which smaller blocks exceed again and again.
    _set(_TRIM_THRESHOLD, 8 * size)


def _set(option: int, value: int) -> None:
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS lack mallopt, Windows lacks the library
        return
    mallopt(option, value)
