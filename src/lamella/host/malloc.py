# SPDX-License-Identifier: Apache-2.0
"""How much freed memory the C library keeps."""

from __future__ import annotations

from typing import Final

# Of mallopt(3)
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8


def share_arenas(count: int = 2) -> None:
    """Have threads take memory from ``count`` pools between them, before they are started.

    By itself glibc gives eight to each processor, and what is free in one is of no use to the threads of another.
    Nothing happens where the C library knows no such setting.
    """
    _set(_ARENA_MAX, count)


def return_large_blocks(size: int) -> None:
    """Have freed memory in blocks of at least ``size`` bytes go back to the system at once.

    By itself glibc keeps what has been freed once, up to 32 MiB, for every thread that allocates. Nothing happens where
    the C library knows no such setting.
    """
    _set(_MMAP_THRESHOLD, size)
    # Else this is 128 KiB from now on, which smaller blocks pass again and again.
    _set(_TRIM_THRESHOLD, 8 * size)


def _set(option: int, value: int) -> None:
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, Windows no such library
        return
    mallopt(option, value)
