# SPDX-License-Identifier: Apache-2.0
"""Counters of calls, bytes and connections, for metrics."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from typing import Final

from lamella.service.grpc.status import Code

BOUNDS: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Upper bounds of the buckets of call durations, in seconds."""


class Counters:
    """Counts since the server's start. Safe for use by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, Code], int] = {}
        self._took: dict[str, tuple[list[int], list[float]]] = {}
        self.sent = 0
        self.received = 0
        """Bytes of all connections."""
        self.connections = 0
        """Connections accepted."""

    def call(self, path: str, code: Code, began: float) -> None:
        """Count a call of the method ``path`` that has ended; ``began`` is its start by the monotonic clock."""
        took = time.monotonic() - began
        key = path, code
        with self._lock:
            self._calls[key] = self._calls.get(key, 0) + 1
            found = self._took.get(path)
            if found is None:
                found = self._took[path] = [0] * (len(BOUNDS) + 1), [0.0]
            found[0][bisect_left(BOUNDS, took)] += 1
            found[1][0] += took

    def bytes(self, sent: int, received: int) -> None:
        """Count bytes of a connection."""
        with self._lock:
            self.sent += sent
            self.received += received

    def connection(self) -> None:
        """Count an accepted connection."""
        with self._lock:
            self.connections += 1

    def calls(self) -> list[tuple[str, Code, int]]:
        """Calls ended, by method and code, sorted."""
        with self._lock:
            return [(path, code, count) for (path, code), count in sorted(self._calls.items())]

    def durations(self) -> list[tuple[str, list[int], float]]:
        """For each method: the calls in each bucket, the last without a bound, and the seconds of all calls."""
        with self._lock:
            return [(path, list(counts), total[0]) for path, (counts, total) in sorted(self._took.items())]
