# SPDX-License-Identifier: Apache-2.0
"""Images in registries, by the readers and writers of the contract."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.registry.hostile import Registry, Serve
from tests.registry.misbehaviour import cut_upload, lose_upload
from tests.registry.wire import Answer, Request

from lamella.digests import Digest, parse_digest
from lamella.errors import Conflict, DigestMismatch, InvalidInput, NotFound, SizeMismatch, Unavailable
from lamella.images.options import RegistryOptions, registry_options
from lamella.images.resolve import open_platform_image
from lamella.images.transports import open_reader, open_writer, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import OCI_MANIFEST
from lamella.oci.platform import host_platform
from lamella.operations.copy import copy
from lamella.operations.unpack import unpack
from lamella.registry import blob_fetch
from lamella.registry import writer as writing
from lamella.registry.writer import RegistryWriter
from lamella.testing.images import compact, digest, index_of, small_image, tagged, write_layout

NOISE = random.Random(5).randbytes(300_000)
IMAGE = small_image({"etc/name": b"lamella"}, {"noise": NOISE}, compress=False)
ARM = small_image({"etc/name": b"arm"}, platform="linux/arm64")
ENTRY, INDEX = index_of(IMAGE, ARM)
LAYER = IMAGE.manifest["layers"][1]["digest"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.registry.http.retry.FIRST_PAUSE", 0.01)
    monkeypatch.setattr(writing, "PIECE_SIZE", 100_000)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        yield server


@pytest.fixture
def layout(tmp_path: Path) -> str:
    blobs = {**IMAGE.blobs, **ARM.blobs, digest(INDEX): INDEX}
    entries = [tagged(ENTRY, "all"), tagged(IMAGE.descriptor, "one")]
    return f"oci:{write_layout(str(tmp_path / 'layout'), entries, blobs)}"


def new_writer(registry: Registry, suffix: str = ":v1") -> RegistryWriter:
    found = open_writer(parse_image_name(f"docker://{registry.host}/a{suffix}"))
    assert isinstance(found, RegistryWriter)
    return found


def described(raw: bytes, media_type: str = "application/octet-stream") -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw))


def test_a_pushed_image_is_pulled_unchanged(registry: Registry, layout: str, tmp_path: Path) -> None:
    name = f"docker://{registry.host}/team/app:v1"
    there = copy(f"{layout}:all", name, all_platforms=True)
    assert (there.entry.digest, there.present) == (ENTRY["digest"], 0)
    back = copy(name, f"oci:{tmp_path}/back:v1", all_platforms=True)
    assert back.entry.digest == ENTRY["digest"]
    assert back.size == there.size


@pytest.mark.parametrize(("streams", "most"), [(1, 6), (3, 6 + 5)])
def test_the_number_of_concurrent_requests_is_bounded(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: int, most: int
) -> None:
    image = small_image(*({"noise": NOISE + bytes([number])} for number in range(12)), compress=False)
    registry.add("many", "v1", image)
    monkeypatch.setattr(blob_fetch, "RANGE_SIZE", 20_000)
    monkeypatch.setattr(blob_fetch, "SINGLE_REQUEST_SIZE", 40_000)
    monkeypatch.setattr(blob_fetch, "FAST_RATE", 1e18)
    lock, now, peak = threading.Lock(), 0, 0

    def slowly(request: Request, serve: Serve) -> Answer:
        answer = serve()
        raw = answer.body
        assert isinstance(raw, bytes)

        def body() -> Iterator[bytes]:
            nonlocal now, peak
            with lock:
                now += 1
                peak = max(now, peak)
            time.sleep(0.02)
            with lock:
                now -= 1  # before the last byte, after which the client may send the next request
            yield raw

        return replace(answer, body=body(), headers={**answer.headers, "Content-Length": str(len(raw))})

    registry.misbehave("GET", "/blobs/", slowly)
    with registry_options(RegistryOptions(streams=streams)):
        copy(f"docker://{registry.host}/many:v1", f"oci:{tmp_path}/out:v1")
    assert most - 3 <= peak <= most


def test_a_registry_is_asked_for_several_blobs_at_once(registry: Registry, tmp_path: Path) -> None:
    image = small_image(*({"number": bytes([number])} for number in range(12)))
    lock, now, peak = threading.Lock(), 0, 0

    def late(request: Request, serve: Serve) -> Answer:
        nonlocal now, peak
        with lock:
            now += 1
            peak = max(now, peak)
        time.sleep(0.05)
        with lock:
            now -= 1
        return serve()

    registry.misbehave("HEAD", "/blobs/", late)
    source = write_layout(str(tmp_path / "many"), [tagged(image.descriptor, "v1")], image.blobs)
    copy(f"oci:{source}:v1", f"docker://{registry.host}/a:v1")
    assert 1 < peak <= RegistryWriter.concurrent_puts
    assert len(registry.asked("HEAD", "/blobs/")) == 13
    again = copy(f"oci:{source}:v1", f"docker://{registry.host}/a:v2")
    assert (again.blobs, again.present) == (0, 14)


def test_a_layer_is_unpacked_while_it_arrives(registry: Registry, tmp_path: Path) -> None:
    image = small_image({"etc/first": b"1", "etc/noise": NOISE * 50}, compress=False)
    registry.add("large", "v1", image)
    seen: list[bool] = []

    def haltingly(request: Request, serve: Serve) -> Answer:
        answer = serve()
        raw = answer.body
        assert isinstance(raw, bytes)

        def body() -> Iterator[bytes]:
            half = len(raw) // 2
            yield raw[:half]
            end = time.monotonic() + 30
            while half > 1_000_000 and time.monotonic() < end and not list(tmp_path.rglob("first")):
                time.sleep(0.01)
            if half > 1_000_000:
                seen.append(bool(list(tmp_path.rglob("first"))) and not (tmp_path / "root").exists())
            yield raw[half:]

        return replace(answer, body=body(), headers={**answer.headers, "Content-Length": str(len(raw))})

    registry.misbehave("GET", "/blobs/", haltingly)
    options = RegistryOptions(streams=1)
    with open_platform_image(f"docker://{registry.host}/large:v1", registry=options) as opened:
        unpack(opened, tmp_path / "root")
    assert seen == [True]
    assert (tmp_path / "root/etc/noise").stat().st_size == 50 * len(NOISE)


def test_a_document_that_arrives_in_two_pieces_is_whole(registry: Registry) -> None:
    image = small_image({"etc/first": b"1"})
    registry.add("small", "v1", image)

    def in_two(request: Request, serve: Serve) -> Answer:
        answer = serve()
        raw = answer.body
        assert isinstance(raw, bytes)

        def body() -> Iterator[bytes]:
            yield raw[:10]
            time.sleep(0.2)
            yield raw[10:]

        return replace(answer, body=body(), headers={**answer.headers, "Content-Length": str(len(raw))})

    registry.misbehave("GET", f"/blobs/{image.manifest['config']['digest']}", in_two)
    with open_platform_image(f"docker://{registry.host}/small:v1") as opened:
        assert opened.config.architecture == host_platform().architecture


def test_present_blobs_are_not_sent_again(registry: Registry, layout: str) -> None:
    copy(f"{layout}:all", f"docker://{registry.host}/a:v1", all_platforms=True)
    sent = len(registry.asked("PATCH|PUT"))
    again = copy(f"{layout}:all", f"docker://{registry.host}/a:v2", all_platforms=True)
    assert (again.blobs, len(registry.asked("PATCH|PUT"))) == (0, sent + 1)


def test_only_the_chosen_platform_is_read(registry: Registry, layout: str) -> None:
    name = f"docker://{registry.host}/a:v1"
    copy(f"{layout}:all", name, all_platforms=True)
    before = len(registry.requests)
    with open_platform_image(name, "linux/arm64") as image:
        assert image.descriptor.digest == ARM.descriptor["digest"]
    assert len(registry.requests) == before + 3  # index, manifest, config


def test_a_digest_names_the_image_after_its_tag_has_moved(registry: Registry) -> None:
    registry.add("a", "v1", IMAGE)
    registry.add("a", "v1", ARM)
    wanted = IMAGE.descriptor["digest"]
    for suffix in (f"@{wanted}", f":v1@{wanted}"):
        with open_platform_image(f"docker://{registry.host}/a{suffix}") as image:
            assert image.descriptor.digest == wanted
    with open_platform_image(f"docker://{registry.host}/a:v1", "linux/arm64") as image:
        assert image.descriptor.digest == ARM.descriptor["digest"]


def test_between_repositories_of_one_registry_blobs_are_mounted(registry: Registry) -> None:
    registry.add("a", "v1", IMAGE)
    copied = copy(f"docker://{registry.host}/a:v1", f"docker://{registry.host}/b:v1")
    assert copied.entry.digest == IMAGE.descriptor["digest"]
    assert registry.asked("GET", "/layer|/blobs/" + LAYER) == []
    assert len(registry.asked("POST", "/blobs/uploads/")) == 3
    assert LAYER in registry.repositories["b"]


def test_between_registries_blobs_are_streamed(registry: Registry) -> None:
    with Registry() as other:
        registry.add("a", "v1", IMAGE)
        copy(f"docker://{registry.host}/a:v1", f"docker://{other.host}/b:v1")
        assert other.blobs[LAYER] == registry.blobs[LAYER]


def test_manifests_are_put_after_their_parts_and_the_tag_last(registry: Registry, layout: str) -> None:
    copy(f"{layout}:all", f"docker://{registry.host}/a:v1", all_platforms=True)
    puts = [request.path.rpartition("/")[2] for request in registry.asked("PUT", "/manifests/")]
    assert puts == [IMAGE.descriptor["digest"], ARM.descriptor["digest"], "v1"]
    assert registry.asked()[-1].path.endswith("/manifests/v1")


def test_nothing_is_tagged_before_the_commit(registry: Registry) -> None:
    with new_writer(registry) as writer:
        for raw in IMAGE.blobs.values():
            kind = OCI_MANIFEST if raw == compact(IMAGE.manifest) else "application/octet-stream"
            writer.put_blob(described(raw, kind), [raw])
    assert registry.manifests == {}


def test_an_incomplete_image_is_not_tagged(registry: Registry) -> None:
    with new_writer(registry) as writer:
        image = writer.put_document(OCI_MANIFEST, compact(IMAGE.manifest))
        with pytest.raises(Conflict, match="was not put"):
            writer.commit("v1", image)
    assert registry.manifests == {}


def test_a_name_with_a_digest_accepts_only_that_image(registry: Registry, layout: str) -> None:
    with pytest.raises(Conflict, match="but its name has"):
        copy(f"{layout}:one", f"docker://{registry.host}/a@{digest(b'')}")
    assert registry.manifests == {}
    copy(f"{layout}:one", f"docker://{registry.host}/a@{IMAGE.descriptor['digest']}")
    assert list(registry.manifests) == [("a", IMAGE.descriptor["digest"])]


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000, 100_001, 250_000])
def test_blobs_of_any_size_are_pushed(registry: Registry, size: int) -> None:
    raw = NOISE[:size]
    with new_writer(registry) as writer:
        writer.put_blob(described(raw), (raw[at : at + 30_000] for at in range(0, size, 30_000)))
        assert writer.has_blob(described(raw))
    assert registry.blobs[digest(raw)] == raw


def test_a_blob_of_another_size_or_digest_cancels_the_upload(registry: Registry) -> None:
    with new_writer(registry) as writer:
        for raw, error in (
            (NOISE[:-1], SizeMismatch),
            (NOISE + b"x", SizeMismatch),
            (NOISE[:-1] + b"\0", DigestMismatch),
        ):
            with pytest.raises(error):
                writer.put_blob(described(NOISE), [raw])
    assert (registry.blobs, registry.uploads) == ({}, {})


def test_a_staged_blob_is_pushed_when_its_digest_is_known(registry: Registry) -> None:
    with new_writer(registry) as writer:
        with writer.stage() as blob:
            blob.file.write(NOISE)
            with pytest.raises(SizeMismatch):
                blob.keep(Digest.of(NOISE), 5)
            blob.keep(Digest.of(NOISE), len(NOISE))
        with writer.stage() as blob:
            blob.file.write(b"not kept")
    assert registry.blobs == {digest(NOISE): NOISE}


def test_cut_and_lost_uploads_are_completed(registry: Registry, layout: str) -> None:
    registry.misbehave("PATCH", "/uploads/", cut_upload(50_000, registry), times=1)
    registry.misbehave("PATCH", "/uploads/", lose_upload(registry), times=1)
    copied = copy(f"{layout}:one", f"docker://{registry.host}/a:v1")
    assert copied.entry.digest == IMAGE.descriptor["digest"]
    assert registry.blobs[LAYER] == IMAGE.blobs[LAYER]


def test_a_reader_resolves_its_tag_once(registry: Registry) -> None:
    registry.add("a", "v1", IMAGE)
    with open_reader(parse_image_name(f"docker://{registry.host}/a:v1")) as reader:
        first = reader.images()
        registry.add("a", "v1", ARM)
        assert reader.images() == first


def test_streams_stay_usable_after_the_reader_is_closed(registry: Registry) -> None:
    registry.add("a", "v1", IMAGE)
    layer = IMAGE.manifest["layers"][1]
    wanted = Descriptor(media_type=layer["mediaType"], digest=parse_digest(layer["digest"]), size=layer["size"])
    with open_reader(parse_image_name(f"docker://{registry.host}/a:v1")) as reader:
        stream = reader.open_blob(wanted)
    with stream:
        assert stream.read() == IMAGE.blobs[LAYER]


def test_documents_are_read_once(registry: Registry) -> None:
    registry.add("a", "v1", IMAGE)
    with open_reader(parse_image_name(f"docker://{registry.host}/a:v1")) as reader:
        for _ in range(3):
            reader.read_document(reader.images()[0].descriptor)
    assert len(registry.requests) == 1


def test_a_wrong_size_is_found_before_reading(registry: Registry) -> None:
    registry.add("a", "v1", IMAGE)
    with open_reader(parse_image_name(f"docker://{registry.host}/a:v1")) as reader:
        wrong = Descriptor(media_type="x", digest=parse_digest(LAYER), size=5)
        with pytest.raises(SizeMismatch):
            reader.open_blob(wrong)
        manifest = reader.images()[0].descriptor
        wrong = Descriptor(media_type=manifest.media_type, digest=manifest.digest, size=5)
        with pytest.raises(SizeMismatch):
            reader.open_blob(wrong)


def test_an_absent_image_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFound):
        open_platform_image(f"docker://{registry.host}/a:v1")


def test_nothing_is_written_at_a_number_or_a_bad_name(registry: Registry) -> None:
    for name in (f"docker://{registry.host}/A:v1", f"docker://{registry.host}/a:b c"):
        with pytest.raises(InvalidInput):
            parse_image_name(name)


def test_plain_http_is_an_option_or_a_setting(registry: Registry) -> None:
    registry.add("a", "v1", IMAGE)
    name = parse_image_name(f"docker://{registry.host}/a:v1")
    with open_reader(name, registry=RegistryOptions(plain_http=True)) as reader:
        assert reader.images()[0].descriptor.digest == IMAGE.descriptor["digest"]


def test_options_of_a_block_apply_to_readers_opened_in_it(registry: Registry) -> None:
    registry.add("a", "v1", IMAGE)
    name = f"docker://{registry.host}/a:v1"
    with registry_options(RegistryOptions(plain_http=False, tries=1)):
        with pytest.raises(Unavailable):
            open_platform_image(name)
        with open_platform_image(name, registry=RegistryOptions()) as image:
            assert image.descriptor.digest == IMAGE.descriptor["digest"]
    with open_platform_image(name) as image:
        assert len(image.layers) == 2
