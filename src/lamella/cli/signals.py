# SPDX-License-Identifier: Apache-2.0
"""Signals: the first one cancels the operation, which cleans up; the next one raises."""

from __future__ import annotations

import atexit
import signal
from types import FrameType
from typing import Final

from lamella.errors import Cancelled
from lamella.progress import Cancellation

_NUMBERS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_PATIENCE: Final = 1.0
"""Seconds until a signal raises: a blocked read never checks for cancellation."""


class Terminated(KeyboardInterrupt):
    """Raised for a signal other than SIGINT; the exit code has its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Stopped(Cancelled):
    """An operation was cancelled by a signal; the exit code has its number."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.number = number


class _SignalCancellation(Cancellation):
    """A cancellation token that knows the signal, and whether the operation has noticed it."""

    __slots__ = ("noticed", "number")

    def __init__(self) -> None:
        super().__init__()
        self.noticed = False
        self.number = int(signal.SIGINT)

    def check(self) -> None:
        try:
            super().check()
        except Cancelled:
            self.noticed = True
            raise Stopped(self.number) from None


def cancellation() -> Cancellation:
    """A cancellation token that SIGINT, SIGTERM and SIGHUP set from now on. For the main thread.

    If the operation has not noticed a second later, or at another signal, KeyboardInterrupt is raised.
    """
    cancel = _SignalCancellation()
    # nohup and background jobs ignore them
    numbers = [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        cancel.number = number
        cancel.cancel()
        for one in numbers:
            signal.signal(one, insist)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: None if cancel.noticed else insist(number, None))
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
            # The ending interpreter restores default handlers, and the default of SIGALRM kills.
            atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)

    def insist(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)  # do not interrupt the cleanup
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    for number in numbers:
        signal.signal(number, ask)
    return cancel
