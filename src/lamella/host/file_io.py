# SPDX-License-Identifier: Apache-2.0
"""Flags for open(2), 0 where the system lacks them, and reads at a position.

A flag of 0 gives no protection. On such systems `require_descriptors` therefore refuses to open files relative to
directory descriptors at all.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from lamella.errors import Unsupported


def _flag(name: str) -> int:
    return int(getattr(os, name, 0))


O_BINARY: Final = _flag("O_BINARY")
O_CLOEXEC: Final = _flag("O_CLOEXEC")
O_DIRECTORY: Final = _flag("O_DIRECTORY")
O_NOCTTY: Final = _flag("O_NOCTTY")
O_NOFOLLOW: Final = _flag("O_NOFOLLOW")
O_NONBLOCK: Final = _flag("O_NONBLOCK")
O_PATH: Final = _flag("O_PATH")

READ_FILE: Final = os.O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | O_BINARY
"""Read a file in a directory that others can write to: follows no link, does not block on a fifo."""

HAS_DESCRIPTORS: Final = os.open in os.supports_dir_fd
"""Whether files can be opened relative to a directory descriptor.

Evaluated once: the set contains the function itself, which a debugger may replace later.
"""


def require_descriptors() -> None:
    """Check that files can be opened relative to a directory descriptor. Raises Unsupported."""
    if not HAS_DESCRIPTORS:
        raise Unsupported(
            "this system cannot open files relative to a directory descriptor, which protects against symbolic links",
            hint="on Windows, only Windows layers are supported; use Linux or WSL for others",
        )


if sys.platform == "win32":

    def read_at(file: int, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes at ``offset`` and keep the file position; one thread at a time."""
        before = os.lseek(file, 0, os.SEEK_CUR)
        os.lseek(file, offset, os.SEEK_SET)
        try:
            return os.read(file, length)
        finally:
            os.lseek(file, before, os.SEEK_SET)

else:

    def read_at(file: int, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes at ``offset``."""
        return os.pread(file, length, offset)
