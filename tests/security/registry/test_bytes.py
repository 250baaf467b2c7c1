# SPDX-License-Identifier: Apache-2.0
"""Wrong, malformed and endless bytes and documents are refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.registry import hostile
from tests.registry.hostile import Registry
from tests.registry.misbehaviour import cut_body, drip, endless, lying_chunks, say, short_body, with_body, with_headers
from tests.registry.wire import Answer, Request
from tests.security.registry.pulling import (
    BLOBS,
    IMAGE,
    LAYER,
    MANIFESTS,
    MOST,
    OPTIONS,
    keep_quiet,
    name_in,
    pull,
    refuse_to_pull,
)

from lamella.errors import (
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
from lamella.testing.images import compact, digest, small_image


class TestBytes:
    def test_a_wrong_digest_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, with_body(lambda raw: raw[:-1] + b"!"))
        refuse_to_pull(registry, tmp_path, DigestMismatch)

    def test_a_cut_body_is_continued(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        first, second = registry.asked("GET", BLOBS)
        assert "Range" not in first.headers
        start = int(second.headers["Range"].removeprefix("bytes=").rstrip("-"))
        assert 0 < start <= 250_000

    def test_a_cut_body_without_ranges_is_read_again(self, registry: Registry, tmp_path: Path) -> None:
        whole = IMAGE.blobs[LAYER]
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        registry.misbehave("GET", BLOBS, say(Answer(200, {"Content-Type": "application/octet-stream"}, whole)))
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]

    def test_another_body_after_a_cut_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        registry.misbehave("GET", BLOBS, with_body(lambda raw: bytes(len(raw))))
        refuse_to_pull(registry, tmp_path, DigestMismatch)

    def test_a_wrong_range_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        registry.misbehave("GET", BLOBS, with_headers(Content_Range=f"bytes 0-9/{len(IMAGE.blobs[LAYER])}"))
        refuse_to_pull(registry, tmp_path, Unavailable, Integrity)
        assert len(registry.asked("GET", BLOBS)) <= MOST

    @pytest.mark.parametrize("total", ["*", "\xb2", "", "-1", "9" * 30])
    def test_a_malformed_total_of_a_range_is_ignored(self, registry: Registry, tmp_path: Path, total: str) -> None:
        registry.misbehave("GET", BLOBS, cut_body(250_000), times=1)
        registry.misbehave("GET", BLOBS, with_headers(Content_Range=f"bytes 250000-/{total}"))
        if total.startswith("9"):
            refuse_to_pull(registry, tmp_path, SizeMismatch)
        else:
            assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]

    @pytest.mark.parametrize("missing", [1, 300_000])
    def test_a_body_that_is_always_short_exhausts_the_tries(
        self, registry: Registry, tmp_path: Path, missing: int
    ) -> None:
        registry.misbehave("GET", BLOBS, short_body(missing))
        refuse_to_pull(registry, tmp_path, Unavailable, Integrity)
        assert len(registry.asked("GET", BLOBS)) <= 40

    def test_a_body_that_is_short_once_is_continued(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, short_body(1), times=1)
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]

    @pytest.mark.parametrize("change", [lambda raw: raw + b"x", lambda raw: raw[:-1]], ids=["longer", "shorter"])
    def test_a_length_other_than_the_manifests_is_refused(
        self, registry: Registry, tmp_path: Path, change: Any
    ) -> None:
        registry.misbehave("GET", BLOBS, with_body(change))
        refuse_to_pull(registry, tmp_path, SizeMismatch)

    def test_an_endless_body_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, endless())
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, Integrity)
        assert time.monotonic() - start < 60

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_chunks_with_a_wrong_length_are_refused(self, registry: Registry, tmp_path: Path, path: str) -> None:
        registry.misbehave("GET", path, lying_chunks)
        refuse_to_pull(registry, tmp_path, Unavailable, Integrity)

    @pytest.mark.parametrize("length", ["-1", "99999999999999999999", "5, 6", "0x10", "1e3", ""])
    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_malformed_lengths_are_refused(self, registry: Registry, tmp_path: Path, path: str, length: str) -> None:
        registry.misbehave("GET", path, with_headers(Content_Length=length))
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, InvalidInput, Unavailable, Integrity, Exhausted)
        assert time.monotonic() - start < 60

    @pytest.mark.parametrize("path", [MANIFESTS, BLOBS])
    def test_a_dripping_body_is_given_up(self, registry: Registry, tmp_path: Path, path: str) -> None:
        registry.misbehave("GET", path, drip(0.05, 10))
        options = replace(OPTIONS, tries=2)
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, Unavailable, options=options)
        assert time.monotonic() - start < 60

    def test_a_slow_but_steady_body_is_read(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", BLOBS, drip(0.05, 30_000))
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]

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

    def test_a_manifest_by_digest_has_that_digest(self, registry: Registry, tmp_path: Path) -> None:
        name = name_in(registry, f"@{IMAGE.descriptor['digest']}")
        assert pull(name, tmp_path) == IMAGE.descriptor["digest"]
        registry.misbehave("GET", MANIFESTS, with_body(lambda raw: raw + b" "))
        self.pull_by_digest(registry, tmp_path / "again", Integrity)

    def test_a_wrong_digest_header_of_a_tag_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, with_headers(Docker_Content_Digest=digest(b"other")))
        refuse_to_pull(registry, tmp_path, DigestMismatch)

    def test_a_digest_header_does_not_override_the_requested_digest(self, registry: Registry, tmp_path: Path) -> None:
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
    def test_a_malformed_digest_header_is_handled(self, registry: Registry, tmp_path: Path, text: str) -> None:
        registry.misbehave("GET", MANIFESTS, with_headers(Docker_Content_Digest=text))
        try:
            assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]
        except (InvalidInput, Unsupported) as refused:
            keep_quiet(refused)

    def test_the_digest_header_may_be_missing(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave(".*", "", with_headers(Docker_Content_Digest=None))
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]

    def test_a_huge_manifest_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, with_body(lambda raw: raw + b" " * (5 << 20)))
        refuse_to_pull(registry, tmp_path, Exhausted)

    def test_an_endless_manifest_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, endless(b" " * 65536))
        refuse_to_pull(registry, tmp_path, Exhausted)

    def test_an_endless_error_body_is_bounded(self, registry: Registry, tmp_path: Path) -> None:
        def refuse(request: Request, serve: hostile.Serve) -> Answer:
            return replace(endless(b"[" * 65536)(request, serve), status=403)

        registry.misbehave("GET", MANIFESTS, refuse)
        start = time.monotonic()
        refuse_to_pull(registry, tmp_path, Denied)
        assert time.monotonic() - start < 60

    def test_schema_1_is_refused_by_name(self, registry: Registry, tmp_path: Path) -> None:
        old = compact({"schemaVersion": 1, "name": "team/app", "tag": "v1", "fsLayers": [], "history": []})
        kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
        registry.add_manifest("team/app", "v1", kind, old)
        refused = refuse_to_pull(registry, tmp_path, Unsupported)
        assert "schema 1" in str(refused)

    def test_a_manifest_is_recognized_under_another_content_type(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, with_headers(Content_Type="application/json; charset=utf-8"))
        assert pull(registry, tmp_path) == IMAGE.descriptor["digest"]

    def test_a_content_type_against_the_document_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("GET", MANIFESTS, with_headers(Content_Type="application/vnd.oci.image.index.v1+json"))
        refuse_to_pull(registry, tmp_path, InvalidInput, Unsupported)

    @pytest.mark.parametrize("page", [b"<html>log in</html>", b"", b"[]", b"\xff\xfe", b'{"schemaVersion": 2}'])
    def test_html_pages_are_not_manifests(self, registry: Registry, tmp_path: Path, page: bytes) -> None:
        registry.misbehave("GET", MANIFESTS, say(Answer(200, {"Content-Type": "text/html"}, page)))
        refuse_to_pull(registry, tmp_path, InvalidInput, Unsupported, NotFound)
