# SPDX-License-Identifier: Apache-2.0
"""Metrics of the server and the store, in Prometheus' text format (version 0.0.4), over HTTP."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lamella import __version__
from lamella.errors import InvalidInput, from_os
from lamella.service.grpc.counters import BOUNDS, Counters
from lamella.service.grpc.server import listening
from lamella.store.gc.usage import store_counts

if TYPE_CHECKING:
    from lamella.service.grpc.server import Server
    from lamella.store.store import Store

PATH: Final = "/metrics"
LOOPBACK: Final = "127.0.0.1"

_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE: Final = 10.0
"""Seconds to wait for a request."""

_STARTED: Final = time.time()

Samples = Iterable[tuple[str, dict[str, str], float]]


@contextmanager
def serving_metrics(place: str | socket.socket, server: Server, store: Store | None) -> Iterator[str]:
    """Serve metrics of ``server`` and ``store`` at ``place`` while the block lasts; gives the address.

    ``place`` is ``[HOST:]PORT``, by default on the loopback interface, the path of a unix socket, or a listening
    socket. Raises InvalidInput, and as `listening`.
    """
    with ExitStack() as stack:
        if isinstance(place, socket.socket):
            listener = stack.enter_context(place)
        elif "/" in place:
            listener = stack.enter_context(listening(place))
        else:
            listener = stack.enter_context(_on_network(place))
        http = _Http(listener, lambda: exposition(server, store))
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
        thread.start()
        try:
            yield _address_of(listener)
        finally:
            http.shutdown()
            thread.join()


def exposition(server: Server, store: Store | None) -> str:
    """All metrics, as text."""
    lines: list[str] = []

    def add(name: str, kind: str, what: str, samples: Samples) -> None:
        lines.append(f"# HELP {name} {what}")
        lines.append(f"# TYPE {name} {kind}")
        for suffix, labels, value in samples:
            pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{name}{suffix}{{{pairs}}} {value:.15g}" if pairs else f"{name}{suffix} {value:.15g}")

    def one(name: str, kind: str, what: str, value: float) -> None:
        add(name, kind, what, [("", {}, value)])

    add("lamella_build_info", "gauge", "The version that serves.", [("", {"version": __version__}, 1)])
    counters = server.counters
    if counters is not None:
        ended = [("", {**_method(path), "code": code.name}, count) for path, code, count in counters.calls()]
        add("lamella_calls_total", "counter", "Calls that have ended.", ended)
        add("lamella_call_seconds", "histogram", "How long calls took.", _durations(counters))
        one("lamella_sent_bytes_total", "counter", "Bytes sent to clients.", counters.sent)
        one("lamella_received_bytes_total", "counter", "Bytes received from clients.", counters.received)
        one("lamella_connections_total", "counter", "Connections accepted.", counters.connections)
    one("lamella_connections", "gauge", "Open connections.", server.connections)
    one("lamella_calls", "gauge", "Calls under way.", server.calls)
    if store is not None:
        counts = store_counts(store)
        objects = [("", {"kind": kind}, count) for kind, count in counts.objects.items()]
        add("lamella_store_objects", "gauge", "Objects in the store, of all namespaces.", objects)
        one("lamella_store_blob_bytes", "gauge", "Bytes of the blobs in the store.", counts.blob_bytes)
    one("process_start_time_seconds", "gauge", "When the process started, since the Unix epoch.", _STARTED)
    one("process_cpu_seconds_total", "counter", "Processor time of the process.", sum(os.times()[:2]))
    one("process_resident_memory_bytes", "gauge", "Memory of the process.", _resident())
    one("process_open_fds", "gauge", "File descriptors that are open.", _open_files())
    return "\n".join(lines) + "\n"


def _durations(counters: Counters) -> Samples:
    for path, counts, total in counters.durations():
        labels = _method(path)
        below = 0
        for bound, count in zip((*BOUNDS, None), counts, strict=True):
            below += count
            yield "_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound:g}"}, below
        yield "_sum", labels, total
        yield "_count", labels, below


def _method(path: str) -> dict[str, str]:
    service, _, method = path[1:].rpartition("/")
    return {"service": service, "method": method}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def _on_network(place: str) -> socket.socket:
    match = re.fullmatch(r"(?:(?P<host>[^:\[\]]*|\[[0-9A-Fa-f:.]+\]):)?(?P<port>[0-9]{1,5})", place)
    if match is None or int(match["port"]) > 0xFFFF:
        raise InvalidInput(f"invalid address for metrics: {place!r}", hint="write [HOST:]PORT, or the path of a socket")
    host = (match["host"] or LOOPBACK).strip("[]")
    try:
        return socket.create_server(
            (host, int(match["port"])), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as problem:
        raise from_os(problem, f"listen at {place!r}") from problem


def _address_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return str(name)
    host, port = name[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


class _Http(ThreadingHTTPServer):
    """Answers each request with a new text."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, text: Callable[[], str]) -> None:
        super().__init__(("", 0), _Request, bind_and_activate=False)
        listener.setblocking(False)  # a connection may be gone, or accepted by another process, before `accept`
        self.socket.close()
        self.socket = listener
        self.text = text

    def get_request(self) -> tuple[socket.socket, Any]:
        peer, address = self.socket.accept()
        peer.settimeout(_PATIENCE)
        return peer, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that go."""


class _Request(BaseHTTPRequestHandler):
    server: _Http
    timeout = _PATIENCE

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(404)
            return
        body = self.server.text().encode()
        self.send_response(200)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return f"lamella/{__version__}"

    def address_string(self) -> str:
        return ""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests for metrics are not logged."""
