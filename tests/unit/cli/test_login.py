# SPDX-License-Identifier: Apache-2.0
"""Logging in tries a password before it keeps it, takes it from where nobody reads along, and never prints it."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import click
import pytest
import trustme
from tests.registry.hostile import PASSWORD, SECRETS, USER, Registry, error
from tests.registry.isolation import isolate
from tests.registry.misbehaviour import say

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that logins are kept in; nothing of the user's own counts."""
    isolate(monkeypatch, tmp_path)
    return tmp_path / "docker/config.json"


@pytest.fixture(params=["basic", "bearer"])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with Registry(auth=request.param) as server:
        yield server


def login(lamella: Run, registry: Registry, *options: str, password: str = PASSWORD) -> CompletedProcess[str]:
    words = ("login", registry.host, "--username", USER, "--password-stdin", *options)
    return lamella(*words, stdin=f"{password}\n".encode())


def test_a_password_that_is_taken_is_kept(lamella: Run, registry: Registry, kept: Path) -> None:
    done = login(lamella, registry)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{registry.host}: logged in as {USER}, kept in {kept}\n"
    expected = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    assert json.loads(kept.read_text()) == {"auths": {registry.host: expected}}


def test_a_saved_login_is_used_until_logout(lamella: Run, registry: Registry) -> None:
    login(lamella, registry)
    name = f"docker://{registry.host}/team/app:v1"
    assert lamella("inspect", name).returncode == 4  # it may look, and there is nothing
    assert lamella("logout", registry.host).returncode == 0
    assert lamella("inspect", name).returncode == 9
    assert lamella("logout", registry.host).returncode == 4


def test_certificates_can_be_given(lamella: Run, tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with Registry(tls=tls, auth="basic") as registry:
        there = tmp_path / "given" / registry.host
        there.mkdir(parents=True)
        authority.cert_pem.write_to_path(str(there / "ca.crt"))
        (tmp_path / "none").mkdir()
        assert login(lamella, registry, "--certs-dir", str(tmp_path / "none")).returncode != 0
        assert registry.credentials_seen() == []
        assert login(lamella, registry, "--certs-dir", str(tmp_path / "given")).returncode == 0


@pytest.mark.parametrize("options", [[], ["--debug"], ["--json"]])
def test_a_password_that_is_refused_is_not_kept(
    lamella: Run, registry: Registry, kept: Path, options: list[str]
) -> None:
    done = login(lamella, registry, *options, password="another password")
    assert (done.returncode, done.stdout) == (9, "")
    assert "another password" not in done.stderr
    assert "the user or the password may be wrong" in done.stderr
    assert base64.b64encode(f"{USER}:another password".encode()).decode() not in done.stderr
    assert not kept.exists()


def test_a_refusal_that_quotes_the_password_is_not_quoted(lamella: Run, kept: Path) -> None:
    with Registry(auth="basic") as registry:
        registry.misbehave("GET", "", say(error(403, "DENIED", " ".join(SECRETS))))
        done = login(lamella, registry, "--debug")
    assert done.returncode == 9
    assert not kept.exists()


def test_the_document_has_the_place_of_the_login_and_not_the_password(
    lamella: Run, registry: Registry, kept: Path
) -> None:
    done = login(lamella, registry, "--json")
    assert {"registry": registry.host, "username": USER, "kept": str(kept)} == json.loads(done.stdout)


@pytest.mark.parametrize("option", ["--password=s3cret", "-ps3cret"])
def test_a_password_on_the_command_line_is_refused_with_a_hint(lamella: Run, option: str, kept: Path) -> None:
    done = lamella("login", "registry.example", "-u", "ada", option)
    assert done.returncode == 3
    assert "--password-stdin" in done.stderr
    assert "s3cret" not in done.stderr
    assert not kept.exists()


@pytest.mark.parametrize(
    ("words", "stdin", "expected"),
    [
        (["quay", "-u", "ada", "--password-stdin"], b"x", "'quay' is not a registry"),
        (["https://quay.io", "-u", "ada", "--password-stdin"], b"x", "'https://quay.io' is not a registry"),
        (["quay.io/team", "-u", "ada", "--password-stdin"], b"x", "'quay.io/team' is not a registry"),
        (["quay.io"], b"", "the user is missing"),
        (["quay.io", "--password-stdin"], b"x", "the user is missing"),
        (["quay.io", "-u", "ada"], b"", "the password is missing"),
        (["quay.io", "-u", "ada", "--password-stdin"], b"\n", "no password on standard input"),
        (["quay.io", "-u", "ada", "--password-stdin"], b"\xff", "not UTF-8"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(lamella: Run, words: list[str], stdin: bytes, expected: str) -> None:
    done = lamella("login", *words, stdin=stdin)
    assert done.returncode == 3
    assert expected in done.stderr.splitlines()[0]


def test_a_terminal_is_prompted_for_confirmation(
    lamella: Run, registry: Registry, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(what: str, *, hide_input: bool, err: bool) -> str:
        asked.append((what, hide_input))
        return {"Username": USER, "Password": PASSWORD}[what]

    monkeypatch.setattr("lamella.cli.registry.is_terminal", lambda stream: True)
    monkeypatch.setattr(click, "prompt", answer)
    assert lamella("login", registry.host).returncode == 0
    assert asked == [("Username", False), ("Password", True)]
    assert kept.exists()


def test_an_aborted_prompt_is_not_reported_as_a_bug(lamella: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object, **__: object) -> str:
        raise click.Abort

    monkeypatch.setattr("lamella.cli.registry.is_terminal", lambda stream: True)
    monkeypatch.setattr(click, "prompt", give_up)
    done = lamella("login", "registry.example")
    assert (done.returncode, done.stderr) == (130, "lamella: interrupted\n")
