# SPDX-License-Identifier: Apache-2.0
"""The daemon: its log, its settings file, its lock on the store, and its signals."""

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
"""Extra attributes of log records that the JSON log shows."""


class _Json(logging.Formatter):
    """One JSON object per line."""

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
    """One line per record, followed by its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname.lower()}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, in milliseconds."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def start_log(form: str, *, debug: bool = False) -> None:
    """Write this process's log to standard error, in one of the `FORMATS`."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger("lamella")
    root.handlers[:] = [out]
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else logging.INFO)


MAX_SIZE = 1 << 20
"""Bytes of a settings file at most."""


def read_settings(path: Path, known: Mapping[str, Collection[str] | None]) -> dict[str, str]:
    """The settings in the TOML file at ``path``. ``known`` maps each allowed setting to its values, None for any text.

    Raises NotFound, Denied, InvalidInput (no TOML, an unknown setting or value).
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SIZE + 1)
    except OSError as problem:
        raise from_os(problem, f"read the settings in {str(path)!r}") from problem
    if len(raw) > MAX_SIZE:
        raise InvalidInput(f"{str(path)!r} is larger than {MAX_SIZE} bytes")
    try:
        found = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InvalidInput(f"{str(path)!r} is not TOML: {problem}") from problem
    for name, value in found.items():
        if name not in known:
            raise InvalidInput(f"{str(path)!r}: unknown setting {name!r}", hint=f"known are {', '.join(known)}")
        if not isinstance(value, str) or not value:
            raise InvalidInput(f"{str(path)!r}: the setting {name!r} must be text, in quotes")
        values = known[name]
        if values is not None and value not in values:
            raise InvalidInput(f"{str(path)!r}: the setting {name!r} is {value!r}, not one of {', '.join(values)}")
    return found


LOG = logging.getLogger("lamella.service")

_LOCK: Final = "service"
_PATIENCE: Final = 0.5
"""Seconds to wait for a collector, which holds each lock for a moment."""


@contextmanager
def exclusive_server(root: Path) -> Iterator[None]:
    """Lock the store at ``root`` for one server while the block lasts. Raises Conflict if another serves it."""
    path = f"{root}/locks/{_LOCK}"
    try:
        lock = _lock(path, time.monotonic() + _PATIENCE)
    except OSError as problem:
        raise from_os(problem, f"lock {path!r}") from problem
    if lock is None:
        raise Conflict(f"the store {str(root)!r} is already served", hint="stop that server, or name another root")
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
    """Serve each endpoint at its address, or on its listening socket, until SIGTERM or SIGINT.

    For the main thread. With ``once`` it ends when the last of its clients has gone. ``metrics`` is the place of the
    metrics of the server and of ``store``. ``leaving`` ends calls of unlimited duration. Raises as `listening`.
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
            LOG.info("metrics at %s", where)
        for listener, methods in listeners:
            server.serve(listener, methods)
            LOG.info("serving at %s", listener.getsockname())
        gc.collect()
        gc.freeze()  # what exists now stays; later collections need not traverse it
        notify("READY=1")
        every = watchdog()
        beat = None if every is None else partial(notify, "WATCHDOG=1")
        server.run(once=once, beat=beat, every=every, leaving=leaving)
        LOG.info("stopped")


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    """Stop the server at the first SIGTERM or SIGINT; a second one has its default action. Log a SIGHUP.

    A signal that reaches another thread, or this one just before it waits, does not wake it: the wake-up descriptor
    does, by a byte to the server's waker, so that this thread calls the handler.
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

    def log_hangup(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        LOG.info("SIGHUP is ignored: restart the server to read the settings again")

    hangup = signal.signal(signal.SIGHUP, log_hangup)
    with server.waker() as waker:
        waker.setblocking(False)
        wakes = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()
            signal.signal(signal.SIGHUP, hangup)
            signal.set_wakeup_fd(wakes)
