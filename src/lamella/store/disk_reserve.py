# SPDX-License-Identifier: Apache-2.0
"""Room on a full disk for what makes room: to remove anything, the database must write first."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamella.layers.directory.dirfd_cache import remove_path

RESERVE: Final = "reserve"
"""A file of the store that holds nothing."""

SIZE: Final = 1 << 20
"""Bytes that it takes: enough for the database to note that some thousand things are gone."""


def keep_reserve(root: Path) -> None:
    """Set room aside where none is, and there is plenty."""
    path = root / RESERVE
    if path.exists() or _free(root) < 8 * SIZE:
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return  # another process was quicker, or there will be none
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, SIZE)
    except OSError:
        pass
    finally:
        os.close(file)


def spend_reserve(root: Path) -> None:
    """Give the room that was set aside to who is about to free more, where there is hardly any other."""
    if _free(root) < SIZE:
        try:
            os.unlink(root / RESERVE)
        except OSError:
            pass


def _free(root: Path) -> int:
    try:
        found = os.statvfs(root)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


_TRASH: Final = "trash"
_PREFIX: Final = "content-"


def discard(root: Path, path: str) -> bool:
    """Move a file or a directory of the store at ``root`` out of sight; false where it is not there."""
    try:
        os.rename(path, os.path.join(root, _TRASH, f"{_PREFIX}{secrets.token_hex(8)}"))
    except FileNotFoundError:
        return False
    return True


def empty_trash(root: Path) -> None:
    """Remove what `discard` has moved out of sight, for whomever. What cannot be removed waits for the next time."""
    trash = os.path.join(root, _TRASH)
    for name in os.listdir(trash):
        if not name.startswith(_PREFIX):
            continue
        with suppress(OSError):
            remove_path(os.path.join(trash, name))
