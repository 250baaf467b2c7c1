# SPDX-License-Identifier: Apache-2.0
"""Systems for which no bindings are written: what the os module gives, and ENOTSUP for the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

HAS_XATTRS = False


def current_umask() -> int:
    """All bits, so that whoever asks sets every mode itself."""
    return 0o777


def list_xattrs(file: int | str) -> list[str]:
    """No names: nothing can be asked."""
    return []


def get_xattr(file: int | str, name: str) -> bytes:
    """OSError (ENOTSUP)."""
    raise _unsupported()


def set_xattr(file: int | str, name: str, value: bytes) -> None:
    """OSError (ENOTSUP)."""
    raise _unsupported()


def remove_xattr(file: int | str, name: str) -> None:
    """OSError (ENOTSUP)."""
    raise _unsupported()


def xattr_lister(directory: int) -> Callable[[str], list[str]]:
    """A function that gives no names."""
    return lambda _name: []


def path_beneath(directory: int, name: str) -> str:
    """OSError (ENOTSUP)."""
    raise _unsupported()


def path_of(descriptor: int) -> str:
    """OSError (ENOTSUP)."""
    raise _unsupported()


def names_open_files() -> bool:
    """False: `path_of` is of no use."""
    return False


def rename_exclusive(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Rename ``old`` to ``new``; FileExistsError where ``new`` is there (looked at just before)."""
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new))
    os.rename(old, new)


def _unsupported() -> OSError:
    return OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
