# SPDX-License-Identifier: Apache-2.0
"""Processes forked from this one, which start in some milliseconds and have nothing of it but its memory."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Final, NoReturn

_FILES: Final = "/proc/self/fd"
_THREADS: Final = "/proc/self/task"


def can_fork() -> bool:
    """Whether this process can be forked: without other threads, also those that Python did not start.

    What a lock in another thread's hands guards would stay locked in the fork.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return False
    try:
        return len(os.listdir(_THREADS)) == 1
    except OSError:
        return False


def _leave_session() -> None:
    """Have the system's way with signals that would end this process, and a session of one's own."""
    os.setsid()  # Ctrl-C is for the process that the user sees, which ends this one
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)


class Forked:
    """A process that does ``run`` and ends; nothing that the other one has is unwound or flushed in it.

    Of the files that are open it has those in ``keep``, or all without. In the place of each other, the three of every
    process too, it has ``/dev/null``, so that it holds no lock and no end of a pipe, and what closes a file that it
    takes for its own closes none of this process. For a process of which `can_fork` is true.
    """

    def __init__(self, run: Callable[[], object], keep: Collection[int] | None) -> None:
        """Fork. Raises OSError."""
        self._process: int | None = None
        # A signal whose handler raises would unwind this process in the fork too.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            process = os.fork()
            if not process:
                _be(run, keep, mask)
            self._process = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def end(self) -> None:
        """Kill it, if it has not ended, and wait until it is gone. May be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if os.waitpid(process, os.WNOHANG) == (0, 0):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        except ChildProcessError:
            pass  # this process does not wait for its children, and the kernel has seen to it


def _be(run: Callable[[], object], keep: Collection[int] | None, mask: Iterable[int]) -> NoReturn:
    """Be the fork."""
    try:
        _leave_session()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.freeze()  # nothing of the other process is collected here, and the memory stays common
        if keep is not None:
            _let_go_of_all_but(keep)
        run()
    finally:
        os._exit(0)


def _let_go_of_all_but(keep: Collection[int]) -> None:
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for descriptor in {0, 1, 2, *map(int, os.listdir(_FILES))}:
        if descriptor not in keep and descriptor != null:
            os.dup2(null, descriptor, inheritable=False)
