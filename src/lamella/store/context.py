# SPDX-License-Identifier: Apache-2.0
"""What the parts of a store share: its directory, its database, a namespace, a lease and the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from lamella.store.database import Database


class StoreContext(Struct, frozen=True):
    """One namespace of an open store, as its content, images, leases and snapshots use it."""

    root: Path
    """Absolute, without symbolic links."""
    database: Database
    namespace: str
    lease: str | None
    """The lease that holds new objects."""
    clock: Callable[[], int]
    """Nanoseconds since the Unix epoch, strictly increasing."""
    readonly: bool = False
    isolated: bool = False
    """Whether a namespace must receive the bytes of a blob that another namespace has."""


class Clock:
    """Nanoseconds since the Unix epoch, strictly increasing, even if ``source`` is set back."""

    def __init__(self, source: Callable[[], int] | None = None) -> None:
        self._source = source or forward_time()
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        now = self._source()
        with self._lock:
            if now <= self._last:
                now = self._last + 1
            self._last = now
        return now


def forward_time() -> Callable[[], int]:
    """Return a clock that follows the system time forward, and counts elapsed time after the system time is set back.

    A server that starts before the system time is set by NTP must not judge the expiry of leases by the old one.
    """
    elapsed = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    start = 0

    def now() -> int:
        nonlocal start
        since = time.clock_gettime_ns(elapsed)
        start = max(start, time.time_ns() - since)
        return start + since

    return now
