# SPDX-License-Identifier: Apache-2.0
"""What Linux does with whole files: shares their blocks, seals them, brings them to the disk. All raise OSError."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache
from typing import Final

_FICLONE: Final = 0x40049409
_FS_IOC_ENABLE_VERITY: Final = 0x40806685
_FS_IOC_MEASURE_VERITY: Final = 0xC0046686
_SHA256: Final = 1
_BLOCK: Final = 4096
_DIGEST_ROOM: Final = 64

_CANNOT_CLONE: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)


def clone_file(source: int, target: int) -> bool:
    """Let the empty file ``target`` share all blocks of ``source``; False where the file system does not do that."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def sync_file_system(descriptor: int) -> None:
    """Bring all that was written to the file system of an open file to the disk (syncfs(2))."""
    if _libc().syncfs(descriptor):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def enable_verity(path: str) -> None:
    """Let the kernel check each block of the file from now on as it is read; the file cannot change any more."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        block = min(_BLOCK, os.fstatvfs(descriptor).f_bsize)  # the kernel takes none larger than the file system's
        fcntl.ioctl(descriptor, _FS_IOC_ENABLE_VERITY, struct.pack("=III", 1, _SHA256, block).ljust(128, b"\0"))
    finally:
        os.close(descriptor)


def verity_digest(path: str) -> bytes | None:
    """The digest by which the kernel checks the file (SHA-256 of its Merkle tree), or None where it does not."""
    import fcntl

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


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
