# SPDX-License-Identifier: Apache-2.0
"""A process that serves a store: who may, on which sockets, and how it ends."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from lamella.errors import Conflict, from_os
from lamella.host.memory import share_arenas
from lamella.service.calls import Method
from lamella.service.server import Server, listening
from lamella.service.supervisor import notify, watchdog
from lamella.service.tally import Tally
from lamella.store.store import Store

LOG = logging.getLogger("lamella.service")

_LOCK: Final = "service"
_PATIENCE: Final = 0.5
"""Seconds in which a collector that looks through the locks lets go of this one."""


@contextmanager
def sole_server(root: Path) -> Iterator[None]:
    """Be the one server of the store at ``root`` until the block ends. Raises Conflict where there is one."""
    path = f"{root}/locks/{_LOCK}"
    try:
        lock = _lock(path, time.monotonic() + _PATIENCE)
    except OSError as problem:
        raise from_os(problem, f"lock {path!r}") from problem
    if lock is None:
        raise Conflict(
            f"the store {str(root)!r} is being served already", hint="stop that server, or name another root"
        )
    try:
        yield
    finally:
        os.close(lock)


def _lock(path: str, end: float) -> int | None:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path, follow_symlinks=False)):
                return lock
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        if time.monotonic() > end:
            return None
        time.sleep(0.05)


def serve(
    endpoints: Sequence[tuple[str | socket.socket, Mapping[str, Method]]],
    *,
    once: bool = False,
    metrics: str | socket.socket | None = None,
    store: Store | None = None,
    leaving: Callable[[], None] | None = None,
) -> None:
    """Serve each endpoint at its address, or on its listening socket, until SIGTERM or SIGINT asks to stop.

    For the main thread. With ``once`` the end comes when the clients that came have gone. ``metrics`` is where
    `lamella.service.metrics` tells of it, and of ``store``. ``leaving`` ends calls that would go on for ever.
    Raises as `listening`.
    """
    share_arenas()
    with ExitStack() as stack:
        server = Server(None if metrics is None else Tally())
        stack.enter_context(_stopped_by_signals(server))
        listeners = [
            (stack.enter_context(place if isinstance(place, socket.socket) else listening(place)), methods)
            for place, methods in endpoints
        ]
        if metrics is not None:
            from lamella.service.metrics import serving_metrics

            where = stack.enter_context(serving_metrics(metrics, server, store))
            LOG.info("telling metrics at %s", where)
        for listener, methods in listeners:
            server.serve(listener, methods)
            LOG.info("serving at %s", listener.getsockname())
        gc.collect()
        gc.freeze()  # what is there now stays, and no collection is to look through it again
        notify("READY=1")
        every = watchdog()
        beat = None if every is None else partial(notify, "WATCHDOG=1")
        server.run(once=once, beat=beat, every=every, leaving=leaving)
        LOG.info("stopped")


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    """The first signal asks to stop, a further one does what it always does.

    One that reaches another thread, or this one on its way into waiting, wakes nobody by itself: its number is
    written to the server's waker at once, so that this thread comes round to call the handler.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, action in before.items():
            signal.signal(number, action)

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        restore()
        notify("STOPPING=1")
        server.stop()

    with server.waker() as waker:
        waker.setblocking(False)
        wakes = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()
            signal.set_wakeup_fd(wakes)
