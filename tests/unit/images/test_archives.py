# SPDX-License-Identifier: Apache-2.0
"""Archives are read where they lie, whichever tool and whichever year they are from, and written the same each time."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import stat
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lamella.digests import Digest
from lamella.errors import (
    AlreadyExists,
    Conflict,
    DigestMismatch,
    Integrity,
    InvalidInput,
    NotFound,
    SizeMismatch,
    Unsupported,
)
from lamella.images.archive import Archive, Window, open_oci_archive
from lamella.images.contract import ImageWriter
from lamella.images.docker_archive import open_docker_archive
from lamella.images.resolve import open_platform_image
from lamella.images.transports import open_writer, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import OCI_LAYER, OCI_LAYER_GZIP
from lamella.paths import LayerPath
from lamella.testing.images import SmallImage, compact, digest, index_of, layout_files, small_image, tagged, tar_of

PLAIN = small_image({"a": b"1"}, {"b": b"2"}, compress=False)
ZIPPED = small_image({"a": b"1"}, {"b": b"2"})
RAW_CONFIG = compact(PLAIN.config)
CONFIG_NAME = f"{digest(RAW_CONFIG)[7:]}.json"


def store(path: Path, files: dict[str, Any]) -> str:
    path.write_bytes(tar_of(files))
    return str(path)


def saved(*layers: str, config: str = CONFIG_NAME, tags: list[str] | None = None) -> dict[str, Any]:
    return {"Config": config, "RepoTags": tags, "Layers": list(layers)}


def old_style(tags: list[str] | None = None) -> dict[str, Any]:
    """What Docker 1.10 to 24 writes."""
    first, second = PLAIN.layers
    return {
        "one/VERSION": b"1.0",
        "one/json": b"{}",
        "one/layer.tar": first,
        "two/layer.tar": second,
        CONFIG_NAME: RAW_CONFIG,
        "manifest.json": compact([saved("one/layer.tar", "two/layer.tar", tags=tags)]),
        "repositories": b"{}",
    }


def put(writer: ImageWriter, image: SmallImage, tag: str | None) -> Descriptor:
    for name, raw in image.blobs.items():
        writer.put_blob(Descriptor(media_type="a/b", digest=Digest(name), size=len(raw)), [raw])
    entry = image.descriptor
    return writer.commit(
        tag, Descriptor(media_type=entry["mediaType"], digest=Digest(entry["digest"]), size=entry["size"])
    )


def contents(name: str) -> list[bytes]:
    with open_platform_image(name) as image:
        opened = [layer.open() for layer in image.layers]
    found = []
    for blob in opened:
        with blob:
            found.append(blob.read())
    return found


class TestMembers:
    def test_opening_reads_only_the_headers(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        with open(path, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            for name in ("one", "two"):
                member = tarfile.TarInfo(name)
                member.size = 0
                archive.addfile(member)
        # 64 gigabytes of hole between the headers: whoever reads through it is not done soon.
        raw = path.read_bytes()
        size = 64 << 30
        with open(path, "wb") as file:
            big = tarfile.TarInfo("one")
            big.size = size
            file.write(big.tobuf(tarfile.GNU_FORMAT))
            file.seek(size, os.SEEK_CUR)
            file.write(raw[512:])
        archive_there = Archive(str(path), "it")
        opened, found = archive_there.open(LayerPath("one"))
        opened.close()
        archive_there.close()
        assert size == found

    def test_windows_share_no_position(self, tmp_path: Path) -> None:
        archive = Archive(store(tmp_path / "a.tar", {"x": b"0123456789" * 100, "y": b"abc"}), "it")
        one, size = archive.open(LayerPath("x"))
        two, _ = archive.open(LayerPath("x"))
        archive.close()
        with one, two:
            assert (size, one.read(4)) == (1000, b"0123")
            assert two.read(5) == b"01234"
            assert one.read(3) == b"456"
            assert one.seek(-10, os.SEEK_END) == 990
            assert one.read() == b"0123456789"
            assert one.read(1) == b""

    def test_a_window_reads_no_byte_outside_its_range(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"abcdefgh")
        room = bytearray(8)
        with Window(os.open(tmp_path / "f", os.O_RDONLY), 2, 3) as window:
            assert window.readinto(room) == 3
            assert room[:4] == b"cde\0"
            with pytest.raises(ValueError, match="negative"):
                window.seek(-1)
            assert window.seek(9) == 9
            assert window.read(5) == b""

    def test_member_names_are_relative_to_the_archive(self, tmp_path: Path) -> None:
        archive = Archive(store(tmp_path / "a.tar", {"./x": b"1", "/y": b"2"}), "it")
        assert [archive.open(LayerPath(name))[0].read() for name in "xy"] == [b"1", b"2"]

    def test_two_members_of_one_name_and_content_are_one_file(self, tmp_path: Path) -> None:
        raw = tar_of({"x": b"1"})[:1024] * 2 + bytes(1024)
        (tmp_path / "a.tar").write_bytes(raw)
        archive = Archive(str(tmp_path / "a.tar"), "it")
        assert archive.open(LayerPath("x"))[0].read() == b"1"

    def test_an_unsupported_compression_is_named_in_the_error(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(b"\xfd7zXZ\0" + bytes(600))
        with pytest.raises(Unsupported, match="compressed with xz"):
            open_platform_image(f"oci-archive:{tmp_path}/a.tar")

    def test_a_file_that_is_not_a_tar_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(b"x" * 2000)
        with pytest.raises(InvalidInput, match="not a tar archive"):
            open_platform_image(f"oci-archive:{tmp_path}/a.tar")
        with pytest.raises(InvalidInput, match="not a regular file"):
            open_platform_image(f"oci-archive:{tmp_path}")
        with pytest.raises(NotFound):
            open_platform_image(f"oci-archive:{tmp_path}/none")

    @pytest.mark.parametrize("cut", [100, 600, 1500])
    def test_a_truncated_archive_is_refused(self, tmp_path: Path, cut: int) -> None:
        (tmp_path / "a.tar").write_bytes(tar_of({"x": b"1" * 2000})[:cut])
        with pytest.raises(InvalidInput, match="damaged"):
            Archive(str(tmp_path / "a.tar"), "it")


class TestCompressedMembers:
    @pytest.fixture(params=["gzip", "zstd"])
    def packed(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        raw = tar_of({"x": bytes(range(256)) * 4000, "y": b"abc"})
        path = tmp_path / "a.tar.packed"
        if request.param == "gzip":
            path.write_bytes(gzip.compress(raw[:700]) + gzip.compress(raw[700:]))
        else:
            zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
            path.write_bytes(zstd.compress(raw))
        return path

    def test_members_are_read_from_any_position_on(self, packed: Path) -> None:
        archive = Archive(str(packed), "it")
        one, size = archive.open(LayerPath("x"))
        two, _ = archive.open(LayerPath("x"))
        small, _ = archive.open(LayerPath("y"))
        archive.close()
        archive.close()
        with one, two, small:
            assert (size, one.read(3)) == (256 * 4000, b"\0\1\2")
            assert two.read(2) == b"\0\1"
            assert one.read(2) == b"\3\4"
            assert one.seek(-2, os.SEEK_END) == size - 2
            assert one.read() == b"\xfe\xff"
            assert one.seek(5) == 5
            assert one.read() == (bytes(range(256)) * 4000)[5:]
            assert small.read() == b"abc"
            assert small.read() == b""

    def test_opening_finds_damage_in_a_compressed_archive(self, packed: Path) -> None:
        raw = packed.read_bytes()
        for damaged in (raw[:-5], raw[: len(raw) // 2], raw[:20]):
            packed.write_bytes(damaged)
            with pytest.raises(InvalidInput, match="damaged"):
                Archive(str(packed), "it")

    def test_a_compressed_file_that_is_not_a_tar_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(gzip.compress(b"x" * 2000))
        with pytest.raises(InvalidInput, match="not a tar archive"):
            Archive(str(tmp_path / "a"), "it")

    def test_a_docker_archive_with_compressed_layers_inside(self, tmp_path: Path) -> None:
        first, second = ZIPPED.layers
        raw = tar_of({**old_style(), "one/layer.tar": first, "two/layer.tar": second})
        (tmp_path / "a.tgz").write_bytes(gzip.compress(raw))
        assert contents(f"docker-archive:{tmp_path}/a.tgz") == ZIPPED.layers


class TestOciArchive:
    def test_an_oci_archive_is_read_like_a_layout(self, tmp_path: Path) -> None:
        path = store(tmp_path / "a.tar", layout_files([tagged(ZIPPED.descriptor, "v1")], ZIPPED.blobs))
        assert ZIPPED.layers == contents(f"oci-archive:{path}:v1") == contents(f"oci-archive:{path}")
        with open_oci_archive(path) as reader:
            assert [image.names for image in reader.images()] == [("v1",)]

    def test_an_oci_archive_may_be_compressed_as_a_whole(self, tmp_path: Path) -> None:
        raw = tar_of(layout_files([tagged(ZIPPED.descriptor, "v1")], ZIPPED.blobs))
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(raw))
        assert contents(f"oci-archive:{tmp_path}/a.tar.gz:v1") == ZIPPED.layers

    def test_a_docker_archive_is_recognized_in_the_hint(self, tmp_path: Path) -> None:
        path = store(tmp_path / "a.tar", old_style())
        with pytest.raises(InvalidInput) as caught:
            open_platform_image(f"oci-archive:{path}")
        assert caught.value.hint == f"it looks like docker-archive:{path}"

    def test_a_blob_of_another_size_is_a_size_mismatch(self, tmp_path: Path) -> None:
        files = layout_files([ZIPPED.descriptor], ZIPPED.blobs)
        layer = ZIPPED.manifest["layers"][0]["digest"]
        files[f"blobs/{layer.replace(':', '/')}"] += b"x"
        with (
            open_platform_image(f"oci-archive:{store(tmp_path / 'a.tar', files)}") as image,
            pytest.raises(SizeMismatch, match=layer),
        ):
            image.layers[0].open()


class TestDockerArchive:
    def test_an_archive_of_docker_before_25_is_read(self, tmp_path: Path) -> None:
        path = store(tmp_path / "a.tar", old_style(["busybox:1", "x.io/b:2"]))
        assert PLAIN.layers == contents(f"docker-archive:{path}") == contents(f"docker-archive:{path}:busybox:1")
        with open_platform_image(f"docker-archive:{path}:x.io/b:2") as image:
            assert image.manifest.config.digest == digest(RAW_CONFIG)
            assert [layer.descriptor.media_type for layer in image.layers] == [OCI_LAYER, OCI_LAYER]
            assert [layer.diff_id for layer in image.layers] == [layer.descriptor.digest for layer in image.layers]
            assert image.reader.images()[0].names == ("docker.io/library/busybox:1", "x.io/b:2")
        with pytest.raises(NotFound) as caught:
            open_platform_image(f"docker-archive:{path}:busybox")
        assert caught.value.hint == "named there: docker.io/library/busybox:1, x.io/b:2"

    def test_a_layer_that_is_a_symbolic_link_to_another_is_read(self, tmp_path: Path) -> None:
        twice = small_image({"a": b"1"}, {"a": b"1"}, compress=False)
        raw = compact(twice.config)
        files: dict[str, Any] = {
            "one/layer.tar": twice.layers[0],
            "two/layer.tar": (tarfile.SYMTYPE, "../one/layer.tar"),
            "c.json": raw,
            "manifest.json": compact([saved("one/layer.tar", "two/layer.tar", config="c.json")]),
        }
        assert twice.layers == contents(f"docker-archive:{store(tmp_path / 'a.tar', files)}")

    def test_a_layer_that_is_a_hard_link_is_read(self, tmp_path: Path) -> None:
        files = {**old_style(), "three/layer.tar": (tarfile.LNKTYPE, "two/layer.tar")}
        files["manifest.json"] = compact([saved("one/layer.tar", "three/layer.tar")])
        assert contents(f"docker-archive:{store(tmp_path / 'a.tar', files)}") == PLAIN.layers

    def test_an_archive_of_docker_since_25_is_read(self, tmp_path: Path) -> None:
        files: dict[str, Any] = layout_files([tagged(PLAIN.descriptor, "latest")], PLAIN.blobs)
        names = [f"blobs/{name.replace(':', '/')}" for name in PLAIN.config["rootfs"]["diff_ids"]]
        config = f"blobs/sha256/{digest(RAW_CONFIG)[7:]}"
        files["manifest.json"] = compact([{**saved(*names, config=config, tags=["a:latest"]), "LayerSources": {}}])
        path = store(tmp_path / "a.tar", files)
        assert PLAIN.layers == contents(f"docker-archive:{path}:a") == contents(f"oci-archive:{path}:latest")

    def test_compressed_layers_in_a_docker_archive_are_read(self, tmp_path: Path) -> None:
        first, second = ZIPPED.layers
        files = {**old_style(), "one/layer.tar": first, "two/layer.tar": second}
        path = store(tmp_path / "a.tar", files)
        assert contents(f"docker-archive:{path}") == ZIPPED.layers
        with open_platform_image(f"docker-archive:{path}") as image:
            assert [(OCI_LAYER_GZIP, digest(blob)) for blob in (first, second)] == [
                (layer.descriptor.media_type, layer.descriptor.digest) for layer in image.layers
            ]
            assert [layer.diff_id for layer in image.layers] == PLAIN.config["rootfs"]["diff_ids"]

    def test_several_images_are_distinguished_by_their_names(self, tmp_path: Path) -> None:
        other = small_image({"a": b"1"}, compress=False, Cmd=["x"])
        files = old_style()
        files["other.json"] = compact(other.config)
        files["manifest.json"] = compact(
            [
                saved("one/layer.tar", "two/layer.tar", tags=["a:1"]),
                saved("one/layer.tar", config="other.json", tags=["b:1", "b:2"]),
                saved("one/layer.tar", config="other.json"),
            ]
        )
        path = store(tmp_path / "a.tar", files)
        assert contents(f"docker-archive:{path}:a:1") == PLAIN.layers
        assert PLAIN.layers[:1] == contents(f"docker-archive:{path}:b:2") == contents(f"docker-archive:{path}:@2")
        with pytest.raises(InvalidInput, match="3 images") as caught:
            open_platform_image(f"docker-archive:{path}")
        assert "docker.io/library/b:2" in (caught.value.hint or "")

    def test_the_generated_manifest_is_the_same_each_time(self, tmp_path: Path) -> None:
        path = store(tmp_path / "a.tar", old_style())
        with open_docker_archive(path) as one, open_docker_archive(path) as two:
            assert one.images() == two.images()
            assert Digest.of(one.read_document(one.images()[0].descriptor)) == one.images()[0].descriptor.digest

    def test_an_oci_archive_is_recognized_in_the_hint(self, tmp_path: Path) -> None:
        path = store(tmp_path / "a.tar", layout_files([ZIPPED.descriptor], ZIPPED.blobs))
        with pytest.raises(InvalidInput, match=r"not an archive of 'docker save'") as caught:
            open_platform_image(f"docker-archive:{path}")
        assert caught.value.hint == f"it looks like oci-archive:{path}"

    def test_different_numbers_of_layers_and_diff_ids_are_refused(self, tmp_path: Path) -> None:
        files = {**old_style(), "manifest.json": compact([saved("one/layer.tar")])}
        with pytest.raises(InvalidInput, match="1 layers, but the config has 2 diff ids"):
            open_platform_image(f"docker-archive:{store(tmp_path / 'a.tar', files)}")

    def test_a_config_named_by_another_digest_is_a_digest_mismatch(self, tmp_path: Path) -> None:
        name = f"blobs/sha256/{'a' * 64}"
        files = {**old_style(), name: RAW_CONFIG}
        files["manifest.json"] = compact([saved("one/layer.tar", "two/layer.tar", config=name)])
        with pytest.raises(DigestMismatch):
            open_platform_image(f"docker-archive:{store(tmp_path / 'a.tar', files)}")


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
class TestWriting:
    def test_what_is_written_is_read(self, tmp_path: Path, form: str) -> None:
        name = parse_image_name(f"{form}:{tmp_path}/deep/a.tar:v1")
        with open_writer(name) as writer:
            put(writer, ZIPPED, name.tag)
        expected = ZIPPED.layers if form == "oci-archive" else PLAIN.layers
        assert expected == contents(str(name))
        assert os.listdir(tmp_path / "deep") == ["a.tar"]

    def test_the_same_image_gives_the_same_bytes(self, tmp_path: Path, form: str) -> None:
        backwards = SmallImage(ZIPPED.manifest, ZIPPED.config, dict(reversed(ZIPPED.blobs.items())))
        for path, image in (("a.tar", ZIPPED), ("b.tar", backwards)):
            with open_writer(parse_image_name(f"{form}:{tmp_path}/{path}")) as writer:
                put(writer, image, None)
        assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()

    def test_members_are_sorted_and_free_of_host_metadata(
        self, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        with open_writer(parse_image_name(f"{form}:{tmp_path}/a.tar")) as writer:
            put(writer, ZIPPED, None)
        with tarfile.open(tmp_path / "a.tar") as archive:
            members = archive.getmembers()
        assert sorted(member.name for member in members) == [member.name for member in members]
        assert {(member.uid, member.gid, member.mtime, member.uname, member.gname) for member in members} == {
            (0, 0, 1_700_000_000, "", "")
        }

    def test_an_existing_file_stays_unless_replacement_is_requested(self, tmp_path: Path, form: str) -> None:
        path = tmp_path / "a.tar"
        path.write_bytes(b"precious")
        name = parse_image_name(f"{form}:{path}")
        with pytest.raises(AlreadyExists):
            open_writer(name)
        with open_writer(name, replace=True) as writer:
            assert path.read_bytes() == b"precious"
            put(writer, ZIPPED, None)
        assert len(contents(str(name))) == 2

    def test_a_file_that_appears_meanwhile_stays(self, tmp_path: Path, form: str) -> None:
        path = tmp_path / "a.tar"
        with open_writer(parse_image_name(f"{form}:{path}")) as writer:
            path.write_bytes(b"precious")
            with pytest.raises(AlreadyExists):
                put(writer, ZIPPED, None)
        assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"precious"]

    def test_a_failure_leaves_nothing(self, tmp_path: Path, form: str) -> None:
        gone = ZIPPED.manifest["layers"][1]["digest"]
        partial = SmallImage(ZIPPED.manifest, ZIPPED.config, {k: v for k, v in ZIPPED.blobs.items() if k != gone})
        with pytest.raises(Conflict, match=gone), open_writer(parse_image_name(f"{form}:{tmp_path}/a.tar")) as writer:
            put(writer, partial, None)
        assert os.listdir(tmp_path) == []

    def test_the_directory_of_a_killed_writer_is_swept(self, tmp_path: Path, form: str) -> None:
        (tmp_path / ".a.tar.lamella-dead").mkdir()
        (tmp_path / ".a.tar.lamella-dead" / "archive").write_bytes(b"half")
        with open_writer(parse_image_name(f"{form}:{tmp_path}/a.tar")) as writer:
            assert stat.S_IMODE(os.stat(next(tmp_path.glob(".a.tar.lamella-*"))).st_mode) == 0o700
            put(writer, ZIPPED, None)
        assert os.listdir(tmp_path) == ["a.tar"]


class TestWritingForDocker:
    def test_the_members_are_those_that_docker_load_reads(self, tmp_path: Path) -> None:
        name = parse_image_name(f"docker-archive:{tmp_path}/a.tar:busybox:1")
        with open_writer(name) as writer:
            put(writer, ZIPPED, name.tag)
        with tarfile.open(tmp_path / "a.tar") as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        layers = [f"{diff_id[7:]}.tar" for diff_id in ZIPPED.config["rootfs"]["diff_ids"]]
        assert [{"Config": CONFIG_NAME, "RepoTags": ["docker.io/library/busybox:1"], "Layers": layers}] == json.loads(
            files.pop("manifest.json")
        )
        assert {**dict(zip(layers, PLAIN.layers, strict=True)), CONFIG_NAME: RAW_CONFIG} == files

    def test_a_layer_with_another_diff_id_is_refused(self, tmp_path: Path) -> None:
        lying = small_image({"a": b"1"})
        wrong = gzip.compress(tar_of({"a": b"2"}), mtime=0)
        layer = {**lying.manifest["layers"][0], "digest": digest(wrong), "size": len(wrong)}
        manifest = {**lying.manifest, "layers": [layer]}
        blobs = {**lying.blobs, digest(wrong): wrong, digest(compact(manifest)): compact(manifest)}
        with (
            pytest.raises(Integrity),
            open_writer(parse_image_name(f"docker-archive:{tmp_path}/a.tar")) as writer,
        ):
            put(writer, SmallImage(manifest, lying.config, blobs), None)
        assert os.listdir(tmp_path) == []

    def test_an_index_is_refused(self, tmp_path: Path) -> None:
        entry, raw = index_of(ZIPPED)
        with open_writer(parse_image_name(f"docker-archive:{tmp_path}/a.tar")) as writer:
            image = writer.put_document(entry["mediaType"], raw)
            with pytest.raises(Unsupported, match="cannot hold an index"):
                writer.commit(None, image)

    def test_a_layer_that_the_image_has_twice_is_written_once(self, tmp_path: Path) -> None:
        twice = small_image({"a": b"1"}, {"a": b"1"})
        name = parse_image_name(f"docker-archive:{tmp_path}/a.tar")
        with open_writer(name) as writer:
            put(writer, twice, None)
        assert len(contents(str(name))) == 2
        with tarfile.open(tmp_path / "a.tar") as archive:
            assert len(archive.getnames()) == 3


def test_documents_in_memory_are_opened_as_files(tmp_path: Path) -> None:
    with open_docker_archive(store(tmp_path / "a.tar", old_style())) as reader:
        descriptor = reader.images()[0].descriptor
        opened = reader.open_blob(descriptor)
    assert isinstance(opened, io.BytesIO)
    assert descriptor.size == len(opened.read())
