# SPDX-License-Identifier: Apache-2.0
"""Whatever a registry or a file of settings says, it is either understood or refused with an error that was meant."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.errors import LamellaError
from lamella.registry.auth.authorizer import parse_challenges
from lamella.registry.auth.credentials import Credential, Credentials, login
from lamella.registry.hosts import hosts_for
from lamella.registry.http.urls import parse_origin, redact_url
from lamella.registry.pagination import next_page

SECRET = "s3cret-of-ada"
HOST = "registry.example:5000"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    st.sampled_from([HOST, f"https://{HOST}", f"{HOST}/team", "docker.io", "https://index.docker.io/v1/"]) | st.text()
)
ENTRIES = st.dictionaries(st.sampled_from(["auth", "username", "password", "identitytoken", "email"]), VALUES) | VALUES
FILES = st.fixed_dictionaries(
    {},
    optional={"auths": st.dictionaries(KEYS, ENTRIES) | VALUES, "credHelpers": VALUES, "HttpHeaders": VALUES},
)
SETTINGS = st.sampled_from(
    ["server", "ca", "client", "skip_verify", "header", "dial_timeout", "capabilities", "host", "mirrors", "unknown"]
)
SETTING_VALUES = st.sampled_from(
    ['"https://m"', '"m:5000"', '"x"', "true", "5", "[]", '["pull"]', '[["a", "b"]]', "{x = 'y'}", '"1m2s"', "wrong"]
)
KNOWN = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_wording(error: LamellaError) -> None:
    assert SECRET not in str(error)
    assert len(str(error)) < 1000


@KNOWN
@given(document=FILES)
def test_a_login_file_is_read_or_refused_without_showing_its_content(tmp_path: Path, document: Any) -> None:
    file = tmp_path / "auth.json"
    file.write_text(json.dumps(document))
    environ = {"REGISTRY_AUTH_FILE": str(file), "PATH": ""}
    try:
        found = Credentials.load(environ).for_registry(HOST, "team/app")
    except LamellaError as error:
        check_wording(error)
    else:
        assert SECRET not in repr(found).replace(repr(found.username) if found else "", "")


@KNOWN
@given(document=FILES)
def test_a_login_changes_only_its_own_entry(tmp_path: Path, document: Any) -> None:
    file = tmp_path / "auth.json"
    file.write_text(json.dumps(document))
    environ = {"REGISTRY_AUTH_FILE": str(file), "PATH": ""}
    try:
        login("new.example", Credential("ada", "x"), environ=environ)
    except LamellaError as error:
        check_wording(error)
        assert json.loads(file.read_text()) == json.loads(json.dumps(document))
        return
    after = json.loads(file.read_text())
    assert after["auths"].pop("new.example") == {"auth": "YWRhOng="}
    before = json.loads(json.dumps(document))
    expected = {key: value for key, value in (before.pop("auths", None) or {}).items() if "new.example" not in key}
    assert after.pop("auths") == expected
    assert {key: value for key, value in before.items() if value is not None} == {
        key: value for key, value in after.items() if value is not None
    }


@KNOWN
@given(lines=st.lists(st.tuples(SETTINGS, SETTING_VALUES), max_size=4))
def test_settings_are_read_or_refused_with_file_and_key(tmp_path: Path, lines: list[tuple[str, str]]) -> None:
    file = tmp_path / HOST / "hosts.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(f"{key} = {value}" for key, value in lines))
    try:
        hosts = hosts_for(HOST, directory=tmp_path)
    except LamellaError as error:
        refused, hosts = str(error), ()
    else:
        refused = ""
    assert refused.startswith(f"{file}: ") is not bool(hosts)
    for host in hosts:
        assert re.fullmatch(r"https?://[^/@?#]+(/[^?#]*)?", host.url)
        assert not host.url.endswith("/")


@settings(max_examples=300)
@given(header=st.text(max_size=200) | st.text('Bearer realm="\\,= \t', max_size=200))
def test_challenges_are_parsed_or_skipped(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(isinstance(value, str) for value in challenge.parameters.values())


@settings(max_examples=300)
@given(url=st.text(max_size=60) | st.text("htps:/@[]%.0123456789\\", max_size=60).map(lambda text: f"http://{text}"))
def test_a_url_has_one_origin_or_none(url: str) -> None:
    assert isinstance(redact_url(url), str)
    try:
        origin = parse_origin(url)
    except LamellaError:
        return
    assert origin.scheme in ("http", "https")
    assert parse_origin(f"{origin.scheme}://{origin!s}/") == origin


class Said:
    """An answer with one header."""

    def __init__(self, link: str) -> None:
        self.headers = {"Link": link}
        self.url = "https://registry.example/v2/x/tags/list"


@settings(max_examples=200)
@given(link=st.text(max_size=200) | st.text('<>;rel="next/?n=', max_size=200))
def test_a_next_page_is_found_or_not(link: str) -> None:
    try:
        found = next_page(Said(link))  # type: ignore[arg-type]
    except LamellaError:
        return
    assert found is None or isinstance(found, str)


@pytest.mark.parametrize(
    "header", ["<" * 100_000, "<x>" + "; a=b" * 20_000, '<x>; rel="' + "x" * 100_000, "a " * 50_000, 'a="\\' * 20_000]
)
def test_long_headers_are_parsed_quickly(header: str) -> None:
    next_page(Said(header))  # type: ignore[arg-type]
    parse_challenges(header)
