# SPDX-License-Identifier: Apache-2.0
"""Credentials are sent to the registry and its token server only."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.registry import hostile
from tests.registry.hostile import PASSWORD, TOKEN, USER, Registry, error
from tests.registry.misbehaviour import cut_body, redirect, say, with_headers
from tests.registry.wire import Answer, Request
from tests.security.registry.pulling import (
    BLOBS,
    IMAGE,
    LAYER,
    MANIFESTS,
    OPTIONS,
    UPLOADS,
    keep_quiet,
    name_in,
    pull,
    push,
    refuse_to_pull,
)

from lamella.digests import parse_digest
from lamella.errors import Denied, LamellaError, NotFound, Unavailable, Unsupported
from lamella.images.transports import open_reader, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.registry.client import Client
from lamella.testing.images import compact


class TestTwins:
    """The legitimate twins of the attacks."""

    def test_the_image_is_pulled(self, registry: Registry, tmp_path: Path) -> None:
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert registry.asked("GET", "/token") != []

    def test_the_image_is_pushed(self, registry: Registry, tmp_path: Path) -> None:
        assert push(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert compact(IMAGE.manifest) == registry.manifests["team/new", "v1"][1]
        assert registry.repositories["team/new"] >= set(IMAGE.blobs) - {IMAGE.descriptor["digest"]}

    def test_tls_trusts_only_the_configured_authority(self, secure: Registry, tmp_path: Path, settings: Path) -> None:
        assert pull(secure, tmp_path) == IMAGE.descriptor["digest"]
        before = len(secure.requests)
        (settings / secure.host / "ca.crt").unlink()
        (settings / secure.host / "hosts.toml").write_text(f'server = "{secure.url}"')
        refused = refuse_to_pull(secure, tmp_path / "again", Unavailable)
        assert "certificate" in str(refused)
        assert len(secure.requests) == before

    def test_basic_authentication_works(self, tmp_path: Path) -> None:
        with Registry(auth="basic") as server:
            server.add("team/app", "v1", IMAGE)
            assert pull(server, tmp_path) == IMAGE.descriptor["digest"]


class TestCredentialsStay:
    def test_blobs_on_another_host_are_fetched_without_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        registry.misbehave("GET", BLOBS, redirect(other.url + "{path}?signature=x"))
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert other.asked("GET", BLOBS) != []
        assert other.credentials_seen() == []

    def test_a_continued_blob_on_another_host_is_fetched_without_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        registry.misbehave("GET", BLOBS, redirect(other.url + "{path}"))
        other.misbehave("GET", BLOBS, cut_body(200_000), times=1)
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert len(other.asked("GET", BLOBS)) == 2
        assert other.credentials_seen() == []

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_another_name_of_the_same_machine_is_another_host(
        self, registry: Registry, tmp_path: Path, path: str
    ) -> None:
        with Registry(name="localhost") as elsewhere:
            elsewhere.add("team/app", "v1", IMAGE)
            registry.misbehave("GET", path, redirect(elsewhere.url + "{path}"))
            assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
            assert elsewhere.asked("GET", path) != []
            assert elsewhere.credentials_seen() == []

    @pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
    def test_the_challenge_of_another_host_gets_no_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path, scheme: str
    ) -> None:
        registry.misbehave("GET", BLOBS, redirect(other.url + "{path}"))
        wanted = f'{scheme} realm="{other.url if scheme == "Bearer" else "x"}/token",service="tests"'
        other.misbehave(".*", BLOBS, say(Answer(401, {"WWW-Authenticate": wanted})))
        refuse_to_pull(registry, tmp_path, Denied)
        assert other.credentials_seen() == []
        assert other.asked(path="/token") == []

    def test_headers_of_a_host_are_not_sent_to_others(
        self, registry: Registry, other: Registry, tmp_path: Path, settings: Path
    ) -> None:
        (settings / registry.host).mkdir(parents=True)
        (settings / registry.host / "hosts.toml").write_text('header = {x-key = "for the registry alone"}')
        registry.misbehave("GET", BLOBS, redirect(other.url + "{path}"))
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert "x-key" in {name.lower() for name in registry.asked("GET", MANIFESTS)[0].headers}
        assert "x-key" not in {name.lower() for one in other.requests for name in one.headers}

    def test_cookies_are_not_stored(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave(".*", "", with_headers(Set_Cookie="session=x; Path=/"))
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert [one for one in registry.requests if "cookie" in map(str.lower, one.headers)] == []

    def test_a_mirror_gets_no_credentials_of_the_registry(
        self, registry: Registry, tmp_path: Path, settings: Path
    ) -> None:
        with Registry(auth="basic") as mirror:
            (settings / registry.host).mkdir(parents=True)
            (settings / registry.host / "hosts.toml").write_text(
                f'[host."{mirror.url}"]\ncapabilities = ["pull", "resolve"]'
            )
            assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
            assert mirror.asked("GET", MANIFESTS) != []
            assert mirror.credentials_seen() == []

    def test_a_realm_without_tls_on_another_host_gets_no_credentials(
        self, registry: Registry, tmp_path: Path, names: dict[str, str]
    ) -> None:
        with Registry() as thief:
            names["thief.example"] = "127.0.0.1"
            port = thief.host.rpartition(":")[2]
            registry.challenge = f'Bearer realm="http://thief.example:{port}/token",service="tests"'
            refuse_to_pull(registry, tmp_path, Denied)
            assert thief.requests == []

    def test_a_realm_without_tls_is_refused_for_a_registry_with_tls(
        self, secure: Registry, other: Registry, tmp_path: Path
    ) -> None:
        secure.challenge = f'Bearer realm="{other.url}/token",service="tests"'
        refuse_to_pull(secure, tmp_path, Denied)
        assert other.requests == []

    def test_a_realm_with_tls_on_another_host_gives_tokens(
        self, secure: Registry, tls: ssl.SSLContext, tmp_path: Path
    ) -> None:
        with Registry(tls=tls) as service:
            secure.challenge = f'Bearer realm="{service.url}/token?kind=pull",service="tests"'
            assert pull(secure, tmp_path) == IMAGE.descriptor["digest"]
            (asked, *_) = service.asked(path="/token")
            assert (asked.query["kind"], asked.query["service"]) == ("pull", "tests")
            assert asked.query["scope"] == "repository:team/app:pull"
            assert TOKEN not in " ".join(service.credentials_seen())

    def test_a_redirect_of_a_token_server_gets_no_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        registry.misbehave(".*", "/token", redirect(other.url + "/token"))
        other.misbehave(".*", "/token", say(error(401, "UNAUTHORIZED")))
        refuse_to_pull(registry, tmp_path, Denied)
        assert other.credentials_seen() == []

    def test_an_upload_on_another_host_has_no_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        where = f"{other.url}/v2/team/new/blobs/uploads/session-x"
        registry.misbehave("POST", UPLOADS, say(Answer(202, {"Location": where, "Range": "0-0"})))
        with pytest.raises(LamellaError) as caught:
            push(registry, tmp_path)
        keep_quiet(caught.value)
        assert other.asked("PUT|PATCH", UPLOADS) != []
        assert other.credentials_seen() == []

    def test_a_storage_host_takes_uploads_without_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        def elsewhere(request: Request, serve: hostile.Serve) -> Answer:
            answer = serve()
            session = answer.headers["Location"].rpartition("/")[2]
            other.uploads[session] = bytearray()
            registry.repositories["team/new"] = other.repositories.setdefault("team/new", set())
            registry.blobs = other.blobs
            return replace(answer, headers={**answer.headers, "Location": other.url + answer.headers["Location"]})

        registry.misbehave("POST", UPLOADS, elsewhere)
        assert push(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert other.credentials_seen() == []

    def test_next_pages_on_another_host_are_refused(self, registry: Registry, other: Registry) -> None:
        registry.misbehave("GET", "/tags/list", with_headers(Link=f'<{other.url}/v2/team/app/tags/list>; rel="next"'))
        with pytest.raises(Denied):
            list(Client(registry.host, "team/app", OPTIONS).tags())
        assert other.requests == []

    @pytest.mark.parametrize("allowed", [False, True])
    def test_foreign_layers_need_the_option_and_get_no_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path, allowed: bool
    ) -> None:
        foreign = {
            **IMAGE.manifest["layers"][1],
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "urls": [f"{other.url}/v2/team/app/blobs/{LAYER}"],
        }
        raw = compact({**IMAGE.manifest, "layers": [IMAGE.manifest["layers"][0], foreign]})
        registry.add_manifest("team/app", "foreign", IMAGE.manifest["mediaType"], raw)
        registry.repositories["team/app"].discard(LAYER)
        options = replace(OPTIONS, foreign_urls=allowed)
        descriptor = Descriptor(
            media_type=foreign["mediaType"], digest=parse_digest(LAYER), size=foreign["size"], urls=foreign["urls"]
        )
        name = parse_image_name(name_in(registry, ":foreign"))
        with open_reader(name, registry=options) as reader:
            if allowed:
                with reader.open_layer(descriptor) as file:
                    assert file.read() == IMAGE.blobs[LAYER]
            else:
                with pytest.raises((NotFound, Unsupported)):
                    reader.open_layer(descriptor)
        assert bool(other.requests) is allowed
        assert other.credentials_seen() == []

    @pytest.mark.parametrize("wanted", [False, True])
    def test_a_keychain_is_asked_only_for_a_registry_that_needs_a_login(
        self, registry: Registry, other: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
    ) -> None:
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker/config.json").write_text('{"credsStore": "chain"}')
        program = tmp_path / "docker-credential-chain"
        program.write_text(
            f"#!/bin/sh\ncat >> {tmp_path}/asked\n"
            f"""echo '{{"ServerURL": "", "Username": "{USER}", "Secret": "{PASSWORD}"}}'\n"""
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        server = registry if wanted else other
        assert pull(server, tmp_path, replace(OPTIONS, credential=None)) == IMAGE.descriptor["digest"]
        asked = tmp_path / "asked"
        assert (asked.read_text() if asked.exists() else "") == (registry.host if wanted else "")
