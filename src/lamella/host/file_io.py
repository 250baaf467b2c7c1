# SPDX-License-Identifier: Apache-2.0
"""Flags for opening files; those that a system lacks are 0 there.

What they promise is then not kept. So nobody opens anything by a descriptor of its directory on such a system: that is
refused, by `require_descriptors`, where the first directory is opened.
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
"""To read a file where others may put what they like: no link is followed, and a fifo holds nobody up."""

HAS_DESCRIPTORS: Final = os.open in os.supports_dir_fd
"""Whether files can be opened by a descriptor of their directory.

Asked once: the set has the function itself, which somebody who watches it may replace later.
"""


def require_descriptors() -> None:
    """Make sure that files can be opened by a descriptor of their directory. Raises Unsupported."""
    if not HAS_DESCRIPTORS:
        raise Unsupported(
            "this system cannot open a file by a descriptor of its directory, which keeps links from leading elsewhere",
            hint="on Windows, layers for Windows are handled by its own calls; for all else take Linux, or WSL",
        )


if sys.platform == "win32":

    def read_at(file: int, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on; its own position stays. For one thread at a time."""
        before = os.lseek(file, 0, os.SEEK_CUR)
        os.lseek(file, offset, os.SEEK_SET)
        try:
            return os.read(file, length)
        finally:
            os.lseek(file, before, os.SEEK_SET)

else:

    def read_at(file: int, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on."""
        return os.pread(file, length, offset)
