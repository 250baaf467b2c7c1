# SPDX-License-Identifier: Apache-2.0
"""Virtual disks (virtdisk.dll), for scratch layers and block CIMs."""

from __future__ import annotations

import ctypes
import uuid
from types import TracebackType
from typing import Any, Final, Self

from lamella.host.windows.abi import (
    BOOL,
    HANDLE,
    PTR,
    U32,
    U64,
    Guid,
    Library,
    Loader,
    signature,
    text_of,
    wide,
    wide_or_null,
)
from lamella.host.windows.errors import ERROR_INSUFFICIENT_BUFFER, check_win32

VHD: Final = 2
VHDX: Final = 3

NO_DRIVE_LETTER: Final = 2
READ_ONLY: Final = 1

_MICROSOFT: Final = uuid.UUID("ec984aec-a0f9-47e9-901f-71415a66345b")
_LONGEST: Final = 1024

_VIRTDISK: Final = {
    "OpenVirtualDisk": signature(U32, PTR, PTR, U32, U32, PTR, PTR),
    "CreateVirtualDisk": signature(U32, PTR, PTR, U32, PTR, U32, U32, PTR, PTR, PTR),
    "AttachVirtualDisk": signature(U32, HANDLE, PTR, U32, U32, PTR, PTR),
    "DetachVirtualDisk": signature(U32, HANDLE, U32, U32),
    "GetVirtualDiskPhysicalPath": signature(U32, HANDLE, PTR, PTR),
}
_KERNEL32: Final = {"CloseHandle": signature(BOOL, HANDLE)}


class StorageType(ctypes.Structure):
    """VIRTUAL_STORAGE_TYPE: 20 bytes."""

    _fields_ = (("device", U32), ("vendor", Guid))


class OpenParameters(ctypes.Structure):
    """OPEN_VIRTUAL_DISK_PARAMETERS of version 2: 28 bytes."""

    _fields_ = (("version", U32), ("facts_only", BOOL), ("read_only", BOOL), ("resiliency", Guid))


class CreateParameters(ctypes.Structure):
    """CREATE_VIRTUAL_DISK_PARAMETERS of version 2: 128 bytes."""

    _fields_ = (
        ("version", U32),
        ("pad", U32),
        ("id", Guid),
        ("size", U64),
        ("block_size", U32),
        ("sector_size", U32),
        ("physical_sector_size", U32),
        ("parent", PTR),
        ("source", PTR),
        ("open_flags", U32),
        ("parent_type", StorageType),
        ("source_type", StorageType),
        ("resiliency", Guid),
    )


class AttachParameters(ctypes.Structure):
    """ATTACH_VIRTUAL_DISK_PARAMETERS of version 1: 24 bytes."""

    _fields_ = (("version", U32), ("offset", U64), ("length", U64))


class VirtualDisk:
    """An open virtual disk."""

    __slots__ = ("_kernel32", "_library", "value")

    def __init__(self, library: Library, kernel32: Library, value: int) -> None:
        self._library = library
        self._kernel32 = kernel32
        self.value = value

    def attach(self, *, read_only: bool = False) -> None:
        """Attach without a drive letter, until detached or closed."""
        flags = NO_DRIVE_LETTER | (READ_ONLY if read_only else 0)
        parameters = AttachParameters(1, 0, 0)
        self._check("AttachVirtualDisk", self.value, None, flags, 0, ctypes.byref(parameters), None)

    def detach(self) -> None:
        """Undo `attach`."""
        self._check("DetachVirtualDisk", self.value, 0, 0)

    def physical_path(self) -> str:
        r"""``\\.\PhysicalDriveN`` of an attached disk."""
        size = U32(64)
        while True:
            buffer = (ctypes.c_uint16 * (size.value // 2))()
            code = self._library("GetVirtualDiskPhysicalPath", self.value, ctypes.byref(size), buffer)
            if code != ERROR_INSUFFICIENT_BUFFER or size.value > _LONGEST or size.value <= ctypes.sizeof(buffer):
                break
        check_win32(code, "GetVirtualDiskPhysicalPath")
        return text_of(buffer)

    def close(self) -> None:
        """Close the handle; further calls do nothing."""
        value, self.value = self.value, 0
        if value:
            self._kernel32("CloseHandle", value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check(self, call: str, *arguments: Any) -> None:
        check_win32(self._library(call, *arguments), call)


class VirtualDisks:
    """Creates and opens virtual disks."""

    def __init__(self, loader: Loader) -> None:
        self._library = Library(loader, "virtdisk.dll", _VIRTDISK)
        self._kernel32 = Library(loader, "kernel32.dll", _KERNEL32)

    def open(self, path: str, *, device: int = VHDX, read_only: bool = False) -> VirtualDisk:
        """Open the disk in the file ``path``."""
        kind = StorageType(device, Guid.of(_MICROSOFT))
        parameters = OpenParameters(2, 0, int(read_only), Guid())
        handle = HANDLE()
        code = self._library(
            "OpenVirtualDisk", ctypes.byref(kind), wide(path), 0, 0, ctypes.byref(parameters), ctypes.byref(handle)
        )
        check_win32(code, f"OpenVirtualDisk of {path!r}")
        return VirtualDisk(self._library, self._kernel32, handle.value)

    def create(self, path: str, size: int, *, parent: str | None = None, block_size: int = 1 << 20) -> VirtualDisk:
        """Create a dynamic VHDX of ``size`` bytes, or a differencing VHDX of ``parent`` (``size`` 0)."""
        kind = StorageType(VHDX, Guid.of(_MICROSOFT))
        above = wide_or_null(parent)
        parameters = CreateParameters(version=2, size=size, block_size=block_size if parent is None else 0)
        if above is not None:
            parameters.parent = ctypes.addressof(above)
        handle = HANDLE()
        code = self._library(
            "CreateVirtualDisk",
            ctypes.byref(kind),
            wide(path),
            0,
            None,
            0,
            0,
            ctypes.byref(parameters),
            None,
            ctypes.byref(handle),
        )
        check_win32(code, f"CreateVirtualDisk of {path!r}")
        return VirtualDisk(self._library, self._kernel32, handle.value)
