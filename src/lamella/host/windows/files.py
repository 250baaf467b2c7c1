# SPDX-License-Identifier: Apache-2.0
"""Files of NTFS with all metadata, opened for backup: without access checks, and without following reparse points."""

from __future__ import annotations

import ctypes
import ntpath
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from msgspec import Struct

from lamella.errors import InvalidInput, NotFound
from lamella.host.windows.abi import (
    BOOL,
    HANDLE,
    I64,
    INVALID_HANDLE,
    LONGEST_STRING,
    NTSTATUS,
    PTR,
    U8,
    U16,
    U32,
    U64,
    Library,
    Loader,
    signature,
    wide,
)
from lamella.host.windows.errors import ERROR_NO_MORE_FILES, from_ntstatus, from_win32

Buffer: TypeAlias = bytes | bytearray | memoryview

GENERIC_READ: Final = 0x8000_0000
GENERIC_WRITE: Final = 0x4000_0000
DELETE: Final = 0x0001_0000
WRITE_DAC: Final = 0x0004_0000
WRITE_OWNER: Final = 0x0008_0000
ACCESS_SYSTEM_SECURITY: Final = 0x0100_0000
FILE_LIST_DIRECTORY: Final = 0x1
FILE_READ_ATTRIBUTES: Final = 0x80
FILE_WRITE_ATTRIBUTES: Final = 0x100
_SYNCHRONIZE: Final = 0x0010_0000

RESTORING: Final = GENERIC_READ | GENERIC_WRITE | WRITE_DAC | WRITE_OWNER | ACCESS_SYSTEM_SECURITY
"""Access rights to restore a file with all metadata; needs SeSecurityPrivilege."""

SHARE_READ: Final = 1
SHARE_WRITE: Final = 2
SHARE_DELETE: Final = 4
SHARE_ALL: Final = 7

READONLY: Final = 1
DIRECTORY: Final = 0x10
NORMAL: Final = 0x80
REPARSE_POINT: Final = 0x400

_CREATE_NEW, _OPEN_EXISTING = 1, 3
_BACKUP_AND_REPARSE: Final = 0x0220_0000
"""FILE_FLAG_BACKUP_SEMANTICS and FILE_FLAG_OPEN_REPARSE_POINT."""
_FILE_OPEN, _FILE_CREATE = 1, 2
_BACKUP_INTENT: Final = 0x4020
"""FILE_OPEN_FOR_BACKUP_INTENT and FILE_SYNCHRONOUS_IO_NONALERT."""
_DIRECTORY_FILE: Final = 1
_OPEN_REPARSE: Final = 0x0020_0000
_DONT_REPARSE: Final = 0x1000

_BASIC, _STANDARD, _ID = 0, 1, 18
_LISTING, _LISTING_ANEW = 14, 15
_LINK, _DISPOSITION = 11, 64

_LISTED: Final = struct.Struct("<II6qIII")
"""FILE_FULL_DIR_INFO without the name: next, index, four times, two sizes, attributes, lengths of name and EAs."""

_STEP: Final = 256 << 10
_LIST_ROOM: Final = 64 << 10

_KERNEL32: Final = {
    "CreateFileW": signature(HANDLE, PTR, U32, U32, PTR, U32, U32, HANDLE),
    "CreateDirectoryW": signature(BOOL, PTR, PTR),
    "CloseHandle": signature(BOOL, HANDLE),
    "ReadFile": signature(BOOL, HANDLE, PTR, U32, PTR, PTR),
    "WriteFile": signature(BOOL, HANDLE, PTR, U32, PTR, PTR),
    "SetFilePointerEx": signature(BOOL, HANDLE, I64, PTR, U32),
    "GetFileInformationByHandleEx": signature(BOOL, HANDLE, U32, PTR, U32),
    "SetFileInformationByHandle": signature(BOOL, HANDLE, U32, PTR, U32),
    "BackupRead": signature(BOOL, HANDLE, PTR, U32, PTR, BOOL, BOOL, PTR),
    "BackupSeek": signature(BOOL, HANDLE, U32, U32, PTR, PTR, PTR),
    "BackupWrite": signature(BOOL, HANDLE, PTR, U32, PTR, BOOL, BOOL, PTR),
}
_NTDLL: Final = {
    "NtCreateFile": signature(NTSTATUS, PTR, U32, PTR, PTR, PTR, U32, U32, U32, U32, PTR, U32),
    "NtSetInformationFile": signature(NTSTATUS, HANDLE, PTR, PTR, U32, U32),
    "RtlNtStatusToDosError": signature(U32, NTSTATUS),
}


class UnicodeString(ctypes.Structure):
    """UNICODE_STRING: lengths in bytes; 16 bytes."""

    _fields_ = (("length", U16), ("room", U16), ("buffer", PTR))


class ObjectAttributes(ctypes.Structure):
    """OBJECT_ATTRIBUTES: 48 bytes."""

    _fields_ = (
        ("length", U32),
        ("root", HANDLE),
        ("name", PTR),
        ("attributes", U32),
        ("security", PTR),
        ("quality", PTR),
    )


class IoStatus(ctypes.Structure):
    """IO_STATUS_BLOCK: 16 bytes."""

    _fields_ = (("status", PTR), ("told", U64))


class BasicInformation(ctypes.Structure):
    """FILE_BASIC_INFO: 40 bytes."""

    _fields_ = (("creation", I64), ("access", I64), ("write", I64), ("change", I64), ("attributes", U32))


class StandardInformation(ctypes.Structure):
    """FILE_STANDARD_INFO: 24 bytes."""

    _fields_ = (("allocated", I64), ("size", I64), ("links", U32), ("deleted", U8), ("directory", U8))


class IdInformation(ctypes.Structure):
    """FILE_ID_INFO: 24 bytes."""

    _fields_ = (("volume", U64), ("id", U8 * 16))


class Basic(Struct, frozen=True):
    """Times as FILETIMEs, and attributes. Setting 0 keeps the current value."""

    creation: int
    access: int
    write: int
    change: int
    attributes: int


class Standard(Struct, frozen=True):
    """Size in bytes, number of links, whether it is a directory."""

    size: int
    links: int
    directory: bool


class Listed(Struct, frozen=True):
    """An entry of a directory."""

    name: str
    attributes: int


class Handle:
    """An open file, closed by `close` or at the end of a block."""

    __slots__ = ("_files", "value")

    def __init__(self, files: Files, value: int) -> None:
        self._files = files
        self.value = value

    def close(self) -> None:
        """Close the handle; further calls do nothing."""
        value, self.value = self.value, INVALID_HANDLE
        if value != INVALID_HANDLE:
            self._files.release(value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def extended_path(path: str) -> str:
    r"""Prefix an absolute path with ``\\?\``, so that Windows does not interpret it. Raises InvalidInput."""
    if path.startswith("\\\\?\\"):
        return path
    path = ntpath.normpath(path)
    drive, rest = ntpath.splitdrive(path)
    if not drive or not rest.startswith("\\"):
        raise InvalidInput(f"{path!r} is not an absolute Windows path")
    return f"\\\\?\\UNC\\{path[2:]}" if drive.startswith("\\\\") else f"\\\\?\\{path}"


class Files:
    """File operations that Python lacks, with errors as Lamella's categories.

    Paths are Win32 paths for `open` and `make_directory`. Names for calls with a root are relative to that directory,
    with backslashes; no reparse point in them is followed.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._kernel32 = Library(loader, "kernel32.dll", _KERNEL32)
        self._ntdll = Library(loader, "ntdll.dll", _NTDLL)

    def open(self, path: str, access: int = GENERIC_READ, *, share: int = SHARE_ALL, create: bool = False) -> Handle:
        """Open or create the file ``path``."""
        value = self._kernel32(
            "CreateFileW",
            wide(extended_path(path)),
            access,
            share,
            None,
            _CREATE_NEW if create else _OPEN_EXISTING,
            _BACKUP_AND_REPARSE,
            0,
        )
        if value == INVALID_HANDLE:
            raise self._failure(f"{'make' if create else 'open'} {path!r}")
        return Handle(self, value)

    def make_directory(self, path: str) -> None:
        """Make a directory in an existing one. Raises AlreadyExists."""
        if not self._kernel32("CreateDirectoryW", wide(extended_path(path)), None):
            raise self._failure(f"make the directory {path!r}")

    def open_in(
        self,
        root: Handle,
        name: str,
        access: int = GENERIC_READ,
        *,
        share: int = SHARE_ALL,
        create: bool = False,
        directory: bool = False,
    ) -> Handle:
        """Open or create ``name`` in the directory ``root``; with ``directory``, it must be or becomes a directory."""
        doing = f"{'make' if create else 'open'} {name!r}"
        _check_relative(name)
        units = wide(name)
        size = ctypes.sizeof(units) - 2
        text = UnicodeString(size, size, ctypes.addressof(units))
        about = ObjectAttributes(
            ctypes.sizeof(ObjectAttributes), root.value, ctypes.addressof(text), _DONT_REPARSE, None, None
        )
        handle, status = HANDLE(), IoStatus()
        options = _BACKUP_INTENT | _OPEN_REPARSE | (_DIRECTORY_FILE if directory else 0)
        result = self._ntdll(
            "NtCreateFile",
            ctypes.byref(handle),
            access | _SYNCHRONIZE,
            ctypes.byref(about),
            ctypes.byref(status),
            None,
            0,
            share,
            _FILE_CREATE if create else _FILE_OPEN,
            options,
            None,
            0,
        )
        self._check_status(result, doing)
        return Handle(self, handle.value)

    def release(self, value: int) -> None:
        """Close a handle value, for `Handle.close`."""
        self._kernel32("CloseHandle", value)

    def basic(self, handle: Handle) -> Basic:
        """Query times and attributes."""
        found = BasicInformation()
        self._query(handle, _BASIC, found)
        return Basic(found.creation, found.access, found.write, found.change, found.attributes)

    def set_basic(self, handle: Handle, basic: Basic) -> None:
        """Set all times and attributes that are not 0."""
        given = BasicInformation(basic.creation, basic.access, basic.write, basic.change, basic.attributes)
        size = ctypes.sizeof(given)
        if not self._kernel32("SetFileInformationByHandle", handle.value, _BASIC, ctypes.byref(given), size):
            raise self._failure("set a file's times and attributes")

    def standard(self, handle: Handle) -> Standard:
        """Query size and number of links."""
        found = StandardInformation()
        self._query(handle, _STANDARD, found)
        return Standard(found.size, found.links, bool(found.directory))

    def identity(self, handle: Handle) -> tuple[int, bytes]:
        """Query volume serial number and 128-bit file id, equal for all hard links of a file."""
        found = IdInformation()
        self._query(handle, _ID, found)
        return found.volume, bytes(found.id)

    def listing(self, directory: Handle) -> Iterator[Listed]:
        """Yield the entries of an open directory, in arbitrary order."""
        buffer = (U8 * _LIST_ROOM)()
        view = memoryview(buffer).cast("B")
        kind = _LISTING_ANEW
        while True:
            if not self._kernel32("GetFileInformationByHandleEx", directory.value, kind, buffer, _LIST_ROOM):
                if self._loader.last_error() == ERROR_NO_MORE_FILES:
                    return
                raise self._failure("list a directory")
            kind = _LISTING
            at = 0
            while True:
                step, *_, attributes, name_size, _ = _LISTED.unpack_from(view, at)
                start = at + _LISTED.size
                name = bytes(view[start : start + name_size]).decode("utf-16-le", "surrogatepass")
                if name not in (".", ".."):
                    yield Listed(name, attributes)
                if not step:
                    break
                at += step

    def read(self, handle: Handle, size: int = _STEP) -> bytes:
        """Read the next bytes of a file, b"" at the end."""
        buffer, done = ctypes.create_string_buffer(size), U32()
        if not self._kernel32("ReadFile", handle.value, buffer, size, ctypes.byref(done), None):
            raise self._failure("read a file")
        return memoryview(buffer)[: done.value].tobytes()

    def write(self, handle: Handle, data: Buffer) -> None:
        """Write all of ``data`` at the file position."""
        view = memoryview(data)
        while view:
            done = U32()
            part = view[:_STEP]
            if not self._kernel32("WriteFile", handle.value, _to_ctypes(part), len(part), ctypes.byref(done), None):
                raise self._failure("write a file")
            view = view[done.value :]

    def seek(self, handle: Handle, position: int) -> None:
        """Set the file position, from the start."""
        if not self._kernel32("SetFilePointerEx", handle.value, position, None, 0):
            raise self._failure("seek in a file")

    def link(self, handle: Handle, root: Handle, name: str) -> None:
        """Create a hard link to an open file in ``root``. Raises AlreadyExists, Exhausted."""
        _check_relative(name)
        encoded = bytes(wide(name))[:-2]
        given = bytearray(20) + encoded
        given[8:16] = root.value.to_bytes(8, "little")
        given[16:20] = len(encoded).to_bytes(4, "little")
        self._set(handle, _LINK, bytes(given), f"make the hard link {name!r}")

    def delete(self, root: Handle, name: str) -> None:
        """Remove a file, an empty directory, or a reparse point itself. Raises NotFound, Conflict."""
        doing = f"remove {name!r}"
        with self.open_in(root, name, DELETE | FILE_READ_ATTRIBUTES | FILE_WRITE_ATTRIBUTES) as handle:
            attributes = self.basic(handle).attributes
            if attributes & READONLY:
                self.set_basic(handle, Basic(0, 0, 0, 0, attributes & ~READONLY or NORMAL))
            self._set(handle, _DISPOSITION, (1).to_bytes(4, "little"), doing)

    def delete_tree(self, root: Handle, name: str) -> None:
        """Remove ``name`` recursively, if it exists."""
        todo = [(name, False)]
        while todo:
            at, empty = todo.pop()
            try:
                inner = [] if empty else self._list_children(root, at)
                if inner:
                    todo.append((at, True))
                    todo.extend((f"{at}\\{one}", False) for one in inner)
                else:
                    self.delete(root, at)
            except NotFound:
                pass

    def _list_children(self, root: Handle, name: str) -> list[str]:
        """List a directory; empty for files and reparse points."""
        with self.open_in(root, name, FILE_LIST_DIRECTORY | FILE_READ_ATTRIBUTES) as handle:
            attributes = self.basic(handle).attributes
            if not attributes & DIRECTORY or attributes & REPARSE_POINT:
                return []
            return [one.name for one in self.listing(handle)]

    def backup(self, handle: Handle, *, security: bool) -> BackupInput:
        """Open the backup streams of an open file for reading."""
        return BackupInput(self._kernel32, self._loader, handle, security)

    def restore(self, handle: Handle, *, security: bool) -> BackupOutput:
        """Open the backup streams of an open file for writing."""
        return BackupOutput(self._kernel32, self._loader, handle, security)

    def _query(self, handle: Handle, kind: int, found: ctypes.Structure) -> None:
        size = ctypes.sizeof(found)
        if not self._kernel32("GetFileInformationByHandleEx", handle.value, kind, ctypes.byref(found), size):
            raise self._failure("ask about a file")

    def _set(self, handle: Handle, kind: int, given: bytes, doing: str) -> None:
        status = IoStatus()
        buffer = ctypes.create_string_buffer(given, len(given))
        result = self._ntdll(
            "NtSetInformationFile", handle.value, ctypes.byref(status), buffer, ctypes.sizeof(buffer), kind
        )
        self._check_status(result, doing)

    def _check_status(self, status: int, doing: str) -> None:
        if status < 0:
            raise from_ntstatus(status, doing, lambda code: int(self._ntdll("RtlNtStatusToDosError", code)))

    def _failure(self, doing: str) -> Exception:
        return from_win32(self._loader.last_error(), doing)


class _Backup:
    """The context between the backup calls for one file; `close` frees it."""

    __slots__ = ("_call", "_context", "_handle", "_loader", "_security")

    def __init__(self, kernel32: Library, loader: Loader, handle: Handle, security: bool) -> None:
        self._call = kernel32
        self._loader = loader
        self._handle = handle
        self._security = int(security)
        self._context = PTR()

    def _close(self, name: str) -> None:
        if self._context.value is not None:
            done = U32()
            self._call(
                name, self._handle.value, None, 0, ctypes.byref(done), 1, self._security, ctypes.byref(self._context)
            )
            self._context = PTR()

    def _failure(self, doing: str) -> Exception:
        return from_win32(self._loader.last_error(), doing)


class BackupInput(_Backup):
    """Reads the backup streams of a file."""

    __slots__ = ()

    def read(self, size: int = _STEP) -> bytes:
        """Read the next bytes, b"" at the end."""
        buffer, done = ctypes.create_string_buffer(size), U32()
        if not self._call(
            "BackupRead",
            self._handle.value,
            buffer,
            size,
            ctypes.byref(done),
            0,
            self._security,
            ctypes.byref(self._context),
        ):
            raise self._failure("read a file for backup")
        return memoryview(buffer)[: done.value].tobytes()

    def skip(self, size: int) -> int:
        """Skip bytes of the current stream; return their number, less than ``size`` only at the end of the stream."""
        low, high = U32(), U32()
        if not self._call(
            "BackupSeek",
            self._handle.value,
            size & 0xFFFF_FFFF,
            size >> 32,
            ctypes.byref(low),
            ctypes.byref(high),
            ctypes.byref(self._context),
        ):
            raise self._failure("seek in a file's backup streams")
        return int(low.value | high.value << 32)

    def close(self) -> None:
        """Free what Windows keeps; the handle stays open."""
        self._close("BackupRead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class BackupOutput(_Backup):
    """Writes backup streams to a file."""

    __slots__ = ()

    def write(self, data: Buffer) -> None:
        """Write all of ``data``, cut anywhere."""
        view = memoryview(data)
        while view:
            done = U32()
            part = view[:_STEP]
            if not self._call(
                "BackupWrite",
                self._handle.value,
                _to_ctypes(part),
                len(part),
                ctypes.byref(done),
                0,
                self._security,
                ctypes.byref(self._context),
            ):
                raise self._failure("write a file's backup streams")
            view = view[done.value :]

    def close(self) -> None:
        """Free what Windows keeps; the handle stays open."""
        self._close("BackupWrite")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _to_ctypes(view: memoryview) -> Any:
    """Convert bytes for ctypes; read-only bytes are copied."""
    if view.readonly:
        return view.tobytes()
    return (U8 * len(view)).from_buffer(view)


def _check_relative(name: str) -> None:
    """Reject unsafe names; callers have already checked names from layers."""
    if name.startswith("\\") or len(name) > LONGEST_STRING or any(part in ("", ".", "..") for part in name.split("\\")):
        raise InvalidInput(f"invalid relative name {name[:80]!r}")
