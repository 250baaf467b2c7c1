# SPDX-License-Identifier: Apache-2.0
"""Redirects, locations and names that lead to forbidden places."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from msgspec.structs import replace
from tests.registry.hostile import Registry
from tests.registry.misbehaviour import redirect, say, with_headers
from tests.registry.wire import Answer
from tests.security.registry.pulling import (
    BLOBS,
    IMAGE,
    MANIFESTS,
    MOST,
    OPTIONS,
    UPLOADS,
    name_in,
    pull,
    push,
    refuse_to_pull,
)

from lamella.digests import Digest
from lamella.errors import Denied, InvalidInput, LamellaError, NotFound, Unavailable
from lamella.images.transports import open_reader, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.registry.client import Client

LINK_LOCAL = [
    "http://169.254.169.254/latest/meta-data",
    "http://[fe80::1]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://[fd00:ec2::254]/x",
]


class TestForbiddenPlaces:
    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    @pytest.mark.parametrize("url", [*LINK_LOCAL, "http://0.0.0.0/x"])
    def test_addresses_of_the_machines_own_services_are_refused(
        self, registry: Registry, tmp_path: Path, connected: list[Any], url: str, path: str
    ) -> None:
        registry.misbehave("GET", path, redirect(url))
        refuse_to_pull(registry, tmp_path, Denied)
        assert set(connected) == {"127.0.0.1"}

    @pytest.mark.parametrize("url", LINK_LOCAL)
    def test_own_services_are_not_asked_for_tokens_uploads_and_foreign_layers(
        self, registry: Registry, tmp_path: Path, connected: list[Any], url: str
    ) -> None:
        registry.misbehave("POST", UPLOADS, say(Answer(202, {"Location": url})))
        with pytest.raises(LamellaError):
            push(registry, tmp_path)
        registry.challenge = f'Bearer realm="{url}",service="x"'
        refuse_to_pull(registry, tmp_path, Denied)
        foreign = Descriptor(
            media_type="application/vnd.docker.image.rootfs.foreign.diff.tar",
            digest=Digest.of(b"x"),
            size=1,
            urls=[url],
        )
        registry.challenge = None
        options = replace(OPTIONS, foreign_urls=True)
        with (
            open_reader(parse_image_name(name_in(registry)), registry=options) as reader,
            pytest.raises((Denied, NotFound)),
        ):
            reader.open_layer(foreign)
        assert set(connected) == {"127.0.0.1"}

    def test_a_name_with_a_loopback_address_is_refused_before_a_request_is_sent(
        self, names: dict[str, str], tmp_path: Path, other: Registry
    ) -> None:
        names.update({"registry.example": "127.0.0.1", "inner.example": "127.0.0.1"})
        options = replace(OPTIONS, plain_http=True, credential=None)
        with Registry(name="registry.example") as outer:
            outer.add("team/app", "v1", IMAGE)
            assert pull(outer, tmp_path / "twin", options) == IMAGE.descriptor["digest"]
            port = other.host.rpartition(":")[2]
            outer.misbehave("GET", BLOBS, redirect(f"http://inner.example:{port}" + "{path}"))
            refuse_to_pull(outer, tmp_path, Denied, options=options)
        assert other.requests == []

    @pytest.mark.parametrize("later", ["169.254.169.254", "fd00:ec2::254", "127.0.0.1", "0.0.0.0"])
    def test_a_host_that_has_answered_cannot_move_to_services_of_the_machine(
        self, names: dict[str, str], monkeypatch: pytest.MonkeyPatch, later: str
    ) -> None:
        names["registry.example"] = "127.0.0.1"
        peers = iter(["203.0.113.7", "203.0.113.8", later])
        monkeypatch.setattr(socket.socket, "getpeername", lambda _: (next(peers), 443))
        with Registry(name="registry.example") as server:
            server.add("team/app", "v1", IMAGE)
            server.misbehave("GET", "", with_headers(Connection="close"))
            client = Client(server.host, "team/app", replace(OPTIONS, plain_http=True, credential=None, anonymous=True))
            for _ in range(2):  # a host may have several addresses
                client.manifest("v1")
            with pytest.raises(Denied, match=f"refused to connect to {later}"):
                client.manifest("v1")
            client.close()
        assert len(server.requests) == 2

    def test_a_host_that_the_user_named_may_be_anywhere(
        self, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names["registry.example"] = "127.0.0.1"
        peers = iter(["169.254.7.7", "169.254.7.8"])
        monkeypatch.setattr(socket.socket, "getpeername", lambda _: (next(peers), 443))
        with Registry(name="registry.example") as server:
            server.add("team/app", "v1", IMAGE)
            server.misbehave("GET", "", with_headers(Connection="close"))
            client = Client(server.host, "team/app", replace(OPTIONS, plain_http=True, credential=None, anonymous=True))
            for _ in range(2):
                client.manifest("v1")
            client.close()
        assert len(server.requests) == 2

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_a_redirect_from_tls_to_plain_http_is_refused(
        self, secure: Registry, other: Registry, tmp_path: Path, path: str
    ) -> None:
        secure.misbehave("GET", path, redirect(other.url + "{path}"))
        refuse_to_pull(secure, tmp_path, Denied)
        assert other.requests == []

    def test_an_upload_location_without_tls_is_refused(self, secure: Registry, other: Registry, tmp_path: Path) -> None:
        where = f"http://localhost:{other.host.rpartition(':')[2]}/v2/team/new/blobs/uploads/session-x"
        secure.misbehave("POST", UPLOADS, say(Answer(202, {"Location": where})))
        with pytest.raises(Denied):
            push(secure, tmp_path)
        assert other.requests == []

    def test_a_redirect_to_another_host_with_tls_is_followed(
        self, secure: Registry, tls: ssl.SSLContext, tmp_path: Path
    ) -> None:
        with Registry(tls=tls) as storage:
            storage.add("team/app", "v1", IMAGE)
            secure.misbehave("GET", BLOBS, redirect(storage.url + "{path}"))
            assert pull(secure, tmp_path) == IMAGE.descriptor["digest"]
            assert storage.credentials_seen() == []

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_certificates_of_other_hosts_are_verified_where_those_of_the_registry_are_not(
        self, tls: ssl.SSLContext, settings: Path, tmp_path: Path, path: str
    ) -> None:
        with Registry(tls=tls) as server, Registry(tls=tls, name="localhost") as storage:
            write_settings(settings, server, "skip_verify = true")
            for one in (server, storage):
                one.add("team/app", "v1", IMAGE)
            assert pull(server, tmp_path / "twin") == IMAGE.descriptor["digest"]
            server.misbehave("GET", path, redirect(storage.url + "{path}"))
            refused = refuse_to_pull(server, tmp_path, Unavailable)
            assert "the certificate cannot be verified" in str(refused)
        assert storage.requests == []

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_a_client_certificate_is_offered_to_its_host_alone(
        self, authority: trustme.CA, settings: Path, tmp_path: Path, path: str
    ) -> None:
        strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(strict)
        authority.configure_trust(strict)
        strict.verify_mode = ssl.CERT_REQUIRED
        with Registry(tls=strict) as server, Registry(tls=strict, name="localhost") as storage:
            write_settings(settings, server, 'ca = "ca.pem"\nclient = "client.pem"')
            authority.cert_pem.write_to_path(str(settings / server.host / "ca.pem"))
            certificate = authority.issue_cert("client.example").private_key_and_cert_chain_pem
            certificate.write_to_path(str(settings / server.host / "client.pem"))
            for one in (server, storage):
                one.add("team/app", "v1", IMAGE)
            assert pull(server, tmp_path / "twin") == IMAGE.descriptor["digest"]
            server.misbehave("GET", path, redirect(storage.url + "{path}"))
            refuse_to_pull(server, tmp_path, Unavailable, options=replace(OPTIONS, tries=1))
        assert storage.requests == []

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd",
            "ftp://x.example/x",
            "gopher://x",
            "http://ada:pw@x.example/",
            "http://",
            "//",
            "http://[::1",
            "\\\\x\\y",
        ],
    )
    def test_redirects_to_other_protocols_are_refused(
        self, registry: Registry, tmp_path: Path, connected: list[Any], url: str
    ) -> None:
        registry.misbehave("GET", BLOBS, redirect(url))
        refuse_to_pull(registry, tmp_path, Denied, InvalidInput, NotFound, Unavailable)
        assert set(connected) == {"127.0.0.1"}
        assert len(registry.asked("GET", BLOBS)) <= MOST

    def test_redirects_in_a_circle_are_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, redirect("{path}"))
        refuse_to_pull(registry, tmp_path, Denied)
        assert len(registry.asked("GET", BLOBS)) <= 7


def write_settings(settings: Path, server: Registry, text: str) -> None:
    """Write a hosts.toml for a registry with TLS."""
    (settings / server.host).mkdir(parents=True)
    (settings / server.host / "hosts.toml").write_text(f'server = "{server.url}"\n{text}\n')
