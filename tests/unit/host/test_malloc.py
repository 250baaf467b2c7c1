# SPDX-License-Identifier: Apache-2.0
"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys

import pytest

from lamella.host.malloc import return_large_blocks, share_arenas

ALLOCATE = """
import ctypes, sys, threading
from lamella.host.malloc import share_arenas
if sys.argv[1] == "shared":
    share_arenas(2)
threads = [threading.Thread(target=lambda: [barrier.wait(), bytes(2000), barrier.wait()]) for _ in range(8)]
barrier = threading.Barrier(8)
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fdopen(1, b"w"))
library.malloc_info(0, file)
library.fflush(file)
"""

AGAIN = """
import ctypes, sys
from lamella.host.malloc import return_large_blocks
if sys.argv[1] == "returned":
    return_large_blocks(1 << 16)
class Told(ctypes.Structure):
    _fields_ = [("fields", ctypes.c_size_t * 10)]
told = ctypes.CDLL(None).mallinfo2
told.restype = Told
block = bytes(1 << 20)
del block
mapped = told().fields[3]
block = bytes(1 << 20)
print(told().fields[3] - mapped)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_threads_share_what_the_c_library_keeps_for_them() -> None:
    found = {}
    for how in ("shared", "apart"):
        told = subprocess.run([sys.executable, "-c", ALLOCATE, how], capture_output=True, text=True, check=True).stdout
        found[how] = len(re.findall("<heap nr=", told))
    assert found["shared"] <= 2 < found["apart"]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc 2.33 or later")
@pytest.mark.parametrize(("how", "mapped"), [("returned", "1"), ("kept", "0")])
def test_a_large_block_that_was_freed_is_taken_from_the_system_anew(how: str, mapped: str) -> None:
    told = subprocess.run([sys.executable, "-c", AGAIN, how], capture_output=True, text=True, check=True).stdout
    assert told.strip() == mapped


def test_a_c_library_without_such_a_setting_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    share_arenas()
    return_large_blocks(1 << 16)
