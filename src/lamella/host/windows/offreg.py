# SPDX-License-Identifier: Apache-2.0
"""Registry hives in files, by the offline registry library of Windows (offreg.dll)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from lamella.host.windows.abi import HANDLE, PTR, U32, Library, Loader, signature, wide, wide_or_null
from lamella.host.windows.errors import ERROR_MORE_DATA, check_win32

OS_VERSION: Final = (10, 0)
"""Version of Windows that hives are saved for."""

_OFFREG: Final = {
    "ORCreateHive": signature(U32, PTR),
    "OROpenHive": signature(U32, PTR, PTR),
    "ORCloseHive": signature(U32, HANDLE),
    "ORSaveHive": signature(U32, HANDLE, PTR, U32, U32),
    "ORMergeHives": signature(U32, PTR, U32, PTR),
    "OROpenKey": signature(U32, HANDLE, PTR, PTR),
    "ORCreateKey": signature(U32, HANDLE, PTR, PTR, U32, PTR, PTR, PTR),
    "ORCloseKey": signature(U32, HANDLE),
    "ORDeleteKey": signature(U32, HANDLE, PTR),
    "ORGetValue": signature(U32, HANDLE, PTR, PTR, PTR, PTR, PTR),
    "ORSetValue": signature(U32, HANDLE, PTR, U32, PTR, U32),
}


class OfflineKey:
    """An open key of a hive."""

    __slots__ = ("_close", "_library", "value")

    def __init__(self, library: Library, value: int, close: str) -> None:
        self._library = library
        self._close = close
        self.value = value

    def open(self, name: str) -> OfflineKey:
        """Open a subkey. Raises NotFound."""
        found = HANDLE()
        self._check("OROpenKey", f"open the key {name!r}", self.value, wide(name), ctypes.byref(found))
        return OfflineKey(self._library, found.value, "ORCloseKey")

    def create(self, name: str) -> OfflineKey:
        """Open or create a subkey."""
        found = HANDLE()
        arguments = (self.value, wide(name), None, 0, None, ctypes.byref(found), None)
        self._check("ORCreateKey", f"make the key {name!r}", *arguments)
        return OfflineKey(self._library, found.value, "ORCloseKey")

    def delete(self, name: str) -> None:
        """Remove a subkey without subkeys. Raises NotFound."""
        self._check("ORDeleteKey", f"remove the key {name!r}", self.value, wide(name))

    def get(self, name: str, key: str | None = None) -> tuple[int, bytes]:
        """Type and data of a value, optionally of the subkey ``key``. Raises NotFound."""
        kind, size = U32(), U32(256)
        while True:
            buffer = ctypes.create_string_buffer(size.value)
            code = self._library(
                "ORGetValue",
                self.value,
                wide_or_null(key),
                wide(name),
                ctypes.byref(kind),
                buffer,
                ctypes.byref(size),
            )
            if code != ERROR_MORE_DATA or size.value <= len(buffer):
                break
        check_win32(code, f"read the value {name!r}")
        return kind.value, buffer.raw[: size.value]

    def set(self, name: str, kind: int, data: bytes) -> None:
        """Write a value."""
        self._check("ORSetValue", f"write the value {name!r}", self.value, wide(name), kind, data, len(data))

    def close(self) -> None:
        """Close the handle; further calls do nothing."""
        value, self.value = self.value, 0
        if value:
            self._library(self._close, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check(self, call: str, doing: str, *arguments: Any) -> None:
        check_win32(self._library(call, *arguments), doing)


class OfflineHive(OfflineKey):
    """A hive in memory; as a key, its root."""

    __slots__ = ()

    def save(self, path: str) -> None:
        """Write the hive to ``path``, which must not exist. Raises AlreadyExists."""
        self._check("ORSaveHive", f"save a hive to {path!r}", self.value, wide(path), *OS_VERSION)


class OfflineRegistry:
    """Opens and creates hives. Raises Unsupported if Windows lacks offreg.dll or a function in it."""

    def __init__(self, loader: Loader) -> None:
        self._library = Library(loader, "offreg.dll", _OFFREG)

    def create(self) -> OfflineHive:
        """Create an empty hive."""
        return self._open_hive("ORCreateHive", "make a hive")

    def open(self, path: str) -> OfflineHive:
        """Open the hive in the file ``path``. Raises NotFound, Integrity."""
        return self._open_hive("OROpenHive", f"open the hive {path!r}", wide(path))

    def merge(self, hives: Sequence[OfflineHive]) -> OfflineHive:
        """Merge hives: the base, then deltas (Windows 10 2004)."""
        array = (HANDLE * len(hives))(*(hive.value for hive in hives))
        return self._open_hive("ORMergeHives", "merge hives", array, len(hives))

    def _open_hive(self, call: str, doing: str, *arguments: Any) -> OfflineHive:
        found = HANDLE()
        check_win32(self._library(call, *arguments, ctypes.byref(found)), doing)
        return OfflineHive(self._library, found.value, "ORCloseHive")
