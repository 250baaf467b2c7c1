# SPDX-License-Identifier: Apache-2.0
"""Work in a child process: without privileges, or in a separate mount namespace."""

from __future__ import annotations

import codecs
import ctypes
import os
import pickle
import resource
import traceback
from collections.abc import Callable
from typing import Final, TypeVar

import lamella.layers.directory.attrs

T = TypeVar("T")

NOBODY: Final = 65534

LOADED: Final = (lamella.layers.directory.attrs, resource, codecs.lookup("ascii"))
"""Modules that are loaded late, and may be unreadable once privileges are dropped."""

_CLONE_NEWNS: Final = 0x20000
_MS_BIND: Final = 4096
_MS_REC_PRIVATE: Final = 16384 | 1 << 18


def _in_child(prepare: Callable[[], None], work: Callable[[], T]) -> T:
    """Return what ``work`` returns in a child process; raise an error of the class that it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            answer: tuple[bool, object, str]
            try:
                prepare()
                answer = (True, work(), "")
            except BaseException as error:  # noqa: BLE001  # all errors are passed to the parent
                traceback.print_exc()
                answer = (False, type(error), str(error))
            with open(writing, "wb") as pipe:
                pipe.write(pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    done, result, message = pickle.loads(data)
    if done:
        return result  # type: ignore[no-any-return]
    failure = result.__new__(result)
    Exception.__init__(failure, message)
    raise failure


def as_nobody(work: Callable[[], T]) -> T:
    """Run ``work`` without privileges. If the tests run without them, the child runs as the same user."""

    def prepare() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

    return _in_child(prepare, work)


def person() -> tuple[int, int]:
    """Return the user and group of `as_nobody`."""
    return (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def with_mounts(work: Callable[[], T]) -> T:
    """Run ``work`` in a private mount namespace; needs root."""

    def prepare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNS) or libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    return _in_child(prepare, work)


def mount(source: str | os.PathLike[str], target: str | os.PathLike[str], kind: str = "", options: str = "") -> None:
    """Mount a file system, or bind ``source`` if ``kind`` is empty; only inside `with_mounts`."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(0 if kind else _MS_BIND)
    if libc.mount(os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, options.encode() or None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(target))
