# SPDX-License-Identifier: Apache-2.0
"""Registries on loopback, each with the image of the tests."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.registry.hostile import Registry
from tests.registry.isolation import isolate
from tests.security.registry.pulling import IMAGE, trust


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for hosts.toml; settings and logins of the user are not used."""
    return isolate(monkeypatch, tmp_path)


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry with bearer tokens that has the image."""
    with Registry(auth="bearer") as server:
        server.add("team/app", "v1", IMAGE)
        yield server


@pytest.fixture
def other() -> Iterator[Registry]:
    """Another host, which has the image and needs no login."""
    with Registry() as server:
        server.add("team/app", "v1", IMAGE)
        yield server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture
def secure(tls: ssl.SSLContext, authority: trustme.CA, settings: Path) -> Iterator[Registry]:
    """A registry with trusted TLS."""
    with Registry(tls=tls, auth="bearer") as server:
        trust(server, authority, settings)
        server.add("team/app", "v1", IMAGE)
        yield server


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses of all attempted connections."""
    made: list[Any] = []
    connect = socket.socket.connect

    def note(self: socket.socket, address: Any) -> None:
        made.append(address[0] if isinstance(address, tuple) else address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    return made


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A table of host names and addresses that the resolver uses."""
    table: dict[str, str] = {}
    ask = socket.getaddrinfo

    def answer(host: Any, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return ask(table.get(name, name), *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return table
