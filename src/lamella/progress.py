# SPDX-License-Identifier: Apache-2.0
"""Progress reports and cancellation of long operations."""

from __future__ import annotations

from typing import Protocol

from lamella.errors import Cancelled


class Progress(Protocol):
    """Receives the progress of an operation, one step after the other. Methods may be called from any thread."""

    def start(self, what: str, total: int | None) -> None:
        """A step begins: ``total`` bytes, or None if the size is unknown."""
        ...

    def advance(self, amount: int) -> None:
        """``amount`` more bytes are done."""
        ...

    def finish(self) -> None:
        """The last step that began has ended, with or without an error."""
        ...


class NoProgress:
    """A `Progress` that ignores all reports; a base class for those that need some of them."""

    def start(self, what: str, total: int | None) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...


class Cancellation:
    """A cancellation token: set in one thread, checked in another."""

    __slots__ = ("_requested",)

    def __init__(self) -> None:
        self._requested = False

    @property
    def cancelled(self) -> bool:
        """Whether `check` raises."""
        return self._requested

    def cancel(self) -> None:
        """Request that the operation stops soon."""
        self._requested = True

    def check(self) -> None:
        """Raise Cancelled after `cancel` was called."""
        if self._requested:
            raise Cancelled("cancelled")


class LinkedCancellation(Cancellation):
    """A cancellation token linked to its parent: a request on either cancels it, its own leaves the parent alone."""

    __slots__ = ("_parent",)

    def __init__(self, parent: Cancellation | None) -> None:
        super().__init__()
        self._parent = parent

    @property
    def cancelled(self) -> bool:
        return self._requested or (self._parent is not None and self._parent.cancelled)

    def check(self) -> None:
        if self._parent is not None:
            self._parent.check()
        super().check()
