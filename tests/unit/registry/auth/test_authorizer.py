# SPDX-License-Identifier: Apache-2.0
"""Challenges are parsed, tokens are fetched once and used until they expire, secrets are not shown."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.registry.hostile import PASSWORD, SECRETS, TOKEN, USER, Registry
from tests.registry.misbehaviour import say
from tests.registry.wire import Answer

from lamella.errors import Denied
from lamella.images.options import RegistryOptions
from lamella.registry.auth.authorizer import parse_challenges
from lamella.registry.auth.credentials import Credential
from lamella.registry.client import Client, check_login
from lamella.testing.images import compact, small_image

IMAGE = small_image({"a": b"b"})
OPTIONS = RegistryOptions(credential=Credential(USER, PASSWORD), tries=2, retry_wait=1)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry(auth="bearer") as server:
        server.add("team/app", "v1", IMAGE)
        yield server


def client(registry: Registry, options: RegistryOptions = OPTIONS) -> Client:
    return Client(registry.host, "team/app", options)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('Basic realm="a b"', [("basic", {"realm": "a b"})]),
        ('BEARER Realm="https://a/t", service=b', [("bearer", {"realm": "https://a/t", "service": "b"})]),
        (
            'Bearer realm="a",scope="r:x:pull,push r:y:pull"',
            [("bearer", {"realm": "a", "scope": "r:x:pull,push r:y:pull"})],
        ),
        ('Bearer realm = "a" , service = "b\\"c"', [("bearer", {"realm": "a", "service": 'b"c'})]),
        (
            'Negotiate, Basic realm="x", Bearer realm="y"',
            [("negotiate", {}), ("basic", {"realm": "x"}), ("bearer", {"realm": "y"})],
        ),
        ('Bearer realm="a",realm="b"', [("bearer", {"realm": "a"})]),
        ('realm="a"', []),
    ],
)
def test_challenges_are_parsed(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, one.parameters) for one in parse_challenges(header)] == expected


@given(st.text(alphabet='Bearer ="\\,a;\t\x00é', max_size=300))
def test_any_header_is_parsed_without_an_error(header: str) -> None:
    assert all(one.scheme == one.scheme.lower() for one in parse_challenges(header))


def test_long_headers_are_parsed_quickly() -> None:
    start = time.monotonic()
    for header in ('a="' * 100_000, "a" * 1_000_000, "a=" * 200_000, '\\"' * 200_000):
        parse_challenges(header)
    assert time.monotonic() - start < 10


def test_a_token_is_requested_once_per_scope(registry: Registry) -> None:
    one = client(registry)
    for _ in range(3):
        one.manifest("v1")
    (asked,) = registry.asked("GET", "/token")
    # The scopes of the request, then those of the challenge.
    assert asked.query["scope"].split() == ["repository:team/app:pull", "repository:team/app:pull,push"]
    assert (asked.query["service"], asked.query["account"]) == ("tests", USER)
    assert [request.headers.get("Authorization") for request in registry.asked("GET", "/manifests/")] == [
        None,
        *[f"Bearer {TOKEN}"] * 3,
    ]


def test_an_expired_token_is_replaced(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    one = client(registry)
    one.manifest("v1")
    later = time.monotonic() + 3000
    monkeypatch.setattr("lamella.registry.auth.authorizer.time.monotonic", lambda: later)
    one.manifest("v1")
    assert len(registry.asked("GET", "/token")) == 2


def test_a_refused_token_is_replaced_once(registry: Registry) -> None:
    one = client(registry)
    one.manifest("v1")
    challenge = {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'}
    registry.misbehave("GET", "/manifests/", say(Answer(401, challenge)), times=1)
    one.manifest("v1")
    assert len(registry.asked("GET", "/token")) == 2
    registry.misbehave("GET", "/manifests/", say(Answer(401, challenge)))
    with pytest.raises(Denied) as caught:
        one.manifest("v1")
    assert caught.value.hint is not None
    assert f"lamella login {registry.host}" in caught.value.hint


def test_an_identity_token_is_exchanged(registry: Registry) -> None:
    one = client(registry, replace(OPTIONS, credential=Credential(identity_token="refresh me")))
    one.manifest("v1")
    (asked,) = registry.asked("POST", "/token")
    assert not registry.asked("GET", "/token")
    assert "Authorization" not in asked.headers


def test_a_token_server_may_return_access_token_only(registry: Registry) -> None:
    registry.misbehave("GET", "/token", say(Answer(200, {}, compact({"access_token": TOKEN}))))
    assert client(registry).manifest("v1")[0].digest == IMAGE.descriptor["digest"]


def test_anonymous_requests_use_no_credentials(registry: Registry) -> None:
    with pytest.raises(Denied):
        client(registry, replace(OPTIONS, credential=None, anonymous=True)).manifest("v1")
    assert registry.credentials_seen() == []


def test_check_login_reports_a_wrong_password() -> None:
    for kind in ("basic", "bearer"):
        with Registry(auth=kind) as server:
            check_login(server.host, Credential(USER, PASSWORD))
            with pytest.raises(Denied) as caught:
                check_login(server.host, Credential(USER, "wrong password"))
            assert "wrong password" not in f"{caught.value}{caught.value.hint}"


def test_no_repr_shows_a_secret(registry: Registry) -> None:
    one = client(registry)
    one.manifest("v1")
    seen = repr(vars(one)) + repr(vars(one.own)) + repr(vars(one.own._authorizer))
    assert [secret for secret in SECRETS if secret in seen] == []
