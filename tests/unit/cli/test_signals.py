# SPDX-License-Identifier: Apache-2.0
"""A signal stops the work, and nothing of it outlasts the work."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOTICED = """
try:
    cancel.check()
except Cancelled:
    pass
"""
PROGRAM = """
import os, signal, time
from lamella.cli.signals import cancellation
from lamella.errors import Cancelled
cancel = cancellation()
os.kill(os.getpid(), signal.SIGTERM)
%s
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(1.3)
slow = Slow()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such timer")
@pytest.mark.parametrize("noticed", [NOTICED, ""], ids=["noticed", "over before it was noticed"])
def test_an_interpreter_that_takes_a_while_to_end_is_not_killed_by_its_own_timer(noticed: str) -> None:
    assert subprocess.run([sys.executable, "-c", PROGRAM % noticed]).returncode == 0
