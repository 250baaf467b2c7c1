# SPDX-License-Identifier: Apache-2.0
"""Privileges for as long as a block runs: counted, so that blocks may nest, overlap and run in several threads."""

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
    """TOKEN_PRIVILEGES with room for one: 16 bytes."""

    _fields_ = (("count", U32), ("luid", Luid), ("attributes", U32))


class _Held:
    """The privileges of one token that blocks hold now: how many blocks, and what each was before the first."""

    __slots__ = ("before", "counts", "depth", "impersonated")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.before: dict[str, TokenPrivileges] = {}
        self.depth = 0
        self.impersonated = False


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.held = _Held()


class Privileges:
    """Gives privileges to this process, or to a thread alone, while a block runs.

    All blocks over one process share one object of this class, since it is the one that counts.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._advapi32 = Library(loader, "advapi32.dll", _ADVAPI32)
        self._kernel32 = Library(loader, "kernel32.dll", _KERNEL32)
        self._lock = threading.Lock()
        self._process = _Held()
        self._thread = _PerThread()

    @contextmanager
    def __call__(self, *names: str) -> Iterator[None]:
        """Hold ``names`` for the whole process; the last block that ends puts back what the first one changed.

        A privilege that was enabled before stays enabled. Denied if the account lacks one; then none is held.
        """
        with self._lock:
            self._enter(self._process, names, self._process_token)
        try:
            yield
        finally:
            with self._lock:
                self._leave(self._process, names, self._process_token)

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
            self._enter(held, names, self._thread_token)
            entered = True
            yield
        finally:
            if threading.get_ident() != owner:
                raise Conflict("a thread's privileges can be given back by that thread alone")
            held.depth -= 1
            if not held.depth and held.impersonated:  # the copy goes, and what it held with it
                self._thread.held = _Held()
                self._must(self._advapi32("RevertToSelf"), "end impersonation")
            elif entered:
                self._leave(held, names, self._thread_token)

    def _enter(self, held: _Held, names: tuple[str, ...], open_token: _OpenToken) -> None:
        taken: list[str] = []
        try:
            with self._token(open_token) as token:
                for name in names:
                    if not held.counts.get(name):
                        held.before[name] = self._enable(token, name)
                    held.counts[name] = held.counts.get(name, 0) + 1
                    taken.append(name)
        except BaseException:
            self._leave(held, tuple(taken), open_token)
            raise

    def _leave(self, held: _Held, names: tuple[str, ...], open_token: _OpenToken) -> None:
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
        with self._token(open_token) as token:
            for name, before in ended:
                try:
                    self._adjust(token, before, None, f"give back {name}")
                except LamellaError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def _enable(self, token: int, name: str) -> TokenPrivileges:
        """Enable one privilege and give what it was before; a count of 0 there says that nothing changed."""
        doing = f"enable {name}"
        luid = Luid()
        self._must(self._advapi32("LookupPrivilegeValueW", None, wide(name), ctypes.byref(luid)), doing)
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
        # The call is a success by its result even where the account has no such privilege; only the code tells.
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
        self._must(self._advapi32("ImpersonateSelf", _SECURITY_IMPERSONATION), "give the thread a token")
        return True

    def _process_token(self, token: HANDLE) -> None:
        done = self._advapi32(
            "OpenProcessToken", self._kernel32("GetCurrentProcess"), _TOKEN_ACCESS, ctypes.byref(token)
        )
        self._must(done, "open the process's token")

    def _thread_token(self, token: HANDLE) -> None:
        thread = self._kernel32("GetCurrentThread")
        done = self._advapi32("OpenThreadToken", thread, _TOKEN_ACCESS, 0, ctypes.byref(token))
        self._must(done, "open the thread's token")

    @contextmanager
    def _token(self, open_token: _OpenToken) -> Iterator[int]:
        token = HANDLE()
        open_token(token)
        try:
            yield token.value
        finally:
            self._kernel32("CloseHandle", token)

    def _must(self, done: int, doing: str) -> None:
        if not done:
            raise from_win32(self._loader.last_error(), doing)


_CONVERT: Final = "ConvertStringSecurityDescriptorToSecurityDescriptorW"
_ADVAPI32_sddl: Final = {
    _CONVERT: signature(BOOL, PTR, U32, PTR, PTR),
    "GetSecurityDescriptorLength": signature(U32, PTR),
}
_KERNEL32_sddl: Final = {"LocalFree": signature(PTR, PTR)}
_REVISION: Final = 1


def descriptor_of(loader: Loader, sddl: str) -> bytes:
    """The self-relative descriptor that ``sddl`` says. Raises InvalidInput."""
    advapi32 = Library(loader, "advapi32.dll", _ADVAPI32_sddl)
    found = PTR()
    if not advapi32(_CONVERT, wide(sddl), _REVISION, ctypes.byref(found), None) or found.value is None:
        raise from_win32(loader.last_error(), f"read the security descriptor {sddl[:80]!r}")
    try:
        return ctypes.string_at(found.value, advapi32("GetSecurityDescriptorLength", found))
    finally:
        Library(loader, "kernel32.dll", _KERNEL32_sddl)("LocalFree", found)
