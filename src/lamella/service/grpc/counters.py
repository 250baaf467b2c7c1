# SPDX-License-Identifier: Apache-2.0
"""What a service has done so far, counted for whoever watches it."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from typing import Final

from lamella.service.grpc.status import Code

BOUNDS: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Seconds up to which calls are counted together."""


class Tally:
    """Counts calls, bytes and connections. Usable from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, Code], int] = {}
        self._took: dict[str, tuple[list[int], list[float]]] = {}
        self.sent = 0
        self.received = 0
        """Bytes of all connections that were counted up to now."""
        self.connections = 0
        """Those that have come so far."""

    def call(self, path: str, code: Code, began: float) -> None:
        """A call of the method ``path`` that began at ``began`` by the monotonic clock has come to its end."""
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
        """So much has gone over a connection since it was last said."""
        with self._lock:
            self.sent += sent
            self.received += received

    def connection(self) -> None:
        """A client has come."""
        with self._lock:
            self.connections += 1

    def calls(self) -> list[tuple[str, Code, int]]:
        """How often each method has ended with each code, sorted."""
        with self._lock:
            return [(path, code, count) for (path, code), count in sorted(self._calls.items())]

    def durations(self) -> list[tuple[str, list[int], float]]:
        """Of each method: calls up to each of the bounds and beyond, and the seconds that all of them took."""
        with self._lock:
            return [(path, list(counts), total[0]) for path, (counts, total) in sorted(self._took.items())]
