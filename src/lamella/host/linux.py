# SPDX-License-Identifier: Apache-2.0
"""Linux: extended attributes, umask, renames, reflinks, syncfs, fs-verity."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ctypes  # late elsewhere, like fcntl and struct: they take 2 ms, and few runs need them

HAS_XATTRS = True


def current_umask() -> int:
    """The umask of this process, read from /proc: umask(2) would change it for other threads."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    # All bits: callers then set each mode explicitly, which is slower and always right.
    return 0o777


class OpenPath(str):
    """A /proc path of an open file; calls act on the file itself, even if that is a symbolic link."""

    __slots__ = ()


def list_xattrs(file: int | str) -> list[str]:
    """List the extended attributes of an open file, an `OpenPath`, or a path (the last component is not followed)."""
    try:
        return os.listxattr(file) if isinstance(file, _OPEN) else os.listxattr(file, follow_symlinks=False)
    except FileNotFoundError:
        _require_proc(file)
        raise


def get_xattr(file: int | str, name: str) -> bytes:
    """Get one extended attribute; targets as for `list_xattrs`."""
    try:
        return os.getxattr(file, name) if isinstance(file, _OPEN) else os.getxattr(file, name, follow_symlinks=False)
    except FileNotFoundError:
        _require_proc(file)
        raise


def set_xattr(file: int | str, name: str, value: bytes) -> None:
    """Set one extended attribute; targets as for `list_xattrs`."""
    try:
        if isinstance(file, _OPEN):
            os.setxattr(file, name, value)
        else:
            os.setxattr(file, name, value, follow_symlinks=False)
    except FileNotFoundError:
        _require_proc(file)
        raise


def remove_xattr(file: int | str, name: str) -> None:
    """Remove one extended attribute; targets as for `list_xattrs`."""
    try:
        if isinstance(file, _OPEN):
            os.removexattr(file, name)
        else:
            os.removexattr(file, name, follow_symlinks=False)
    except FileNotFoundError:
        _require_proc(file)
        raise


def _require_proc(file: int | str) -> None:
    """Raise OSError (ENOSYS) if ``file`` was not found because it is a /proc path and /proc is not mounted."""
    if isinstance(file, str) and file.startswith(_OPEN_FILES) and not names_open_files():
        raise OSError(errno.ENOSYS, "/proc is not mounted") from None


_OPEN_FILES = "/proc/self/fd"
_OPEN = (int, OpenPath)


def path_beneath(directory: int, name: str) -> str:
    """A /proc path of ``name`` in the open ``directory``, for calls without a directory descriptor."""
    return f"/proc/self/fd/{directory}/{name}"


def path_of(descriptor: int) -> OpenPath:
    """A /proc path that the kernel resolves to the open file, even if it was renamed or unlinked."""
    return OpenPath(f"/proc/self/fd/{descriptor}")


def names_open_files() -> bool:
    """Whether `path_of` works; /proc may not be mounted."""
    return os.path.exists(_OPEN_FILES)


def chmod_open(descriptor: int, mode: int) -> None:
    """Set the mode of a file that is open, even with O_PATH, which fchmod(2) refuses. Raises OSError."""
    path = path_of(descriptor)
    try:
        os.chmod(path, mode)
    except FileNotFoundError:
        _require_proc(path)
        raise


def chmod_beneath(directory: int, name: str, mode: int) -> None:
    """Set the mode of ``name``, which is no link, in the open ``directory``. Raises OSError.

    Calls fchmodat2(2), which does not follow links; before Linux 6.6 /proc is needed, and a link would be followed.
    """
    import ctypes

    flags = ctypes.c_long(_AT_SYMLINK_NOFOLLOW)
    number, at = ctypes.c_long(_FCHMODAT2), ctypes.c_long(directory)
    if not _libc().syscall(number, at, os.fsencode(name), ctypes.c_long(mode), flags):
        return
    code = ctypes.get_errno()
    if code != errno.ENOSYS:
        raise OSError(code, os.strerror(code), name)
    path = path_beneath(directory, name)
    try:
        os.chmod(path, mode)
    except FileNotFoundError:
        _require_proc(path)
        raise


def xattr_lister(directory: int) -> Callable[[str], list[str]]:
    """A function that lists the extended attributes of a name in the open ``directory``; it does not follow links.

    Uses listxattrat(2) on Linux 6.13 and newer, at a third of the time; /proc otherwise.
    """
    beneath = f"/proc/self/fd/{directory}/"
    call = _listxattrat()
    if call is None:
        return lambda name: list_xattrs(beneath + name)
    import ctypes

    buffer = ctypes.create_string_buffer(_NAMES)
    address = ctypes.addressof(buffer)
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

    def names_of(name: str) -> list[str]:
        length = call(_LISTXATTRAT, directory, name.encode(encoding, errors), _AT_SYMLINK_NOFOLLOW, address, _NAMES)
        if not length:
            return []
        if length < 0:  # the buffer is too small, or an error that the call below reports
            return list_xattrs(beneath + name)
        return [os.fsdecode(one) for one in buffer.raw[: length - 1].split(b"\0")]

    return names_of


_LISTXATTRAT = 465
_FCHMODAT2 = 452
_AT_SYMLINK_NOFOLLOW = 0x100
_NAMES = 4096
_COMMON_NUMBERS = frozenset({"x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "loongarch64"})


@cache
def _listxattrat() -> Callable[..., int] | None:
    """listxattrat(2) if the kernel supports and permits it, else None."""
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
    """Rename ``old`` to ``new`` by renameat2(2); FileExistsError if ``new`` exists, even as an empty directory."""
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
    # Not supported by the file system: check first. rename(2) refuses a non-empty directory in any case.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new))
    os.rename(source, target)


_FICLONE: Final = 0x40049409
_FS_IOC_ENABLE_VERITY: Final = 0x40806685
_FS_IOC_MEASURE_VERITY: Final = 0xC0046686
_SHA256: Final = 1
_BLOCK: Final = 4096
_DIGEST_ROOM: Final = 64

_CANNOT_CLONE: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)


def clone_file(source: int, target: int) -> bool:
    """Reflink ``source`` to the empty file ``target``; false if the file system does not support it."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def sync_file_system(descriptor: int) -> None:
    """Flush the file system of an open file to the disk (syncfs(2))."""
    import ctypes

    if _libc().syncfs(descriptor):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def enable_verity(path: str) -> None:
    """Enable fs-verity: the kernel verifies each block on reading, and the file becomes immutable."""
    import fcntl
    import struct

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The kernel accepts no larger block than the file system's.
        block = min(_BLOCK, os.fstatvfs(descriptor).f_bsize)
        fcntl.ioctl(descriptor, _FS_IOC_ENABLE_VERITY, struct.pack("=III", 1, _SHA256, block).ljust(128, b"\0"))
    finally:
        os.close(descriptor)


def verity_digest(path: str) -> bytes | None:
    """The fs-verity digest of the file (SHA-256 of its Merkle tree), or None without fs-verity."""
    import fcntl
    import struct

    buffer = bytearray(struct.pack("=HH", 0, _DIGEST_ROOM)) + bytearray(_DIGEST_ROOM)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_MEASURE_VERITY, buffer)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS):
            return None
        raise
    finally:
        os.close(descriptor)
    return bytes(buffer[4 : 4 + int.from_bytes(buffer[2:4], "little")])
