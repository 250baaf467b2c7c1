# SPDX-License-Identifier: Apache-2.0
"""How much memory the C library keeps for threads."""

from __future__ import annotations

from typing import Final

_ARENA_MAX: Final = -8
"""M_ARENA_MAX of mallopt(3)."""


def share_arenas(count: int = 2) -> None:
    """Have threads take memory from ``count`` pools between them, before they are started.

    By itself glibc gives eight to each processor, and what is free in one is of no use to the threads of another.
    Nothing happens where the C library knows no such setting.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_ARENA_MAX, count)
