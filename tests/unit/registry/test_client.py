# SPDX-License-Identifier: Apache-2.0
"""The requests of the distribution specification, against a registry in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.registry.hostile import PASSWORD, USER, Registry, error
from tests.registry.misbehaviour import cut_upload, lose_upload, reset, say, with_body, with_headers
from tests.registry.wire import Answer, Request

from lamella.digests import Digest, parse_digest
from lamella.errors import (
    Cancelled,
    Conflict,
    Denied,
    DigestMismatch,
    Exhausted,
    InvalidInput,
    LamellaError,
    NotFound,
    Unavailable,
    Unsupported,
)
from lamella.images.options import RegistryOptions
from lamella.oci.mediatypes import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from lamella.progress import Cancellation
from lamella.registry import pagination
from lamella.registry.auth.credentials import Credential
from lamella.registry.client import Client, fallback_tag
from lamella.registry.http import retry
from lamella.registry.http.retry import Retries, retry_after
from lamella.testing.images import compact, digest, small_image

IMAGE = small_image({"a": b"b"})
NAME = IMAGE.descriptor["digest"]
RAW = compact(IMAGE.manifest)
OPTIONS = RegistryOptions(tries=3, retry_wait=3, anonymous=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.registry.http.retry.FIRST_PAUSE", 0.01)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        server.add("team/app", "v1", IMAGE)
        yield server


@pytest.fixture
def client(registry: Registry) -> Iterator[Client]:
    one = Client(registry.host, "team/app", OPTIONS)
    yield one
    one.close()


class TestManifests:
    @pytest.mark.parametrize("reference", ["v1", NAME])
    def test_a_manifest_is_read_by_tag_and_by_digest(self, client: Client, reference: str) -> None:
        descriptor, raw = client.manifest(reference)
        assert raw == RAW
        assert (descriptor.digest, descriptor.size, descriptor.media_type) == (NAME, len(RAW), OCI_MANIFEST)
        assert client.find_manifest(reference) == descriptor

    def test_an_absent_manifest_is_not_found(self, client: Client) -> None:
        with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
            client.manifest("v2")
        assert client.find_manifest("v2") is None

    def test_every_media_type_is_accepted(self, client: Client, registry: Registry) -> None:
        client.manifest("v1")
        (request,) = registry.asked("GET", "/manifests/")
        assert all(kind in request.headers["Accept"] for kind in (OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))

    def test_a_head_response_without_a_digest_is_followed_by_a_get(self, client: Client, registry: Registry) -> None:
        registry.misbehave("HEAD", "/manifests/", with_headers(Docker_Content_Digest=None))
        found = client.find_manifest("v1")
        assert found is not None
        assert found.digest == NAME

    def test_manifests_are_put_and_deleted(self, client: Client, registry: Registry) -> None:
        assert client.put_manifest("v2", OCI_MANIFEST, RAW).digest == NAME
        assert registry.manifests["team/app", "v2"] == (OCI_MANIFEST, RAW)
        client.delete_manifest("v2")
        assert ("team/app", "v2") not in registry.manifests
        with pytest.raises(NotFound):
            client.delete_manifest("v2")

    def test_a_refused_deletion_of_a_tag_has_a_hint(self, client: Client, registry: Registry) -> None:
        registry.misbehave("DELETE", "/manifests/v1", say(error(405, "UNSUPPORTED")))
        with pytest.raises(Unsupported) as caught:
            client.delete_manifest("v1")
        assert "by digest alone" in (caught.value.hint or "")

    def test_a_manifest_stored_with_another_digest_is_an_error(self, client: Client, registry: Registry) -> None:
        registry.misbehave("PUT", "/manifests/", with_headers(Docker_Content_Digest=digest(b"")))
        with pytest.raises(DigestMismatch):
            client.put_manifest("v2", OCI_MANIFEST, RAW)


class TestErrors:
    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (error(404, "NAME_UNKNOWN"), NotFound),
            (error(404, ""), NotFound),
            (Answer(404, {}, b"<html>not found"), NotFound),
            (error(400, "MANIFEST_INVALID"), InvalidInput),
            (error(400, "DIGEST_INVALID"), LamellaError),
            (error(403, "DENIED"), Denied),
            (error(401, "UNAUTHORIZED"), Denied),
            (error(405, "UNSUPPORTED"), Unsupported),
            (error(413, ""), Exhausted),
            (error(429, "TOOMANYREQUESTS"), Unavailable),
            (error(502, "NAME_UNKNOWN"), Unavailable),
            (Answer(418, {}, b'{"errors": [[]]}'), LamellaError),
        ],
    )
    def test_refusals_have_categories(
        self, client: Client, registry: Registry, answer: Answer, expected: type[LamellaError]
    ) -> None:
        registry.misbehave("GET", "/manifests/", say(answer))
        with pytest.raises(expected) as caught:
            client.manifest("v1")
        assert str(caught.value).startswith(f"{registry.host}: look for team/app:v1: ")

    def test_the_message_of_a_registry_becomes_one_short_line(self, client: Client, registry: Registry) -> None:
        text = "line\nline\x1b[31m\u202e" + "x" * 5000
        registry.misbehave("GET", "/manifests/", say(error(404, "NAME_UNKNOWN", text)))
        with pytest.raises(NotFound) as caught:
            client.manifest("v1")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


class TestRetries:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_transient_failures_are_retried(self, client: Client, registry: Registry, status: int) -> None:
        registry.misbehave("GET", "/manifests/", say(error(status, "")), times=2)
        assert client.manifest("v1")[1] == RAW

    def test_resets_are_retried(self, client: Client, registry: Registry) -> None:
        registry.misbehave("GET", "/manifests/", reset, times=2)
        assert client.manifest("v1")[1] == RAW

    @pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
    def test_permanent_failures_are_not_retried(self, client: Client, registry: Registry, status: int) -> None:
        registry.misbehave("GET", "/manifests/", say(error(status, "")))
        with pytest.raises(LamellaError):
            client.manifest("v1")
        assert len(registry.requests) == 1

    def test_a_host_that_never_answered_is_not_retried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(retry, "sleep", lambda seconds, cancel: pauses.append(seconds))
        with pytest.raises(Unavailable):
            Client("127.0.0.1:1", "a", RegistryOptions()).manifest("v1")
        assert pauses == []

    def test_a_cancellation_ends_a_pause(self) -> None:
        cancel = Cancellation()
        cancel.cancel()
        with pytest.raises(Cancelled):
            Retries(RegistryOptions(cancel=cancel)).pause(Unavailable("x"), 100)

    def test_retry_after_is_seconds_or_a_date(self) -> None:
        assert retry_after({}) is None
        assert retry_after({"Retry-After": " 7 "}) == 7
        assert retry_after({"Retry-After": "soon"}) is None
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
        seconds = retry_after({"Retry-After": date})
        assert seconds is not None
        assert 50 < seconds <= 60
        assert retry_after({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0

    def test_enough_bytes_restore_the_tries(self) -> None:
        retries = Retries(RegistryOptions(tries=2))
        for _ in range(3):
            retries.pause(Unavailable("x"), 0)
            retries.progress(1 << 20)
        retries.pause(Unavailable("x"), 0)
        retries.progress(1000)
        with pytest.raises(Unavailable):
            retries.pause(Unavailable("x"), 0)


class TestBlobs:
    RAW = bytes(range(256)) * 100

    def test_blobs_are_sized_read_in_part_and_deleted(self, client: Client, registry: Registry) -> None:
        name = parse_digest(registry.add_blob("team/app", self.RAW))
        assert client.blob_size(name) == len(self.RAW)
        assert client.blob_size(Digest.of(b"other")) is None
        answer = client.blob(name, 10, 20)
        assert (answer.status, answer.document()) == (206, self.RAW[10:20])
        client.delete_blob(name)
        assert client.blob_size(name) is None

    def test_a_blob_is_uploaded_in_pieces(self, client: Client, registry: Registry) -> None:
        upload = client.start_upload()
        view = memoryview(self.RAW)
        upload.send(view[:10_000])
        upload.send(view[10_000:20_000])
        upload.finish(Digest.of(self.RAW), view[20_000:])
        assert registry.blobs[digest(self.RAW)] == self.RAW
        sent = [request.headers.get("Content-Range") for request in registry.asked("PATCH|PUT", "/uploads/")]
        assert sent == ["0-9999", "10000-19999", f"20000-{len(self.RAW) - 1}"]

    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("method", ["PATCH", "PUT"])
    def test_a_cut_piece_continues_where_it_was_cut(
        self, client: Client, registry: Registry, method: str, keep: bool
    ) -> None:
        registry.misbehave(method, "/uploads/", cut_upload(3000, registry, keep=keep), times=1)
        upload = client.start_upload()
        view = memoryview(self.RAW)
        upload.send(view[:10_000])
        upload.finish(Digest.of(self.RAW), view[10_000:])
        assert registry.blobs[digest(self.RAW)] == self.RAW

    def test_an_upload_whose_last_response_is_lost_is_complete(self, client: Client, registry: Registry) -> None:
        def lose_answer(request: Request, serve: object) -> Answer:
            assert callable(serve)
            serve()
            return Answer(0, cut=0, raw=b"")

        registry.misbehave("PUT", "/uploads/", lose_answer, times=1)
        upload = client.start_upload()
        upload.finish(Digest.of(self.RAW), self.RAW)
        assert len(registry.asked("PUT", "/uploads/")) == 1

    def test_a_lost_upload_is_an_error(self, client: Client, registry: Registry) -> None:
        upload = client.start_upload()
        upload.send(memoryview(self.RAW)[:10])
        registry.misbehave("PATCH", "/uploads/", lose_upload(registry))
        with pytest.raises(Unavailable):
            upload.send(memoryview(self.RAW)[10:])

    def test_a_cancelled_upload_is_removed(self, client: Client, registry: Registry) -> None:
        client.start_upload().cancel()
        assert registry.uploads == {}

    def test_a_mount_transfers_no_bytes(self, client: Client, registry: Registry) -> None:
        name = parse_digest(registry.add_blob("other/app", self.RAW))
        assert client.mount_blob(name, "other/app") is None
        assert client.blob_size(name) == len(self.RAW)
        upload = client.mount_blob(Digest.of(b"absent"), "other/app")
        assert upload is not None
        upload.finish(Digest.of(b"absent"), b"absent")
        assert registry.blobs[digest(b"absent")] == b"absent"

    def test_a_mount_asks_for_the_pull_scope_of_its_source(self) -> None:
        with Registry(auth="bearer") as registry:
            registry.add_blob("other/app", self.RAW)
            options = RegistryOptions(tries=1, credential=Credential(USER, PASSWORD))
            client = Client(registry.host, "team/app", options)
            assert client.mount_blob(Digest.of(self.RAW), "other/app") is None
            client.close()
            (asked,) = registry.asked("GET", "/token")
        assert {"repository:team/app:pull,push", "repository:other/app:pull"} <= set(asked.query["scope"].split())

    def test_a_location_without_tls_of_the_registry_itself_is_corrected(self, registry: Registry) -> None:
        client = Client("registry.example", "a", OPTIONS)

        said = SimpleNamespace(url="https://registry.example/v2/a/blobs/uploads/", headers={})
        said.headers["Location"] = "http://registry.example/v2/a/blobs/uploads/1?x=y"
        assert client.own.location(said) == "https://registry.example/v2/a/blobs/uploads/1?x=y"  # type: ignore[arg-type]
        said.headers["Location"] = "http://other.example/v2/"
        with pytest.raises(Denied):
            client.own.location(said)  # type: ignore[arg-type]


class TestLists:
    def test_tags_are_listed_page_by_page(self, client: Client, registry: Registry) -> None:
        registry.page = 2
        for number in range(5):
            registry.add_manifest("team/app", f"t{number}", OCI_MANIFEST, RAW)
        assert list(client.tags()) == ["t0", "t1", "t2", "t3", "t4", "v1"]
        assert len(registry.asked("GET", "/tags/list")) == 3

    def test_a_repository_without_tags_has_an_empty_list(self, client: Client, registry: Registry) -> None:
        registry.misbehave("GET", "/tags/list", say(Answer(200, {}, b'{"name": "a", "tags": null}')))
        assert list(client.tags()) == []

    @pytest.mark.parametrize("document", [b"[]", b'{"tags": "a"}', b'{"tags": [1]}', b'{"tags": ["a\\u001b[31m"]}'])
    def test_malformed_names_are_refused(self, client: Client, registry: Registry, document: bytes) -> None:
        registry.misbehave("GET", "/tags/list", say(Answer(200, {}, document)))
        with pytest.raises(InvalidInput):
            list(client.tags())

    def test_the_number_of_pages_is_bounded(
        self, client: Client, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def more(request: Request, serve: object) -> Answer:
            last = int(request.query.get("last", "0")) + 1
            return Answer(200, {"Link": f'</v2/team/app/tags/list?last={last}>; rel="next"'}, b'{"tags": ["a"]}')

        monkeypatch.setattr(pagination, "MAX_PAGES", 10)
        registry.misbehave("GET", "/tags/list", more)
        with pytest.raises(Exhausted):
            list(client.tags())

    def test_the_catalog_is_listed(self, registry: Registry) -> None:
        registry.repositories["b/c"] = set()
        assert list(Client(registry.host, options=OPTIONS).catalog()) == ["b/c", "team/app"]

    def test_ping_checks_the_registry(self, client: Client, registry: Registry) -> None:
        client.ping()
        registry.misbehave("GET", "/v2/", say(Answer(404)))
        with pytest.raises(NotFound):
            client.ping()


class TestReferrers:
    SIGNATURE = compact(
        {
            **IMAGE.manifest,
            "artifactType": "application/x.signature",
            "subject": IMAGE.descriptor,
            "annotations": {"k": "v"},
        }
    )

    def test_referrers_are_listed_by_the_api(self, client: Client, registry: Registry) -> None:
        registry.add_manifest("team/app", "s", OCI_MANIFEST, self.SIGNATURE)
        (found,) = client.referrers(parse_digest(NAME))
        assert found.digest == digest(self.SIGNATURE)
        assert client.referrers(parse_digest(NAME), "application/x.signature") == [found]
        assert client.referrers(parse_digest(NAME), "application/x.other") == []

    def test_referrers_are_listed_by_the_fallback_tag(self, client: Client, registry: Registry) -> None:
        registry.misbehave("GET", "/referrers/", say(Answer(404, {}, b"404 page not found")))
        assert client.referrers(parse_digest(NAME)) == []
        for _ in range(2):  # the second put changes nothing
            client.put_manifest(digest(self.SIGNATURE), OCI_MANIFEST, self.SIGNATURE)
        assert ("team/app", fallback_tag(parse_digest(NAME))) in registry.manifests
        (found,) = client.referrers(parse_digest(NAME))
        assert (found.digest, found.artifact_type) == (digest(self.SIGNATURE), "application/x.signature")
        assert found.annotations == {"k": "v"}

    def test_no_fallback_tag_is_put_where_the_registry_handles_subjects(
        self, client: Client, registry: Registry
    ) -> None:
        registry.misbehave("PUT", "/manifests/", with_headers(OCI_Subject=NAME))
        client.put_manifest(digest(self.SIGNATURE), OCI_MANIFEST, self.SIGNATURE)
        assert ("team/app", fallback_tag(parse_digest(NAME))) not in registry.manifests

    def test_a_malformed_list_of_referrers_is_refused(self, client: Client, registry: Registry) -> None:
        registry.misbehave("GET", "/referrers/", with_body(lambda _: b'{"manifests": 1}'))
        with pytest.raises(InvalidInput):
            client.referrers(parse_digest(NAME))


class TestMirrors:
    @pytest.fixture
    def through(self, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
        """Another registry, configured as a mirror of the first."""
        with Registry() as mirror:
            set_mirror(tmp_path, registry, mirror, "pull, resolve")
            monkeypatch.setenv("LAMELLA_CERTS_DIR", str(tmp_path))
            yield mirror

    def test_a_mirror_is_asked_first_with_the_registry_as_namespace(
        self, registry: Registry, through: Registry
    ) -> None:
        through.add("team/app", "v1", IMAGE)
        assert Client(registry.host, "team/app", OPTIONS).manifest("v1")[1] == RAW
        assert registry.requests == []
        assert [request.query for request in through.requests] == [{"ns": registry.host}]

    @pytest.mark.parametrize("status", [404, 403, 500])
    def test_the_registry_is_asked_for_what_a_mirror_lacks(
        self, registry: Registry, through: Registry, status: int
    ) -> None:
        through.misbehave(".*", "", say(Answer(status)))
        assert Client(registry.host, "team/app", OPTIONS).manifest("v1")[1] == RAW

    def test_an_unavailable_mirror_is_not_asked_again(self, registry: Registry, through: Registry) -> None:
        through.misbehave(".*", "", reset)
        client = Client(registry.host, "team/app", OPTIONS)
        for _ in range(3):
            client.manifest("v1")
        assert len(through.requests) <= 2

    @pytest.mark.parametrize("capabilities", [None, "pull", "pull, resolve, push"])
    def test_nothing_is_pushed_to_a_mirror_whatever_its_capabilities(
        self, registry: Registry, through: Registry, tmp_path: Path, capabilities: str | None
    ) -> None:
        set_mirror(tmp_path, registry, through, capabilities)
        client = Client(registry.host, "team/app", OPTIONS)
        client.put_manifest("v3", OCI_MANIFEST, RAW)
        client.start_upload().finish(Digest.of(b"x"), b"x")
        assert client.blob_size(Digest.of(b"x")) == 1
        assert client.find_manifest("v3") is not None
        client.delete_manifest("v3")
        assert through.requests == []

    def test_a_mirror_that_resolves_is_never_asked_for_blobs_or_by_digest(
        self, registry: Registry, through: Registry, tmp_path: Path
    ) -> None:
        through.add("team/app", "v1", IMAGE)
        set_mirror(tmp_path, registry, through, "resolve")
        client = Client(registry.host, "team/app", OPTIONS)
        descriptor, _ = client.manifest("v1")
        client.manifest(descriptor.digest)
        client.blob(Digest(IMAGE.manifest["config"]["digest"])).discard()
        assert [request.path for request in through.requests] == ["/v2/team/app/manifests/v1"]
        assert len(registry.asked("GET", "/blobs/")) == 1

    def test_a_mirror_that_pulls_is_never_asked_for_tags(
        self, registry: Registry, through: Registry, tmp_path: Path
    ) -> None:
        through.add("team/app", "v1", IMAGE)
        set_mirror(tmp_path, registry, through, "pull")
        client = Client(registry.host, "team/app", OPTIONS)
        descriptor, _ = client.manifest("v1")
        client.blob(Digest(IMAGE.manifest["config"]["digest"])).discard()
        assert [request.path for request in registry.requests] == ["/v2/team/app/manifests/v1"]
        assert [request.method for request in through.asked(".*", "/blobs/")] == ["GET"]
        client.manifest(descriptor.digest)
        assert through.asked("GET", "/manifests/")[0].path.endswith(NAME)


def set_mirror(certs_dir: Path, registry: Registry, mirror: Registry, capabilities: str | None) -> None:
    """Write a hosts.toml with a mirror, and its capabilities if they are stated."""
    text = f'server = "{registry.url}"\n[host."{mirror.url}"]\n'
    if capabilities is not None:
        text += "capabilities = [{}]\n".format(", ".join(f'"{one}"' for one in capabilities.split(", ")))
    (certs_dir / registry.host).mkdir(exist_ok=True)
    (certs_dir / registry.host / "hosts.toml").write_text(text)


def test_a_missing_blob_of_a_manifest_is_a_conflict(client: Client, registry: Registry) -> None:
    registry.misbehave("PUT", "/manifests/", say(error(400, "MANIFEST_BLOB_UNKNOWN")))
    with pytest.raises(Conflict):
        client.put_manifest("v2", OCI_MANIFEST, RAW)
