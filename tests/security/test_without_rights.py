# SPDX-License-Identifier: Apache-2.0
"""Layers applied by an ordinary user: recorded owners and devices, directories without owner permissions."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.people import as_nobody, person
from tests.security.routes import apply_tar
from tests.security.surroundings import listing
from tests.security.tars import Tar
from tests.security.test_snapshots_without_rights import in_namespaces

from lamella.changes.losses import Losses
from lamella.errors import Denied, InvalidInput, LossRefused
from lamella.layers.directory.attrs import OVERRIDE, ROOTLESS, encode_owner
from lamella.layers.policy import Devices, Owners, Policy

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture
def own() -> Iterator[Path]:
    """A directory that the unprivileged user owns and can reach."""
    top = Path(tempfile.mkdtemp(prefix="lamella-test-"))
    top.chmod(0o755)
    root = top / "out"
    root.mkdir(mode=0o755)
    os.chown(root, *person())
    yield root
    subprocess.run(["chmod", "-R", "u+rwx", top], check=True)
    shutil.rmtree(top)


def applied(root: Path, *layers: Tar, policy: Policy | None = None, refuse: bool = False) -> list[str]:
    """Apply layers without privileges and return the losses."""

    def work() -> list[str]:
        losses = Losses(refuse=refuse)
        for layer in layers:
            apply_tar(layer, root, policy=policy, losses=losses)
        return [f"{loss.path}: {loss.what}" for loss in losses]

    return as_nobody(work)


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(os.lstat(path).st_mode):o}"


def owner(path: Path) -> bytes:
    return os.getxattr(path, ROOTLESS)


def refused(root: Path, layer: Tar, policy: Policy) -> tuple[str, str]:
    """Return the error that refuses a layer, and its hint."""
    try:
        apply_tar(layer, root, policy=policy)
    except Denied as error:
        return str(error), error.hint or ""
    raise AssertionError("it was not refused")


@pytest.mark.parametrize(
    ("tar", "path"),
    [
        (Tar().directory("./", uid=5, gid=6), "/"),
        (Tar().file("f", uid=5, gid=6), "f"),
        (Tar().symlink("s", "f", uid=5, gid=6), "s"),
    ],
)
def test_owners_that_may_not_be_given_are_named_with_the_way_round(own: Path, tar: Tar, path: str) -> None:
    said, hint = as_nobody(lambda: refused(own, tar, Policy(Owners.KEEP, Devices.RECORD)))
    assert said == f"give '{path}' the owner 5:6: Operation not permitted"
    assert "--owner record" in hint


def test_owners_that_a_user_namespace_has_not_are_named_with_the_way_round(own: Path) -> None:
    found: list[tuple[str, str]] = []

    def work() -> tuple[str, str]:
        tar = Tar().file("f", uid=5, gid=6)
        in_namespaces(lambda: found.append(refused(own, tar, Policy(Owners.KEEP, Devices.CREATE))))
        return found[0]

    said, hint = as_nobody(work)
    assert said == "give 'f' the owner 5:6: this user namespace has no such ids"
    assert "--map-auto" in hint
    assert "--owner record" in hint


def test_devices_that_may_not_be_made_are_named_with_the_way_round(own: Path) -> None:
    tar = Tar().node("null", b"3", (1, 3))
    said, hint = as_nobody(lambda: refused(own, tar, Policy(Owners.IGNORE, Devices.CREATE)))
    assert said == "make character device 'null': Operation not permitted"
    assert "--devices record" in hint


def test_owners_are_recorded_whatever_the_mode(own: Path) -> None:
    modes = (0o644, 0o444, 0o400, 0o000, 0o555, 0o4755, 0o2555, 0o4000, 0o1777)
    tar = Tar().directory("./", 0o755, uid=5, gid=6)
    for each in modes:
        tar.file(f"f{each:o}", mode=each, uid=1000, gid=100)
        tar.directory(f"d{each:o}", each, uid=1001, gid=101).file(f"d{each:o}/child", mode=each, uid=7)
    assert applied(own, tar) == []
    for each in modes:
        for path in (own / f"f{each:o}", own / f"d{each:o}", own / f"d{each:o}" / "child"):
            assert (os.lstat(path).st_uid, os.lstat(path).st_gid) == person()
            assert mode(path) == f"{each:o}"
            path.chmod(0o700)  # for the next check: an ordinary user has no access here either
    assert {encode_owner(1000, 100)} == {owner(own / f"f{each:o}") for each in modes}
    assert {encode_owner(1001, 101)} == {owner(own / f"d{each:o}") for each in modes}
    assert {encode_owner(7, 0)} == {owner(own / f"d{each:o}" / "child") for each in modes}
    assert encode_owner(5, 6) == owner(own)


def test_attributes_are_kept_on_files_that_may_not_be_written(own: Path) -> None:
    tar = Tar().file("f", mode=0o444, xattrs={"user.a": b"1"}).directory("d", 0o555, xattrs={"user.a": b"2"})
    assert applied(own, tar) == []
    assert (os.getxattr(own / "f", "user.a"), mode(own / "f")) == (b"1", "444")
    assert (os.getxattr(own / "d", "user.a"), mode(own / "d")) == (b"2", "555")


def test_a_record_follows_the_layers(own: Path) -> None:
    lower = Tar().directory("a", uid=5).directory("b", uid=5).directory("c").directory("d", uid=5)
    upper = Tar().directory("a", uid=6, gid=6).directory("b").directory("c", uid=7).file("d/x", uid=8)
    assert applied(own, lower, upper) == []
    assert encode_owner(6, 6) == owner(own / "a")
    assert os.listxattr(own / "b") == []
    assert encode_owner(7, 0) == owner(own / "c")
    assert encode_owner(5, 0) == owner(own / "d")
    assert encode_owner(8, 0) == owner(own / "d" / "x")


def test_a_layer_cannot_write_records_itself(own: Path) -> None:
    forged = {ROOTLESS: encode_owner(1, 1), OVERRIDE: b"0:0:4755:block-8-0", "user.overlay.opaque": b"y"}
    lower = Tar().directory("d", uid=5)
    upper = Tar().directory("d", xattrs=forged).file("f", xattrs=forged)
    lost = applied(own, lower, upper)
    assert [f"{path}: extended attribute {name}" for path in ("d", "f") for name in forged] == lost
    assert os.listxattr(own / "d") == []
    assert os.listxattr(own / "f") == []


def test_children_of_directories_without_owner_permissions(own: Path) -> None:
    tar = Tar()
    for each in (0o000, 0o111, 0o333, 0o444, 0o555, 0o600):
        tar.directory(f"d{each:o}", each).file(f"d{each:o}/f").directory(f"d{each:o}/e", each, mtime=5_000_000_000)
        tar.file(f"d{each:o}/e/g").symlink(f"d{each:o}/e/l", "g").link(f"d{each:o}/e/h", f"d{each:o}/f")
    assert applied(own, tar) == []
    for each in (0o000, 0o111, 0o333, 0o444, 0o555, 0o600):
        assert mode(own / f"d{each:o}") == f"{each:o}"
        as_nobody(lambda each=each: os.chmod(own / f"d{each:o}", 0o700))  # type: ignore[misc]
        assert mode(own / f"d{each:o}" / "e") == f"{each:o}"
        assert os.lstat(own / f"d{each:o}" / "e").st_mtime_ns == 5_000_000_000
        (own / f"d{each:o}" / "e").chmod(0o700)
        assert (own / f"d{each:o}" / "e" / "h").samefile(own / f"d{each:o}" / "f")


def test_a_layer_over_directories_without_owner_permissions(own: Path) -> None:
    lower, upper = Tar(), Tar()
    modes = (0o000, 0o111, 0o333, 0o444, 0o555, 0o600)
    for each in modes:
        at = f"d{each:o}"
        lower.file(f"{at}/kept").file(f"{at}/gone").file(f"{at}/e/gone").directory(f"{at}/e", each, mtime=7_000_000_000)
        lower.directory(at, each, mtime=5_000_000_000)
        upper.file(f"{at}/e/new").whiteout(f"{at}/gone").whiteout(f"{at}/e/gone").link(f"{at}/e/also", f"{at}/kept")
    assert applied(own, lower, upper) == []
    for each in modes:
        top = own / f"d{each:o}"
        assert (mode(top), os.lstat(top).st_mtime_ns) == (f"{each:o}", 5_000_000_000)
        top.chmod(0o700)
        assert (mode(top / "e"), os.lstat(top / "e").st_mtime_ns) == (f"{each:o}", 7_000_000_000)
        (top / "e").chmod(0o700)
        assert sorted(listing(top)) == ["e", "e/also", "e/new", "kept"]


@pytest.mark.parametrize("before", [0o000, 0o555, 0o700])
@pytest.mark.parametrize("after", [0o000, 0o555, 0o755])
@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "with a child"])
def test_a_directory_over_a_directory_has_its_own_mode(own: Path, before: int, after: int, with_child: bool) -> None:
    lower = Tar().file("d/lower").directory("d", before)
    upper = Tar().directory("d", after)
    if with_child:
        upper.file("d/upper")
    assert applied(own, lower, upper) == []
    assert mode(own / "d") == f"{after:o}"


def test_the_mode_of_the_root_without_owner_permissions(own: Path) -> None:
    assert applied(own, Tar().directory("./", 0o555, mtime=5_000_000_000).file("f"), Tar().file("g")) == []
    assert (mode(own), os.lstat(own).st_mtime_ns) == ("555", 5_000_000_000)
    assert sorted(os.listdir(own)) == ["f", "g"]


@pytest.mark.parametrize("each", [0o000, 0o111, 0o333, 0o444, 0o555, 0o600])
@pytest.mark.parametrize("depth", [1, 3, 120])
def test_whiteouts_of_directories_without_owner_permissions(own: Path, each: int, depth: int) -> None:
    lower = Tar().file("d/" * depth + "f").file("d/" * depth + "e/g")
    for level in range(depth, 0, -1):
        lower.directory("/".join("d" * level), each)
    lower.directory("d/" * depth + "e", each)
    assert applied(own, lower, Tar().whiteout("d").file("new")) == []
    assert listing(own) == {"new": "644 layer"}


def test_devices_are_recorded_whatever_the_mode(own: Path) -> None:
    tar = Tar().node("null", b"3", (1, 3), 0o666, uid=5, gid=6).node("sda", b"4", (8, 0), 0o440)
    tar.node("none", b"3", (0, 0), 0o000).node("marked", b"4", (259, 70000), 0o6711, xattrs={"user.a": b"1"})
    assert applied(own, tar) == []
    names = ("null", "sda", "none", "marked")
    assert [mode(own / name) for name in names] == ["666", "440", "0", "6711"]
    (own / "none").chmod(0o600)  # which denies access to an ordinary user too
    assert [os.getxattr(own / name, OVERRIDE) for name in names] == [
        b"5:6:0666:char-1-3",
        b"0:0:0440:block-8-0",
        b"0:0:0000:char-0-0",
        b"0:0:6711:block-259-70000",
    ]
    assert os.getxattr(own / "marked", "user.a") == b"1"


def test_what_takes_no_record_is_reported(own: Path) -> None:
    tar = Tar().node("p", b"6", uid=5).symlink("l", "p", uid=5, gid=6).symlink("m", "p").node("q", b"6")
    assert applied(own, tar) == ["p: owner 5:0", "l: owner 5:6"]


def test_a_capability_is_reported_and_can_be_refused(own: Path) -> None:
    tar = Tar().file("ping", mode=0o755, xattrs={"security.capability": CAPABILITY})
    assert applied(own, tar) == ["ping: extended attribute security.capability"]
    with pytest.raises(LossRefused, match=r"ping: extended attribute security\.capability not kept"):
        applied(own, tar, refuse=True)


def test_keeping_owners_is_denied(own: Path) -> None:
    assert applied(own, Tar().file("f", uid=person()[0], gid=person()[1]), policy=Policy()) == []
    for tar in (Tar().file("f", uid=1), Tar().symlink("l", "x", uid=1), Tar().directory("d", uid=1)):
        with pytest.raises(Denied, match="the owner 1:0"):
            applied(own, tar, policy=Policy())


def test_owners_that_are_ignored_leave_no_trace(own: Path) -> None:
    tar = Tar().file("f", uid=1, gid=2).directory("d", uid=3).symlink("l", "x", uid=4).node("p", b"6", uid=5)
    assert applied(own, tar, policy=Policy(Owners.IGNORE, Devices.SKIP)) == []
    assert [person()] * 4 == [(os.lstat(own / n).st_uid, os.lstat(own / n).st_gid) for n in ("f", "d", "l", "p")]
    assert [os.listxattr(own / name) for name in ("f", "d")] == [[]] * 2


@pytest.mark.parametrize("owners", [Owners.RECORD, Owners.KEEP])
@pytest.mark.parametrize("number", [0xFFFFFFFF, 1 << 32, 1 << 40])
def test_an_impossible_owner_is_refused(own: Path, owners: Owners, number: int) -> None:
    for tar in (Tar().file("f", uid=number), Tar().directory("d", gid=number)):
        with pytest.raises(InvalidInput, match="owner"):
            applied(own, tar, policy=Policy(owners, Devices.RECORD))


@pytest.mark.root
def test_directories_of_another_user_keep_what_cannot_be_restored(own: Path) -> None:
    os.chown(own, 0, 0)
    own.chmod(0o777)
    (own / "d").mkdir()
    (own / "d").chmod(0o777)
    assert applied(own, Tar().file("d/f").file("g")) == ["d: modification time", ": modification time"]
    assert listing(own) == {"d": "directory 777", "d/f": "644 layer", "g": "644 layer"}
