# SPDX-License-Identifier: Apache-2.0
"""What a server counts, and how Prometheus gets to know."""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from tests.unit.service.serving import Client, code_of, running, within

from lamella.errors import InvalidInput
from lamella.protocol.proto import content_pb2
from lamella.service.endpoints.direct import direct_methods
from lamella.service.grpc.counters import Counters
from lamella.service.grpc.server import Server
from lamella.service.metrics import exposition, serving_metrics
from lamella.service.services.served_store import ServedStore
from lamella.store.store import Store

LINE = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+')


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Server, Store, Client]]:
    """Return a server that counts, its store and a client."""
    with Store.open(tmp_path / "root") as store:
        shared = ServedStore(store)
        with running(tmp_path / "socket", direct_methods(shared), counters=Counters()) as server:
            client = Client(tmp_path / "socket")
            yield server, store, client
            client.close()
        shared.close()


def samples(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            assert LINE.fullmatch(line), line
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def settled(server: Server, store: Store, name: str, wanted: float) -> dict[str, float]:
    """The samples, once the one with this name has come to be what it is to be: a call is counted as it ends."""
    end = time.monotonic() + 10
    while (found := samples(exposition(server, store))).get(name) != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.01)
    return found


def test_calls_are_counted_by_method_and_code(served: tuple[Server, Store, Client]) -> None:
    server, store, client = served
    for _ in range(3):
        client.version.Version(Empty())
    code_of(lambda: client.content.Info(content_pb2.InfoRequest(digest="x"), metadata=within()))
    version = 'service="containerd.services.version.v1.Version",method="Version"'
    info = 'service="containerd.services.content.v1.Content",method="Info"'
    found = settled(server, store, f'lamella_calls_total{{{version},code="OK"}}', 3)
    assert found[f'lamella_calls_total{{{info},code="INVALID_ARGUMENT"}}'] == 1
    assert found[f"lamella_call_seconds_count{{{version}}}"] == 3
    assert found[f'lamella_call_seconds_bucket{{{version},le="+Inf"}}'] == 3
    assert 0 < found[f"lamella_call_seconds_sum{{{version}}}"] < 10
    assert (found["lamella_connections"], found["lamella_connections_total"], found["lamella_calls"]) == (1, 1, 0)
    assert found["lamella_sent_bytes_total"] > 0 < found["lamella_received_bytes_total"]


def test_a_call_that_its_client_breaks_off_is_counted_too(served: tuple[Server, Store, Client]) -> None:
    server, store, client = served
    request = content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="r", data=b"abc")
    call = client.content.Write(iter([request]), metadata=within())
    next(call)
    call.cancel()
    method = 'service="containerd.services.content.v1.Content",method="Write"'
    settled(server, store, "lamella_calls", 0)
    found = samples(exposition(server, store))
    assert sum(value for name, value in found.items() if name.startswith(f"lamella_calls_total{{{method}")) == 1


def test_objects_of_the_store_are_counted(served: tuple[Server, Store, Client]) -> None:
    server, store, _ = served
    for namespace in ("one", "two"):
        with store.namespace(namespace).content.ingest("r") as ingest:
            ingest.write(b"same bytes")
            ingest.commit()
    with store.namespace("one").content.ingest("left"):
        pass
    found = samples(exposition(server, store))
    assert found['lamella_store_objects{kind="blobs"}'] == 1
    assert found['lamella_store_objects{kind="ingests"}'] == 1
    assert found["lamella_store_blob_bytes"] == 10
    assert found["process_resident_memory_bytes"] > 1 << 20


def test_they_are_fetched_over_http_on_the_loopback_interface(served: tuple[Server, Store, Client]) -> None:
    server, store, client = served
    client.version.Version(Empty())
    with serving_metrics("0", server, store) as address:
        assert address.startswith("http://127.0.0.1:")
        port = int(address.removesuffix("/metrics").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert samples(answer.read().decode())["lamella_connections"] == 1
        for method, path, status in (("GET", "/", 404), ("POST", "/metrics", 501)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path)
            assert connection.getresponse().status == status
            connection.close()


def test_they_are_fetched_from_a_unix_socket(served: tuple[Server, Store, Client], tmp_path: Path) -> None:
    server, store, _ = served
    with serving_metrics(str(tmp_path / "metrics"), server, store) as address:
        assert address == str(tmp_path / "metrics")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(address)
            peer.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with peer.makefile("rb") as answer:
                assert b"lamella_calls 0" in answer.read()
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize("place", ["", "x", "127.0.0.1", "1.2.3.4:70000", "[::1]"])
def test_a_malformed_place_is_refused(served: tuple[Server, Store, Client], place: str) -> None:
    server, store, _ = served
    with pytest.raises(InvalidInput, match="invalid address for metrics"), serving_metrics(place, server, store):
        pass
