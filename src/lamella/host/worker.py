# SPDX-License-Identifier: Apache-2.0
"""Worker processes: how one starts, the messages that it exchanges, and how its errors travel.

A message is any value that `marshal` takes, after its length. What marshal does not take travels as pickled bytes.
Both ends run the same version of the package, and nothing but the parent and its worker has the pipes.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, NoReturn, Protocol, Self

from lamella.errors import LamellaError, Unavailable

_FILES: Final = "/proc/self/fd"
_THREADS: Final = "/proc/self/task"

_HEADER: Final = struct.Struct("<I?")
"""Of a message: the bytes after the header, and whether they are an error."""
_POLL: Final = 100
"""Milliseconds between two calls of ``check`` while a message is awaited."""
_STEP: Final = 1 << 20


def can_fork() -> bool:
    """Whether this process can be forked: it has no other threads, those unknown to Python included.

    A lock that another thread holds would stay locked in the child.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return False
    try:
        return len(os.listdir(_THREADS)) == 1
    except OSError:
        return False


def processors() -> int:
    """The processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


# Errors


class RemoteTraceback(Exception):
    """The traceback of an error in a worker process; the cause of the error that is raised here."""


def encode_error(error: BaseException) -> bytes:
    """An error for `decode_error`: class, arguments and attributes, so that no constructor is called again.

    An error that cannot be pickled becomes a RuntimeError with its class and text.
    """
    import pickle
    import traceback

    where = "".join(traceback.format_exception(error))
    try:
        if isinstance(error, LamellaError):
            return pickle.dumps((type(error), error.args, error.__dict__, where))
        return pickle.dumps((error, where))
    except Exception:  # noqa: BLE001  # objects choose what their pickling raises
        return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), where))


def decode_error(raw: bytes) -> BaseException:
    """The error that `encode_error` was given; its cause is a `RemoteTraceback`."""
    import pickle

    *parts, where = pickle.loads(raw)  # noqa: S301  # from a process of ours
    error: BaseException = parts[0]
    if len(parts) > 1:
        kind, arguments, attributes = parts
        error = kind.__new__(kind)
        error.args = arguments
        error.__dict__.update(attributes)
    error.__cause__ = RemoteTraceback(f"\n{where}")
    return error


# Messages


class Channel:
    """Messages to and from the process at the other end. One thread may send while another receives."""

    def __init__(self, source: int, target: int) -> None:
        """Read from ``source`` and write to ``target``, two descriptors that the caller closes."""
        self._source = source
        self._target = target
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)

    def send(self, message: Any) -> None:
        """Send a message. Raises as `ended`."""
        self._send(marshal.dumps(message), failed=False)

    def send_error(self, error: BaseException) -> None:
        """Send an error, which `receive` raises at the other end. Raises as `ended`."""
        self._send(encode_error(error), failed=True)

    def receive(self, check: Callable[[], object] | None = None) -> Any:
        """The next message; ``check`` is called again and again while it is awaited.

        Raises the error that the other process has sent, what ``check`` raises, and as `ended`.
        """
        size, failed = _HEADER.unpack(self._read(_HEADER.size, check))
        raw = self._read(size, check)
        if failed:
            raise decode_error(raw)
        return marshal.loads(raw)  # noqa: S302  # from a process of ours

    def answer(self, respond: Callable[[Any], object]) -> NoReturn:
        """Answer each message with what ``respond`` returns or raises, until the other end is closed."""
        while True:
            request = self.receive()
            try:
                reply = respond(request)
            except Exception as error:  # noqa: BLE001  # raised in the other process
                self.send_error(error)
            else:
                self.send(reply)

    def ended(self) -> NoReturn:
        """End this process: the other end is closed, so nothing needs the work of this one."""
        os._exit(0)

    def _send(self, raw: bytes, *, failed: bool) -> None:
        view = memoryview(_HEADER.pack(len(raw), failed) + raw)
        try:
            while view:
                view = view[os.write(self._target, view) :]
        except BrokenPipeError:
            self.ended()

    def _read(self, size: int, check: Callable[[], object] | None) -> bytes:
        raw = b""
        while len(raw) < size:
            if check is not None:
                check()
                if not self._poll.poll(_POLL):
                    continue
            piece = os.read(self._source, min(size - len(raw), _STEP))
            if not piece:
                self.ended()
            raw = raw + piece if raw else piece
        return raw


class Worker(Channel):
    """A process that calls ``serve(channel, *arguments)`` and ends, and this process's end of the channel.

    Leaving the block ends the process. For one thread at a time, but as `Channel` allows.
    """

    def __init__(
        self,
        serve: Callable[..., object],
        *arguments: object,
        task: str,
        fork: bool,
        keep: Collection[int] | None = (),
    ) -> None:
        """Start the process: a fork of this one, of which `can_fork` must be true, or another interpreter.

        The descriptors in ``keep`` stay open there under their numbers; with None a fork keeps all. Another interpreter
        imports ``serve`` by its name, and ``arguments`` are pickled for it. ``task`` completes the text of errors: the
        process that ... has ended. Raises OSError.
        """
        self._task = task
        ends: list[int] = []
        try:
            ends += os.pipe()
            ends += os.pipe()
            theirs, ours, source, target = ends[0], ends[1], ends[2], ends[3]
            if fork:
                kept = None if keep is None else (theirs, target, *keep)
                self._process: _Process = Forked(
                    lambda: serve(Channel(theirs, target), *arguments), kept, close=(ours, source)
                )
            else:
                self._process = _Interpreter(theirs, target, keep or ())
        except BaseException:
            for end in ends:
                os.close(end)
            raise
        os.close(theirs)
        os.close(target)
        self.output: Final = source
        """A descriptor that can be polled: it is readable when a message begins to arrive."""
        self._input = ours
        self._closed = False
        super().__init__(source, ours)
        if not fork:
            try:
                import pickle

                self.send(pickle.dumps((serve, arguments)))
            except BaseException:
                self.close()
                raise

    def ended(self) -> NoReturn:
        """Raise Unavailable: the process has ended."""
        raise Unavailable(f"the process that {self._task} has ended before its work was done")

    def close(self) -> None:
        """End the process. May be called again."""
        if not self._closed:
            self._closed = True
            self._process.end()
            os.close(self._input)
            os.close(self.output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Processes


class _Process(Protocol):
    def end(self) -> None:
        """Kill the process and wait for it."""
        ...


class Forked:
    """A forked process that calls ``run`` and ends by `_exit`: no exit handlers, no flush of buffered files.

    It keeps the open files in ``keep``, or with None all but those in ``close``. Every other descriptor, the three
    standard ones included, becomes ``/dev/null``: the child holds no lock and no end of a pipe of this process, and
    code that closes a descriptor that it considers its own closes nothing else. `can_fork` must be true.
    """

    def __init__(self, run: Callable[[], object], keep: Collection[int] | None, close: Collection[int] = ()) -> None:
        """Fork. Raises OSError."""
        self._process: int | None = None
        # A signal handler that raises would unwind the stack of this process in the child too.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            process = os.fork()
            if not process:
                _run_child(run, keep, close, mask)
            self._process = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def end(self) -> None:
        """Kill the process, unless it has ended, and wait for it. May be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if os.waitpid(process, os.WNOHANG) == (0, 0):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        except ChildProcessError:
            pass  # this process ignores SIGCHLD, and the kernel has reaped the child


def _run_child(
    run: Callable[[], object], keep: Collection[int] | None, close: Iterable[int], mask: Iterable[int]
) -> NoReturn:
    try:
        os.setsid()  # Ctrl-C is for the process in the terminal, which ends this one
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.freeze()  # the parent's objects are never collected here, so their pages stay shared
        for descriptor in close:
            os.close(descriptor)
        if keep is not None:
            _close_all_but(keep)
        run()
    finally:
        os._exit(0)


def _close_all_but(keep: Collection[int]) -> None:
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for descriptor in {0, 1, 2, *map(int, os.listdir(_FILES))}:
        if descriptor not in keep and descriptor != null:
            os.dup2(null, descriptor, inheritable=False)


class _Interpreter:
    """A new Python interpreter with the import path of this one: for a process that cannot be forked."""

    def __init__(self, source: int, target: int, keep: Collection[int]) -> None:
        import subprocess

        if not sys.executable or getattr(sys, "frozen", False):
            raise FileNotFoundError("this program is no Python interpreter that could be started again")
        code = "import sys; sys.path[:] = sys.argv[1:]; from lamella.host.worker import serve_parent; serve_parent()"
        # In a new session: Ctrl-C must reach only the process in the terminal, which ends this one.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *filter(None, sys.path)],
            stdin=source,
            stdout=target,
            stderr=subprocess.DEVNULL,
            pass_fds=tuple(keep),
            start_new_session=True,
        )

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def serve_parent() -> None:
    """Serve the process that has started this interpreter, over standard input and output."""
    channel = Channel(0, 1)
    import pickle

    serve, arguments = pickle.loads(channel.receive())  # noqa: S301  # from our parent
    serve(channel, *arguments)
