# SPDX-License-Identifier: Apache-2.0
"""Hosts and settings of registries."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.errors import Denied, InvalidInput
from lamella.registry.hosts import CAPABILITIES, HostConfig, hosts_for

HOST = "registry.example:5000"
PULL = frozenset({"pull", "resolve"})


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    return tmp_path / "certs.d"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def urls(hosts: tuple[HostConfig, ...]) -> list[str]:
    return [host.url for host in hosts]


class TestWithoutSettings:
    @pytest.mark.parametrize(
        ("registry", "expected"),
        [
            ("quay.io", "https://quay.io/v2"),
            (HOST, "https://registry.example:5000/v2"),
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("localhost", "http://localhost/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("127.1.2.3:80", "http://127.1.2.3:80/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("[::1]", "http://[::1]/v2"),
            ("localhost:443", "https://localhost:443/v2"),
            ("127.0.0.1:443", "https://127.0.0.1:443/v2"),
            ("localhost.example", "https://localhost.example/v2"),
            ("127.0.0.1.example:5000", "https://127.0.0.1.example:5000/v2"),
            ("128.0.0.1:5000", "https://128.0.0.1:5000/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ],
    )
    def test_only_loopback_has_plain_http_by_default(self, certs: Path, registry: str, expected: str) -> None:
        assert urls(hosts_for(registry, directory=certs)) == [expected]

    def test_plain_http_can_be_requested(self, certs: Path) -> None:
        assert urls(hosts_for(HOST, plain_http=True, directory=certs)) == ["http://registry.example:5000/v2"]

    @pytest.mark.parametrize("name", ["", "../up", "a/b", "..", ".hidden"])
    def test_paths_are_not_registries(self, certs: Path, name: str) -> None:
        with pytest.raises(InvalidInput):
            hosts_for(name, directory=certs)


class TestHostsToml:
    def test_mirrors_come_first_and_the_registry_last(self, certs: Path) -> None:
        write(
            certs / "docker.io/hosts.toml",
            """
            server = "https://docker.io"
            [host."https://mirror.example:5000"]
            capabilities = ["pull", "resolve"]
            [host."http://10.0.0.1/cache/v2/hub"]
            override_path = true
            capabilities = ["pull"]
            [host."third.example"]
            """,
        )
        hosts = hosts_for("docker.io", directory=certs)
        assert urls(hosts) == [
            "https://mirror.example:5000/v2",
            "http://10.0.0.1/cache/v2/hub",
            "https://third.example/v2",
            "https://registry-1.docker.io/v2",
        ]
        assert [host.capabilities for host in hosts] == [PULL, {"pull"}, CAPABILITIES, CAPABILITIES]

    def test_each_host_has_its_own_settings(self, certs: Path) -> None:
        write(
            certs / "registry.example:5000/hosts.toml",
            """
            ca = "own.pem"
            [host."https://mirror.example"]
            ca = ["a.pem", "/etc/b.pem"]
            client = [["c.cert", "c.key"], ["d.cert", ""]]
            skip_verify = true
            dial_timeout = "1m1.5s"
            [host."https://mirror.example".header]
            x-one = "1"
            x-two = ["2", "3"]
            """,
        )
        mirror, own = hosts_for(HOST, directory=certs)
        there = certs / HOST
        assert own.ca == (there / "own.pem",)
        assert mirror.ca == (there / "a.pem", Path("/etc/b.pem"))
        assert mirror.client == ((there / "c.cert", there / "c.key"), (there / "d.cert", None))
        assert (mirror.skip_verify, own.skip_verify) == (True, False)
        assert mirror.connect_timeout == 61.5
        assert mirror.headers == (("x-one", "1"), ("x-two", "2"), ("x-two", "3"))
        assert own.headers == ()

    def test_the_repr_shows_no_header(self, certs: Path) -> None:
        write(certs / HOST / "hosts.toml", 'header = {authorization = "Basic c2VjcmV0"}')
        assert "c2VjcmV0" not in repr(hosts_for(HOST, directory=certs))

    def test_the_default_applies_to_registries_without_settings(self, certs: Path) -> None:
        write(certs / "_default/hosts.toml", '[host."https://mirror.example"]')
        write(certs / "quay.io/hosts.toml", "")
        assert urls(hosts_for(HOST, directory=certs)) == [
            "https://mirror.example/v2",
            "https://registry.example:5000/v2",
        ]
        assert urls(hosts_for("quay.io", directory=certs)) == ["https://quay.io/v2"]

    def test_a_directory_name_may_have_the_port_without_a_colon(self, certs: Path) -> None:
        write(certs / "registry.example_5000_/hosts.toml", 'server = "https://other.example"')
        assert urls(hosts_for(HOST, directory=certs)) == ["https://other.example/v2"]

    @pytest.mark.parametrize("setting", ['ca = "x"', 'client = "x"', "skip_verify = true", 'server = "https://{}"'])
    def test_tls_settings_enable_tls_on_loopback(self, certs: Path, setting: str) -> None:
        write(certs / "localhost:5000/hosts.toml", setting.format("localhost:5000"))
        assert urls(hosts_for("localhost:5000", directory=certs)) == ["https://localhost:5000/v2"]

    def test_unknown_keys_of_a_hosts_toml_are_ignored(self, certs: Path) -> None:
        write(certs / "quay.io/hosts.toml", "[newer]\nkey = 1")
        assert urls(hosts_for("quay.io", directory=certs)) == ["https://quay.io/v2"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("server = 5", "server: expected a string"),
            ('server = "ftp://x"', "server: expected a URL"),
            ('server = "https://user:s3cret@x"', "server: expected a URL"),
            ('server = "https://x:port"', "server: expected a URL"),
            ("host = 5", "host: expected a table"),
            ('[host]\n"https://m" = 5', 'host."https://m": expected a table'),
            ('[host."https://m?q"]', 'host."https://m?q": expected a URL'),
            ('[host."https://m"]\ncapabilities = ["pul"]', 'host."https://m".capabilities: expected some of'),
            ('[host."https://m"]\ncapabilities = 5', 'host."https://m".capabilities: expected a string or a list'),
            ('[host."https://m"]\nskip_verify = "yes"', 'host."https://m".skip_verify: expected true or false'),
            ('[host."https://m"]\ndial_timeout = "soon"', 'host."https://m".dial_timeout: expected a time'),
            ('[host."https://m"]\nclient = [["a", "b", "c"]]', 'host."https://m".client: expected a file'),
            ('[host."https://m"]\nca = [5]', 'host."https://m".ca: expected a string or a list'),
            (
                '[host."https://m".header]\nx = "s3cret\\r\\nHost: y"',
                'host."https://m".header.x: a value has',
            ),
            ('[host."https://m".header]\n"a b" = "x"', 'host."https://m".header: a name is not a valid'),
            ('server = "s3cret', "not TOML (at end of document)"),
        ],
    )
    def test_errors_name_the_file_and_the_key_and_no_value(self, certs: Path, text: str, expected: str) -> None:
        file = write(certs / "quay.io/hosts.toml", text)
        with pytest.raises(InvalidInput) as caught:
            hosts_for("quay.io", directory=certs)
        assert str(caught.value).startswith(f"{file}: {expected}")
        assert "s3cret" not in str(caught.value)


class TestCertificates:
    def test_certificates_in_a_directory_are_used_as_docker_does(self, certs: Path) -> None:
        for name in ("ca.crt", "client.cert", "client.key", "README"):
            write(certs / "localhost:5000" / name, "")
        (host,) = hosts_for("localhost:5000", directory=certs)
        there = certs / "localhost:5000"
        assert host.url == "https://localhost:5000/v2"
        assert host.ca == (there / "ca.crt",)
        assert host.client == ((there / "client.cert", there / "client.key"),)

    def test_a_certificate_without_its_key_is_an_error(self, certs: Path) -> None:
        write(certs / "quay.io/client.cert", "")
        with pytest.raises(InvalidInput, match=r"client\.cert: its key, client\.key, is missing"):
            hosts_for("quay.io", directory=certs)


class TestRegistriesToml:
    def find(self, path: Path, registry: str) -> tuple[HostConfig, ...]:
        return hosts_for(registry, environ={"LAMELLA_REGISTRIES": str(path), "LAMELLA_CERTS_DIR": "/nowhere"})

    def test_registries_toml_has_the_tables_of_many_registries(self, tmp_path: Path) -> None:
        file = write(
            tmp_path / "registries.toml",
            """
            [registry."docker.io"]
            mirrors = ["https://mirror.example", "http://10.0.0.1:5000"]
            [registry."registry.example:5000"]
            plain_http = true
            [registry."tls.example"]
            ca = "ca.pem"
            [registry."tls.example".host."https://near.example"]
            capabilities = ["pull"]
            [registry._default]
            skip_verify = true
            """,
        )
        hub = self.find(file, "docker.io")
        assert urls(hub) == [
            "https://mirror.example/v2",
            "http://10.0.0.1:5000/v2",
            "https://registry-1.docker.io/v2",
        ]
        assert [host.capabilities for host in hub] == [PULL, PULL, CAPABILITIES]
        assert urls(self.find(file, HOST)) == ["http://registry.example:5000/v2"]
        near, own = self.find(file, "tls.example")
        assert ("https://near.example/v2", (tmp_path / "ca.pem",)) == (near.url, own.ca)
        assert self.find(file, "quay.io")[0].skip_verify is True

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[registries]", "registries: unknown key"),
            ('[registry."x.example"]\ninsecure = true', 'registry."x.example".insecure: unknown key'),
            (
                '[registry."x.example".host."https://m"]\nmirrors = []',
                'registry."x.example".host."https://m".mirrors: un',
            ),
            ('registry = ["x"]', "registry: expected a table"),
            ('[registry]\n"x.example" = 1', "registry.x.example: expected a table"),
        ],
    )
    def test_an_unknown_key_is_an_error(self, tmp_path: Path, text: str, expected: str) -> None:
        file = write(tmp_path / "registries.toml", text)
        with pytest.raises(InvalidInput) as caught:
            self.find(file, "x.example")
        assert str(caught.value).startswith(f"{file}: {expected}")

    def test_the_users_settings_precede_those_of_the_machine(self, tmp_path: Path) -> None:
        write(tmp_path / "lamella/certs.d/quay.io/hosts.toml", 'server = "https://second.example"')
        environ = {"XDG_CONFIG_HOME": str(tmp_path)}
        assert urls(hosts_for("quay.io", environ=environ)) == ["https://second.example/v2"]
        write(tmp_path / "lamella/registries.toml", '[registry."quay.io"]\nserver = "https://first.example"')
        assert urls(hosts_for("quay.io", environ=environ)) == ["https://first.example/v2"]

    def test_requested_plain_http_does_not_apply_to_mirrors(self, certs: Path) -> None:
        write(certs / "quay.io/hosts.toml", '[host."https://mirror.example"]')
        hosts = hosts_for("quay.io", plain_http=True, directory=certs)
        assert urls(hosts) == ["https://mirror.example/v2", "http://quay.io/v2"]


def test_unreadable_settings_are_an_error(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(certs / "quay.io/hosts.toml", "")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(Denied, match=r"hosts\.toml"):
        hosts_for("quay.io", directory=certs)


def test_the_settings_in_the_documentation_mean_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/registries.md").read_text()
    write(tmp_path / "registries.toml", page.partition("```toml\n")[2].partition("```")[0])
    environ = {"LAMELLA_REGISTRIES": str(tmp_path / "registries.toml"), "LAMELLA_CERTS_DIR": "/nowhere"}
    hub, plain, local, quay, others = (
        hosts_for(registry, environ=environ)
        for registry in ("docker.io", HOST, "localhost:5001", "quay.io", "else.example")
    )
    assert urls(hub) == ["https://mirror.example/v2", "https://registry-1.docker.io/v2"]
    assert urls(plain) == ["http://registry.example:5000/v2"]
    assert (urls(local), local[0].ca) == (["https://localhost:5001/v2"], (tmp_path / "authority.pem",))
    assert urls(quay) == ["https://near.example/quay/v2", "https://quay.io/v2"]
    assert (urls(others), others[0].connect_timeout) == (["https://else.example/v2"], 5)
