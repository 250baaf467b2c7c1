# SPDX-License-Identifier: Apache-2.0
"""Uploads that are cut, lost or misreported; lists without end."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.registry import hostile
from tests.registry.hostile import Registry, error
from tests.registry.misbehaviour import cut_upload, endless, lose_upload, say, with_headers
from tests.registry.wire import Answer, Request
from tests.security.registry.pulling import IMAGE, LAYER, MANIFESTS, NOISE, OPTIONS, UPLOADS, keep_quiet, push

from lamella.digests import parse_digest
from lamella.errors import Conflict, DigestMismatch, Exhausted, InvalidInput, LamellaError, NotFound, Unavailable
from lamella.oci.mediatypes import OCI_INDEX, OCI_MANIFEST
from lamella.registry import pagination
from lamella.registry.client import Client
from lamella.testing.images import compact, digest, small_image


class TestUploads:
    def test_a_cut_upload_continues_where_it_was_cut(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, cut_upload(200_000, registry), times=1)
        assert push(registry, tmp_path) == IMAGE.descriptor["digest"]
        assert registry.blobs[LAYER] == IMAGE.blobs[LAYER]

    def test_a_cut_upload_of_which_nothing_arrived_is_sent_again(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, cut_upload(200_000, registry, keep=False), times=1)
        assert push(registry, tmp_path) == IMAGE.descriptor["digest"]

    def test_an_upload_that_is_always_cut_exhausts_the_tries(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, cut_upload(0, registry))
        with pytest.raises((Unavailable, Conflict)):
            push(registry, tmp_path)
        assert len(registry.asked("PATCH|PUT", UPLOADS)) <= 40
        assert ("team/new", "v1") not in registry.manifests

    def test_a_session_that_is_both_lost_and_known_exhausts_the_tries(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PUT", UPLOADS, say(error(404, "BLOB_UPLOAD_UNKNOWN")))
        with pytest.raises(NotFound):
            push(registry, tmp_path)
        assert len(registry.asked("PUT", UPLOADS)) <= 3 * OPTIONS.tries  # of three blobs

    def test_a_lost_session_is_started_again(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, lose_upload(registry), times=1)
        assert push(registry, tmp_path) == IMAGE.descriptor["digest"]

    def test_a_wrong_offset_of_an_upload_is_an_error(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PATCH|PUT", UPLOADS, cut_upload(1000, registry), times=1)
        registry.misbehave("GET", UPLOADS, with_headers(Range="0-999999999"))
        with pytest.raises(LamellaError):
            push(registry, tmp_path)
        assert ("team/new", "v1") not in registry.manifests

    @pytest.mark.parametrize("path", [UPLOADS, MANIFESTS])
    def test_a_stored_digest_other_than_the_sent_one_is_an_error(
        self, registry: Registry, tmp_path: Path, path: str
    ) -> None:
        registry.misbehave("PUT", path, with_headers(Docker_Content_Digest=digest(b"other")))
        with pytest.raises(DigestMismatch):
            push(registry, tmp_path)

    def test_a_refused_upload_leaves_no_image(self, registry: Registry, tmp_path: Path) -> None:
        registry.misbehave("PUT|PATCH", UPLOADS, say(error(400, "DIGEST_INVALID")))
        with pytest.raises(LamellaError) as caught:
            push(registry, tmp_path)
        keep_quiet(caught.value)
        assert ("team/new", "v1") not in registry.manifests

    def test_the_tag_is_put_last(self, registry: Registry, tmp_path: Path) -> None:
        push(registry, tmp_path)
        *earlier, last = [one for one in registry.asked("PUT") if "/team/new/" in one.path]
        assert last.path.endswith("/manifests/v1")
        assert [one.path for one in earlier if one.path.endswith("/manifests/v1")] == []

    def test_a_source_blob_with_another_digest_is_not_stored(self, registry: Registry, tmp_path: Path) -> None:
        wrong = small_image({"etc/name": b"lamella"}, {"noise": NOISE}, compress=False)
        wrong.blobs[LAYER] = bytes(len(IMAGE.blobs[LAYER]))
        registry.blobs.pop(LAYER)
        with pytest.raises(DigestMismatch):
            push(registry, tmp_path, image=wrong)
        assert LAYER not in registry.repositories.get("team/new", ())
        assert ("team/new", "v1") not in registry.manifests


class TestLists:
    def test_all_pages_are_read(self, registry: Registry) -> None:
        registry.page = 2
        for number in range(7):
            registry.add("team/app", f"t{number}", IMAGE)
        assert list(Client(registry.host, "team/app", OPTIONS).tags()) == [*(f"t{n}" for n in range(7)), "v1"]

    def test_pages_in_a_circle_are_refused(self, registry: Registry) -> None:
        registry.misbehave("GET", "/tags/list", with_headers(Link='</v2/team/app/tags/list?n=1>; rel="next"'))
        with pytest.raises(InvalidInput, match="circle"):
            list(Client(registry.host, "team/app", OPTIONS).tags())
        assert len(registry.asked("GET", "/tags/list")) <= 4

    def test_pages_without_end_are_bounded(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pagination, "MAX_PAGES", 20)

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
    def test_malformed_names_are_not_returned(self, registry: Registry, tag: object) -> None:
        answer = Answer(200, {"Content-Type": "application/json"}, compact({"name": "team/app", "tags": [tag]}))
        registry.misbehave("GET", "/tags/list", say(answer))
        with pytest.raises(InvalidInput):
            list(Client(registry.host, "team/app", OPTIONS).tags())

    def test_an_endless_page_is_refused(self, registry: Registry) -> None:
        registry.misbehave("GET", "/tags/list", endless(b" " * 65536))
        with pytest.raises(Exhausted):
            list(Client(registry.host, "team/app", OPTIONS).tags())

    def test_tags_are_bounded_by_their_bytes_over_all_pages(self, registry: Registry) -> None:
        def page(request: Request, serve: hostile.Serve) -> Answer:
            number = int(request.query.get("last", "0"))
            tags = [f"t{number}x{at}" for at in range(150_000)]
            link = {"Link": f'</v2/team/app/tags/list?last={number + 1}>; rel="next"'}
            return Answer(200, link if number < 40 else {}, compact({"tags": tags}))

        registry.misbehave("GET", "/tags/list", page)
        with pytest.raises(Exhausted, match="the tags of team/app: more than 16777216 bytes"):
            list(Client(registry.host, "team/app", OPTIONS).tags())
        assert len(registry.asked("GET", "/tags/list")) <= 12

    def test_referrers_are_bounded_by_their_bytes_over_all_pages(self, registry: Registry) -> None:
        def page(request: Request, serve: hostile.Serve) -> Answer:
            number = int(request.query.get("last", "0"))
            entry = {"mediaType": OCI_MANIFEST, "digest": LAYER, "size": 2, "annotations": {"a": "b" * 100_000}}
            link = {"Link": f'</v2/team/app/referrers/{LAYER}?last={number + 1}>; rel="next"'}
            return Answer(200, link, compact({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] * 30}))

        registry.misbehave("GET", "/referrers/", page)
        with pytest.raises(Exhausted, match=r"the referrers of .* more than 16777216 bytes"):
            Client(registry.host, "team/app", OPTIONS).referrers(parse_digest(LAYER))
        assert len(registry.asked("GET", "/referrers/")) <= 7
