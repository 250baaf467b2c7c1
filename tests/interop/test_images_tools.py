# SPDX-License-Identifier: Apache-2.0
"""Images pass between skopeo, umoci, buildah and Lamella in both directions, with their digests."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.errors import InvalidInput
from lamella.images.resolve import open_platform_image
from lamella.images.transports import parse_image_name
from lamella.operations.copy import copy
from lamella.testing.images import compact, digest, index_of, small_image, tagged, write_layout

Needs = Callable[..., str]

pytestmark = pytest.mark.interop

IMAGE = small_image(
    {"etc/name": b"lamella", "bin/sh": b"#!"},
    {"etc/.wh.name": b"", "etc/<&>": b"x" * 5000},
    Env=["A=b & <c>"],
    Cmd=["/bin/sh"],
    Labels={"k": "v"},
)
ARM = small_image({"etc/name": b"arm"}, platform="linux/arm64/v8")
DIFF_IDS = IMAGE.config["rootfs"]["diff_ids"]
FORMS = ["oci", "oci-archive", "docker-archive"]


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def skopeo(needs: Needs) -> Callable[..., str]:
    tool = needs("skopeo")

    def call(verb: str, *arguments: str) -> str:
        return run(tool, "--insecure-policy", verb, *arguments)

    return call


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = write_layout(str(tmp_path / "source"), [tagged(IMAGE.descriptor, "v1")], IMAGE.blobs)
    return f"oci:{path}:v1"


@pytest.fixture
def several(tmp_path: Path) -> str:
    entry, raw = index_of(ARM, IMAGE)
    blobs = {**IMAGE.blobs, **ARM.blobs, digest(raw): raw}
    return f"oci:{write_layout(str(tmp_path / 'several'), [tagged(entry, 'v1')], blobs)}:v1"


def seen(name: str, platform: str | None = None) -> tuple[str, list[str], list[bytes]]:
    """Digest of the config, diff ids, and the layers' bytes, all of them read from ``name``."""
    with open_platform_image(name, platform) as image:
        blobs = []
        for layer in image.layers:
            with layer.open() as blob:
                raw = blob.read()
            assert digest(raw) == layer.descriptor.digest
            blobs.append(raw)
        return image.manifest.config.digest, [str(layer.diff_id) for layer in image.layers], blobs


class TestSkopeo:
    @pytest.mark.parametrize("form", FORMS)
    def test_what_it_writes_is_read(self, skopeo: Callable[..., str], tmp_path: Path, source: str, form: str) -> None:
        target = f"{form}:{tmp_path}/there:v1"
        skopeo("copy", source, target)
        config, diff_ids, layers = seen(target)
        assert diff_ids == DIFF_IDS
        assert config == digest(compact(IMAGE.config))
        if form != "docker-archive":
            assert layers == IMAGE.layers

    @pytest.mark.parametrize("form", FORMS)
    def test_it_reads_what_is_written(self, skopeo: Callable[..., str], tmp_path: Path, source: str, form: str) -> None:
        target = f"{form}:{tmp_path}/there:v1"
        copy(source, target)
        skopeo("copy", target, f"oci:{tmp_path}/back:v1")
        config, diff_ids, _ = seen(f"oci:{tmp_path}/back:v1")
        assert diff_ids == DIFF_IDS
        with open_platform_image(f"oci:{tmp_path}/back:v1") as image:
            assert image.config.config.env == ["A=b & <c>"]
        if form != "docker-archive":  # from there skopeo writes the config anew
            assert config == digest(compact(IMAGE.config))
            assert compact(IMAGE.manifest).decode() == skopeo("inspect", "--raw", target)

    def test_it_finds_the_name_in_a_docker_archive(
        self, skopeo: Callable[..., str], tmp_path: Path, source: str
    ) -> None:
        copy(source, f"docker-archive:{tmp_path}/a.tar:me/app:2")
        assert json.loads(skopeo("list-tags", f"docker-archive:{tmp_path}/a.tar"))["Tags"] == ["docker.io/me/app:2"]
        inspected = json.loads(skopeo("inspect", f"docker-archive:{tmp_path}/a.tar:me/app:2"))
        assert (inspected["Architecture"], inspected["Env"]) == ("amd64", ["A=b & <c>"])

    @pytest.mark.parametrize("form", ["oci", "oci-archive"])
    def test_all_platforms_go_there_and_back(
        self, skopeo: Callable[..., str], tmp_path: Path, several: str, form: str
    ) -> None:
        ours, theirs = f"{form}:{tmp_path}/ours:v1", f"{form}:{tmp_path}/theirs:v1"
        copy(several, ours, all_platforms=True)
        skopeo("copy", "--all", several, theirs)
        assert skopeo("inspect", "--raw", theirs) == skopeo("inspect", "--raw", ours)
        for name in (ours, theirs):
            assert seen(name, "linux/amd64")[2] == IMAGE.layers
            assert seen(name, "linux/arm64")[2] == ARM.layers
        skopeo("copy", "--all", ours, f"oci:{tmp_path}/back:v1")
        assert seen(f"oci:{tmp_path}/back:v1", "linux/arm64")[2] == ARM.layers

    def test_both_choose_the_same_platform(self, skopeo: Callable[..., str], tmp_path: Path, several: str) -> None:
        skopeo("copy", "--override-arch=arm64", several, f"oci:{tmp_path}/theirs:v1")
        copy(several, f"oci:{tmp_path}/ours:v1", platform="linux/arm64")
        assert seen(f"oci:{tmp_path}/theirs:v1") == seen(f"oci:{tmp_path}/ours:v1")

    def test_both_share_one_layout(self, skopeo: Callable[..., str], tmp_path: Path, source: str) -> None:
        layout = f"oci:{tmp_path}/shared"
        copy(source, f"{layout}:a")
        skopeo("copy", source, f"{layout}:b")
        copy(source, f"{layout}:c/d:1")
        skopeo("copy", f"{layout}:c/d:1", f"{layout}:a")
        for tag in ("a", "b", "c/d:1"):
            assert seen(f"{layout}:{tag}")[1] == DIFF_IDS
            assert json.loads(skopeo("inspect", f"{layout}:{tag}"))["Digest"] == IMAGE.descriptor["digest"]

    @pytest.mark.parametrize("tag", ["v1", "a b", "a@b", "-a", "a--b", "a..b", "a/b:c", "x.io:5/a", "a_", "a+b"])
    def test_a_tag_that_may_be_written_is_one_that_it_takes(
        self, skopeo: Callable[..., str], tmp_path: Path, source: str, tag: str
    ) -> None:
        try:
            copy(source, f"oci:{tmp_path}/there:{tag}")
        except InvalidInput:
            return
        skopeo("inspect", f"oci:{tmp_path}/there:{tag}")

    def test_an_image_of_nothing(self, skopeo: Callable[..., str], tmp_path: Path) -> None:
        empty = small_image()
        path = write_layout(str(tmp_path / "empty"), [tagged(empty.descriptor, "v1")], empty.blobs)
        for form in FORMS:
            copy(f"oci:{path}:v1", f"{form}:{tmp_path}/{form}:v1")
            skopeo("copy", f"{form}:{tmp_path}/{form}:v1", f"oci:{tmp_path}/back:{form}")
            assert (digest(compact(empty.config)), [], []) == seen(f"oci:{tmp_path}/back:{form}")


class TestUmoci:
    def test_what_it_writes_is_read(self, needs: Needs, tmp_path: Path) -> None:
        umoci = needs("umoci")
        (tmp_path / "file").write_text("hello")
        layout = str(tmp_path / "layout")
        run(umoci, "init", "--layout", layout)
        run(umoci, "new", "--image", f"{layout}:v1")
        run(umoci, "insert", "--rootless", "--image", f"{layout}:v1", str(tmp_path / "file"), "/etc/file")
        run(umoci, "config", "--image", f"{layout}:v1", "--tag", "v2", "--config.env", "A=b")
        _, diff_ids, blobs = seen(f"oci:{layout}:v2")
        assert (len(diff_ids), len(blobs)) == (1, 1)
        with open_platform_image(f"oci:{layout}:v2") as image:
            assert "A=b" in image.config.config.env
            assert [stored.names for stored in image.reader.images()] == [("v1",), ("v2",)]

    def test_it_reads_what_is_written(self, needs: Needs, tmp_path: Path, source: str) -> None:
        umoci = needs("umoci")
        copy(source, f"oci:{tmp_path}/layout:v1")
        run(umoci, "unpack", "--rootless", "--image", f"{tmp_path}/layout:v1", str(tmp_path / "bundle"))
        root = tmp_path / "bundle" / "rootfs"
        assert {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()} == {
            "bin/sh": b"#!",
            "etc/<&>": b"x" * 5000,
        }

    def test_it_collects_no_garbage_from_what_is_written(self, needs: Needs, tmp_path: Path, source: str) -> None:
        umoci = needs("umoci")
        layout = tmp_path / "layout"
        copy(source, f"oci:{layout}:v1")
        before = sorted(os.listdir(layout / "blobs" / "sha256"))
        run(umoci, "gc", "--layout", str(layout))
        assert before == sorted(os.listdir(layout / "blobs" / "sha256"))
        assert sorted(name[7:] for name in IMAGE.blobs) == before


class TestBuildah:
    @pytest.fixture
    def buildah(self, needs: Needs, tmp_path: Path) -> Callable[..., str]:
        tool = needs("buildah")
        places = ("--root", f"{tmp_path}/storage", "--runroot", f"{tmp_path}/run", "--storage-driver", "vfs")

        def call(*arguments: str) -> str:
            return run(tool, *places, *arguments, BUILDAH_ISOLATION="chroot").strip()

        return call

    @pytest.mark.root
    @pytest.mark.parametrize("form", FORMS)
    def test_what_it_commits_is_read(self, buildah: Callable[..., str], tmp_path: Path, form: str) -> None:
        (tmp_path / "context").mkdir()
        (tmp_path / "context" / "file").write_text("hello")
        container = buildah("from", "scratch")
        buildah("copy", container, str(tmp_path / "context"), "/etc")
        buildah("config", "--env", "A=b", "--label", "x=<&>", container)
        target = f"{form}:{tmp_path}/out:v1"
        buildah("commit", "--quiet", container, target)
        with open_platform_image(target) as image:
            assert (image.config.config.env[-1], image.config.config.labels["x"]) == ("A=b", "<&>")
            [layer] = image.layers
            with layer.open() as blob, tarfile.open(fileobj=blob) as archive:
                assert "etc/file" in archive.getnames()

    @pytest.mark.root
    @pytest.mark.parametrize("form", FORMS)
    def test_it_starts_from_what_is_written(
        self, buildah: Callable[..., str], tmp_path: Path, source: str, form: str
    ) -> None:
        target = f"{form}:{tmp_path}/out:v1"
        copy(source, target)
        container = buildah("from", target)
        inspected: dict[str, Any] = json.loads(buildah("inspect", container))
        assert inspected["OCIv1"]["config"]["Env"] == ["A=b & <c>"]
        assert inspected["OCIv1"]["rootfs"]["diff_ids"] == DIFF_IDS


def test_names_are_split_as_skopeo_splits_them(needs: Needs, tmp_path: Path) -> None:
    tool = needs("skopeo")
    path = write_layout(str(tmp_path / "dir"), [tagged(IMAGE.descriptor, "a:b")], IMAGE.blobs)
    for name in (f"oci:{path}", f"oci:{path}:", f"oci:{path}:a:b", f"oci:{path}:@0"):
        assert run(tool, "--insecure-policy", "inspect", "--raw", name) == compact(IMAGE.manifest).decode()
        with open_platform_image(parse_image_name(name)) as image:
            assert image.descriptor.digest == IMAGE.descriptor["digest"]
