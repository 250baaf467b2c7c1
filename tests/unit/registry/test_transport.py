# SPDX-License-Identifier: Apache-2.0
"""HTTP as it is spoken to registries: by proxies, with settings, and with headers that mean one thing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.registry.hostile import Registry
from tests.registry.misbehaviour import say
from tests.registry.wire import Answer, Request, head

from lamella.errors import InvalidInput, LamellaError, Unavailable
from lamella.images.options import RegistryOptions
from lamella.registry.client import Client
from lamella.registry.hosts import HostConfig
from lamella.registry.transport import Transport
from lamella.testing.images import compact, small_image

IMAGE = small_image({"a": b"b"})
RAW = compact(IMAGE.manifest)
ONCE = RegistryOptions(tries=1, read_timeout=3)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        server.add("a", "v1", IMAGE)
        yield server


@pytest.mark.parametrize("sign_in", ["", "ada:secret@"])
def test_a_proxy_is_asked_for_other_machines(registry: Registry, monkeypatch: pytest.MonkeyPatch, sign_in: str) -> None:
    def forward(request: Request, serve: object) -> Answer:
        return Answer(200, {"Content-Type": IMAGE.manifest["mediaType"]}, RAW)

    registry.misbehave("GET", "", forward)
    monkeypatch.setenv("HTTP_PROXY", f"http://{sign_in}{registry.host}")
    client = Client("registry.invalid:5000", "a", RegistryOptions(plain_http=True, tries=1))
    assert client.manifest("v1")[1] == RAW
    (request,) = registry.requests
    assert request.headers["Host"] == "registry.invalid:5000"
    assert ("proxy-authorization" in map(str.lower, request.headers)) == bool(sign_in)
    client.close()


def test_a_proxy_that_is_down_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://ada:secret@127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        Client("registry.invalid", "a", ONCE).manifest("v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("lengths", [["5", "6"], ["5, 6"], ["+5"], ["0x5"], [" "], ["9" * 30]])
def test_a_length_that_could_be_read_in_two_ways_is_refused(registry: Registry, lengths: list[str]) -> None:
    start = head(200, {"Content-Type": IMAGE.manifest["mediaType"]}).removesuffix(b"\r\n")
    lines = "".join(f"Content-Length: {length}\r\n" for length in lengths).encode()
    registry.misbehave("GET", "/manifests/", say(Answer(200, raw=start + lines + b"\r\n" + RAW)))
    client = Client(registry.host, "a", ONCE)
    with pytest.raises(InvalidInput, match="malformed Content-Length"):
        client.manifest("v1")
    client.close()


def test_the_same_length_twice_is_one(registry: Registry) -> None:
    start = head(200, {"Content-Type": IMAGE.manifest["mediaType"]}).removesuffix(b"\r\n")
    line = f"Content-Length: {len(RAW)}\r\n".encode()
    registry.misbehave("GET", "/manifests/", say(Answer(200, raw=start + line + line + b"\r\n" + RAW)))
    client = Client(registry.host, "a", ONCE)
    assert client.manifest("v1")[1] == RAW
    client.close()


def test_headers_of_the_settings_are_sent_to_the_host(registry: Registry) -> None:
    host = HostConfig("http", registry.host, headers=(("X-Extra", "1"),))
    transport = Transport(host, ONCE, environ={})
    transport.send("GET", f"{host.url}/", headers={}).drop()
    transport.close()
    assert registry.requests[0].headers["X-Extra"] == "1"


def test_a_large_body_is_sent_whole(registry: Registry) -> None:
    seen: list[bytes] = []

    def take(request: Request, serve: object) -> Answer:
        seen.append(request.body())
        return Answer(200)

    registry.misbehave("PUT", "", take)
    transport = Transport(HostConfig("http", registry.host), ONCE, environ={})
    body = bytes(range(256)) * 5000
    transport.send("PUT", f"{registry.url}/x", headers={}, body=memoryview(body)).drop()
    transport.send("PUT", f"{registry.url}/x", headers={}, body=b"").drop()
    transport.close()
    assert seen == [body, b""]


def test_connections_are_used_again(registry: Registry) -> None:
    transport = Transport(HostConfig("http", registry.host), ONCE, environ={})
    for _ in range(3):
        assert transport.send("GET", f"{registry.url}/v2/a/manifests/v1", headers={}).document() == RAW
    (pool,) = [manager.connection_from_url(registry.url) for manager in transport._managers.values()]
    assert (pool.num_connections, pool.num_requests) == (1, 3)
    transport.close()


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(LamellaError, match=r"missing\.pem"):
        Transport(HostConfig("https", "registry.invalid", ca=(missing,)), ONCE, environ={}).send(
            "GET", "https://registry.invalid/", headers={}
        )
