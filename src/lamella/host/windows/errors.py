# SPDX-License-Identifier: Apache-2.0
"""Error codes of Windows (Win32, HRESULT, NTSTATUS) as Lamella's error categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lamella.errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    Denied,
    Exhausted,
    Integrity,
    InvalidInput,
    LamellaError,
    NotFound,
    Unavailable,
    Unsupported,
)

SUCCESS: Final = 0
ERROR_NO_MORE_FILES: Final = 18
ERROR_INSUFFICIENT_BUFFER: Final = 122
ERROR_MORE_DATA: Final = 234
ERROR_NO_TOKEN: Final = 1008
ERROR_NOT_ALL_ASSIGNED: Final = 1300

_ELEVATE: Final = "run as an administrator, in an elevated session"

_WIN32: Final[dict[int, tuple[type[LamellaError], str]]] = {
    1: (Unsupported, "this Windows does not know the function"),
    2: (NotFound, "no such file"),
    3: (NotFound, "no such path"),
    4: (Exhausted, "too many open files"),
    5: (Denied, "access is denied"),
    6: (Conflict, "the handle is not valid"),
    8: (Exhausted, "not enough memory"),
    13: (InvalidInput, "the data is not valid"),
    14: (Exhausted, "not enough memory"),
    17: (Conflict, "source and target are on different volumes"),
    19: (Denied, "the medium is write-protected"),
    21: (Unavailable, "the device is not ready"),
    23: (Integrity, "the device reports a checksum error"),
    32: (Unavailable, "another process has it open"),
    33: (Unavailable, "another process has locked part of it"),
    39: (Exhausted, "the disk is full"),
    50: (Unsupported, "the request is not supported"),
    80: (AlreadyExists, "the file already exists"),
    87: (InvalidInput, "a parameter is not valid"),
    110: (Conflict, "open failed"),
    112: (Exhausted, "the disk is full"),
    120: (Unsupported, "the call is not implemented"),
    122: (Exhausted, "the buffer is too small"),
    123: (InvalidInput, "the name is not valid"),
    126: (Unsupported, "a library is missing"),
    127: (Unsupported, "a function is missing"),
    145: (Conflict, "the directory is not empty"),
    161: (InvalidInput, "the path is not valid"),
    170: (Unavailable, "it is in use"),
    183: (AlreadyExists, "it already exists"),
    206: (InvalidInput, "the name is too long"),
    223: (Exhausted, "the file is too large"),
    234: (Exhausted, "the buffer is too small"),
    258: (Unavailable, "timeout"),
    267: (Conflict, "it is not a directory"),
    303: (Unavailable, "it is being deleted"),
    995: (Cancelled, "the call was aborted"),
    1008: (Denied, "the thread has no token"),
    1009: (Integrity, "the registry hive is damaged"),
    1015: (Integrity, "the registry hive is damaged"),
    1016: (Integrity, "the registry hive could not be read or written"),
    1017: (InvalidInput, "the file is not a registry hive"),
    1018: (Conflict, "the registry key is marked for deletion"),
    1117: (Unavailable, "the device failed"),
    1142: (Exhausted, "the file has too many links"),
    1168: (NotFound, "no such element"),
    1223: (Cancelled, "the call was cancelled"),
    1300: (Denied, "the account does not hold the privilege"),
    1313: (InvalidInput, "no such privilege"),
    1314: (Denied, "a required privilege is not held"),
    1336: (InvalidInput, "the access control list is not valid"),
    1337: (InvalidInput, "the security identifier is not valid"),
    1338: (InvalidInput, "the security descriptor is not valid"),
    1392: (Integrity, "the file or directory is damaged"),
    1393: (Integrity, "the disk's structure is damaged"),
    1450: (Exhausted, "not enough system resources"),
    1460: (Unavailable, "timeout"),
    1816: (Exhausted, "the quota is exhausted"),
    4390: (Conflict, "it is not a reparse point"),
    4392: (InvalidInput, "the reparse point's content is not valid"),
    4395: (Conflict, "a parent is a reparse point"),
}

_NTSTATUS: Final[dict[int, int]] = {
    0xC0000008: 6,
    0xC000000D: 87,
    0xC0000010: 1,
    0xC0000022: 5,
    0xC0000033: 123,
    0xC0000034: 2,
    0xC0000035: 183,
    0xC0000039: 161,
    0xC000003A: 3,
    0xC0000043: 32,
    0xC0000056: 303,
    0xC0000061: 1314,
    0xC000007F: 112,
    0xC00000BA: 5,
    0xC00000BB: 50,
    0xC00000D4: 17,
    0xC0000101: 145,
    0xC0000103: 267,
    0xC0000265: 1142,
    0xC000050B: 4395,
}
"""Common codes, as RtlNtStatusToDosError maps them; Windows maps the others."""

_HRESULT: Final[dict[int, tuple[type[LamellaError], str]]] = {
    0x80004001: (Unsupported, "the call is not implemented"),
    0x80004002: (Unsupported, "no such interface"),
    0x80004004: (Cancelled, "the call was aborted"),
    0x8000FFFF: (LamellaError, "an unexpected failure"),
}


def from_win32(code: int, doing: str) -> LamellaError:
    """Create the error for a Win32 code; ``doing`` names the operation, like ``open 'C:\\a'``."""
    category, text = _WIN32.get(code, (LamellaError, "the call failed"))
    hint = _ELEVATE if code in (1300, 1314) else None
    return category(f"{doing}: {text} (error {code})", hint=hint)


def win32_of_hresult(result: int) -> int | None:
    """The Win32 code in an HRESULT, or None."""
    return result & 0xFFFF if result & 0x1FFF0000 == 0x00070000 else None


def from_hresult(result: int, doing: str) -> LamellaError:
    """Create the error for a failed HRESULT, signed or unsigned."""
    result &= 0xFFFF_FFFF
    code = win32_of_hresult(result)
    if code is not None:
        return from_win32(code, doing)
    category, text = _HRESULT.get(result, (LamellaError, "the call failed"))
    return category(f"{doing}: {text} (HRESULT 0x{result:08X})")


def win32_of_ntstatus(status: int) -> int | None:
    """The Win32 code of a common NTSTATUS, signed or unsigned, or None."""
    return _NTSTATUS.get(status & 0xFFFF_FFFF)


def from_ntstatus(status: int, doing: str, ask: Callable[[int], int]) -> LamellaError:
    """Create the error for a failed NTSTATUS, signed or unsigned; ``ask`` maps codes that are not common."""
    code = win32_of_ntstatus(status)
    return from_win32(ask(status) if code is None else code, doing)


def check_win32(code: int, doing: str) -> None:
    """Raise unless ``code`` is a success."""
    if code != SUCCESS:
        raise from_win32(code, doing)


def check_hresult(result: int, doing: str) -> None:
    """Raise if the HRESULT is a failure; positive codes are successes."""
    if result < 0:
        raise from_hresult(result, doing)
