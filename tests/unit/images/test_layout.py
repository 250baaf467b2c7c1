# SPDX-License-Identifier: Apache-2.0
"""An image is found in a layout by its tag and its platform, and layouts are written without half measures."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.digests import Digest
from lamella.errors import (
    Conflict,
    DigestMismatch,
    Exhausted,
    InvalidInput,
    LamellaError,
    NotFound,
    SizeMismatch,
    Unsupported,
)
from lamella.images.layout import LayoutWriter
from lamella.images.resolve import open_platform_image
from lamella.oci import platform as platforms
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import OCI_LAYER, OCI_MANIFEST
from lamella.oci.platform import Platform
from lamella.testing.images import (
    SmallImage,
    compact,
    digest,
    layout_files,
    small_image,
    tagged,
    write_layout,
)

AMD = small_image({"a": b"1"}, {"b": b"2"})
ARM = small_image({"a": b"arm"}, platform="linux/arm64/v8")
EMPTY = small_image()


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Platform(architecture="amd64", os="linux")
    for module in (platforms, __import__("lamella.images.resolve", fromlist=["host_platform"])):
        monkeypatch.setattr(module, "host_platform", lambda: machine)


def name_of(path: str | Path, tag: str = "") -> str:
    return f"oci:{path}:{tag}" if tag else f"oci:{path}"


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def described(blob: dict[str, Any]) -> Descriptor:
    return Descriptor(media_type=blob["mediaType"], digest=Digest(blob["digest"]), size=blob["size"])


def put(writer: LayoutWriter, image: SmallImage, tag: str | None) -> Descriptor:
    for name, raw in image.blobs.items():
        writer.put_blob(
            Descriptor(media_type="a/b", digest=Digest(name), size=len(raw)), [raw[:7], memoryview(raw)[7:]]
        )
    return writer.commit(tag, described(image.descriptor))


class TestReading:
    def test_an_image_has_its_config_and_its_layers(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [tagged(AMD.descriptor, "v1")], AMD.blobs)
        with open_platform_image(name_of(tmp_path, "v1")) as image:
            assert image.descriptor.digest == AMD.descriptor["digest"]
            assert str(image.platform) == "linux/amd64"
            assert [layer.diff_id for layer in image.layers] == AMD.config["rootfs"]["diff_ids"]
            assert [layer.compression for layer in image.layers] == ["gzip", "gzip"]
            for layer, expected in zip(image.layers, AMD.layers, strict=True):
                with layer.open() as blob:
                    assert expected == blob.read()

    def test_the_only_image_needs_no_tag(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [tagged(AMD.descriptor, "v1")], AMD.blobs)
        with open_platform_image(name_of(tmp_path)) as image:
            assert image.descriptor.digest == AMD.descriptor["digest"]

    def test_among_several_images_the_tags_are_listed(self, tmp_path: Path) -> None:
        entries = [tagged(AMD.descriptor, "v1"), tagged(ARM.descriptor, "v2")]
        write_layout(str(tmp_path), entries, AMD.blobs | ARM.blobs)
        with pytest.raises(InvalidInput, match="there are 2 images") as caught:
            open_platform_image(name_of(tmp_path))
        assert caught.value.hint == "named there: v1, v2"
        with pytest.raises(NotFound, match="no image is named 'v3'") as missing:
            open_platform_image(name_of(tmp_path, "v3"))
        assert missing.value.hint == "named there: v1, v2"
        with open_platform_image(name_of(tmp_path, "@1")) as image:
            assert image.descriptor.digest == ARM.descriptor["digest"]
        with pytest.raises(NotFound, match="no image @2"):
            open_platform_image(name_of(tmp_path, "@2"))

    def test_one_image_under_two_tags_is_unambiguous(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [tagged(AMD.descriptor, tag) for tag in ("a", "b")], AMD.blobs)
        with open_platform_image(name_of(tmp_path)) as image:
            assert image.descriptor.digest == AMD.descriptor["digest"]

    def test_references_in_containerds_annotation_are_names_too(self, tmp_path: Path) -> None:
        entries = [tagged(AMD.descriptor, "latest"), tagged(ARM.descriptor, "latest")]
        for entry, name in zip(entries, ("x.io/a:latest", "x.io/b:latest"), strict=True):
            entry["annotations"]["io.containerd.image.name"] = name
        write_layout(str(tmp_path), entries, AMD.blobs | ARM.blobs)
        with open_platform_image(name_of(tmp_path, "x.io/b:latest")) as image:
            assert image.descriptor.digest == ARM.descriptor["digest"]

    def test_referrers_do_not_count_as_images(self, tmp_path: Path) -> None:
        signature = {**AMD.descriptor, "digest": digest(b"s"), "artifactType": "application/vnd.example"}
        write_layout(str(tmp_path), [signature, AMD.descriptor], AMD.blobs)
        with open_platform_image(name_of(tmp_path)) as image:
            assert image.descriptor.digest == AMD.descriptor["digest"]

    def test_an_image_without_layers_is_read(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [EMPTY.descriptor], EMPTY.blobs)
        with open_platform_image(name_of(tmp_path)) as image:
            assert image.layers == ()

    def test_a_directory_without_a_layout_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="this is not an OCI image layout"):
            open_platform_image(name_of(tmp_path))
        with pytest.raises(NotFound):
            open_platform_image(name_of(tmp_path / "none"))

    def test_an_empty_layout_has_no_image(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [], {})
        with pytest.raises(NotFound, match="there is no image"):
            open_platform_image(name_of(tmp_path))

    def test_an_artifact_is_not_a_container_image(self, tmp_path: Path) -> None:
        chart = {**AMD.manifest, "config": {**AMD.manifest["config"], "mediaType": "application/vnd.cncf.helm.config"}}
        raw = compact(chart)
        entry = {"mediaType": OCI_MANIFEST, "digest": digest(raw), "size": len(raw)}
        write_layout(str(tmp_path), [entry], {**AMD.blobs, digest(raw): raw})
        with pytest.raises(Unsupported, match="helm"):
            open_platform_image(name_of(tmp_path))

    def test_the_directory_itself_may_be_reached_through_a_link(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path / "real"), [AMD.descriptor], AMD.blobs)
        (tmp_path / "link").symlink_to("real")
        with open_platform_image(name_of(tmp_path / "link")) as image:
            assert len(image.layers) == 2

    def test_a_stream_outlives_its_image(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [AMD.descriptor], AMD.blobs)
        with open_platform_image(name_of(tmp_path)) as image:
            stream = image.layers[0].open()
        with stream:
            assert stream.read() == AMD.layers[0]

    def test_a_missing_non_distributable_layer_is_unsupported(self, tmp_path: Path) -> None:
        foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        manifest = {**AMD.manifest, "layers": [{**one, "mediaType": foreign} for one in AMD.manifest["layers"]]}
        raw = compact(manifest)
        blobs = {**AMD.blobs, digest(raw): raw}
        gone = blobs.pop(AMD.manifest["layers"][1]["digest"])
        entry = {"mediaType": OCI_MANIFEST, "digest": digest(raw), "size": len(raw)}
        write_layout(str(tmp_path), [entry], blobs)
        with open_platform_image(name_of(tmp_path)) as image:
            image.layers[0].open().close()
            with pytest.raises(Unsupported, match="non-distributable and not here"):
                image.layers[1].open()
        assert gone


class TestWriting:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "layout"
        with LayoutWriter(str(target)) as writer:
            entry = put(writer, AMD, "v1")
        assert entry.annotations == {"org.opencontainers.image.ref.name": "v1"}
        assert layout_files([tagged(AMD.descriptor, "v1")], AMD.blobs) == {
            name: raw.replace(b'"mediaType":"application/vnd.oci.image.index.v1+json",', b"")
            for name, raw in snapshot(target).items()
        }
        with open_platform_image(name_of(target, "v1")) as image:
            assert [layer.diff_id for layer in image.layers] == AMD.config["rootfs"]["diff_ids"]

    def test_an_image_is_invisible_before_the_commit_and_gone_without_it(self, tmp_path: Path) -> None:
        target = tmp_path / "layout"
        with LayoutWriter(str(target)) as writer:
            writer.put_document(OCI_LAYER, b"something")
            assert all(name.startswith(".lamella-") for name in os.listdir(target))
        assert os.listdir(tmp_path) == []

    def test_a_failure_leaves_a_layout_as_it_was(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [tagged(AMD.descriptor, "v1")], AMD.blobs)
        before = snapshot(tmp_path)
        bad = Descriptor(media_type="a/b", digest=Digest.of(b"blob"), size=4)
        with LayoutWriter(str(tmp_path)) as writer:
            writer.put_document(OCI_LAYER, b"something")
            with pytest.raises(DigestMismatch):
                writer.put_blob(bad, [b"blub"])
        assert before == snapshot(tmp_path)

    def test_an_entry_of_the_same_tag_is_replaced_and_others_stay(self, tmp_path: Path) -> None:
        entries = [tagged(AMD.descriptor, "a"), {**tagged(AMD.descriptor, "b"), "x": 1}, AMD.descriptor]
        write_layout(str(tmp_path), entries, AMD.blobs)
        with LayoutWriter(str(tmp_path)) as writer:
            put(writer, ARM, "a")
        index = json.loads((tmp_path / "index.json").read_bytes())
        assert [tagged(ARM.descriptor, "a"), *entries[1:]] == index["manifests"]

    def test_an_image_without_a_tag_replaces_only_itself(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [AMD.descriptor, tagged(AMD.descriptor, "a")], AMD.blobs)
        for image in (ARM, ARM, AMD):
            with LayoutWriter(str(tmp_path)) as writer:
                put(writer, image, None)
        index = json.loads((tmp_path / "index.json").read_bytes())
        assert index["manifests"] == [AMD.descriptor, tagged(AMD.descriptor, "a"), ARM.descriptor]

    def test_unknown_fields_of_the_index_are_kept(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [], {})
        extra = {"schemaVersion": 2, "manifests": [], "annotations": {"k": "v"}, "new": [1]}
        (tmp_path / "index.json").write_bytes(compact(extra))
        with LayoutWriter(str(tmp_path)) as writer:
            put(writer, AMD, "a")
        index = json.loads((tmp_path / "index.json").read_bytes())
        assert {**extra, "manifests": [tagged(AMD.descriptor, "a")]} == index

    @pytest.mark.parametrize("change", [lambda raw: raw + b"x", lambda raw: raw[:-1], lambda raw: b""])
    def test_a_blob_of_another_size_is_refused(self, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
        blob = Descriptor(media_type="a/b", digest=Digest.of(b"blob"), size=4)
        with LayoutWriter(str(tmp_path / "l")) as writer:
            with pytest.raises(SizeMismatch):
                writer.put_blob(blob, [change(b"blob")])
            assert not writer.has_blob(blob)

    def test_a_blob_of_another_digest_is_refused(self, tmp_path: Path) -> None:
        blob = Descriptor(media_type="a/b", digest=Digest.of(b"blob"), size=4)
        with LayoutWriter(str(tmp_path / "l")) as writer:
            with pytest.raises(DigestMismatch):
                writer.put_blob(blob, [b"blub"])
            assert not writer.has_blob(blob)

    def test_an_endless_blob_is_cut_off_at_its_size(self, tmp_path: Path) -> None:
        blob = Descriptor(media_type="a/b", digest=Digest.of(b"blob"), size=4)
        with LayoutWriter(str(tmp_path / "l")) as writer, pytest.raises(SizeMismatch):
            writer.put_blob(blob, iter(lambda: b"bl", None))

    def test_an_existing_blob_of_another_size_is_not_used(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [AMD.descriptor], AMD.blobs)
        name = AMD.manifest["layers"][0]["digest"]
        file = tmp_path / "blobs" / name.replace(":", "/")
        file.write_bytes(b"half")
        with LayoutWriter(str(tmp_path)) as writer:
            assert not writer.has_blob(described(AMD.manifest["layers"][0]))
            put(writer, AMD, "a")
        assert file.read_bytes() == AMD.blobs[name]

    def test_an_incomplete_image_gets_no_name(self, tmp_path: Path) -> None:
        missing = AMD.manifest["layers"][0]["digest"]
        partial = SmallImage(AMD.manifest, AMD.config, {k: v for k, v in AMD.blobs.items() if k != missing})
        with LayoutWriter(str(tmp_path / "l")) as writer, pytest.raises(Conflict, match=missing):
            put(writer, partial, "a")
        assert os.listdir(tmp_path) == []
        with LayoutWriter(str(tmp_path / "l")) as writer, pytest.raises(Conflict, match="was not put"):
            writer.commit("a", described(AMD.descriptor))

    def test_a_malformed_tag_is_refused_before_anything_is_moved(self, tmp_path: Path) -> None:
        with LayoutWriter(str(tmp_path / "l")) as writer, pytest.raises(InvalidInput, match="malformed tag"):
            put(writer, AMD, "a b")
        assert os.listdir(tmp_path) == []

    def test_a_blob_written_before_its_digest_is_known(self, tmp_path: Path) -> None:
        with LayoutWriter(str(tmp_path / "l")) as writer:
            with writer.stage() as staged:
                staged.file.write(b"blob")
                staged.keep(Digest.of(b"blob"), 4)
            blob = Descriptor(media_type="a/b", digest=Digest.of(b"blob"), size=4)
            assert writer.has_blob(blob)
            with writer.stage() as dropped:
                dropped.file.write(b"drop")
            with writer.stage() as short, pytest.raises(SizeMismatch):
                short.keep(Digest.of(b"short"), 5)
            put(writer, AMD, "a")
        assert (tmp_path / "l" / "blobs" / "sha256" / blob.digest.hex).read_bytes() == b"blob"
        assert len(os.listdir(tmp_path / "l" / "blobs" / "sha256")) == len(AMD.blobs) + 1

    def test_a_killed_writer_leaves_no_visible_image(self, tmp_path: Path) -> None:
        layout = write_layout(str(tmp_path / "l"), [tagged(AMD.descriptor, "v1")], AMD.blobs)
        before = snapshot(Path(layout))
        script = (
            "import sys, time\n"
            "from lamella.images.layout import LayoutWriter\n"
            f"writer = LayoutWriter({layout!r})\n"
            "writer.put_document('a/b', b'whole')\n"
            "writer.stage().file.write(b'half')\n"
            "print('ready', flush=True)\n"
            "time.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with LayoutWriter(layout):
                assert len(list(Path(layout).glob(".lamella-*"))) == 2
            process.kill()
        visible = {name: raw for name, raw in snapshot(Path(layout)).items() if not name.startswith(".lamella-")}
        assert visible == before
        with LayoutWriter(layout):
            assert len(list(Path(layout).glob(".lamella-*"))) == 1
        assert snapshot(Path(layout)) == before

    def test_a_full_disk_leaves_nothing(self, tmp_path: Path) -> None:
        raw = b"x" * 8192
        blob = Descriptor(media_type="a/b", digest=Digest.of(raw), size=len(raw))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with LayoutWriter(str(tmp_path / "l")) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            try:
                with pytest.raises(Exhausted, match="write"):
                    writer.put_blob(blob, [raw])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert not writer.has_blob(blob)
        assert os.listdir(tmp_path) == []

    def test_a_directory_with_other_files_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(Conflict, match="not empty"):
            LayoutWriter(str(tmp_path))
        assert os.listdir(tmp_path) == ["thesis.txt"]

    def test_directories_of_killed_writers_are_swept_and_those_of_live_ones_stay(self, tmp_path: Path) -> None:
        (tmp_path / ".lamella-dead").mkdir()
        (tmp_path / ".lamella-dead" / "part-1").write_bytes(b"half")
        with LayoutWriter(str(tmp_path)) as one, LayoutWriter(str(tmp_path)) as two:
            assert len(os.listdir(tmp_path)) == 2
            put(one, AMD, "a")
            put(two, ARM, "b")
        assert set(os.listdir(tmp_path)) == {"blobs", "index.json", "oci-layout"}

    @pytest.mark.parametrize("durable", [False, True])
    def test_many_writers_at_once_lose_nothing(self, tmp_path: Path, durable: bool) -> None:
        images = [small_image({"n": str(number).encode()}) for number in range(12)]
        failures: list[BaseException] = []

        def write(number: int) -> None:
            try:
                with LayoutWriter(str(tmp_path / "l"), durable=durable) as writer:
                    put(writer, images[number], f"t{number}")
            except LamellaError as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(len(images))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert set(os.listdir(tmp_path / "l")) == {"blobs", "index.json", "oci-layout"}
        for number, image in enumerate(images):
            with open_platform_image(name_of(tmp_path / "l", f"t{number}")) as found:
                assert image.descriptor["digest"] == found.descriptor.digest
