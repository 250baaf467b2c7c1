# SPDX-License-Identifier: Apache-2.0
"""A name and a platform choose one image of a place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamella.errors import (
    InvalidInput,
    NotFound,
    Unsupported,
)
from lamella.images.graph import ImageGraph
from lamella.images.layout import open_directory
from lamella.images.resolve import PlatformImage, choose_platform, open_platform_image
from lamella.oci import platform as platforms
from lamella.oci.mediatypes import OCI_INDEX
from lamella.oci.platform import Platform, parse_platform
from lamella.testing.images import (
    SmallImage,
    compact,
    digest,
    index_of,
    small_image,
    tagged,
    write_layout,
)

AMD = small_image({"a": b"1"}, {"b": b"2"})
ARM = small_image({"a": b"arm"}, platform="linux/arm64/v8")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Platform(architecture="amd64", os="linux")
    for module in (platforms, __import__("lamella.images.resolve", fromlist=["host_platform"])):
        monkeypatch.setattr(module, "host_platform", lambda: machine)


def name_of(path: str | Path, tag: str = "") -> str:
    return f"oci:{path}:{tag}" if tag else f"oci:{path}"


class TestPlatforms:
    def layout(self, path: Path, *images: SmallImage, **extra: Any) -> Path:
        entry, raw = index_of(*images)
        blobs = {name: blob for image in images for name, blob in image.blobs.items()}
        write_layout(str(path), [tagged(entry, "multi")], {**blobs, entry["digest"]: raw})
        return path

    def chosen(self, path: Path, platform: str | None = None) -> PlatformImage:
        with open_platform_image(name_of(path, "multi"), platform) as image:
            return image

    def test_the_hosts_platform_is_the_default(self, tmp_path: Path) -> None:
        self.layout(tmp_path, ARM, AMD)
        assert self.chosen(tmp_path).descriptor.digest == AMD.descriptor["digest"]
        assert self.chosen(tmp_path, "linux/arm64").descriptor.digest == ARM.descriptor["digest"]

    def test_the_hint_lists_the_platforms(self, tmp_path: Path) -> None:
        self.layout(tmp_path, ARM, AMD)
        with pytest.raises(NotFound, match="no image named 'multi' for linux/s390x") as caught:
            self.chosen(tmp_path, "linux/s390x")
        assert caught.value.hint == "choose one with --platform: linux/arm64/v8, linux/amd64"

    def test_a_single_platform_is_taken_on_any_host(self, tmp_path: Path) -> None:
        self.layout(tmp_path, ARM)
        assert self.chosen(tmp_path).descriptor.digest == ARM.descriptor["digest"]

    def test_a_requested_platform_must_match_a_single_image(self, tmp_path: Path) -> None:
        write_layout(str(tmp_path), [tagged(ARM.descriptor, "multi")], ARM.blobs)
        assert self.chosen(tmp_path).descriptor.digest == ARM.descriptor["digest"]
        with pytest.raises(NotFound, match="for linux/amd64"):
            self.chosen(tmp_path, "linux/amd64")

    def test_the_config_gives_the_platform_of_an_entry_without_one(self, tmp_path: Path) -> None:
        entries = [tagged(ARM.descriptor, "multi"), tagged(AMD.descriptor, "multi")]
        write_layout(str(tmp_path), entries, AMD.blobs | ARM.blobs)
        assert self.chosen(tmp_path).descriptor.digest == AMD.descriptor["digest"]

    def test_two_images_of_one_name_and_platform_are_refused(self, tmp_path: Path) -> None:
        other = small_image({"c": b"3"})
        entries = [tagged(other.descriptor, "multi"), tagged(AMD.descriptor, "multi")]
        write_layout(str(tmp_path), entries, AMD.blobs | other.blobs)
        with pytest.raises(InvalidInput, match="2 images named 'multi' are all for linux/amd64"):
            self.chosen(tmp_path)

    def test_nested_indexes_are_followed_to_a_depth_of_eight(self, tmp_path: Path) -> None:
        entry, raw = index_of(ARM, AMD)
        blobs = {**AMD.blobs, **ARM.blobs, entry["digest"]: raw}
        for _ in range(7):
            raw = compact({"schemaVersion": 2, "manifests": [entry]})
            entry = {"mediaType": OCI_INDEX, "digest": digest(raw), "size": len(raw)}
            blobs[entry["digest"]] = raw
        write_layout(str(tmp_path), [tagged(entry, "multi")], blobs)
        assert self.chosen(tmp_path).descriptor.digest == AMD.descriptor["digest"]
        raw = compact({"schemaVersion": 2, "manifests": [entry]})
        entry = {"mediaType": OCI_INDEX, "digest": digest(raw), "size": len(raw)}
        write_layout(str(tmp_path), [tagged(entry, "multi")], {**blobs, entry["digest"]: raw})
        with pytest.raises(Unsupported, match="nested deeper than 8"):
            self.chosen(tmp_path)

    def test_the_platform_of_a_nested_index_holds_for_its_entries(self, tmp_path: Path) -> None:
        raw = compact({"schemaVersion": 2, "manifests": [AMD.descriptor]})
        inner = {"mediaType": OCI_INDEX, "digest": digest(raw), "size": len(raw)}
        inner["platform"] = {"os": "linux", "architecture": "riscv64"}
        write_layout(str(tmp_path), [tagged(inner, "multi")], {**AMD.blobs, digest(raw): raw})
        with open_directory(str(tmp_path)) as reader:
            found = choose_platform(ImageGraph(reader), "multi", parse_platform("linux/riscv64"))
        assert str(found.descriptor.platform) == "linux/riscv64"
