# SPDX-License-Identifier: Apache-2.0
"""C libraries in place of Windows' own, compiled where the tests run."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lamella.errors import Unsupported
from lamella.host.windows.abi import Signature, bind

SOURCES: Final = Path(__file__).parent
FLAGS: Final = ("-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden")
COPIES: Final = itertools.count()


def check_compiler(needs: Callable[..., str]) -> None:
    """Skip the test, or fail it in CI, if there is no compiler."""
    if sys.platform != "win32":
        needs("gcc")


@functools.cache
def compiled(name: str) -> bytes:
    """Compile ``NAME.c``. On Windows, which has no compiler, tests/wine/run.py did so before."""
    if sys.platform == "win32":
        return Path(os.environ["LAMELLA_STUBS"], f"{name}.dll").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{name}.so"
        subprocess.run(
            ["gcc", *FLAGS, "-o", os.fspath(library), os.fspath(SOURCES / f"{name}.c")],
            check=True,
        )
        return library.read_bytes()


class StubLoader:
    """Gives functions of stubs (`lamella.host.windows.abi.Loader`)."""

    def __init__(self, **libraries: ctypes.CDLL) -> None:
        """``libraries`` are named without ``.dll``."""
        self._libraries = {f"{name}.dll": library for name, library in libraries.items()}
        self.lacks: set[str] = set()
        """Functions that this Windows does not have."""
        self.asked: list[str] = []
        """Functions that were looked up, as ``DLL.NAME``."""

    def has(self, dll: str) -> bool:
        return dll in self._libraries

    def find(self, dll: str, name: str, signature: Signature) -> Callable[..., Any]:
        self.asked.append(f"{dll.removesuffix('.dll')}.{name}")
        if dll not in self._libraries or name in self.lacks:
            raise Unsupported(f"this Windows has no {name} in {dll}")
        return bind(self._libraries[dll], dll, name, signature)

    def last_error(self) -> int:
        return 0


class StubCimfs:
    """``cimfs.c``, with a state of its own."""

    def __init__(self) -> None:
        # A file of its own for each, since the same file would be the same library.
        descriptor, path = tempfile.mkstemp(suffix=f"-{next(COPIES)}.{'dll' if sys.platform == 'win32' else 'so'}")
        with os.fdopen(descriptor, "wb") as file:
            file.write(compiled("cimfs"))
        self.library = ctypes.CDLL(path)
        if sys.platform != "win32":  # where it stays in use
            os.unlink(path)

    @property
    def calls(self) -> list[str]:
        """The calls so far, with their arguments."""
        return self._text("stub_log").splitlines()

    @property
    def details(self) -> str:
        """The metadata of the last file: attributes, times, descriptor, reparse buffer, extended attributes."""
        return self._text("stub_details")

    def fail(self, name: str, nth: int, with_win32: int) -> None:
        """Let the ``nth`` call of a function fail."""
        self.library["stub_fail"](name.encode(), nth, ctypes.c_int32(-0x7FF90000 + with_win32))

    def has(self, path: str) -> None:
        """A path that the parent's image has."""
        self.library["stub_parent"](path.encode())

    def _text(self, name: str) -> str:
        function = self.library[name]
        function.restype = ctypes.c_char_p
        text: bytes = function()
        return text.decode()
