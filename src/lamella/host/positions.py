# SPDX-License-Identifier: Apache-2.0
"""Files read at a position, on systems that have a call for it and on Windows."""

from __future__ import annotations

import os
import sys

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
