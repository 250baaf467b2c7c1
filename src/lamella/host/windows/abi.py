# SPDX-License-Identifier: Apache-2.0
"""Types, strings and function lookup of the Windows ABI: DLLs of the system folder, or stubs of tests."""

from __future__ import annotations

import ctypes
import sys
import uuid
from collections.abc import Callable, Mapping
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any, Protocol

from msgspec import Struct, field

from lamella.errors import InvalidInput, Unsupported

I32, I64, U8, U16, U32, U64, PTR = c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
HANDLE = c_uint64
"""A handle as an integer; -1 is 0xFFFFFFFFFFFFFFFF."""
INVALID_HANDLE = 0xFFFF_FFFF_FFFF_FFFF
BOOL, HRESULT, NTSTATUS = c_int32, c_int32, c_int32

LONGEST_STRING = 32767
"""Maximum length of a path in UTF-16 units."""

if ctypes.sizeof(c_void_p) != 8:
    raise Unsupported("the Windows bindings need a 64-bit process")


def wide(text: str) -> ctypes.Array[c_uint16]:
    """Encode ``text`` as UTF-16LE with a final NUL; lone surrogates are kept, since names in Windows may have them.

    Raises InvalidInput for a NUL inside, where Windows would end the string.
    """
    if "\0" in text:
        raise InvalidInput(f"NUL in {text!r}")
    encoded = text.encode("utf-16-le", "surrogatepass") + b"\0\0"
    return (c_uint16 * (len(encoded) // 2)).from_buffer_copy(encoded)


def wide_or_null(text: str | None) -> ctypes.Array[c_uint16] | None:
    """Like `wide`; None is the null pointer."""
    return None if text is None else wide(text)


def text_of(units: ctypes.Array[c_uint16]) -> str:
    """Decode a buffer of UTF-16 units up to the first NUL."""
    raw = bytes(units)
    for at in range(0, len(raw), 2):
        if not raw[at] and not raw[at + 1]:
            raw = raw[:at]
            break
    return raw.decode("utf-16-le", "surrogatepass")


def text_at(address: int) -> str:
    """Decode the NUL-terminated string at ``address``, up to the maximum length of a path."""
    raw = bytearray()
    for at in range(LONGEST_STRING):
        unit = c_uint16.from_address(address + 2 * at).value
        if not unit:
            break
        raw += unit.to_bytes(2, "little")
    return raw.decode("utf-16-le", "surrogatepass")


class Guid(ctypes.Structure):
    """GUID: 16 bytes, the first three fields little-endian."""

    _fields_ = (("data1", U32), ("data2", U16), ("data3", U16), ("data4", U8 * 8))

    @classmethod
    def of(cls, value: uuid.UUID) -> Guid:
        """Convert from a UUID."""
        return cls.from_buffer_copy(value.bytes_le)

    def uuid(self) -> uuid.UUID:
        """Convert to a UUID."""
        return uuid.UUID(bytes_le=bytes(self))


_LOAD_LIBRARY_SEARCH_SYSTEM32 = 0x800


class Signature(Struct, frozen=True):
    """Result (None: void) and arguments of a function, as ctypes types."""

    result: Any
    arguments: tuple[Any, ...] = ()


def signature(result: Any, *arguments: Any) -> Signature:
    """Create a signature, for use in tables."""
    return Signature(result, arguments)


class Loader(Protocol):
    """Looks up functions by DLL and name."""

    def has(self, dll: str) -> bool:
        """Whether the DLL can be loaded here."""
        ...

    def find(self, dll: str, name: str, signature: Signature) -> Callable[..., Any]:
        """The function, ready to call; Unsupported where this Windows lacks the DLL or the function."""
        ...

    def last_error(self) -> int:
        """GetLastError after the last call of this thread."""
        ...


def bind(library: ctypes.CDLL, dll: str, name: str, signature: Signature) -> Callable[..., Any]:
    """Look up and type the function ``name`` of a loaded library. Raises Unsupported if it does not exist.

    Each call creates a new object, so two bindings of one function never change each other's types.
    """
    try:
        function = library[name]
    except AttributeError:
        raise Unsupported(f"{dll} of this Windows has no {name}", hint="a newer build of Windows may have it") from None
    function.restype = signature.result
    function.argtypes = signature.arguments
    return function


class SystemLoader(Struct):
    """Loads DLLs only from the system folder, never from the program's folder or the working directory."""

    _loaded: dict[str, ctypes.CDLL | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sys.platform != "win32":
            raise Unsupported("this operation needs Windows, and this host is not Windows")

    def has(self, dll: str) -> bool:
        """Whether the system folder has the DLL."""
        return self._load(dll) is not None

    def find(self, dll: str, name: str, signature: Signature) -> Callable[..., Any]:
        """The function, ready to call; Unsupported where this Windows lacks the DLL or the function."""
        library = self._load(dll)
        if library is None:
            raise Unsupported(f"this Windows has no {dll}", hint=_HINTS.get(dll))
        return bind(library, dll, name, signature)

    def last_error(self) -> int:
        """GetLastError after the last call of this thread."""
        if sys.platform == "win32":
            return ctypes.get_last_error()
        return 0

    def _load(self, dll: str) -> ctypes.CDLL | None:
        if dll not in self._loaded:
            library: ctypes.CDLL | None = None
            if sys.platform == "win32":
                try:
                    library = ctypes.WinDLL(dll, use_last_error=True, winmode=_LOAD_LIBRARY_SEARCH_SYSTEM32)
                except OSError:
                    pass
            self._loaded[dll] = library
        return self._loaded[dll]


_HINTS = {
    "vmcompute.dll": "turn on the Containers feature of Windows",
    "computestorage.dll": "turn on the Containers feature of Windows",
    "cimfs.dll": "composite images need a newer build of Windows",
}


class Library:
    """The functions of one DLL, looked up on first use."""

    __slots__ = ("_dll", "_found", "_loader", "_table")

    def __init__(self, loader: Loader, dll: str, table: Mapping[str, Signature]) -> None:
        self._loader = loader
        self._dll = dll
        self._table = table
        self._found: dict[str, Callable[..., Any]] = {}

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call ``name`` and return its unchecked result. Raises Unsupported if this Windows lacks it."""
        function = self._found.get(name)
        if function is None:
            function = self._found[name] = self._loader.find(self._dll, name, self._table[name])
        return function(*arguments)
