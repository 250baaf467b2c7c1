# SPDX-License-Identifier: Apache-2.0
"""The server: accepts connections on unix sockets, and ends them in order."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lamella.errors import Conflict, InvalidInput, from_os
from lamella.service.grpc.connection import Connection
from lamella.service.grpc.counters import Counters
from lamella.service.grpc.flow import MAX_HELD
from lamella.service.grpc.quota import SharedLimit
from lamella.service.grpc.rpc import Method
from lamella.service.grpc.thread_pool import MAX_THREADS, ThreadPool

LOG = logging.getLogger("lamella.service")

MODE: Final = 0o660
GRACE: Final = 10.0
"""Seconds that calls under way have to end after `stop`."""

_END: Final = 1.0
"""Seconds that threads have to end."""

_LONGEST: Final = 107
"""Bytes of a socket's path at most (unix(7))."""

_BUFFER: Final = 4 << 20
"""Send buffer of a connection, in bytes."""

_WAKE_UPS: Final = 4096
"""Bytes that are read at once from the socket that wakes `run`."""

_BACKLOG: Final = 128


class Server:
    """Serves methods on sockets until `stop` is called."""

    def __init__(
        self, counters: Counters | None = None, *, max_held: int = MAX_HELD, max_threads: int = MAX_THREADS
    ) -> None:
        """``max_held`` limits the bytes of requests in memory."""
        self.counters = counters
        self._pool = ThreadPool(max_threads)
        self.memory = SharedLimit(max_held)
        self._selector = selectors.DefaultSelector()
        self._bell, self._waker = socket.socketpair()
        self._bell.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._connections: set[Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self._once = False

    def serve(self, listener: socket.socket, methods: Mapping[str, Method]) -> None:
        """Accept connections from ``listener``, a listening socket, as soon as `run` is called."""
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, methods)

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections)

    @property
    def calls(self) -> int:
        """Calls under way."""
        with self._lock:
            return sum(connection.calls for connection in self._connections)

    def run(
        self,
        grace: float = GRACE,
        *,
        once: bool = False,
        beat: Callable[[], None] | None = None,
        every: float | None = None,
        leaving: Callable[[], None] | None = None,
    ) -> None:
        """Serve until `stop` is called, and then until the calls under way are done, ``grace`` seconds at most.

        With ``once`` it also stops when the last of its clients has gone. ``beat`` is called at least ``every`` so many
        seconds. ``leaving`` is called once when stopping begins, to end calls of unlimited duration.
        """
        self._once = once
        while not self._stopping:
            for key, _ in self._selector.select(every):
                if key.data is not None and isinstance(key.fileobj, socket.socket):
                    self._accept(key.fileobj, key.data)
                else:
                    self._bell.recv(_WAKE_UPS)
            if beat is not None:
                beat()
        if leaving is not None:
            leaving()
        for key in tuple(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
        self._leave(grace)
        self._selector.close()
        self._bell.close()
        self._waker.close()

    def waker(self) -> socket.socket:
        """A socket, to be closed by the caller: a byte sent to it wakes `run`."""
        return self._waker.dup()

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler."""
        self._stopping = True
        try:
            self._waker.send(b"\0")
        except OSError:
            pass

    def _accept(self, listener: socket.socket, methods: Mapping[str, Method]) -> None:
        try:
            peer, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as problem:
            if problem.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED):
                raise
            LOG.error("a connection cannot be accepted: %s", problem)
            time.sleep(0.1)  # the connection stays ready to be accepted
            return
        peer.setblocking(True)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        connection = Connection(peer, methods, self._pool, self.memory, self.counters)
        if self.counters is not None:
            self.counters.connection()
        thread = threading.Thread(target=self._attend, args=(connection,), name="connection", daemon=True)
        with self._lock:
            self._connections.add(connection)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as problem:  # the system has no more threads
            LOG.error("a connection cannot be accepted: %s", problem)
            with self._lock:
                self._connections.discard(connection)
                self._threads.discard(thread)
            peer.close()

    def _attend(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._threads.discard(threading.current_thread())
                last = not self._connections
            if last and self._once:
                self.stop()

    def _leave(self, grace: float) -> None:
        with self._lock:
            connections = tuple(self._connections)
            threads = tuple(self._threads)
        for connection in connections:
            connection.leave()
        end = time.monotonic() + grace
        while any(connection.busy for connection in connections) and time.monotonic() < end:
            time.sleep(0.01)
        # In threads: a client that does not read blocks neither the others nor the end.
        goodbyes = []
        for connection in connections:
            goodbye = threading.Thread(target=connection.cancel, daemon=True)
            try:
                goodbye.start()
            except RuntimeError as problem:  # the system has no more threads; closing ends its calls all the same
                LOG.error("calls end without a status: %s", problem)
                continue
            goodbyes.append(goodbye)
        _join(goodbyes)
        for connection in connections:
            connection.close()
        _join(threads)
        self._pool.wait(_END)


def _join(threads: Iterable[threading.Thread]) -> None:
    end = time.monotonic() + _END
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))


@contextmanager
def listening(address: str | os.PathLike[str], mode: int = MODE) -> Iterator[socket.socket]:
    """Listen on a unix socket at ``address`` while the block lasts; a socket without a server is replaced.

    Raises Conflict (a server answers there, or the path is no socket), InvalidInput, Denied.
    """
    path = Path(os.path.abspath(address))
    if len(os.fsencode(path)) > _LONGEST:
        raise InvalidInput(f"the address {str(path)!r} is longer than {_LONGEST} bytes", hint="name a shorter path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise from_os(problem, f"listen at {str(path)!r}") from problem
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        ours = _bind(listener, path, directory, mode)
        try:
            yield listener
        finally:
            _remove(path, ours)


def _bind(listener: socket.socket, path: Path, directory: int, mode: int) -> os.stat_result:
    """Bind ``listener`` to ``path`` in the open ``directory``, and close the directory."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # one process at a time probes and replaces
        _clear(path)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        return os.stat(path, follow_symlinks=False)
    except OSError as problem:
        raise from_os(problem, f"listen at {str(path)!r}") from problem
    finally:
        os.close(directory)


def _clear(path: Path) -> None:
    """Remove a socket without a server. Raises Conflict."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Conflict(f"{str(path)!r} exists and is not a socket", hint="name another address, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except (BlockingIOError, TimeoutError):  # a busy server
            pass
    raise Conflict(f"a server already answers at {str(path)!r}", hint="stop it, or name another address")


def _remove(path: Path, ours: os.stat_result) -> None:
    try:
        if os.path.samestat(os.stat(path, follow_symlinks=False), ours):
            path.unlink()
    except OSError:
        pass
