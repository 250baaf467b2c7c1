# SPDX-License-Identifier: Apache-2.0
"""The time of a store, which goes forward and nowhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def steady_time() -> Callable[[], int]:
    """A clock that starts at the system's time and then counts what passes, sleep included.

    It does not see the system's clock being set, which would let everything expire at once or nothing for long.
    """
    passed = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    start = time.time_ns() - time.clock_gettime_ns(passed)
    return lambda: start + time.clock_gettime_ns(passed)


class Clock:
    """Nanoseconds since the Unix epoch, each answer later than the one before, whatever ``source`` says."""

    def __init__(self, source: Callable[[], int] | None = None) -> None:
        self._source = source or steady_time()
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """What time it is."""
        now = self._source()
        with self._lock:
            if now <= self._last:
                now = self._last + 1
            self._last = now
        return now
