# SPDX-License-Identifier: Apache-2.0
"""Hostile layouts and archives: no file outside is read, nothing hangs, wrong content is refused."""

from __future__ import annotations

import hashlib
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.errors import (
    DigestMismatch,
    Exhausted,
    Integrity,
    InvalidInput,
    LamellaError,
    NotFound,
    SizeMismatch,
    Unsupported,
)
from lamella.images.graph import ImageGraph
from lamella.images.layout import LayoutWriter
from lamella.images.resolve import open_platform_image
from lamella.oci.documents import MAX_DOCUMENT
from lamella.oci.mediatypes import OCI_INDEX, OCI_MANIFEST
from lamella.testing.images import compact, digest, layout_files, small_image, tagged, tar_of, write_layout

IMAGE = small_image({"a": b"1"}, compress=False)
LAYER = IMAGE.manifest["layers"][0]["digest"]
SECRET = b"not for you"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    return Path(write_layout(str(tmp_path / "layout"), [IMAGE.descriptor], IMAGE.blobs))


def read_all(name: str) -> list[bytes]:
    with open_platform_image(name) as image:
        found = []
        for layer in image.layers:
            with layer.open() as blob:
                found.append(blob.read())
    return found


def blob_file(layout: Path, name: str) -> Path:
    return layout / "blobs" / name.replace(":", "/")


def entry_of(raw: bytes, media_type: str = OCI_MANIFEST, **fields: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(raw), "size": len(raw), **fields}


class TestLayoutDirectory:
    @pytest.mark.parametrize("name", ["oci-layout", "index.json", "blobs", "blobs/sha256", "layer", "manifest"])
    def test_a_link_inside_is_not_followed(self, layout: Path, tmp_path: Path, name: str) -> None:
        names = {"layer": LAYER, "manifest": IMAGE.descriptor["digest"]}
        file = blob_file(layout, names[name]) if name in names else layout / name
        moved = tmp_path / "moved"
        file.rename(moved)
        file.symlink_to(moved)
        with pytest.raises(InvalidInput, match="symbolic link"):
            read_all(f"oci:{layout}")

    @pytest.mark.parametrize("name", ["oci-layout", "index.json", "layer", "manifest", "config"])
    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    def test_a_fifo_or_a_directory_instead_of_a_file_is_refused(
        self, layout: Path, name: str, make: Callable[[Path], None]
    ) -> None:
        names = {"layer": LAYER, "manifest": IMAGE.descriptor["digest"], "config": IMAGE.manifest["config"]["digest"]}
        file = blob_file(layout, names[name]) if name in names else layout / name
        file.unlink()
        make(file)
        with pytest.raises(InvalidInput, match="not a regular file"):
            read_all(f"oci:{layout}")

    @pytest.mark.parametrize(
        "name",
        ["sha256:../../../secret", "../secret", "sha256:" + "../" * 21 + "a", "a:b", "sha256:" + "A" * 64],
    )
    def test_a_digest_is_never_a_path(self, layout: Path, name: str) -> None:
        write_layout(str(layout), [{**IMAGE.descriptor, "digest": name}], IMAGE.blobs)
        with pytest.raises(LamellaError, match="digest"):
            read_all(f"oci:{layout}")

    def test_a_manifest_modified_on_disk_is_refused(self, layout: Path) -> None:
        file = blob_file(layout, IMAGE.descriptor["digest"])
        file.write_bytes(file.read_bytes().replace(b"tar", b"rat"))
        with pytest.raises(DigestMismatch):
            read_all(f"oci:{layout}")

    @pytest.mark.parametrize("change", [lambda raw: raw + b" ", lambda raw: raw[:-1]])
    def test_documents_of_another_size_are_refused(self, layout: Path, change: Callable[[bytes], bytes]) -> None:
        for name in (IMAGE.descriptor["digest"], IMAGE.manifest["config"]["digest"]):
            file = blob_file(layout, name)
            raw = file.read_bytes()
            file.write_bytes(change(raw))
            with pytest.raises(SizeMismatch, match=name):
                read_all(f"oci:{layout}")
            file.write_bytes(raw)

    def test_documents_that_are_too_large_are_not_read(self, layout: Path) -> None:
        write_layout(str(layout), [{**IMAGE.descriptor, "size": MAX_DOCUMENT + 1}], IMAGE.blobs)
        with pytest.raises(Exhausted):
            read_all(f"oci:{layout}")
        with open(layout / "index.json", "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(Exhausted):
            read_all(f"oci:{layout}")

    def test_a_document_that_is_manifest_and_index_is_refused(self, layout: Path) -> None:
        for media_type in (OCI_MANIFEST, OCI_INDEX):
            both = compact({**IMAGE.manifest, "mediaType": media_type, "manifests": [IMAGE.descriptor]})
            write_layout(str(layout), [entry_of(both, media_type)], {**IMAGE.blobs, digest(both): both})
            with pytest.raises(InvalidInput, match="the kind of the document is ambiguous"):
                read_all(f"oci:{layout}")

    def test_a_document_of_another_type_than_its_descriptor_is_refused(self, layout: Path) -> None:
        raw = compact(IMAGE.manifest)
        write_layout(str(layout), [entry_of(raw, "application/vnd.docker.distribution.manifest.v2+json")], IMAGE.blobs)
        with pytest.raises(InvalidInput, match="mediaType"):
            read_all(f"oci:{layout}")

    def test_an_index_that_fans_out_repeatedly_is_read_once(self, layout: Path) -> None:
        blobs = dict(IMAGE.blobs)
        entry: dict[str, Any] = IMAGE.descriptor
        for _ in range(8):
            raw = compact({"schemaVersion": 2, "manifests": [entry] * 50})
            entry = entry_of(raw, OCI_INDEX)
            blobs[digest(raw)] = raw
        write_layout(str(layout), [entry], blobs)
        started = time.monotonic()
        assert read_all(f"oci:{layout}") == IMAGE.layers
        assert time.monotonic() - started < 5

    def test_more_layers_than_diff_ids_are_refused(self, layout: Path) -> None:
        raw = compact({**IMAGE.manifest, "layers": IMAGE.manifest["layers"] * 2})
        write_layout(str(layout), [entry_of(raw)], {**IMAGE.blobs, digest(raw): raw})
        with pytest.raises(InvalidInput, match="2 layers, but the config has 1"):
            read_all(f"oci:{layout}")

    def test_writing_follows_no_planted_link(self, layout: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (layout / "blobs").rename(tmp_path / "blobs")
        (layout / "blobs").symlink_to(outside)
        with LayoutWriter(str(layout)) as writer:
            image = writer.put_document("application/vnd.oci.image.config.v1+json", b"{}")
            with pytest.raises(LamellaError):
                writer.commit("a", image)
        assert list(outside.iterdir()) == []

    def test_a_link_instead_of_a_blob_is_replaced_and_its_target_kept(self, layout: Path, tmp_path: Path) -> None:
        file = blob_file(layout, LAYER)
        file.unlink()
        file.symlink_to(tmp_path / "secret")
        other = small_image({"a": b"1"}, compress=False, Cmd=["x"])
        with LayoutWriter(str(layout)) as writer:
            for name, raw in other.blobs.items():
                writer.put_document("a/b", raw)
                assert name == digest(raw)
            writer.commit("a", writer.put_document(OCI_MANIFEST, compact(other.manifest)))
        assert (tmp_path / "secret").read_bytes() == SECRET
        assert read_all(f"oci:{layout}:a") == IMAGE.layers
        assert not file.is_symlink()


def archive(path: Path, files: dict[str, Any]) -> str:
    path.write_bytes(tar_of(files))
    return f"docker-archive:{path}"


def docker_files(**changes: Any) -> dict[str, Any]:
    saved = {"Config": "c.json", "RepoTags": None, "Layers": ["layer.tar"]}
    return {"c.json": compact(IMAGE.config), "layer.tar": IMAGE.layers[0], "manifest.json": compact([saved | changes])}


class TestArchives:
    def test_a_correct_archive_is_read(self, tmp_path: Path) -> None:
        assert read_all(archive(tmp_path / "a.tar", docker_files())) == IMAGE.layers

    @pytest.mark.parametrize("name", ["../secret", "/../secret", "a/../../secret", "\0"])
    def test_a_path_in_the_list_cannot_escape(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "secret").write_bytes(SECRET)
        for change in ({"Layers": [name]}, {"Config": name}):
            with pytest.raises(InvalidInput, match="unsafe path"):
                read_all(archive(tmp_path / "a.tar", docker_files(**change)))

    def test_an_absolute_path_in_the_list_means_a_member(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(SECRET)
        with pytest.raises(NotFound):
            read_all(archive(tmp_path / "a.tar", docker_files(Layers=[str(tmp_path / "secret")])))
        assert read_all(archive(tmp_path / "a.tar", docker_files(Layers=["/layer.tar"]))) == IMAGE.layers

    @pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "x/../../secret", "../../../../../../etc/passwd"])
    @pytest.mark.parametrize("member", ["layer.tar", "c.json", "manifest.json"])
    def test_a_link_out_of_the_archive_is_refused(self, tmp_path: Path, target: str, member: str) -> None:
        (tmp_path / "secret").write_bytes(SECRET)
        files = {**docker_files(), member: (tarfile.SYMTYPE, target)}
        with pytest.raises(InvalidInput, match="out of the archive"):
            read_all(archive(tmp_path / "a.tar", files))

    def test_a_hard_link_out_of_the_archive_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(SECRET)
        files = {**docker_files(), "layer.tar": (tarfile.LNKTYPE, "../secret")}
        with pytest.raises(InvalidInput, match="out of the archive"):
            read_all(archive(tmp_path / "a.tar", files))
        files = {**docker_files(), "layer.tar": (tarfile.LNKTYPE, "/etc/passwd")}
        with pytest.raises(NotFound):
            read_all(archive(tmp_path / "a.tar", files))

    def test_a_loop_of_links_is_refused(self, tmp_path: Path) -> None:
        files = {**docker_files(), "layer.tar": (tarfile.SYMTYPE, "b"), "b": (tarfile.SYMTYPE, "layer.tar")}
        with pytest.raises(InvalidInput, match="more than 8 links"):
            read_all(archive(tmp_path / "a.tar", files))
        files = {**docker_files(), "layer.tar": (tarfile.LNKTYPE, "layer.tar")}
        with pytest.raises(InvalidInput, match="more than 8 links"):
            read_all(archive(tmp_path / "a.tar", files))

    @pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE])
    def test_a_member_that_is_no_file_is_refused(self, tmp_path: Path, kind: bytes) -> None:
        with pytest.raises((InvalidInput, NotFound)):
            read_all(archive(tmp_path / "a.tar", {**docker_files(), "layer.tar": (kind, "")}))

    @pytest.mark.parametrize("name", ["manifest.json", "c.json", "layer.tar"])
    def test_a_duplicate_member_is_refused(self, tmp_path: Path, name: str) -> None:
        one, two = tar_of(docker_files()), tar_of({name: b"[]"})
        (tmp_path / "a.tar").write_bytes(one.rstrip(b"\0") + bytes(-len(one.rstrip(b"\0")) % 512) + two)
        with pytest.raises(InvalidInput, match="is there twice"):
            read_all(f"docker-archive:{tmp_path}/a.tar")

    def test_a_member_whose_name_escapes_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="unsafe path"):
            read_all(archive(tmp_path / "a.tar", {**docker_files(), "../secret": SECRET}))

    def test_archives_with_too_large_documents_are_refused(self, tmp_path: Path) -> None:
        for name in ("manifest.json", "c.json"):
            with pytest.raises(Exhausted):
                read_all(archive(tmp_path / "a.tar", {**docker_files(), name: b" " * (MAX_DOCUMENT + 1)}))

    def test_too_many_members_are_refused(self, tmp_path: Path) -> None:
        header = tar_of({"x": b""})[:512]
        (tmp_path / "a.tar").write_bytes(header * 100_001 + bytes(1024))
        with pytest.raises(Exhausted, match="members"):
            read_all(f"docker-archive:{tmp_path}/a.tar")

    def test_a_config_with_duplicate_keys_is_refused(self, tmp_path: Path) -> None:
        raw = compact(IMAGE.config)
        raw = raw[:-1] + b',"rootfs":{"type":"layers","diff_ids":[]}}'
        with pytest.raises(InvalidInput, match="repeated"):
            read_all(archive(tmp_path / "a.tar", {**docker_files(), "c.json": raw}))

    def test_a_layer_with_a_wrong_diff_id_fails_its_digest(self, tmp_path: Path) -> None:
        wrong = tar_of({"a": b"2"})
        assert len(wrong) == len(IMAGE.layers[0])
        with open_platform_image(archive(tmp_path / "a.tar", {**docker_files(), "layer.tar": wrong})) as image:
            with image.layers[0].open() as blob:
                actual = hashlib.sha256(blob.read()).hexdigest()
            assert image.layers[0].descriptor.digest.hex != actual
            from lamella.operations.copy import copy_image

            with LayoutWriter(str(tmp_path / "out")) as writer, pytest.raises(Integrity):
                copy_image(ImageGraph(image.reader), writer, image.descriptor, None)
        assert not (tmp_path / "out").exists()

    def test_a_sparse_member_is_not_taken_for_its_stored_bytes(self, tmp_path: Path) -> None:
        raw = IMAGE.layers[0]
        member = tarfile.TarInfo("layer.tar")
        member.size = len(raw)
        member.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.name": "layer.tar",
            "GNU.sparse.size": str(2 * len(raw)),
            "GNU.sparse.numblocks": "1",
            "GNU.sparse.map": f"0,{len(raw)}",
        }
        files = docker_files()
        del files["layer.tar"]
        block = member.tobuf(tarfile.PAX_FORMAT) + raw + bytes(-len(raw) % 512)
        (tmp_path / "a.tar").write_bytes(block + tar_of(files))
        with pytest.raises(Unsupported, match="sparse"):
            read_all(f"docker-archive:{tmp_path}/a.tar")

    @pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
    def test_an_archive_that_is_a_fifo_does_not_hang(self, tmp_path: Path, form: str) -> None:
        os.mkfifo(tmp_path / "a.tar")
        with pytest.raises(InvalidInput, match="not a regular file"):
            read_all(f"{form}:{tmp_path}/a.tar")

    def test_a_layout_in_an_archive_follows_the_same_rules(self, tmp_path: Path) -> None:
        files: dict[str, Any] = layout_files([tagged(IMAGE.descriptor, "v1")], IMAGE.blobs)
        file = f"blobs/{LAYER.replace(':', '/')}"
        for content, category in (
            ((tarfile.SYMTYPE, "../../../secret"), InvalidInput),
            ((tarfile.FIFOTYPE, ""), InvalidInput),
            (b"short", SizeMismatch),
        ):
            (tmp_path / "a.tar").write_bytes(tar_of({**files, file: content}))
            with pytest.raises(category):
                read_all(f"oci-archive:{tmp_path}/a.tar")
