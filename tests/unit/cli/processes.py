# SPDX-License-Identifier: Apache-2.0
"""Commands in processes of their own, and the processes that those fork."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FORKS = sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1
"""Whether a second process reads large layers here."""

where_forked = pytest.mark.skipif(not FORKS, reason="another process is forked on Linux, beside a second processor")


def wait_for(condition: Callable[[], bool]) -> None:
    """Come back once ``condition`` holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def children(process: subprocess.Popen[Any]) -> list[str]:
    """The processes that a command has, by their numbers, until somebody waits for it."""
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def only_child(process: subprocess.Popen[Any]) -> str:
    """The one process that a command comes to have; it has failed where it ends without."""
    found: list[str] = []

    def look() -> bool:
        found.extend(children(process))
        return bool(found) or "\nState:\tZ" in Path(f"/proc/{process.pid}/status").read_text()

    wait_for(look)
    (child,) = found
    return child
