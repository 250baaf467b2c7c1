# SPDX-License-Identifier: Apache-2.0
"""Security descriptors in words, by Windows itself: accounts of this machine and its domain have an answer here."""

from __future__ import annotations

import ctypes
from typing import Final

from lamella.host.windows.errors import from_win32
from lamella.host.windows.loader import Library, Loader, signature
from lamella.host.windows.native import BOOL, PTR, U32, wide

_CONVERT: Final = "ConvertStringSecurityDescriptorToSecurityDescriptorW"
_ADVAPI32: Final = {
    _CONVERT: signature(BOOL, PTR, U32, PTR, PTR),
    "GetSecurityDescriptorLength": signature(U32, PTR),
}
_KERNEL32: Final = {"LocalFree": signature(PTR, PTR)}
_REVISION: Final = 1


def descriptor_of(loader: Loader, sddl: str) -> bytes:
    """The self-relative descriptor that ``sddl`` says. Raises InvalidInput."""
    advapi32 = Library(loader, "advapi32.dll", _ADVAPI32)
    found = PTR()
    if not advapi32(_CONVERT, wide(sddl), _REVISION, ctypes.byref(found), None) or found.value is None:
        raise from_win32(loader.last_error(), f"read the security descriptor {sddl[:80]!r}")
    try:
        return ctypes.string_at(found.value, advapi32("GetSecurityDescriptorLength", found))
    finally:
        Library(loader, "kernel32.dll", _KERNEL32)("LocalFree", found)
