# SPDX-License-Identifier: Apache-2.0
"""Logins and TLS with the distribution project's registry and skopeo's files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from tests.registry.docker_registry import PASSWORD, USER, DockerRegistry, running
from tests.registry.isolation import isolate
from tests.registry.token_server import IDENTITY_TOKEN, TokenServer

from lamella.cli.main import run as lamella
from lamella.errors import Denied, InvalidInput, Unavailable
from lamella.images.resolve import open_platform_image
from lamella.operations.copy import copy
from lamella.operations.registry import log_in
from lamella.registry.auth.credentials import Credential, Credentials, login
from lamella.testing.images import small_image, tagged, write_layout

Needs = Callable[..., str]

pytestmark = pytest.mark.interop

IMAGE = small_image({"etc/name": b"lamella"}, {"etc/x": b"x" * 5000})
ADA = Credential(USER, PASSWORD)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def basic(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry without TLS that needs a password."""
    with running(DockerRegistry(needs("docker-registry"), tmp_path_factory.mktemp("basic"), basic=True)) as server:
        yield server


@pytest.fixture(scope="module")
def secure(needs: Needs, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry with TLS that needs a password."""
    directory = tmp_path_factory.mktemp("secure")
    with running(DockerRegistry(needs("docker-registry"), directory, authority=authority, basic=True)) as server:
        yield server


@pytest.fixture(scope="module")
def tokens(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    with TokenServer(tmp_path_factory.mktemp("tokens"), authority) as server:
        yield server


@pytest.fixture(scope="module")
def by_token(
    needs: Needs, authority: trustme.CA, tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerRegistry]:
    """A registry with TLS that needs tokens."""
    directory = tmp_path_factory.mktemp("by-token")
    server = DockerRegistry(needs("docker-registry"), directory, authority=authority, token=tokens.settings)
    with running(server):
        yield server


@pytest.fixture(autouse=True)
def certs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for certificates; settings and logins of the user are not used."""
    return isolate(monkeypatch, tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> str:
    return f"oci:{write_layout(str(tmp_path / 'layout'), [tagged(IMAGE.descriptor, 'v1')], IMAGE.blobs)}:v1"


@pytest.fixture
def skopeo(needs: Needs) -> Callable[..., str]:
    tool = needs("skopeo")

    def call(*arguments: str, stdin: str = "") -> str:
        command = [tool, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    return call


def trust(server: DockerRegistry, authority: trustme.CA, certs: Path) -> None:
    (certs / server.host).mkdir(parents=True)
    authority.cert_pem.write_to_path(str(certs / server.host / "ca.crt"))


def round_trip(server: DockerRegistry, layout: str, tmp_path: Path, repository: str = "team/app") -> None:
    name = f"docker://{server.host}/{repository}:v1"
    assert copy(layout, name).entry.digest == IMAGE.descriptor["digest"]
    copied = copy(name, f"oci:{tmp_path}/back:v1")
    assert (copied.entry.digest, copied.blobs) == (IMAGE.descriptor["digest"], 4)


class TestBasic:
    def test_login_gives_access_and_logout_removes_it(self, basic: DockerRegistry, layout: str, tmp_path: Path) -> None:
        with pytest.raises(Denied) as caught:
            copy(layout, f"docker://{basic.host}/team/app:v1")
        assert f"lamella login {basic.host}" in str(caught.value.hint)
        log_in(basic.host, ADA)
        round_trip(basic, layout, tmp_path)
        assert lamella(["logout", basic.host]) == 0
        with pytest.raises(Denied):
            open_platform_image(f"docker://{basic.host}/team/app:v1")

    def test_a_wrong_password_is_refused_and_not_stored(self, basic: DockerRegistry, tmp_path: Path) -> None:
        with pytest.raises(Denied):
            log_in(basic.host, Credential(USER, "wrong"))
        assert not (tmp_path / "docker/config.json").exists()

    def test_a_login_by_skopeo_is_used(
        self,
        basic: DockerRegistry,
        skopeo: Callable[..., str],
        layout: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        file = tmp_path / "auth.json"
        words = ("login", "--tls-verify=false", "--authfile", str(file), "-u", USER, "--password-stdin", basic.host)
        skopeo(*words, stdin=PASSWORD)
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
        assert Credentials.load().for_registry(basic.host) == ADA
        round_trip(basic, layout, tmp_path)

    @pytest.mark.parametrize("variable", ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG"])
    def test_a_login_is_used_by_skopeo(
        self,
        basic: DockerRegistry,
        skopeo: Callable[..., str],
        layout: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
    ) -> None:
        monkeypatch.setenv(variable, str(tmp_path / "theirs"))
        log_in(basic.host, ADA)
        copy(layout, f"docker://{basic.host}/team/app:v1")
        shown = skopeo("inspect", "--tls-verify=false", f"docker://{basic.host}/team/app:v1")
        assert IMAGE.descriptor["digest"] in shown

    def test_a_logout_by_skopeo_removes_the_login(
        self, basic: DockerRegistry, skopeo: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
        log_in(basic.host, ADA)
        login("docker.io", Credential("hub", "x"))
        for host in (basic.host, "docker.io"):
            skopeo("logout", "--authfile", str(tmp_path / "auth.json"), host)
            assert Credentials.load().for_registry(host) is None


class TestTls:
    @pytest.mark.parametrize("form", ["ca.crt", "hosts.toml", "registries.toml", "skip_verify"])
    def test_a_private_authority_can_be_configured_in_each_format(
        self, secure: DockerRegistry, authority: trustme.CA, layout: str, tmp_path: Path, certs: Path, form: str
    ) -> None:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        host = secure.host
        if form == "ca.crt":
            trust(secure, authority, certs)
        elif form == "hosts.toml":
            (certs / host).mkdir(parents=True)
            (certs / host / "hosts.toml").write_text(f'server = "https://{host}"\nca = "{tmp_path}/ca.pem"')
        elif form == "registries.toml":
            (tmp_path / "registries.toml").write_text(f'[registry."{host}"]\nca = "ca.pem"')
        else:
            (tmp_path / "registries.toml").write_text(f'[registry."{host}"]\nskip_verify = true')
        log_in(host, ADA)
        round_trip(secure, layout, tmp_path)

    def test_an_unknown_authority_is_not_trusted_and_gets_no_password(
        self, secure: DockerRegistry, certs: Path, tmp_path: Path
    ) -> None:
        (certs / secure.host).mkdir(parents=True)
        (certs / secure.host / "hosts.toml").write_text(f'server = "https://{secure.host}"')
        with pytest.raises(Unavailable, match="certificate"):
            log_in(secure.host, ADA)
        assert not (tmp_path / "docker/config.json").exists()

    def test_plain_http_to_a_registry_with_tls_has_a_hint(self, secure: DockerRegistry) -> None:
        with pytest.raises(InvalidInput) as caught:
            log_in(secure.host, ADA)
        assert f'server = "https://{secure.host}"' in str(caught.value.hint)
        assert PASSWORD not in str(caught.value)


class TestTokens:
    @pytest.fixture(autouse=True)
    def trusted(
        self,
        by_token: DockerRegistry,
        authority: trustme.CA,
        certs: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        trust(by_token, authority, certs)
        # The token server is another host, whose certificate the system trusts.
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    def test_tokens_have_only_the_scopes_of_the_request(
        self, by_token: DockerRegistry, tokens: TokenServer, layout: str, tmp_path: Path
    ) -> None:
        log_in(by_token.host, ADA)
        round_trip(by_token, layout, tmp_path)
        wanted = {scope for asked in tokens.asked for scope in asked["scopes"]}
        assert wanted <= {"repository:team/app:pull", "repository:team/app:pull,push", "repository:team/app:push,pull"}
        assert all(asked["known"] for asked in tokens.asked)

    def test_public_images_are_pulled_anonymously(
        self, by_token: DockerRegistry, tokens: TokenServer, layout: str, tmp_path: Path
    ) -> None:
        login(by_token.host, ADA)
        copy(layout, f"docker://{by_token.host}/public/app:v1")
        lamella(["logout", by_token.host])
        copied = copy(f"docker://{by_token.host}/public/app:v1", f"oci:{tmp_path}/public:v1")
        assert copied.entry.digest == IMAGE.descriptor["digest"]
        assert tokens.asked[-1]["known"] is False
        with pytest.raises(Denied):
            copy(layout, f"docker://{by_token.host}/public/app:v2")

    def test_an_identity_token_is_exchanged(
        self, by_token: DockerRegistry, tokens: TokenServer, layout: str, tmp_path: Path
    ) -> None:
        login(by_token.host, Credential(USER, "", IDENTITY_TOKEN))
        round_trip(by_token, layout, tmp_path, "team/identity")
        assert (tokens.asked[-1]["refresh"], tokens.asked[-1]["method"]) == (True, "POST")

    def test_a_wrong_password_is_refused(self, by_token: DockerRegistry) -> None:
        with pytest.raises(Denied):
            log_in(by_token.host, Credential(USER, "wrong"))

    def test_a_blob_is_mounted_across_repositories(
        self, by_token: DockerRegistry, tokens: TokenServer, layout: str, tmp_path: Path
    ) -> None:
        login(by_token.host, ADA)
        copy(layout, f"docker://{by_token.host}/team/first:v1")
        copied = copy(f"docker://{by_token.host}/team/first:v1", f"docker://{by_token.host}/team/second:v1")
        assert copied.entry.digest == IMAGE.descriptor["digest"]
        asked = {scope for one in tokens.asked for scope in one["scopes"] if "team/second" in scope}
        assert asked != set()
