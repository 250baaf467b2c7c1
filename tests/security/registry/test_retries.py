# SPDX-License-Identifier: Apache-2.0
"""Retries are made, and are bounded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.registry.hostile import Registry, error
from tests.registry.misbehaviour import endless_head, reset, say
from tests.registry.wire import Answer
from tests.security.registry.pulling import BLOBS, IMAGE, MANIFESTS, MOST, OPTIONS, pull, refuse_to_pull

from lamella.errors import Denied, LamellaError, Unavailable
from lamella.registry.http import retry


@pytest.fixture
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses between tries negligible."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.001)


class TestRetries:
    def test_a_burst_of_errors_is_retried(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, say(error(503, "UNAVAILABLE")), times=2)
        registry.misbehave("GET", BLOBS, reset, times=2)
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS, "/token"])
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_errors_without_end_exhaust_the_tries(
        self, registry: Registry, tmp_path: Path, status: int, path: str
    ) -> None:
        registry.misbehave("GET", path, say(error(status, "TOOMANYREQUESTS" if status == 429 else "UNKNOWN")))
        refuse_to_pull(registry, tmp_path, Unavailable, options=replace(OPTIONS, tries=2))
        assert len(registry.asked("GET", path)) <= MOST

    def test_retry_after_is_respected(self, registry: Registry, tmp_path: Path) -> None:
        answer = error(429, "TOOMANYREQUESTS")
        answer.headers["Retry-After"] = "1"
        registry.misbehave("GET", MANIFESTS, say(answer), times=1)
        start = time.monotonic()
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert time.monotonic() - start >= 1

    @pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-Endless: "], ids=["silence", "field"])
    def test_a_head_that_never_ends_is_bounded_over_all_tries(
        self, registry: Registry, tmp_path: Path, quick_pauses: None, start: bytes
    ) -> None:
        registry.misbehave("GET", MANIFESTS, endless_head(start, b"" if not start else b"x", 0.02))
        check_bounded(registry, tmp_path)

    def test_interim_responses_without_end_are_bounded_over_all_tries(
        self, registry: Registry, tmp_path: Path, quick_pauses: None
    ) -> None:
        registry.misbehave("GET", MANIFESTS, endless_head(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001))
        check_bounded(registry, tmp_path)

    def test_a_head_that_drips_until_it_is_cut_is_bounded_over_all_tries(
        self, registry: Registry, tmp_path: Path, quick_pauses: None
    ) -> None:
        registry.misbehave("GET", MANIFESTS, endless_head(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.02, times=20))
        check_bounded(registry, tmp_path)

    @pytest.mark.parametrize("after", ["86400", "Fri, 31 Dec 2999 23:59:59 GMT", "9" * 400])
    def test_too_long_a_retry_after_fails_at_once(self, registry: Registry, tmp_path: Path, after: str) -> None:
        answer = error(429, "TOOMANYREQUESTS")
        answer.headers["Retry-After"] = after
        registry.misbehave("GET", MANIFESTS, say(answer))
        start = time.monotonic()
        refused = refuse_to_pull(registry, tmp_path, Unavailable)
        assert time.monotonic() - start < 60
        assert refused.hint is not None

    @pytest.mark.parametrize(
        "after", ["-5", "soon", "nan", "inf", "1e9", "", "Fri, 99 Foo 2999", "Sat, 01 Jan 2000 00:00:00 GMT"]
    )
    def test_a_malformed_retry_after_is_ignored(self, registry: Registry, tmp_path: Path, after: str) -> None:
        answer = error(429, "TOOMANYREQUESTS")
        answer.headers["Retry-After"] = after
        registry.misbehave("GET", MANIFESTS, say(answer), times=1)
        start = time.monotonic()
        try:
            assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        except Unavailable:
            pass
        assert time.monotonic() - start < 60

    @pytest.mark.parametrize("auth", ["basic", "bearer"])
    def test_a_registry_that_refuses_every_credential_is_denied(self, tmp_path: Path, auth: str) -> None:
        with Registry(auth=auth) as server:
            server.add("team/app", "v1", IMAGE)
            server.refuses_all = True
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
    def test_malformed_tokens_are_refused(self, registry: Registry, tmp_path: Path, answer: Answer) -> None:
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
    def test_malformed_challenges_are_refused_at_once(self, registry: Registry, tmp_path: Path, challenge: str) -> None:
        registry.challenge = challenge[:60_000]
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, LamellaError)
        assert time.monotonic() - start < 60
        assert [seen for seen in registry.credentials_seen() if "Bearer" in seen] == []


def check_bounded(registry: Registry, tmp_path: Path) -> None:
    """A pull ends after the time for failed tries, however many of them are allowed."""
    options = replace(OPTIONS, tries=40, read_timeout=0.25, retry_wait=2)
    start = time.monotonic()
    refuse_to_pull(registry, tmp_path, Unavailable, options=options)
    assert time.monotonic() - start < 6
