# SPDX-License-Identifier: Apache-2.0
"""Linux: extended attributes, the umask, exclusive renames."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes  # which takes a while to load, and is wanted by few

HAS_XATTRS = True


def current_umask() -> int:
    """The umask of this process, read without setting it, so that no other thread ever sees another one."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    # All bits: whoever asks then sets every mode itself, which is slower and always right.
    return 0o777


class OpenPath(str):
    """A path to the very file that is open: what it leads to is meant, even where that is a link."""

    __slots__ = ()


def list_xattrs(file: int | str) -> list[str]:
    """Names of the extended attributes of an open file, of an `OpenPath`, or of a path whose end is not followed."""
    return os.listxattr(file) if isinstance(file, _OPEN) else os.listxattr(file, follow_symlinks=False)


def get_xattr(file: int | str, name: str) -> bytes:
    """One extended attribute; see `list_xattrs`."""
    return os.getxattr(file, name) if isinstance(file, _OPEN) else os.getxattr(file, name, follow_symlinks=False)


def set_xattr(file: int | str, name: str, value: bytes) -> None:
    """Set one extended attribute; see `list_xattrs`."""
    if isinstance(file, _OPEN):
        os.setxattr(file, name, value)
    else:
        os.setxattr(file, name, value, follow_symlinks=False)


def remove_xattr(file: int | str, name: str) -> None:
    """Remove one extended attribute; see `list_xattrs`."""
    if isinstance(file, _OPEN):
        os.removexattr(file, name)
    else:
        os.removexattr(file, name, follow_symlinks=False)


_OPEN = (int, OpenPath)


def path_beneath(directory: int, name: str) -> str:
    """A path to ``name`` in the open ``directory``, for calls that take no directory descriptor."""
    return f"/proc/self/fd/{directory}/{name}"


def path_of(descriptor: int) -> OpenPath:
    """A path that the kernel resolves to the very file that is open, whatever has become of its names."""
    return OpenPath(f"/proc/self/fd/{descriptor}")


def names_open_files() -> bool:
    """Whether `path_of` is of use: /proc need not be mounted."""
    return os.path.exists("/proc/self/fd")


def xattr_lister(directory: int) -> Callable[[str], list[str]]:
    """A function that lists the extended attributes of a name in the open ``directory``, without following it.

    Through /proc, or with listxattrat(2) where the kernel (6.13) has it, which takes a third of the time.
    """
    beneath = f"/proc/self/fd/{directory}/"
    call = _listxattrat()
    if call is None:
        return lambda name: os.listxattr(beneath + name, follow_symlinks=False)
    import ctypes

    buffer = ctypes.create_string_buffer(_NAMES)
    address = ctypes.addressof(buffer)
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

    def names_of(name: str) -> list[str]:
        length = call(_LISTXATTRAT, directory, name.encode(encoding, errors), _AT_SYMLINK_NOFOLLOW, address, _NAMES)
        if not length:
            return []
        if length < 0:  # more names than the buffer takes, or an error that this call tells properly
            return os.listxattr(beneath + name, follow_symlinks=False)
        return [os.fsdecode(one) for one in buffer.raw[: length - 1].split(b"\0")]

    return names_of


_LISTXATTRAT = 465
_AT_SYMLINK_NOFOLLOW = 0x100
_NAMES = 4096
_COMMON_NUMBERS = frozenset({"x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "loongarch64"})


@cache
def _listxattrat() -> Callable[..., int] | None:
    """The system call, where this kernel has it and lets us use it."""
    if os.uname().machine not in _COMMON_NUMBERS:
        return None
    import ctypes

    syscall = ctypes.CFUNCTYPE(
        ctypes.c_long,
        ctypes.c_long,
        ctypes.c_long,
        ctypes.c_char_p,
        ctypes.c_long,
        ctypes.c_void_p,
        ctypes.c_size_t,
    )(("syscall", _libc()))
    if syscall(_LISTXATTRAT, _AT_FDCWD, b"/", _AT_SYMLINK_NOFOLLOW, None, 0) < 0:
        return None
    return syscall


@cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


def rename_exclusive(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Rename ``old`` to ``new``; FileExistsError where ``new`` is there, even as an empty directory (renameat2(2))."""
    import ctypes

    source, target = os.fsencode(old), os.fsencode(new)
    renameat2 = getattr(_libc(), "renameat2", None)
    code = errno.ENOSYS
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, source, _AT_FDCWD, target, ctypes.c_uint(_RENAME_NOREPLACE)) == 0:
            return
        code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(code, os.strerror(code), os.fspath(new))
    # The file system cannot: the next best is to look first; a directory that is not empty is refused in any case.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new))
    os.rename(source, target)
