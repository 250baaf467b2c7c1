# SPDX-License-Identifier: Apache-2.0
"""What ctr does with snapshots, done with a server of Lamella's."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.daemons import Ctr, Release, archive, lamella_serving, runnable

pytestmark = [pytest.mark.interop, pytest.mark.root]

IMAGE = "example.org/small:one"
KINDS = ["overlayfs", "native", "erofs"]


@pytest.fixture
def ctr(where: Path, release: Release) -> Iterator[Ctr]:
    address = where / "d.sock"
    with lamella_serving(where, "--address", address):
        yield Ctr(address, release=release)


@pytest.fixture
def imported(ctr: Ctr) -> Ctr:
    """Return ctr, with an image that is there and not unpacked."""
    ctr("images", "import", "--no-unpack", "--base-name", "example.org/small", "-", stdin=archive(runnable(), "one"))
    return ctr


def chain(ctr: Ctr, kind: str) -> list[str]:
    """Names of the snapshots, the base first."""
    rows = ctr.table("snapshots", "--snapshotter", kind, "ls")
    assert {"Committed"} == {row[-1] for row in rows}
    base, upper = sorted(rows, key=len)
    assert [upper[0], base[0], "Committed"] == upper
    return [base[0], upper[0]]


def members(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as found:
        return {one.name: (file.read() if (file := found.extractfile(one)) else b"") for one in found}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_unpacked_and_seen(kind: str, imported: Ctr, where: Path) -> None:
    ctr, digest = imported, runnable().descriptor["digest"]
    ctr("snapshots", "--snapshotter", kind, "unpack", "--snapshotter", kind, digest)
    base, upper = chain(ctr, kind)
    assert runnable().config["rootfs"]["diff_ids"][0] == base
    assert [base, upper] == ctr("snapshots", "--snapshotter", kind, "tree").replace("\\_", "").split()
    info = json.loads(ctr("snapshots", "--snapshotter", kind, "info", upper))
    assert (upper, base, "Committed") == (info["Name"], info["Parent"], info["Kind"])
    assert {base, upper} == {row[0] for row in ctr.table("snapshots", "--snapshotter", kind, "usage")}
    # Unpacking again finds the layers there.
    ctr("snapshots", "--snapshotter", kind, "unpack", "--snapshotter", kind, digest)
    target = where / "target"
    target.mkdir()
    ctr("images", "mount", "--snapshotter", kind, IMAGE, target)
    try:
        assert {"bin", "dev", "etc", "link", "proc", "real", "sys"} == {path.name for path in target.iterdir()}
        assert (target / "link/lower").read_text() == "lower"
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
    finally:
        ctr("images", "unmount", "--snapshotter", kind, "--rm", target)
    assert list(target.iterdir()) == []


def test_importing_unpacks_by_itself(ctr: Ctr) -> None:
    ctr("images", "import", "--base-name", "example.org/small", "-", stdin=archive(runnable(), "one"))
    assert len(chain(ctr, "overlayfs")) == 2
    assert "complete (3/3)" in ctr("images", "check").replace("\t", " ")
    # Snapshots go with the image whose config names them.
    ctr("images", "rm", "--sync", IMAGE)
    assert ctr.table("snapshots", "ls") == []
    assert ctr.table("content", "ls") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_is_written_to_committed_and_compared(kind: str, imported: Ctr, where: Path) -> None:
    ctr = imported
    call = ("snapshots", "--snapshotter", kind)
    ctr(*call, "unpack", "--snapshotter", kind, runnable().descriptor["digest"])
    _, upper = chain(ctr, kind)
    target = where / "target"
    target.mkdir()
    ctr(*call, "prepare", "a key", upper)
    for line in ctr(*call, "mounts", target, "a key").splitlines():
        subprocess.run(shlex.split(line), check=True)
    try:
        (target / "made").write_text("made")
        (target / "real/lower").unlink()
    finally:
        subprocess.run(["umount", target], check=True)
    changed = members(ctr.raw(*call, "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "a key"))
    assert {"made", "real/.wh.lower"} <= set(changed)
    assert changed["made"] == b"made"
    assert "bin/it" not in changed
    ctr(*call, "commit", "result", "a key")
    ctr(*call, "label", "result", "containerd.io/gc.root=now", "say=so")
    assert json.loads(ctr(*call, "info", "result"))["Labels"]["say"] == "so"
    compared = ctr.raw(*call, "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", upper, "result")
    assert changed.keys() == members(compared).keys()
    assert "remove" in ctr.refused(*call, "rm", upper)
    ctr(*call, "rm", "result")
    assert len(chain(ctr, kind)) == 2


def test_a_view_that_nothing_holds_goes_with_the_next_deletion(imported: Ctr, where: Path) -> None:
    ctr = imported
    ctr("snapshots", "unpack", runnable().descriptor["digest"])
    _, upper = chain(ctr, "overlayfs")
    ctr("leases", "create", "--id", "held")
    (line,) = ctr("snapshots", "view", "--target", where, "look", upper).splitlines()
    assert "lowerdir=" in line
    assert "upperdir=" not in line
    # No lease holds it, so that the next deletion takes it, as with containerd.
    ctr("leases", "rm", "--sync", "held")
    assert "does not exist" in ctr.refused("snapshots", "commit", "new", "look")


def test_what_is_wrong_is_told_in_a_line(ctr: Ctr) -> None:
    for words, expected in (
        (("prepare", "key", "nobody"), "does not exist"),
        (("mounts", "/mnt", "nobody"), "does not exist"),
        (("--snapshotter", "zfs", "ls"), "zfs"),
        (("commit", "name", "nobody"), "does not exist"),
    ):
        said = ctr.refused("snapshots", *words)
        assert expected in said
        assert "Traceback" not in said
    ctr("snapshots", "prepare", "key")
    assert "exists already" in ctr.refused("snapshots", "prepare", "key")
