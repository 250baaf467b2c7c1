# SPDX-License-Identifier: Apache-2.0
"""Where the functions come from: DLLs of the system folder, or what a test puts in their place."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct, field

from lamella.errors import Unsupported

_LOAD_LIBRARY_SEARCH_SYSTEM32 = 0x800


class Signature(Struct, frozen=True):
    """What a function returns (None: nothing) and takes, as ctypes' types."""

    result: Any
    arguments: tuple[Any, ...] = ()


def signature(result: Any, *arguments: Any) -> Signature:
    """A signature, written as a row of a table."""
    return Signature(result, arguments)


class Loader(Protocol):
    """Gives functions by DLL and name."""

    def has(self, dll: str) -> bool:
        """Whether the DLL can be loaded here."""
        ...

    def find(self, dll: str, name: str, signature: Signature) -> Callable[..., Any]:
        """The function, ready to call; Unsupported where this Windows lacks the DLL or the function."""
        ...

    def last_error(self) -> int:
        """What GetLastError would have said after this thread's last call of a function from here."""
        ...


def bind(library: ctypes.CDLL, dll: str, name: str, signature: Signature) -> Callable[..., Any]:
    """The function ``name`` of a loaded library with its types; Unsupported if it has none of that name.

    Each call makes an object of its own, so that two bindings of one function never change each other's types.
    """
    try:
        function = library[name]
    except AttributeError:
        raise Unsupported(f"{dll} of this Windows has no {name}", hint="a newer build of Windows may have it") from None
    function.restype = signature.result
    function.argtypes = signature.arguments
    return function


class SystemLoader(Struct):
    """Loads from the system folder alone, so that no DLL beside a program or in the working directory is ever run."""

    _loaded: dict[str, ctypes.CDLL | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sys.platform != "win32":
            raise Unsupported("this takes Windows' own calls, and this host is not Windows")

    def has(self, dll: str) -> bool:
        """Whether the system folder has the DLL."""
        return self._library(dll) is not None

    def find(self, dll: str, name: str, signature: Signature) -> Callable[..., Any]:
        """The function, ready to call; Unsupported where this Windows lacks the DLL or the function."""
        library = self._library(dll)
        if library is None:
            raise Unsupported(f"this Windows has no {dll}", hint=_HINTS.get(dll))
        return bind(library, dll, name, signature)

    def last_error(self) -> int:
        """What the last call of this thread left."""
        if sys.platform == "win32":
            return ctypes.get_last_error()
        return 0

    def _library(self, dll: str) -> ctypes.CDLL | None:
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
    """The functions of one DLL, each looked up when it is first called."""

    __slots__ = ("_dll", "_found", "_loader", "_table")

    def __init__(self, loader: Loader, dll: str, table: Mapping[str, Signature]) -> None:
        self._loader = loader
        self._dll = dll
        self._table = table
        self._found: dict[str, Callable[..., Any]] = {}

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call ``name``; what it returns is not looked at. Unsupported where this Windows lacks it."""
        function = self._found.get(name)
        if function is None:
            function = self._found[name] = self._loader.find(self._dll, name, self._table[name])
        return function(*arguments)
