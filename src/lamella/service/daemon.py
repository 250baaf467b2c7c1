# SPDX-License-Identifier: Apache-2.0
"""A process that serves a store: who may, on which sockets, and how it ends."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from lamella.errors import Conflict, InvalidInput, from_os
from lamella.host.malloc import share_arenas
from lamella.service.grpc.counters import Counters
from lamella.service.grpc.rpc import Method
from lamella.service.grpc.server import Server, listening
from lamella.service.sd_notify import notify, watchdog
from lamella.store.store import Store

FORMATS: Final = ("text", "json")

FIELDS: Final = ("method", "code")
"""What a record may say apart from its message, for programs."""


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: record.__dict__[name] for name in FIELDS if name in record.__dict__},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Text(logging.Formatter):
    """A line for people, with where an error came from beneath it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname.lower()}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    """To the millisecond, always as many characters."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def start(form: str, *, debug: bool = False) -> None:
    """Have the log of this process written to standard error, one line at a time."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger("lamella")
    root.handlers[:] = [out]
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else logging.INFO)


MAX_SIZE = 1 << 20
"""Bytes of a file of settings."""


def read_settings(path: Path, known: Mapping[str, Collection[str] | None]) -> dict[str, str]:
    """What the file at ``path`` says of the settings in ``known``, each with the values that it may have, None for any.

    Raises NotFound, Denied, InvalidInput (no TOML, another setting, a value that is no text or not one of those).
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SIZE + 1)
    except OSError as problem:
        raise from_os(problem, f"read the settings in {str(path)!r}") from problem
    if len(raw) > MAX_SIZE:
        raise InvalidInput(f"{str(path)!r} has more than {MAX_SIZE} bytes")
    try:
        found = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InvalidInput(f"{str(path)!r} is not TOML: {problem}") from problem
    for name, value in found.items():
        if name not in known:
            raise InvalidInput(f"{str(path)!r}: there is no setting {name!r}", hint=f"known are {', '.join(known)}")
        if not isinstance(value, str) or not value:
            raise InvalidInput(f"{str(path)!r}: the setting {name!r} must be text, in quotes")
        values = known[name]
        if values is not None and value not in values:
            raise InvalidInput(f"{str(path)!r}: the setting {name!r} is {value!r}, not one of {', '.join(values)}")
    return found


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
        server = Server(None if metrics is None else Counters())
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
