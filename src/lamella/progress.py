# SPDX-License-Identifier: Apache-2.0
"""How long work tells of itself, and how it is told to stop."""

from __future__ import annotations

from typing import Protocol

from lamella.errors import Cancelled


class Progress(Protocol):
    """Is told of one piece of work after the other. Methods may be called from any thread."""

    def start(self, what: str, total: int | None) -> None:
        """Work begins: ``total`` bytes of it, None where nobody knows."""
        ...

    def advance(self, amount: int) -> None:
        """``amount`` further bytes are done."""
        ...

    def finish(self) -> None:
        """The work that began last has ended, well or not."""
        ...


class NoProgress:
    """Says nothing."""

    def start(self, what: str, total: int | None) -> None:
        """See `Progress.start`."""

    def advance(self, amount: int) -> None:
        """See `Progress.advance`."""

    def finish(self) -> None:
        """See `Progress.finish`."""


class Cancellation:
    """A wish to stop, made in one thread and looked for in another."""

    __slots__ = ("_wanted",)

    def __init__(self) -> None:
        self._wanted = False

    def cancel(self) -> None:
        """Ask for the work to stop soon."""
        self._wanted = True

    def check(self) -> None:
        """Raise Cancelled where `cancel` has been called."""
        if self._wanted:
            raise Cancelled("cancelled")


class Either(Cancellation):
    """A wish to stop of some work's own, because a part of it failed, or that of whoever asked for the work."""

    __slots__ = ("_other",)

    def __init__(self, other: Cancellation | None) -> None:
        super().__init__()
        self._other = other

    def check(self) -> None:
        """See `Cancellation.check`."""
        if self._other is not None:
            self._other.check()
        super().check()
