# SPDX-License-Identifier: Apache-2.0
"""The hidden names of images in the making, and what is left of those whose writers were killed.

A writer holds a lock on an empty file, ``.NAME.unfinished-XXXXXXXX``, and all that it writes has that name and a
number, until it gets its own. The system ends the lock with the process. So whoever gets the lock of such a file knows
that its writer is no more, and may remove what is called after it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import Final

from lamella.errors import Unavailable, from_os
from lamella.host import flags

if sys.platform != "win32":
    import fcntl

PARTS: Final = 4
"""Files that are called after a mark: three regions, and one for all that is small."""

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | flags.O_NOFOLLOW | flags.O_CLOEXEC | flags.O_BINARY
_MARK: Final = re.compile(r"\..+\.unfinished-[0-9a-f]{8}", re.DOTALL)
_TRIES: Final = 8
"""Another writer may take a mark for abandoned before it is locked; then there is a next one."""


class Mark:
    """The mark of one writer. On Windows it is a name alone, and nothing is removed but by its own writer."""

    def __init__(self, directory: Path, name: str) -> None:
        """Mark the image ``name`` in the making, and remove what killed writers have left in the directory.

        Raises NotFound (the directory), Denied, Exhausted, Unavailable.
        """
        self._directory = directory
        self._held = -1
        try:
            _sweep(directory)
            for _ in range(_TRIES):
                self._name = f".{name}.unfinished-{secrets.token_hex(4)}"
                if sys.platform == "win32":
                    return
                self._held = os.open(directory / self._name, _NEW, 0o600)
                if _lock(self._held, directory / self._name) is not False:
                    return
                os.close(self._held)
                self._held = -1
        except OSError as problem:
            self.remove()
            raise from_os(problem, f"write an image in {os.fspath(directory)!r}") from problem
        raise Unavailable(f"cannot lock a file in {os.fspath(directory)!r}")

    def part(self, number: int) -> Path:
        """The path of a part, `PARTS` of which there can be."""
        return self._directory / f"{self._name}-{number}"

    def remove(self) -> None:
        """Nothing is called after it any more. May be called again."""
        held, self._held = self._held, -1
        if held >= 0:
            (self._directory / self._name).unlink(missing_ok=True)
            os.close(held)


def _sweep(directory: Path) -> None:
    if sys.platform == "win32":
        return
    for name in os.listdir(directory):
        if _MARK.fullmatch(name) is None:
            continue
        path = directory / name
        try:
            file = os.open(path, flags.READ_FILE)
        except OSError:
            continue
        try:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and not status.st_size and _lock(file, path):
                for number in range(PARTS):
                    (directory / f"{name}-{number}").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        except OSError:
            pass  # it stays, for whoever may remove it
        finally:
            os.close(file)


def _lock(file: int, path: Path) -> bool | None:
    """Whether the file is locked for us, and still there under its name; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
