# SPDX-License-Identifier: Apache-2.0
"""A C library in place of Windows: it logs calls, can fail them, and keeps a volume in memory."""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamella.errors import LamellaError, Unsupported
from lamella.host.windows.abi import Signature, bind

SOURCE = Path(__file__).with_name("windows.c")
LAYER_WORK = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p)

SECURITY, BACKUP, RESTORE = 1, 2, 4
"""Bits of the privileges in the stub."""
NO_RESOURCES = 1450
"""An error code that no call handles."""


def build(folder: Path, gcc: str) -> Path:
    """Compile the library. Warnings are errors, because they find wrong argument lists."""
    library = folder / "windows.so"
    options = [
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-pthread",
    ]
    subprocess.run([gcc, *options, "-o", str(library), str(SOURCE)], check=True)
    return library


class Stub:
    """Loads the functions of the library, and controls them for tests."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name, result, arguments in (
            ("stub_last_error", ctypes.c_uint32, ()),
            ("stub_log", ctypes.c_char_p, ()),
            ("stub_failed", ctypes.c_char_p, ()),
            ("stub_fail", None, (ctypes.c_char_p, ctypes.c_long, ctypes.c_uint32)),
            ("stub_account", None, (ctypes.c_uint32, ctypes.c_uint32)),
            ("stub_enabled", ctypes.c_uint32, ()),
            ("stub_process_enabled", ctypes.c_uint32, ()),
            ("stub_handles", ctypes.c_long, ()),
            ("stub_contexts", ctypes.c_long, ()),
            ("stub_memory", ctypes.c_long, ()),
            ("stub_layer_work", None, (LAYER_WORK,)),
        ):
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self.missing: set[str] = set()
        """DLLs and functions that are missing."""
        self._work: Any = None
        self._errors: list[BaseException] = []
        self._library.stub_reset()

    # The loader

    def has(self, dll: str) -> bool:
        return dll not in self.missing

    def find(self, dll: str, name: str, signature: Signature) -> Callable[..., Any]:
        if dll in self.missing:
            raise Unsupported(f"this Windows has no {dll}")
        if name in self.missing:
            raise Unsupported(f"{dll} of this Windows has no {name}")
        return bind(self._library, dll, name, signature)

    def last_error(self) -> int:
        return int(self._library.stub_last_error())

    # What tests ask

    @property
    def log(self) -> list[str]:
        """A line for each call so far."""
        return bytes(self._library.stub_log()).decode().splitlines()

    @property
    def calls(self) -> list[str]:
        """The names of the calls so far."""
        return [line.partition(" ")[0] for line in self.log]

    def clear(self) -> None:
        """Forget the calls so far."""
        self._library.stub_clear_log()

    def fail(self, name: str = "", *, after: int = 0, code: int = NO_RESOURCES) -> None:
        """Let one call fail with a Win32 code: the next of that name, or of any, once ``after`` have gone well."""
        self._library.stub_fail(name.encode(), after, code)

    def never_fail(self) -> None:
        """Cancel `fail`."""
        self._library.stub_fail(b"", -1, 0)

    @property
    def failed(self) -> str:
        """The call that failed on request, or an empty string."""
        return bytes(self._library.stub_failed()).decode()

    def account(self, held: int, enabled: int = 0) -> None:
        """Let the account hold these privileges, and the process have some of them enabled."""
        self._library.stub_account(held, enabled)

    @property
    def enabled(self) -> int:
        """The effective privileges of this thread."""
        return int(self._library.stub_enabled())

    @property
    def process_enabled(self) -> int:
        """The privileges of the process."""
        return int(self._library.stub_process_enabled())

    @property
    def impersonates(self) -> bool:
        """Whether this thread has its own token."""
        return bool(self._library.stub_impersonates())

    def leaks(self) -> dict[str, int]:
        """Resources and privileges that were not released."""
        found = {
            "handles": self._library.stub_handles(),
            "contexts": self._library.stub_contexts(),
            "memory": self._library.stub_memory(),
            "privileges": self.process_enabled,
            "impersonates": int(self.impersonates),
        }
        return {what: count for what, count in found.items() if count}

    def on_layer(self, work: Callable[[str, str, str], None]) -> None:
        """Let calls of vmcompute.dll do ``work(call, layer, other path)``; `raise_errors` raises what it raised."""

        def called(call: bytes, layer: bytes, other: bytes) -> int:
            try:
                work(call.decode(), layer.decode(), other.decode())
            except LamellaError as error:
                self._errors.append(error)
                return -0x7FF8FFFB  # E_ACCESSDENIED
            except BaseException as error:  # noqa: BLE001  # it cannot pass through C
                self._errors.append(error)
                return -0x7FFF0001  # E_UNEXPECTED
            return 0

        self._work = LAYER_WORK(called)
        self._library.stub_layer_work(self._work)

    def raise_errors(self) -> None:
        """Raise what the work of `on_layer` raised."""
        for error in self._errors:
            raise error

    @contextmanager
    def in_thread(self, work: Callable[[], None]) -> Iterator[None]:
        """Run ``work`` in another thread, which ends before the block does."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # raised in the other thread
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            thread.join(30)
            if failures:
                raise failures[0]
