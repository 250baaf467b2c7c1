# SPDX-License-Identifier: Apache-2.0
"""A copy keeps every digest, reads nothing twice, and leaves no trace when it fails."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lamella.changes.job import Job
from lamella.errors import (
    AlreadyExists,
    Cancelled,
    DigestMismatch,
    InvalidInput,
    LamellaError,
    NotFound,
    Unsupported,
)
from lamella.images.resolve import open_platform_image
from lamella.operations.copy import copy
from lamella.progress import Cancellation
from lamella.testing.images import SmallImage, compact, digest, index_of, small_image, tagged, write_layout

AMD = small_image({"a": b"1"}, {"b": b"2"})
ARM = small_image({"a": b"1"}, {"c": b"arm"}, platform="linux/arm64/v8")
INDEX, RAW_INDEX = index_of(ARM, AMD)
FORMS = ["oci", "oci-archive", "docker-archive"]


class Told:
    """Keeps what a copy tells of itself."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0
        self.finished = 0

    def start(self, what: str, total: int | None) -> None:
        assert what == "copy"
        self.total = total

    def advance(self, amount: int) -> None:
        self.done += amount

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def source(tmp_path: Path) -> str:
    entries = [tagged(AMD.descriptor, "one"), tagged({**INDEX, "annotations": {"x": "y"}}, "all")]
    blobs = {**AMD.blobs, **ARM.blobs, digest(RAW_INDEX): RAW_INDEX}
    return f"oci:{write_layout(str(tmp_path / 'source'), entries, blobs)}"


def diff_ids(name: str, platform: str | None = None) -> list[str]:
    with open_platform_image(name, platform) as image:
        return [str(layer.diff_id) for layer in image.layers]


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_an_image_can_be_copied_between_any_two_forms(tmp_path: Path, source: str, first: str, second: str) -> None:
    one, two = f"{first}:{tmp_path}/one:v1", f"{second}:{tmp_path}/two:v2"
    copied = copy(f"{source}:one", one)
    again = copy(one, two)
    assert copied.entry.digest == AMD.descriptor["digest"]
    assert (copied.blobs, copied.present) == (4, 0)
    assert diff_ids(two) == AMD.config["rootfs"]["diff_ids"]
    with open_platform_image(two) as image:
        assert image.manifest.config.digest == digest(compact(AMD.config))
        if "docker-archive" not in (first, second):
            assert AMD.descriptor["digest"] == again.entry.digest == image.descriptor.digest


def test_only_one_platform_of_an_index_is_copied(tmp_path: Path, source: str) -> None:
    target = f"oci:{tmp_path}/t"
    copied = copy(f"{source}:all", f"{target}:arm", platform="linux/arm64")
    assert copied.entry.digest == ARM.descriptor["digest"]
    assert sorted(name[7:] for name in ARM.blobs) == sorted(os.listdir(tmp_path / "t" / "blobs" / "sha256"))
    index = json.loads((tmp_path / "t" / "index.json").read_bytes())
    assert index["manifests"][0]["annotations"] == {"org.opencontainers.image.ref.name": "arm"}
    assert index["manifests"][0]["platform"] == {"architecture": "arm64", "os": "linux", "variant": "v8"}


@pytest.mark.parametrize("form", ["oci", "oci-archive"])
def test_all_platforms_keep_the_digest_of_their_index(tmp_path: Path, source: str, form: str) -> None:
    target = f"{form}:{tmp_path}/t:all"
    copied = copy(f"{source}:all", target, all_platforms=True)
    assert copied.entry.digest == INDEX["digest"]
    assert copied.blobs == len({*AMD.blobs, *ARM.blobs}) + 1
    for image, platform in ((AMD, "linux/amd64"), (ARM, "linux/arm64")):
        assert image.config["rootfs"]["diff_ids"] == diff_ids(target, platform)


def test_all_platforms_of_a_single_image_are_that_image(tmp_path: Path, source: str) -> None:
    assert copy(f"{source}:one", f"oci:{tmp_path}/t", all_platforms=True).entry.digest == AMD.descriptor["digest"]


def test_blobs_that_the_target_holds_are_not_copied_again(tmp_path: Path, source: str) -> None:
    target = f"oci:{tmp_path}/t"
    copy(f"{source}:one", f"{target}:a")
    told = Told()
    copied = copy(f"{source}:all", f"{target}:b", all_platforms=True, job=Job(progress=told))
    assert {*AMD.blobs} & {*ARM.blobs}
    assert (copied.blobs, copied.present) == (len({*ARM.blobs} - {*AMD.blobs}) + 1, len(AMD.blobs))
    assert (copied.size, copied.size, 1) == (told.total, told.done, told.finished)
    nothing = copy(f"{source}:one", f"{target}:c")
    assert (nothing.blobs, nothing.size, nothing.present) == (0, 0, 4)
    assert diff_ids(f"{target}:c") == AMD.config["rootfs"]["diff_ids"]


def test_a_layout_may_be_source_and_target(source: str) -> None:
    copy(f"{source}:one", f"{source}:two")
    assert diff_ids(f"{source}:one") == diff_ids(f"{source}:two")


def test_a_damaged_blob_fails_the_copy_and_leaves_nothing(tmp_path: Path, source: str) -> None:
    layer = AMD.manifest["layers"][1]["digest"]
    file = Path(source[4:]) / "blobs" / layer.replace(":", "/")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    told = Told()
    for form in FORMS:
        with pytest.raises(DigestMismatch, match=layer):
            copy(f"{source}:one", f"{form}:{tmp_path}/t:v1", job=Job(progress=told))
    assert told.finished == len(FORMS)
    assert os.listdir(tmp_path) == ["source"]


def test_a_cancelled_copy_leaves_nothing(tmp_path: Path, source: str) -> None:
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(Cancelled):
        copy(f"{source}:one", f"oci:{tmp_path}/t:v1", job=Job(cancel=cancel))
    assert os.listdir(tmp_path) == ["source"]


def test_an_existing_archive_is_replaced_only_on_request(tmp_path: Path, source: str) -> None:
    target = f"oci-archive:{tmp_path}/t"
    copy(f"{source}:one", target)
    with pytest.raises(AlreadyExists):
        copy(f"{source}:one", target)
    copy(f"{source}:all", target, platform="linux/arm64", replace=True)
    assert diff_ids(target) == ARM.config["rootfs"]["diff_ids"]


def test_a_docker_archive_holds_one_platform(tmp_path: Path, source: str) -> None:
    with pytest.raises(Unsupported, match="cannot hold an index"):
        copy(f"{source}:all", f"docker-archive:{tmp_path}/t", all_platforms=True)
    assert os.listdir(tmp_path) == ["source"]
    copy(f"{source}:all", f"docker-archive:{tmp_path}/t", platform="linux/arm64")
    assert diff_ids(f"docker-archive:{tmp_path}/t") == ARM.config["rootfs"]["diff_ids"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"all_platforms": True, "platform": "linux/amd64"}, InvalidInput),
        ({"platform": "linux/s390x"}, NotFound),
        ({"platform": "!"}, InvalidInput),
    ],
)
def test_contradictory_requests_are_refused(
    tmp_path: Path, source: str, arguments: dict[str, object], expected: type[LamellaError]
) -> None:
    with pytest.raises(expected):
        copy(f"{source}:all", f"oci:{tmp_path}/t", **arguments)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["source"]


def test_an_index_with_a_missing_platform_is_not_copied_as_a_whole(tmp_path: Path) -> None:
    layout = write_layout(str(tmp_path / "source"), [INDEX], {**AMD.blobs, digest(RAW_INDEX): RAW_INDEX})
    with pytest.raises(NotFound, match=ARM.descriptor["digest"][7:]):
        copy(f"oci:{layout}", f"oci:{tmp_path}/t", all_platforms=True)
    with open_platform_image(f"oci:{layout}", "linux/amd64") as image:
        assert len(image.layers) == 2


def test_a_manifest_that_is_a_layer_of_another_image_is_refused(tmp_path: Path) -> None:
    """A copy that took it for a layer would lack the parts of the manifest."""
    raw = compact(AMD.manifest)
    odd = {**ARM.manifest, "layers": [{**ARM.manifest["layers"][0], "digest": digest(raw), "size": len(raw)}]}
    image = SmallImage(odd, ARM.config, {**ARM.blobs, digest(raw): raw, digest(compact(odd)): compact(odd)})
    entry, index = index_of(image, AMD)
    layout = write_layout(str(tmp_path / "source"), [entry], {**image.blobs, **AMD.blobs, digest(index): index})
    with pytest.raises(InvalidInput, match="is listed as a blob and as a manifest"):
        copy(f"oci:{layout}", f"oci:{tmp_path}/t", all_platforms=True)
