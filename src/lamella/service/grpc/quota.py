# SPDX-License-Identifier: Apache-2.0
"""Shares of connections in a limit of the whole server."""

from __future__ import annotations

import threading


class SharedLimit:
    """A limit on threads, bytes or the like that all connections share by their `Quota`."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.lock = threading.Lock()


class Quota:
    """The share of one connection: half of what the other connections leave, so that none can take everything."""

    __slots__ = ("_limit", "used")

    def __init__(self, limit: SharedLimit) -> None:
        self._limit = limit
        self.used = 0

    def acquire(self, amount: int, *, force: bool = False) -> bool:
        """Take ``amount`` if the share allows it, or by ``force``; returns whether it was taken."""
        limit = self._limit
        with limit.lock:
            if not force and self.used + amount > (limit.total - (limit.used - self.used)) // 2:
                return False
            self.used += amount
            limit.used += amount
            return True

    def release(self, amount: int) -> None:
        """Give back ``amount`` that was acquired."""
        with self._limit.lock:
            self.used -= amount
            self._limit.used -= amount
