# SPDX-License-Identifier: Apache-2.0
"""Fallback for systems without bindings: what the os module offers, and ENOTSUP for the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

HAS_XATTRS = False


def current_umask() -> int:
    """All bits, so that callers set each mode explicitly."""
    return 0o777


def list_xattrs(file: int | str) -> list[str]:
    """An empty list."""
    return []


def get_xattr(file: int | str, name: str) -> bytes:
    """Raise OSError (ENOTSUP)."""
    raise _unsupported()


def set_xattr(file: int | str, name: str, value: bytes) -> None:
    """Raise OSError (ENOTSUP)."""
    raise _unsupported()


def remove_xattr(file: int | str, name: str) -> None:
    """Raise OSError (ENOTSUP)."""
    raise _unsupported()


def xattr_lister(directory: int) -> Callable[[str], list[str]]:
    """A function that returns no names."""
    return lambda _name: []


def path_beneath(directory: int, name: str) -> str:
    """Raise OSError (ENOTSUP)."""
    raise _unsupported()


def path_of(descriptor: int) -> str:
    """Raise OSError (ENOTSUP)."""
    raise _unsupported()


def chmod_open(descriptor: int, mode: int) -> None:
    """Set the mode of an open file."""
    os.fchmod(descriptor, mode)


def chmod_beneath(directory: int, name: str, mode: int) -> None:
    """Set the mode of ``name`` in the open ``directory`` without following a link."""
    os.chmod(name, mode, dir_fd=directory, follow_symlinks=False)


def names_open_files() -> bool:
    """False: `path_of` does not work here."""
    return False


def rename_exclusive(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Rename ``old`` to ``new``; FileExistsError if ``new`` exists (checked just before, not atomic)."""
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new))
    os.rename(old, new)


def _unsupported() -> OSError:
    return OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
