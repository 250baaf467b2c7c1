# SPDX-License-Identifier: Apache-2.0
"""Privileges, held during a block; counted, so that blocks may nest, overlap and run in several threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from lamella.errors import Conflict, LamellaError
from lamella.host.windows.abi import BOOL, HANDLE, PTR, U32, Library, Loader, signature, wide
from lamella.host.windows.errors import ERROR_NO_TOKEN, ERROR_NOT_ALL_ASSIGNED, from_win32

BACKUP: Final = "SeBackupPrivilege"
RESTORE: Final = "SeRestorePrivilege"
SECURITY: Final = "SeSecurityPrivilege"

_TOKEN_ACCESS: Final = 0x28
"""TOKEN_ADJUST_PRIVILEGES and TOKEN_QUERY."""
_SECURITY_IMPERSONATION: Final = 2
_ENABLED: Final = 2

_ADVAPI32: Final = {
    "OpenProcessToken": signature(BOOL, HANDLE, U32, PTR),
    "OpenThreadToken": signature(BOOL, HANDLE, U32, BOOL, PTR),
    "ImpersonateSelf": signature(BOOL, U32),
    "RevertToSelf": signature(BOOL),
    "LookupPrivilegeValueW": signature(BOOL, PTR, PTR, PTR),
    "AdjustTokenPrivileges": signature(BOOL, HANDLE, BOOL, PTR, U32, PTR, PTR),
}
_KERNEL32: Final = {
    "GetCurrentProcess": signature(HANDLE),
    "GetCurrentThread": signature(HANDLE),
    "CloseHandle": signature(BOOL, HANDLE),
}
_OpenToken = Callable[[HANDLE], None]


class Luid(ctypes.Structure):
    """LUID: 8 bytes, aligned to 4."""

    _fields_ = (("low", U32), ("high", U32))


class TokenPrivileges(ctypes.Structure):
    """TOKEN_PRIVILEGES with one element: 16 bytes."""

    _fields_ = (("count", U32), ("luid", Luid), ("attributes", U32))


class _HeldPrivileges:
    """Privileges of one token held by blocks: number of blocks, and the state before the first."""

    __slots__ = ("before", "counts", "depth", "impersonated")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.before: dict[str, TokenPrivileges] = {}
        self.depth = 0
        self.impersonated = False


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.held = _HeldPrivileges()


class Privileges:
    """Holds privileges in this process or one thread during a block.

    One instance per process, because it counts the blocks.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._advapi32 = Library(loader, "advapi32.dll", _ADVAPI32)
        self._kernel32 = Library(loader, "kernel32.dll", _KERNEL32)
        self._lock = threading.Lock()
        self._process = _HeldPrivileges()
        self._thread = _PerThread()

    @contextmanager
    def __call__(self, *names: str) -> Iterator[None]:
        """Hold ``names`` in the whole process; the end of the last block restores the state before the first.

        Privileges that were already enabled stay enabled. Raises Denied if the account lacks one; then none is held.
        """
        with self._lock:
            self._enter(self._process, names, self._open_process_token)
        try:
            yield
        finally:
            with self._lock:
                self._leave(self._process, names, self._open_process_token)

    @contextmanager
    def in_thread(self, *names: str) -> Iterator[None]:
        """Hold ``names`` for the calling thread alone, by a copy of its token that lasts as long as the block.

        A thread that already impersonates another user keeps doing so, with the privileges added to that token. The
        block has to end in the thread that began it.
        """
        held = self._thread.held
        owner = threading.get_ident()
        if not held.depth:
            held.impersonated = self._impersonate()
        held.depth += 1
        entered = False
        try:
            self._enter(held, names, self._open_thread_token)
            entered = True
            yield
        finally:
            if threading.get_ident() != owner:
                raise Conflict("privileges of a thread must be released in that thread")
            held.depth -= 1
            if not held.depth and held.impersonated:  # drop the copy with its privileges
                self._thread.held = _HeldPrivileges()
                self._check(self._advapi32("RevertToSelf"), "end impersonation")
            elif entered:
                self._leave(held, names, self._open_thread_token)

    def _enter(self, held: _HeldPrivileges, names: tuple[str, ...], open_token: _OpenToken) -> None:
        taken: list[str] = []
        try:
            with self._use_token(open_token) as token:
                for name in names:
                    if not held.counts.get(name):
                        held.before[name] = self._enable(token, name)
                    held.counts[name] = held.counts.get(name, 0) + 1
                    taken.append(name)
        except BaseException:
            self._leave(held, tuple(taken), open_token)
            raise

    def _leave(self, held: _HeldPrivileges, names: tuple[str, ...], open_token: _OpenToken) -> None:
        ended: list[tuple[str, TokenPrivileges]] = []
        for name in reversed(names):
            held.counts[name] -= 1
            if not held.counts[name]:
                del held.counts[name]
                before = held.before.pop(name)
                if before.count:
                    ended.append((name, before))
        if not ended:
            return
        failure: LamellaError | None = None
        with self._use_token(open_token) as token:
            for name, before in ended:
                try:
                    self._adjust(token, before, None, f"restore {name}")
                except LamellaError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def _enable(self, token: int, name: str) -> TokenPrivileges:
        """Enable one privilege, and return its previous state; a count of 0 means that nothing changed."""
        doing = f"enable {name}"
        luid = Luid()
        self._check(self._advapi32("LookupPrivilegeValueW", None, wide(name), ctypes.byref(luid)), doing)
        before = TokenPrivileges()
        self._adjust(token, TokenPrivileges(1, luid, _ENABLED), before, doing)
        return before

    def _adjust(self, token: int, wanted: TokenPrivileges, before: TokenPrivileges | None, doing: str) -> None:
        size, needed = (ctypes.sizeof(before) if before is not None else 0), U32(0)
        done = self._advapi32(
            "AdjustTokenPrivileges",
            token,
            0,
            ctypes.byref(wanted),
            size,
            None if before is None else ctypes.byref(before),
            None if before is None else ctypes.byref(needed),
        )
        code = self._loader.last_error()
        # The call succeeds even if the account lacks the privilege; only the error code shows it.
        if not done or code == ERROR_NOT_ALL_ASSIGNED:
            raise from_win32(code, doing)

    def _impersonate(self) -> bool:
        """Give the thread its own token; return whether it had none before."""
        token = HANDLE()
        if self._advapi32("OpenThreadToken", self._kernel32("GetCurrentThread"), _TOKEN_ACCESS, 0, ctypes.byref(token)):
            self._kernel32("CloseHandle", token)
            return False
        code = self._loader.last_error()
        if code != ERROR_NO_TOKEN:
            raise from_win32(code, "open the thread's token")
        self._check(self._advapi32("ImpersonateSelf", _SECURITY_IMPERSONATION), "give the thread a token")
        return True

    def _open_process_token(self, token: HANDLE) -> None:
        done = self._advapi32(
            "OpenProcessToken", self._kernel32("GetCurrentProcess"), _TOKEN_ACCESS, ctypes.byref(token)
        )
        self._check(done, "open the process's token")

    def _open_thread_token(self, token: HANDLE) -> None:
        thread = self._kernel32("GetCurrentThread")
        done = self._advapi32("OpenThreadToken", thread, _TOKEN_ACCESS, 0, ctypes.byref(token))
        self._check(done, "open the thread's token")

    @contextmanager
    def _use_token(self, open_token: _OpenToken) -> Iterator[int]:
        token = HANDLE()
        open_token(token)
        try:
            yield token.value
        finally:
            self._kernel32("CloseHandle", token)

    def _check(self, done: int, doing: str) -> None:
        if not done:
            raise from_win32(self._loader.last_error(), doing)


_CONVERT: Final = "ConvertStringSecurityDescriptorToSecurityDescriptorW"
_SDDL_ADVAPI32: Final = {
    _CONVERT: signature(BOOL, PTR, U32, PTR, PTR),
    "GetSecurityDescriptorLength": signature(U32, PTR),
}
_SDDL_KERNEL32: Final = {"LocalFree": signature(PTR, PTR)}
_REVISION: Final = 1


def descriptor_from_sddl(loader: Loader, sddl: str) -> bytes:
    """Convert SDDL to a self-relative security descriptor. Raises InvalidInput."""
    advapi32 = Library(loader, "advapi32.dll", _SDDL_ADVAPI32)
    found = PTR()
    if not advapi32(_CONVERT, wide(sddl), _REVISION, ctypes.byref(found), None) or found.value is None:
        raise from_win32(loader.last_error(), f"read the security descriptor {sddl[:80]!r}")
    try:
        return ctypes.string_at(found.value, advapi32("GetSecurityDescriptorLength", found))
    finally:
        Library(loader, "kernel32.dll", _SDDL_KERNEL32)("LocalFree", found)
