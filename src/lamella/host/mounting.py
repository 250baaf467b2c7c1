# SPDX-License-Identifier: Apache-2.0
"""Mounts on Linux: mount(2), and fsopen(2) if the options exceed its page. All functions raise OSError.

The working directory, which all threads share, is never changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Final

_MS_RDONLY: Final = 1
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MS_REC: Final = 16384

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

_PAGE: Final = 4096
"""Maximum length of the options of mount(2) on any machine, including the final NUL."""
_LONGEST_VALUE: Final = 255
"""Maximum length of one value of fsconfig(2)."""

_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
"""System call numbers, the same on all architectures for calls newer than Linux 5.0."""
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_CLOEXEC: Final = 1
_MOUNT_ATTR_RDONLY: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_FDCWD: Final = -100

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_READ_ONLY: Final = 1
_LO_FLAGS_AUTOCLEAR: Final = 4


def bind(source: str, target: str, *, readonly: bool = False) -> None:
    """Bind-mount the directory or file ``source`` at ``target``, recursively."""
    _mount(source, target, "", _MS_BIND | _MS_REC, "")
    if readonly:
        try:
            _mount("", target, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _locked(target), "")
        except BaseException:
            unmount(target, lazy=True)
            raise


def overlay(
    target: str,
    lower: Sequence[str],
    upper: str | None = None,
    work: str | None = None,
    options: Sequence[str] = (),
) -> None:
    """Mount an overlay of any number of layers, nearest first; read-only without ``upper``.

    Options too long for mount(2) are passed one by one, which needs Linux 6.7; on older kernels layers are named by
    descriptors, of which about 200 fit.
    """
    flags = 0 if upper is not None else _MS_RDONLY
    text = _overlay_options([_escaped(path, ":,") for path in lower], upper, work, options)
    if len(os.fsencode(text)) < _PAGE:
        _mount("overlay", target, "overlay", flags, text)
        return
    with ExitStack() as opened:
        try:
            _configure_overlay(opened, target, lower, upper, work, options)
        except OSError as error:
            # The error of kernels without "lowerdir+", and of those before 5.2 for the whole call.
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise
            handles = [_handle(opened, path) for path in lower]
            text = _overlay_options(handles, upper, work, options)
            if len(os.fsencode(text)) >= _PAGE:
                raise
            _mount("overlay", target, "overlay", flags, text)


def erofs(image: str, target: str, options: Sequence[str] = ()) -> None:
    """Mount the EROFS image in the file ``image``: directly (Linux 6.12), or through an autoclear loop device."""
    text = ",".join(options)
    try:
        _mount(image, target, "erofs", _MS_RDONLY, text)
    except OSError as error:
        if error.errno not in (errno.ENOTBLK, errno.EINVAL, errno.ELOOP):
            raise
        try:
            with _looped(image) as device:
                _mount(device, target, "erofs", _MS_RDONLY, text)
        except OSError as second:
            # Without loop devices, the error of the first call is the one to report.
            raise (error if second.errno in (errno.ENOENT, errno.ENXIO) else second) from None


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmount the topmost mount at ``target``; ``lazy`` detaches it even if it is busy."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc().umount2(os.fsencode(target), flags):
        raise _error(target)


def mount_points(beneath: str) -> list[str]:
    """The mount points at or beneath the directory ``beneath``, in mount order.

    A mount point is listed once for each mount on it.
    """
    top = os.path.realpath(beneath)
    inside = top.rstrip("/") + "/"
    found: list[str] = []
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            point = os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ", 5)[4]))
            if point == top or point.startswith(inside):
                found.append(point)
    return found


def is_mounted(target: str) -> bool:
    """Whether ``target`` is a mount point in the mount namespace of this process."""
    return os.path.realpath(target) in mount_points(target)


def has_trusted_xattrs() -> bool:
    """Whether this process may use ``trusted.*`` attributes: root in the initial user namespace."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as ids:
            if ids.read().split() != ["0", "0", "4294967295"]:
                return False
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    except OSError:
        pass
    return os.geteuid() == 0


_CAP_SYS_ADMIN: Final = 21
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


# By mount


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    if _libc().mount(
        os.fsencode(source) or None,
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(options) or None,
    ):
        raise _error(target)


def _locked(target: str) -> int:
    """The flags of a mount that are locked in a user namespace."""
    flags = os.statvfs(target).f_flag
    pairs = ((os.ST_NOSUID, 2), (os.ST_NODEV, 4), (os.ST_NOEXEC, 8), (os.ST_NOATIME, 1024), (os.ST_NODIRATIME, 2048))
    return sum(mount_flag for held, mount_flag in pairs if flags & held) | (1 << 21 if flags & os.ST_RELATIME else 0)


def _overlay_options(lower: Sequence[str], upper: str | None, work: str | None, options: Sequence[str]) -> str:
    """Options for mount(2); ``lower`` is escaped already."""
    parts: list[str] = []
    if work is not None:
        parts.append(f"workdir={_escaped(work, ',')}")
    if upper is not None:
        parts.append(f"upperdir={_escaped(upper, ',')}")
    if lower:
        parts.append(f"lowerdir={':'.join(lower)}")
    return ",".join([*parts, *options])


def _escaped(path: str, special: str) -> str:
    path = path.replace("\\", "\\\\")
    for one in special:
        path = path.replace(one, f"\\{one}")
    return path


def _handle(opened: ExitStack, path: str) -> str:
    """A short /proc path of ``path``, valid until ``opened`` is closed."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return f"/proc/self/fd/{descriptor}"


# By fsopen


def _configure_overlay(
    opened: ExitStack,
    target: str,
    lower: Sequence[str],
    upper: str | None,
    work: str | None,
    options: Sequence[str],
) -> None:
    call = _syscall()
    context = call(_FSOPEN, b"overlay", _CLOEXEC)
    if context < 0:
        raise _error(target)
    try:

        def give(key: str, value: str) -> None:
            encoded = os.fsencode(value)
            if call(_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), encoded, 0) < 0:
                raise _error(target, context)

        def place(key: str, path: str, escape: bool) -> None:
            value = _escaped(path, "") if escape else path
            give(key, value if len(os.fsencode(value)) <= _LONGEST_VALUE else _handle(opened, path))

        give("source", "overlay")
        for path in lower:
            place("lowerdir+", path, escape=False)
        if upper is not None and work is not None:
            place("upperdir", upper, escape=True)
            place("workdir", work, escape=True)
        for option in options:
            key, equals, value = option.partition("=")
            if equals:
                give(key, value)
            elif call(_FSCONFIG, context, _FSCONFIG_SET_FLAG, key.encode(), None, 0) < 0:
                raise _error(target, context)
        if call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            raise _error(target, context)
        mounted = call(_FSMOUNT, context, _CLOEXEC, _MOUNT_ATTR_RDONLY if upper is None else 0)
        if mounted < 0:
            raise _error(target, context)
        try:
            if call(_MOVE_MOUNT, mounted, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH) < 0:
                raise _error(target)
        finally:
            os.close(mounted)
    finally:
        os.close(context)


@contextmanager
def _looped(image: str) -> Iterator[str]:
    """Attach ``image`` to an autoclear loop device."""
    with ExitStack() as opened:
        backing = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, backing)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        opened.callback(os.close, control)
        # struct loop_config: file, block size (0: default), struct loop_info64 with the flags.
        config = struct.pack("=II52xI", backing, 0, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR).ljust(304, b"\0")
        yield _attached(opened, control, config)


def _attached(opened: ExitStack, control: int, config: bytes) -> str:
    import fcntl

    tries = 64
    while True:
        device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        loop = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, loop)
        try:
            fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
        except OSError as error:
            tries -= 1
            if error.errno != errno.EBUSY or not tries:  # EBUSY: another process took the free device
                raise
        else:
            return device


def _error(target: str, context: int | None = None) -> OSError:
    """The error of the last call, with the messages of the kernel if there are any."""
    code = ctypes.get_errno()
    text = os.strerror(code)
    if context is not None:
        notes: list[str] = []
        try:
            while note := os.read(context, 1024):
                notes.append(note.decode(errors="replace").strip().removeprefix("e "))
        except OSError:  # ENODATA: no more messages
            pass
        if notes:
            text = f"{text} ({'; '.join(notes)})"
    return OSError(code, text, target)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _syscall() -> Callable[..., int]:
    syscall: Callable[..., int] = _libc().syscall

    def call(number: int, *arguments: int | bytes | None) -> int:
        return syscall(
            ctypes.c_long(number), *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
        )

    return call
