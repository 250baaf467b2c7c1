# SPDX-License-Identifier: Apache-2.0
"""A registry that lies, stalls, leads elsewhere or never ends: bytes are checked, secrets stay, work is bounded.

Each attack has a twin that real registries do, and that must work.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.registry import hostile
from tests.registry.hostile import PASSWORD, SECRETS, TOKEN, USER, Registry, error
from tests.registry.misbehaviour import (
    cut_body,
    cut_upload,
    drip,
    endless,
    lose_upload,
    lying_chunks,
    redirect,
    reset,
    say,
    short_body,
    with_body,
    with_headers,
)
from tests.registry.wire import Answer, Request

from lamella.cli.main import run
from lamella.digests import Digest, parse_digest
from lamella.errors import (
    Conflict,
    Denied,
    DigestMismatch,
    Exhausted,
    Integrity,
    InvalidInput,
    LamellaError,
    NotFound,
    SizeMismatch,
    Unavailable,
    Unsupported,
)
from lamella.images.forms import open_reader, open_writer
from lamella.images.naming import parse_image_name
from lamella.images.options import RegistryOptions
from lamella.oci.descriptor import Descriptor
from lamella.operations.copy import copy_image
from lamella.registry import listing
from lamella.registry.client import Client
from lamella.registry.credentials import Credential
from lamella.testing.images import SmallImage, compact, digest, small_image

NOISE = random.Random(7).randbytes(600_000)
IMAGE = small_image({"etc/name": b"lamella"}, {"noise": NOISE}, compress=False)
LAYER = IMAGE.manifest["layers"][1]["digest"]
MANIFESTS, BLOBS, UPLOADS = "/manifests/", f"/blobs/{LAYER}", "/blobs/uploads/"

OPTIONS = RegistryOptions(
    credential=Credential(USER, PASSWORD),
    tries=3,
    retry_wait=3,
    connect_timeout=2,
    read_timeout=2,
    rate_window=1,
    slowest_rate=20_000,
)
MOST = 3 * OPTIONS.tries
"""Requests for one thing, at most, whatever is answered: each try may be signed anew."""


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory for hosts.toml; nothing of the user's own settings and logins counts."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("LAMELLA_CERTS_DIR", str(tmp_path / "certs.d"))
    monkeypatch.setenv("LAMELLA_REGISTRIES", str(tmp_path / "registries.toml"))
    return tmp_path / "certs.d"


@pytest.fixture
def registry() -> Iterator[Registry]:
    """One that asks for tokens and has the image."""
    with Registry(auth="bearer") as server:
        server.add("team/app", "v1", IMAGE)
        yield server


@pytest.fixture
def other() -> Iterator[Registry]:
    """Another host, which has the image and asks for nothing."""
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
    """One with TLS, which is trusted."""
    with Registry(tls=tls, auth="bearer") as server:
        trust(server, authority, settings)
        server.add("team/app", "v1", IMAGE)
        yield server


def trust(server: Registry, authority: trustme.CA, settings: Path) -> None:
    (settings / server.host).mkdir(parents=True)
    authority.cert_pem.write_to_path(str(settings / server.host / "ca.crt"))


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the addresses that connections were made to, or tried."""
    made: list[Any] = []
    connect = socket.socket.connect

    def note(self: socket.socket, address: Any) -> None:
        made.append(address[0] if isinstance(address, tuple) else address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    return made


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return a table of names and their addresses, for this test."""
    table: dict[str, str] = {}
    ask = socket.getaddrinfo

    def answer(host: Any, *rest: Any, **more: Any) -> Any:
        return ask(table.get(host, host), *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return table


def name_in(server: Registry, which: str = ":v1") -> str:
    return f"docker://{server.host}/team/app{which}"


def pull(server: Registry | str, target: Path, options: RegistryOptions = OPTIONS) -> Digest:
    """Copy the image into a layout and return its digest; a layout that was not committed has no image."""
    source = parse_image_name(server if isinstance(server, str) else name_in(server))
    with (
        open_reader(source, registry=options) as reader,
        open_writer(parse_image_name(f"oci:{target}/layout:v1")) as writer,
    ):
        return copy_image(reader, writer, tag=source.tag, new_tag="v1").entry.digest


def push(server: Registry, tmp_path: Path, options: RegistryOptions = OPTIONS, image: SmallImage = IMAGE) -> Digest:
    """Copy the image into a registry, as team/new:v1."""
    from lamella.testing.images import tagged, write_layout

    source = parse_image_name(
        f"oci:{write_layout(str(tmp_path / 'source'), [tagged(image.descriptor, 'v1')], image.blobs)}:v1"
    )
    target = parse_image_name(f"docker://{server.host}/team/new:v1")
    with open_reader(source) as reader, open_writer(target, registry=options) as writer:
        return copy_image(reader, writer, tag="v1", new_tag="v1").entry.digest


def refuse_to_pull(
    server: Registry | str, target: Path, *categories: type[LamellaError], options: RegistryOptions = OPTIONS
) -> LamellaError:
    """Expect an error of one of the categories, with no secret in it, and nothing to be seen in the target."""
    with pytest.raises(categories) as caught:
        pull(server, target, options)
    index = target / "layout/index.json"
    assert not index.exists() or json.loads(index.read_text())["manifests"] == []
    keep_quiet(caught.value)
    return caught.value


def keep_quiet(error: BaseException) -> None:
    """Assert that no secret is in an error, nor in those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        told = f"{seen!r} {seen} {getattr(seen, 'hint', '')} {getattr(seen, '__notes__', '')}"
        assert [secret for secret in SECRETS if secret in told] == []
        seen = seen.__cause__ or seen.__context__


class TestTwins:
    """What the attacks below are variations of."""

    def test_an_image_comes_whole(self, registry: Registry, tmp_path: Path) -> None:
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        assert registry.asked("GET", "/token") != []

    def test_an_image_goes_whole(self, registry: Registry, tmp_path: Path) -> None:
        assert IMAGE.descriptor["digest"] == push(registry, tmp_path)
        assert compact(IMAGE.manifest) == registry.manifests["team/new", "v1"][1]
        assert registry.repositories["team/new"] >= set(IMAGE.blobs) - {IMAGE.descriptor["digest"]}

    def test_tls_works_with_the_authority_that_is_set_up_and_no_other(
        self, secure: Registry, tmp_path: Path, settings: Path
    ) -> None:
        assert IMAGE.descriptor["digest"] == pull(secure, tmp_path)
        before = len(secure.requests)
        (settings / secure.host / "ca.crt").unlink()
        (settings / secure.host / "hosts.toml").write_text(f'server = "{secure.url}"')
        refused = refuse_to_pull(secure, tmp_path / "again", Unavailable)
        assert "certificate" in str(refused)
        assert len(secure.requests) == before

    def test_basic_authentication_works(self, tmp_path: Path) -> None:
        with Registry(auth="basic") as server:
            server.add("team/app", "v1", IMAGE)
            assert IMAGE.descriptor["digest"] == pull(server, tmp_path)


class TestCredentialsStay:
    def test_blobs_kept_at_another_host_come_without_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        registry.misbehave("GET", BLOBS, redirect(other.url + "{path}?signature=x"))
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        assert other.asked("GET", BLOBS) != []
        assert other.credentials_seen() == []

    def test_a_resumed_blob_at_another_host_comes_without_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        registry.misbehave("GET", BLOBS, redirect(other.url + "{path}"))
        other.misbehave("GET", BLOBS, cut_body(200_000), times=1)
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        assert len(other.asked("GET", BLOBS)) == 2
        assert other.credentials_seen() == []

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_the_same_machine_by_another_name_is_another_host(
        self, registry: Registry, tmp_path: Path, path: str
    ) -> None:
        with Registry(name="localhost") as elsewhere:
            elsewhere.add("team/app", "v1", IMAGE)
            registry.misbehave("GET", path, redirect(elsewhere.url + "{path}"))
            assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
            assert elsewhere.asked("GET", path) != []
            assert elsewhere.credentials_seen() == []

    @pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
    def test_another_host_asks_in_vain(self, registry: Registry, other: Registry, tmp_path: Path, scheme: str) -> None:
        registry.misbehave("GET", BLOBS, redirect(other.url + "{path}"))
        wanted = f'{scheme} realm="{other.url if scheme == "Bearer" else "x"}/token",service="tests"'
        other.misbehave(".*", BLOBS, say(Answer(401, {"WWW-Authenticate": wanted})))
        refuse_to_pull(registry, tmp_path, Denied)
        assert other.credentials_seen() == []
        assert other.asked(path="/token") == []

    def test_settings_of_a_host_do_not_go_elsewhere(
        self, registry: Registry, other: Registry, tmp_path: Path, settings: Path
    ) -> None:
        (settings / registry.host).mkdir(parents=True)
        (settings / registry.host / "hosts.toml").write_text('header = {x-key = "for the registry alone"}')
        registry.misbehave("GET", BLOBS, redirect(other.url + "{path}"))
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        assert "x-key" in {name.lower() for name in registry.asked("GET", MANIFESTS)[0].headers}
        assert "x-key" not in {name.lower() for one in other.requests for name in one.headers}

    def test_cookies_are_not_kept(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave(".*", "", with_headers(Set_Cookie="session=x; Path=/"))
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        assert [one for one in registry.requests if "cookie" in map(str.lower, one.headers)] == []

    def test_a_mirror_does_not_get_what_is_for_the_registry(
        self, registry: Registry, tmp_path: Path, settings: Path
    ) -> None:
        with Registry(auth="basic") as mirror:
            (settings / registry.host).mkdir(parents=True)
            (settings / registry.host / "hosts.toml").write_text(
                f'[host."{mirror.url}"]\ncapabilities = ["pull", "resolve"]'
            )
            assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
            assert mirror.asked("GET", MANIFESTS) != []
            assert mirror.credentials_seen() == []

    def test_a_realm_without_tls_elsewhere_gets_nothing(
        self, registry: Registry, tmp_path: Path, names: dict[str, str]
    ) -> None:
        with Registry() as thief:
            names["thief.example"] = "127.0.0.1"
            port = thief.host.rpartition(":")[2]
            registry.challenge = f'Bearer realm="http://thief.example:{port}/token",service="tests"'
            refuse_to_pull(registry, tmp_path, Denied)
            assert thief.requests == []

    def test_a_realm_without_tls_gets_nothing_of_a_registry_with_tls(
        self, secure: Registry, other: Registry, tmp_path: Path
    ) -> None:
        secure.challenge = f'Bearer realm="{other.url}/token",service="tests"'
        refuse_to_pull(secure, tmp_path, Denied)
        assert other.requests == []

    def test_a_realm_with_tls_elsewhere_gives_tokens(
        self, secure: Registry, tls: ssl.SSLContext, tmp_path: Path
    ) -> None:
        with Registry(tls=tls) as service:
            secure.challenge = f'Bearer realm="{service.url}/token?kind=pull",service="tests"'
            assert IMAGE.descriptor["digest"] == pull(secure, tmp_path)
            (asked, *_) = service.asked(path="/token")
            assert (asked.query["kind"], asked.query["service"]) == ("pull", "tests")
            assert asked.query["scope"] == "repository:team/app:pull"
            assert TOKEN not in " ".join(service.credentials_seen())

    def test_a_service_of_tokens_that_sends_elsewhere_takes_nobody_along(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        registry.misbehave(".*", "/token", redirect(other.url + "/token"))
        other.misbehave(".*", "/token", say(error(401, "UNAUTHORIZED")))
        refuse_to_pull(registry, tmp_path, Denied)
        assert other.credentials_seen() == []

    def test_an_upload_that_goes_on_elsewhere_goes_without_credentials(
        self, registry: Registry, other: Registry, tmp_path: Path
    ) -> None:
        where = f"{other.url}/v2/team/new/blobs/uploads/session-x"
        registry.misbehave("POST", UPLOADS, say(Answer(202, {"Location": where, "Range": "0-0"})))
        with pytest.raises(LamellaError) as caught:
            push(registry, tmp_path)
        keep_quiet(caught.value)
        assert other.asked("PUT|PATCH", UPLOADS) != []
        assert other.credentials_seen() == []

    def test_a_storage_that_takes_uploads_directly_works_without_credentials(
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
        assert IMAGE.descriptor["digest"] == push(registry, tmp_path)
        assert other.credentials_seen() == []

    def test_pages_elsewhere_are_not_read(self, registry: Registry, other: Registry) -> None:
        registry.misbehave("GET", "/tags/list", with_headers(Link=f'<{other.url}/v2/team/app/tags/list>; rel="next"'))
        with pytest.raises(Denied):
            list(Client(registry.host, "team/app", OPTIONS).tags())
        assert other.requests == []

    @pytest.mark.parametrize("allowed", [False, True])
    def test_layers_at_foreign_addresses_are_fetched_by_policy_alone_and_without_credentials(
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
                with reader.open_blob(descriptor) as file:
                    assert IMAGE.blobs[LAYER] == file.read()
            else:
                with pytest.raises((NotFound, Unsupported)):
                    reader.open_blob(descriptor)
        assert bool(other.requests) is allowed
        assert other.credentials_seen() == []


LINK_LOCAL = [
    "http://169.254.169.254/latest/meta-data",
    "http://[fe80::1]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://[fd00:ec2::254]/x",
]


class TestLedAstray:
    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    @pytest.mark.parametrize("url", [*LINK_LOCAL, "http://0.0.0.0/x"])
    def test_services_of_the_machine_are_not_asked(
        self, registry: Registry, tmp_path: Path, connected: list[Any], url: str, path: str
    ) -> None:
        registry.misbehave("GET", path, redirect(url))
        refuse_to_pull(registry, tmp_path, Denied)
        assert set(connected) == {"127.0.0.1"}

    @pytest.mark.parametrize("url", LINK_LOCAL)
    def test_nor_for_tokens_uploads_and_foreign_layers(
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
            reader.open_blob(foreign)
        assert set(connected) == {"127.0.0.1"}

    def test_a_name_that_leads_inside_is_found_out_before_anything_is_sent(
        self, names: dict[str, str], tmp_path: Path, other: Registry
    ) -> None:
        names.update({"registry.example": "127.0.0.1", "inner.example": "127.0.0.1"})
        options = replace(OPTIONS, plain_http=True, credential=None)
        with Registry(name="registry.example") as outer:
            outer.add("team/app", "v1", IMAGE)
            assert IMAGE.descriptor["digest"] == pull(outer, tmp_path / "twin", options)
            port = other.host.rpartition(":")[2]
            outer.misbehave("GET", BLOBS, redirect(f"http://inner.example:{port}" + "{path}"))
            refuse_to_pull(outer, tmp_path, Denied, options=options)
        assert other.requests == []

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_tls_is_not_given_up(self, secure: Registry, other: Registry, tmp_path: Path, path: str) -> None:
        secure.misbehave("GET", path, redirect(other.url + "{path}"))
        refuse_to_pull(secure, tmp_path, Denied)
        assert other.requests == []

    def test_tls_is_not_given_up_for_uploads(self, secure: Registry, other: Registry, tmp_path: Path) -> None:
        where = f"http://localhost:{other.host.rpartition(':')[2]}/v2/team/new/blobs/uploads/session-x"
        secure.misbehave("POST", UPLOADS, say(Answer(202, {"Location": where})))
        with pytest.raises(Denied):
            push(secure, tmp_path)
        assert other.requests == []

    def test_tls_elsewhere_is_fine(self, secure: Registry, tls: ssl.SSLContext, tmp_path: Path) -> None:
        with Registry(tls=tls) as storage:
            storage.add("team/app", "v1", IMAGE)
            secure.misbehave("GET", BLOBS, redirect(storage.url + "{path}"))
            assert IMAGE.descriptor["digest"] == pull(secure, tmp_path)
            assert storage.credentials_seen() == []

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
    def test_no_other_protocol_is_spoken(
        self, registry: Registry, tmp_path: Path, connected: list[Any], url: str
    ) -> None:
        registry.misbehave("GET", BLOBS, redirect(url))
        refuse_to_pull(registry, tmp_path, Denied, InvalidInput, NotFound, Unavailable)
        assert set(connected) == {"127.0.0.1"}
        assert len(registry.asked("GET", BLOBS)) <= MOST

    def test_redirects_in_a_circle_end(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, redirect("{path}"))
        refuse_to_pull(registry, tmp_path, Denied)
        assert len(registry.asked("GET", BLOBS)) <= 7


class TestBytes:
    def test_a_wrong_digest_is_found(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, with_body(lambda raw: raw[:-1] + b"!"))
        refuse_to_pull(registry, tmp_path, DigestMismatch)

    def test_a_body_that_is_cut_is_mended(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        first, second = registry.asked("GET", BLOBS)
        assert "Range" not in first.headers
        start = int(second.headers["Range"].removeprefix("bytes=").rstrip("-"))
        assert 0 < start <= 250_000

    def test_a_registry_that_knows_no_ranges_is_asked_anew(self, registry: Registry, tmp_path: Path) -> None:
        whole = IMAGE.blobs[LAYER]
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        registry.misbehave("GET", BLOBS, say(Answer(200, {"Content-Type": "application/octet-stream"}, whole)))
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)

    def test_another_body_after_a_cut_is_found_out(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        registry.misbehave("GET", BLOBS, with_body(lambda raw: bytes(len(raw))))
        refuse_to_pull(registry, tmp_path, DigestMismatch)

    def test_a_part_that_is_another_part_is_found_out(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        registry.misbehave("GET", BLOBS, with_headers(Content_Range=f"bytes 0-9/{len(IMAGE.blobs[LAYER])}"))
        refuse_to_pull(registry, tmp_path, Unavailable, Integrity)
        assert len(registry.asked("GET", BLOBS)) <= MOST

    @pytest.mark.parametrize("missing", [1, 300_000])
    def test_a_body_that_is_always_short_is_given_up(self, registry: Registry, tmp_path: Path, missing: int) -> None:
        registry.misbehave("GET", BLOBS, short_body(missing))
        refuse_to_pull(registry, tmp_path, Unavailable, Integrity)
        assert len(registry.asked("GET", BLOBS)) <= 40

    def test_a_body_that_is_short_once_is_mended(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, short_body(1), times=1)
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)

    @pytest.mark.parametrize("change", [lambda raw: raw + b"x", lambda raw: raw[:-1]], ids=["longer", "shorter"])
    def test_another_length_than_the_manifests_is_refused(
        self, registry: Registry, tmp_path: Path, change: Any
    ) -> None:
        registry.misbehave("GET", BLOBS, with_body(change))
        refuse_to_pull(registry, tmp_path, SizeMismatch)

    def test_a_body_without_an_end_is_not_read_on(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, endless())
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, Integrity)
        assert time.monotonic() - start < 10

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_chunks_that_lie_about_their_length_are_found_out(
        self, registry: Registry, tmp_path: Path, path: str
    ) -> None:
        registry.misbehave("GET", path, lying_chunks)
        refuse_to_pull(registry, tmp_path, Unavailable, Integrity)

    @pytest.mark.parametrize("length", ["-1", "99999999999999999999", "5, 6", "0x10", "1e3", ""])
    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_lengths_that_are_none_are_refused(
        self, registry: Registry, tmp_path: Path, path: str, length: str
    ) -> None:
        registry.misbehave("GET", path, with_headers(Content_Length=length))
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, InvalidInput, Unavailable, Integrity, Exhausted)
        assert time.monotonic() - start < 20

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_a_slow_drip_is_given_up(self, registry: Registry, tmp_path: Path, path: str) -> None:
        registry.misbehave("GET", path, drip(0.05, 10))
        options = replace(OPTIONS, tries=2)
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, Unavailable, options=options)
        assert time.monotonic() - start < 10

    def test_a_slow_but_steady_body_comes_whole(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, drip(0.05, 30_000))
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)

    def test_a_silent_registry_is_given_up(self, registry: Registry, tmp_path: Path) -> None:
        def sleep(request: Request, serve: hostile.Serve) -> Answer:
            time.sleep(1.5)
            return serve()

        registry.misbehave("GET", MANIFESTS, sleep)
        options = replace(OPTIONS, tries=1, read_timeout=0.3)
        refuse_to_pull(registry, tmp_path, Unavailable, options=options)


class TestDocuments:
    def pull_by_digest(self, registry: Registry, tmp_path: Path, *categories: type[LamellaError]) -> None:
        refuse_to_pull(name_in(registry, f"@{IMAGE.descriptor['digest']}"), tmp_path, *categories)

    def test_a_manifest_by_digest_is_that_manifest(self, registry: Registry, tmp_path: Path) -> None:
        name = name_in(registry, f"@{IMAGE.descriptor['digest']}")
        assert IMAGE.descriptor["digest"] == pull(name, tmp_path)
        registry.misbehave("GET", MANIFESTS, with_body(lambda raw: raw + b" "))
        self.pull_by_digest(registry, tmp_path / "again", Integrity)

    def test_a_lie_about_the_digest_of_a_tag_is_found_out(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, with_headers(Docker_Content_Digest=digest(b"other")))
        refuse_to_pull(registry, tmp_path, DigestMismatch)

    def test_a_lie_about_the_digest_does_not_replace_the_one_asked_for(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        another = small_image({"evil": b"x"})
        registry.add("team/app", "v2", another)
        lie = Answer(
            200,
            {"Content-Type": another.manifest["mediaType"], "Docker-Content-Digest": another.descriptor["digest"]},
            compact(another.manifest),
        )
        registry.misbehave("GET", MANIFESTS, say(lie))
        self.pull_by_digest(registry, tmp_path, DigestMismatch)

    @pytest.mark.parametrize("text", ["sha256:x", "nonsense", "sha256:" + "0" * 63, "md5:" + "0" * 32])
    def test_a_digest_that_is_none_does_no_harm(self, registry: Registry, tmp_path: Path, text: str) -> None:
        registry.misbehave("GET", MANIFESTS, with_headers(Docker_Content_Digest=text))
        try:
            assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        except (InvalidInput, Unsupported) as refused:
            keep_quiet(refused)

    def test_the_header_may_be_missing(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave(".*", "", with_headers(Docker_Content_Digest=None))
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)

    def test_a_huge_manifest_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, with_body(lambda raw: raw + b" " * (5 << 20)))
        refuse_to_pull(registry, tmp_path, Exhausted)

    def test_an_endless_manifest_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, endless(b" " * 65536))
        refuse_to_pull(registry, tmp_path, Exhausted)

    def test_an_endless_refusal_is_not_read_on(self, registry: Registry, tmp_path: Path) -> None:
        def refuse(request: Request, serve: hostile.Serve) -> Answer:
            return replace(endless(b"[" * 65536)(request, serve), status=403)

        registry.misbehave("GET", MANIFESTS, refuse)
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, Denied)
        assert time.monotonic() - start < 5

    def test_schema_1_is_refused_by_name(self, registry: Registry, tmp_path: Path) -> None:
        old = compact({"schemaVersion": 1, "name": "team/app", "tag": "v1", "fsLayers": [], "history": []})
        kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
        registry.add_manifest("team/app", "v1", kind, old)
        refused = refuse_to_pull(registry, tmp_path, Unsupported)
        assert "schema 1" in str(refused)

    def test_a_content_type_of_no_use_does_not_hide_a_manifest(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, with_headers(Content_Type="application/json; charset=utf-8"))
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)

    def test_a_content_type_against_the_document_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, with_headers(Content_Type="application/vnd.oci.image.index.v1+json"))
        refuse_to_pull(registry, tmp_path, InvalidInput, Unsupported)

    @pytest.mark.parametrize("page", [b"<html>log in</html>", b"", b"[]", b"\xff\xfe", b'{"schemaVersion": 2}'])
    def test_pages_for_people_are_no_manifests(self, registry: Registry, tmp_path: Path, page: bytes) -> None:
        registry.misbehave("GET", MANIFESTS, say(Answer(200, {"Content-Type": "text/html"}, page)))
        refuse_to_pull(registry, tmp_path, InvalidInput, Unsupported, NotFound)


class TestPatience:
    def test_a_burst_of_errors_passes(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, say(error(503, "UNAVAILABLE")), times=2)
        registry.misbehave("GET", BLOBS, reset, times=2)
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS, "/token"])
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_errors_without_end_are_given_up(self, registry: Registry, tmp_path: Path, status: int, path: str) -> None:
        registry.misbehave("GET", path, say(error(status, "TOOMANYREQUESTS" if status == 429 else "UNKNOWN")))
        refuse_to_pull(registry, tmp_path, Unavailable, options=replace(OPTIONS, tries=2))
        assert len(registry.asked("GET", path)) <= MOST

    def test_retry_after_is_heeded(self, registry: Registry, tmp_path: Path) -> None:
        answer = error(429, "TOOMANYREQUESTS")
        answer.headers["Retry-After"] = "1"
        registry.misbehave("GET", MANIFESTS, say(answer), times=1)
        start = time.monotonic()
        assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        assert 1 <= time.monotonic() - start < 4

    @pytest.mark.parametrize("after", ["86400", "Fri, 31 Dec 2999 23:59:59 GMT", "9" * 400])
    def test_a_wait_that_is_too_long_is_not_begun(self, registry: Registry, tmp_path: Path, after: str) -> None:
        answer = error(429, "TOOMANYREQUESTS")
        answer.headers["Retry-After"] = after
        registry.misbehave("GET", MANIFESTS, say(answer))
        start = time.monotonic()
        refused = refuse_to_pull(registry, tmp_path, Unavailable)
        assert time.monotonic() - start < 2
        assert refused.hint is not None

    @pytest.mark.parametrize(
        "after", ["-5", "soon", "nan", "inf", "1e9", "", "Fri, 99 Foo 2999", "Sat, 01 Jan 2000 00:00:00 GMT"]
    )
    def test_a_wait_that_is_nonsense_is_replaced(self, registry: Registry, tmp_path: Path, after: str) -> None:
        answer = error(429, "TOOMANYREQUESTS")
        answer.headers["Retry-After"] = after
        registry.misbehave("GET", MANIFESTS, say(answer), times=1)
        start = time.monotonic()
        try:
            assert IMAGE.descriptor["digest"] == pull(registry, tmp_path)
        except Unavailable:
            pass
        assert time.monotonic() - start < 4

    @pytest.mark.parametrize("auth", ["basic", "bearer"])
    def test_a_registry_that_is_never_content_with_who_we_are_is_given_up(self, tmp_path: Path, auth: str) -> None:
        with Registry(auth=auth) as server:
            server.add("team/app", "v1", IMAGE)
            server._allowed = lambda request: False  # type: ignore[method-assign]
            refused = refuse_to_pull(server, tmp_path, Denied)
            assert "lamella login" in str(refused.hint)
            assert len(server.requests) <= 6

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(200, {}, b'{"token": "a\\r\\nHost: evil"}'),
            Answer(200, {}, b'{"token": 5}'),
            Answer(200, {}, b"[]"),
            Answer(200, {}, b"{"),
            Answer(200, {}, b'{"token": "' + b"x" * (1 << 20) + b'"}'),
            Answer(302, {"Location": "file:///etc/passwd"}),
        ],
        ids=["two lines", "a number", "a list", "not JSON", "huge", "a file"],
    )
    def test_a_token_that_is_none_is_refused(self, registry: Registry, tmp_path: Path, answer: Answer) -> None:
        registry.misbehave("GET", "/token", say(answer))
        refuse_to_pull(registry, tmp_path, LamellaError)
        assert len(registry.asked("GET", "/token")) <= MOST

    @pytest.mark.parametrize(
        "challenge",
        [
            "Bearer",
            'Bearer realm=""',
            'Bearer realm="not a url"',
            "Negotiate",
            'Digest realm="x"',
            "=" * 5000,
            'Bearer realm="' + "\\" * 5000,
            "Bearer " + "a=b," * 20_000,
        ],
        ids=["bare", "empty", "no URL", "unknown", "digest", "signs", "unclosed", "long"],
    )
    def test_challenges_that_are_none_are_refused_at_once(
        self, registry: Registry, tmp_path: Path, challenge: str
    ) -> None:
        registry.challenge = challenge[:60_000]
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, LamellaError)
        assert time.monotonic() - start < 6
        assert [seen for seen in registry.credentials_seen() if "Bearer" in seen] == []


class TestUploads:
    def test_a_cut_upload_goes_on_where_it_was_cut(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, cut_upload(200_000, registry), times=1)
        assert IMAGE.descriptor["digest"] == push(registry, tmp_path)
        assert registry.blobs[LAYER] == IMAGE.blobs[LAYER]

    def test_a_cut_upload_of_which_nothing_arrived_is_sent_again(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, cut_upload(200_000, registry, keep=False), times=1)
        assert IMAGE.descriptor["digest"] == push(registry, tmp_path)

    def test_an_upload_that_is_always_cut_is_given_up(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, cut_upload(0, registry))
        with pytest.raises((Unavailable, Conflict)):
            push(registry, tmp_path)
        assert len(registry.asked("PATCH|PUT", UPLOADS)) <= 40
        assert ("team/new", "v1") not in registry.manifests

    def test_a_session_that_is_lost_is_begun_anew(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, lose_upload(registry), times=1)
        assert IMAGE.descriptor["digest"] == push(registry, tmp_path)

    def test_a_registry_that_counts_wrong_is_not_believed(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, cut_upload(1000, registry), times=1)
        registry.misbehave("GET", UPLOADS, with_headers(Range="0-999999999"))
        with pytest.raises(LamellaError):
            push(registry, tmp_path)
        assert ("team/new", "v1") not in registry.manifests

    @pytest.mark.parametrize("path", [UPLOADS, MANIFESTS])
    def test_what_was_stored_is_what_was_sent(self, registry: Registry, tmp_path: Path, path: str) -> None:
        registry.misbehave("PUT", path, with_headers(Docker_Content_Digest=digest(b"other")))
        with pytest.raises(DigestMismatch):
            push(registry, tmp_path)

    def test_a_refused_upload_leaves_no_image(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PUT|PATCH", UPLOADS, say(error(400, "DIGEST_INVALID")))
        with pytest.raises(LamellaError) as caught:
            push(registry, tmp_path)
        keep_quiet(caught.value)
        assert ("team/new", "v1") not in registry.manifests

    def test_the_tag_comes_last(self, registry: Registry, tmp_path: Path) -> None:
        push(registry, tmp_path)
        *earlier, last = [one for one in registry.asked("PUT") if "/team/new/" in one.path]
        assert last.path.endswith("/manifests/v1")
        assert [one.path for one in earlier if one.path.endswith("/manifests/v1")] == []

    def test_a_blob_that_the_source_lies_about_is_not_stored(self, registry: Registry, tmp_path: Path) -> None:
        wrong = small_image({"etc/name": b"lamella"}, {"noise": NOISE}, compress=False)
        wrong.blobs[LAYER] = bytes(len(IMAGE.blobs[LAYER]))
        registry.blobs.pop(LAYER)
        with pytest.raises(DigestMismatch):
            push(registry, tmp_path, image=wrong)
        assert LAYER not in registry.repositories.get("team/new", ())
        assert ("team/new", "v1") not in registry.manifests


class TestLists:
    def test_pages_are_read_to_the_last(self, registry: Registry) -> None:
        registry.page = 2
        for number in range(7):
            registry.add("team/app", f"t{number}", IMAGE)
        assert list(Client(registry.host, "team/app", OPTIONS).tags()) == [*(f"t{n}" for n in range(7)), "v1"]

    def test_pages_in_a_circle_end(self, registry: Registry) -> None:
        registry.misbehave("GET", "/tags/list", with_headers(Link='</v2/team/app/tags/list?n=1>; rel="next"'))
        with pytest.raises(InvalidInput, match="circle"):
            list(Client(registry.host, "team/app", OPTIONS).tags())
        assert len(registry.asked("GET", "/tags/list")) <= 4

    def test_pages_without_end_are_bounded(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listing, "MAX_PAGES", 20)

        def more(request: Request, serve: hostile.Serve) -> Answer:
            number = int(request.query.get("last", "0"))
            answer = serve()
            answer.headers["Link"] = f'</v2/team/app/tags/list?last={number + 1}>; rel="next"'
            return answer

        registry.misbehave("GET", "/tags/list", more)
        with pytest.raises(Exhausted):
            list(Client(registry.host, "team/app", OPTIONS).tags())
        assert len(registry.asked("GET", "/tags/list")) <= 22

    @pytest.mark.parametrize("tag", ["\x1b[2J", "a b", "", 5, None, "../x", "x" * 5000])
    def test_names_that_are_none_are_not_passed_on(self, registry: Registry, tag: object) -> None:
        answer = Answer(200, {"Content-Type": "application/json"}, compact({"name": "team/app", "tags": [tag]}))
        registry.misbehave("GET", "/tags/list", say(answer))
        with pytest.raises(InvalidInput):
            list(Client(registry.host, "team/app", OPTIONS).tags())

    def test_a_list_of_any_size_is_not_read(self, registry: Registry) -> None:
        registry.misbehave("GET", "/tags/list", endless(b" " * 65536))
        with pytest.raises(Exhausted):
            list(Client(registry.host, "team/app", OPTIONS).tags())


class TestCommandLine:
    """The same by the command line, where what is said could end up in a log."""

    @pytest.fixture(autouse=True)
    def logged_in(self, registry: Registry, tmp_path: Path) -> None:
        (tmp_path / "docker").mkdir()
        entry = {"auths": {registry.host: {"auth": SECRETS[2]}}}
        (tmp_path / "docker/config.json").write_text(json.dumps(entry))

    def test_it_works(self, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["copy", name_in(registry), f"oci:{tmp_path}/out:v1"]) == 0
        said = "".join(capsys.readouterr())
        assert [secret for secret in SECRETS if secret in said] == []

    @pytest.mark.parametrize("options", [[], ["--debug"], ["--json"], ["--debug", "--json"]])
    def test_a_registry_that_sends_back_what_it_was_sent_is_not_quoted(
        self, registry: Registry, capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        def echo(request: Request, serve: hostile.Serve) -> Answer:
            if "Authorization" not in request.headers:
                return serve()
            message = f"{request.headers['Authorization']} {PASSWORD} {SECRETS[2]}"
            return error(403, "DENIED", message)

        registry.misbehave("GET", MANIFESTS, echo)
        assert run(["inspect", *options, name_in(registry)]) == 9
        said = "".join(capsys.readouterr())
        assert "DENIED" in said
        assert [secret for secret in SECRETS if secret in said] == []
        assert registry.asked("GET", MANIFESTS)[-1].headers["Authorization"] == f"Bearer {TOKEN}"

    @pytest.mark.parametrize("options", [[], ["--debug"]])
    def test_a_service_of_tokens_that_sends_back_what_it_was_sent_is_not_quoted(
        self, registry: Registry, capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        def echo(request: Request, serve: hostile.Serve) -> Answer:
            return error(401, "UNAUTHORIZED", f"{request.headers.get('Authorization')} {PASSWORD}")

        registry.misbehave(".*", "/token", echo)
        assert run(["inspect", *options, name_in(registry)]) == 9
        said = "".join(capsys.readouterr())
        assert [secret for secret in SECRETS if secret in said] == []

    def test_what_a_registry_says_cannot_move_the_cursor(
        self, registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        registry.misbehave("GET", MANIFESTS, say(error(403, "DENIED", "\x1b[2J\r\n\u202egood")))
        assert run(["inspect", name_in(registry)]) == 9
        said = capsys.readouterr().err
        assert not any(letter in said for letter in "\x1b\r\u202e")

    def test_a_lie_leaves_no_directory_that_looks_whole(
        self, registry: Registry, target: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        registry.misbehave("GET", BLOBS, with_body(lambda raw: raw[:-1] + b"!"))
        assert run(["unpack", "--owner", "ignore", name_in(registry), str(target / "new")]) == 8
        assert not (target / "new").exists()
        assert "digest" in capsys.readouterr().err
