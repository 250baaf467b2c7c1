# SPDX-License-Identifier: Apache-2.0
"""What ctr has the server do itself, over streams: import, export and further names, done by Lamella's."""

from __future__ import annotations

import hashlib
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.daemons import Ctr, Release, archive, lamella_serving, runnable

from lamella.testing.images import image_of_tars, index_lattice, layout_files, small_image, tagged, tar_of

pytestmark = pytest.mark.interop

NAME = "example.org/small:one"
SERVER = "--local=false"


@pytest.fixture
def ctr(where: Path, release: Release) -> Iterator[Ctr]:
    with lamella_serving(where, "--address", where / "d.sock"):
        yield Ctr(where / "d.sock", release=release)
    log = (where / "lamella.log").read_text()
    assert " error: " not in log
    assert "Traceback" not in log


def brought(ctr: Ctr, *words: str) -> str:
    """Import the small image as `NAME`."""
    base = ("--base-name", "example.org/small")
    return ctr("images", "import", SERVER, *base, *words, "-", stdin=archive(runnable(), "one"))


def names(ctr: Ctr) -> list[str]:
    return ctr("images", "ls", "--quiet").split()


def test_an_archive_is_imported_and_nothing_is_held_afterwards(ctr: Ctr) -> None:
    assert f"{NAME}" in brought(ctr, "--no-unpack")
    image = runnable()
    assert ctr.table("images", "ls")[0][:3] == [NAME, image.descriptor["mediaType"], image.descriptor["digest"]]
    assert set(ctr("content", "ls", "--quiet").split()) == set(image.blobs)
    assert "complete" in ctr("images", "check")
    assert (ctr.table("leases", "ls"), ctr.table("snapshots", "ls")) == ([], [])


def test_an_image_is_unpacked_by_the_snapshotter_that_the_namespace_says(ctr: Ctr) -> None:
    brought(ctr)
    ctr("leases", "rm", "--sync", ctr("leases", "create").strip())  # which collects
    assert len(ctr.table("snapshots", "ls")) == 2
    ctr("namespaces", "label", "tests", "containerd.io/defaults/snapshotter=native")
    brought(ctr)
    assert len(ctr.table("snapshots", "--snapshotter", "native", "ls")) == 2


def test_the_index_of_an_archive_is_kept_under_a_name(ctr: Ctr) -> None:
    brought(ctr, "--no-unpack", "--index-name", "example.org/index:1")
    rows = {row[0]: row[1] for row in ctr.table("images", "ls")}
    assert rows["example.org/index:1"] == "application/vnd.oci.image.index.v1+json"
    ctr("images", "rm", "--sync", NAME)
    assert "complete" in ctr("images", "check")


def test_an_image_is_tagged_again_and_again(ctr: Ctr) -> None:
    brought(ctr, "--no-unpack")
    for _ in range(2):
        ctr("images", "tag", SERVER, NAME, "example.org/small:two")
    assert names(ctr) == [NAME, "example.org/small:two"]
    assert "no image" in ctr.refused("images", "tag", SERVER, "example.org/none:1", "example.org/none:2")


def test_an_exported_archive_is_whole_each_time_and_can_be_imported_by_either_side(ctr: Ctr, where: Path) -> None:
    layer = tar_of({f"file-{number}": number.to_bytes(2, "big") * 20_000 for number in range(30)})
    image = image_of_tars([layer], compress=False)
    ctr("images", "import", SERVER, "--no-unpack", "--platform", "linux/amd64", "-", stdin=archive(image, NAME))
    found = set()
    for number in range(8):
        ctr("images", "export", SERVER, "--platform", "linux/amd64", where / "out.tar", NAME)
        with tarfile.open(where / "out.tar") as tar:
            members = {member.name: member for member in tar}
            assert list(members)[-1] == "oci-layout"
        raw = (where / "out.tar").read_bytes()
        for member in members.values():
            if member.isfile() and member.name.startswith("blobs/"):
                data = raw[member.offset_data : member.offset_data + member.size]
                assert hashlib.sha256(data).hexdigest() == member.name.rpartition("/")[2], number
        found.add(raw.rstrip(b"\0"))
    assert len(found) == 1
    ctr("images", "rm", "--sync", NAME)
    for side in (SERVER, "--local=true"):
        other = ctr.within(side.rpartition("=")[2])
        other("images", "import", side, "--no-unpack", "--platform", "linux/amd64", where / "out.tar")
        assert names(other) == [NAME]
        assert other.table("images", "ls")[0][2] == image.descriptor["digest"]


def test_what_cannot_be_imported_is_refused_and_leaves_no_image(ctr: Ctr, where: Path) -> None:
    (where / "cut.tar").write_bytes(archive(runnable(), NAME)[:3000])
    assert "not a tar archive, or a damaged one" in ctr.refused("images", "import", SERVER, where / "cut.tar")
    (where / "other.tar").write_bytes(tar_of({"a": b"b"}))
    assert "neither an OCI layout" in ctr.refused("images", "import", SERVER, where / "other.tar")
    (where / "whole.tar").write_bytes(archive(runnable(), NAME))
    said = ctr.refused("images", "import", SERVER, "--base-name", "example.org/else", where / "whole.tar")
    assert f"named there: {NAME}" in said
    assert (names(ctr), ctr.table("leases", "ls")) == ([], [])
    assert sorted(path.name for path in (where / "store").iterdir() if path.name.startswith("tmp")) == []


def test_an_image_that_is_not_there_is_not_exported(ctr: Ctr, where: Path) -> None:
    assert "no image" in ctr.refused("images", "export", SERVER, where / "out.tar", NAME)


def test_a_client_that_does_it_all_itself_comes_to_the_same(ctr: Ctr, where: Path) -> None:
    local = "--local=true"
    ctr("images", "import", local, "--base-name", "example.org/small", "-", stdin=archive(runnable(), "one"))
    assert len(ctr.table("snapshots", "ls")) == 2
    ctr("images", "tag", local, NAME, "example.org/small:two")
    assert names(ctr) == [NAME, "example.org/small:two"]
    ctr("images", "export", local, where / "out.tar", NAME)
    with tarfile.open(where / "out.tar") as tar:
        exported = {name.removeprefix("blobs/").replace("/", ":") for name in tar.getnames()}
    assert set(runnable().blobs) <= exported
    assert ctr.table("leases", "ls") == []


def test_a_wide_deep_index_is_imported_and_exported_in_no_time(ctr: Ctr, where: Path) -> None:
    top, blobs = index_lattice(6, 8, small_image({"a": b"1"}))
    stdin = tar_of(layout_files([tagged(top, NAME)], blobs))
    start = time.monotonic()
    ctr("images", "import", SERVER, "--no-unpack", "--all-platforms", "-", stdin=stdin)
    ctr("images", "export", SERVER, "--all-platforms", where / "out.tar", NAME)
    assert time.monotonic() - start < 30
    with tarfile.open(where / "out.tar") as tar:
        assert {f"blobs/{name.replace(':', '/')}" for name in blobs} <= set(tar.getnames())
