# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and its like: the first one asks the work to stop and clean up, the next one insists."""

from __future__ import annotations

import atexit
import signal
from types import FrameType
from typing import Final

from lamella.errors import Cancelled
from lamella.progress import Cancellation

_NUMBERS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_PATIENCE: Final = 1.0
"""Seconds between asking and insisting: a read that waits for somebody else would never see that it was asked."""


class Terminated(KeyboardInterrupt):
    """What a signal other than Ctrl-C raises; the exit code tells which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Stopped(Cancelled):
    """Work that has seen that a signal asks it to stop; the exit code tells which."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.number = number


class _Asked(Cancellation):
    """Knows which signal asks the work to stop, and whether the work has seen it."""

    __slots__ = ("noticed", "number")

    def __init__(self) -> None:
        super().__init__()
        self.noticed = False
        self.number = int(signal.SIGINT)

    def check(self) -> None:
        """As the base does."""
        try:
            super().check()
        except Cancelled:
            self.noticed = True
            raise Stopped(self.number) from None


def cancellation() -> Cancellation:
    """A cancellation that SIGINT, SIGTERM and SIGHUP set, from now on. For the main thread.

    Where the work has not noticed a moment later, or when a further signal comes, KeyboardInterrupt is raised.
    """
    cancel = _Asked()
    # nohup and background jobs have them ignored, and mean it
    numbers = [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        cancel.number = number
        cancel.cancel()
        for one in numbers:
            signal.signal(one, insist)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: None if cancel.noticed else insist(number, None))
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
            # An interpreter that ends gives signals their own meaning back: the timer's is to kill.
            atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)

    def insist(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)  # what cleans up now must not be torn out of it
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    for number in numbers:
        signal.signal(number, ask)
    return cancel
