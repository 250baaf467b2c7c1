# SPDX-License-Identifier: Apache-2.0
"""Extended attributes: those that affect the host are never set, those that images need are kept, losses reported."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from tests.security.people import mount, with_mounts
from tests.security.routes import apply_tar
from tests.security.surroundings import listing
from tests.security.tars import Tar

from lamella.changes.losses import Losses
from lamella.errors import FormatError, LossRefused
from lamella.layers.policy import Devices, Owners, Policy

REFUSED = (
    *("trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.anything"),
    *("user.overlay.opaque", "user.overlay.whiteout", "user.overlay.redirect", "user.fuseoverlayfs.opaque"),
    *("user.rootlesscontainers", "user.containers.override_stat"),
    *("security.selinux", "security.ima", "security.evm", "security.SMACK64", "security.apparmor"),
    *("system.nfs4_acl", "system.data", "system.advise"),
)

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
NAMESPACED = bytes.fromhex("0100000300040000000000000000000000000000e8030000")


def told(losses: Losses) -> list[str]:
    return [f"{loss.path}: {loss.what}" for loss in losses]


@pytest.mark.parametrize("name", REFUSED)
def test_attributes_that_affect_the_host_are_never_set(name: str, target: Path) -> None:
    tar = Tar().file("f", xattrs={name: b"y"}).directory("d", xattrs={name: b"y"})
    losses = apply_tar(tar, target)
    assert [f"{path}: extended attribute {name}" for path in ("f", "d")] == told(losses)
    assert [os.listxattr(target / path) for path in ("f", "d")] == [[], []]
    with pytest.raises(LossRefused, match="extended attribute"):
        apply_tar(Tar().file("g", xattrs={name: b"y"}), target, losses=Losses(refuse=True))


def test_other_encodings_do_not_set_them_either(target: Path) -> None:
    value = base64.b64encode(b"y").rstrip(b"=")
    records = {
        "LIBARCHIVE.xattr.trusted.overlay.opaque": value,
        "LIBARCHIVE.xattr.user%2Eoverlay%2Eopaque": value,
        "LIBARCHIVE.xattr.user.kept": value,
    }
    losses = apply_tar(Tar().add("f", b"0", records=records), target)
    names = ("trusted.overlay.opaque", "user.overlay.opaque")
    assert [f"f: extended attribute {name}" for name in names] == told(losses)
    assert {name: os.getxattr(target / "f", name) for name in os.listxattr(target / "f")} == {"user.kept": b"y"}


@pytest.mark.parametrize("key", ["SCHILY.xattr.", "LIBARCHIVE.xattr.", "LIBARCHIVE.xattr.user%00x"])
def test_a_malformed_name_is_refused(key: str, target: Path) -> None:
    with pytest.raises(FormatError, match="name of an extended attribute"):
        apply_tar(Tar().add("f", b"0", records={key: b"eA"}), target)


def test_a_global_header_sets_no_attributes(target: Path) -> None:
    from tests.security.tars import pax

    with pytest.raises(FormatError, match="cannot apply to every member"):
        apply_tar(Tar().raw(pax({"SCHILY.xattr.user.x": b"1"}, b"g")).file("f"), target)


@pytest.mark.root
def test_attributes_that_images_need_are_kept(target: Path) -> None:
    kept = {
        "user.mime_type": b"text/plain",
        "user.overlayed": b"no prefix of ours",
        "user.\udcff": b"\0\xff\n",
        "user.empty": b"",
        "security.capability": CAPABILITY,
    }
    losses = apply_tar(
        Tar().file("f", mode=0o755, uid=3, xattrs=kept).file("g", xattrs={"security.capability": NAMESPACED}), target
    )
    assert told(losses) == []
    assert kept == {name: os.getxattr(target / "f", name) for name in os.listxattr(target / "f")}
    assert os.getxattr(target / "g", "security.capability") == NAMESPACED


def test_attributes_that_cannot_be_stored_are_reported_and_the_rest_are_kept(target: Path) -> None:
    xattrs = {
        "user.kept": b"1",
        "user." + "n" * 251: b"the name is too long",
        "user.large": b"x" * 70_000,
        "nonsense": b"no such class",
        "os2.x": b"no such class either",
        "security.capability": b"malformed",
    }
    losses = apply_tar(Tar().file("f", xattrs=xattrs).symlink("l", "f"), target)
    assert [f"f: extended attribute {name}" for name in xattrs if name != "user.kept"] == told(losses)
    assert os.listxattr(target / "f") == ["user.kept"]


def test_links_fifos_and_link_targets_get_no_attributes(target: Path, outside: Path) -> None:
    tar = Tar()
    for name, flag in (("l", b"2"), ("p", b"6")):
        tar.add(name, flag, target=f"{outside}/passwd", xattrs={"user.x": b"1", "security.selinux": b"x"})
    names = ("user.x", "security.selinux")
    losses = apply_tar(tar, target)
    assert [f"{path}: extended attribute {name}" for path in ("l", "p") for name in names] == told(losses)


def test_attributes_too_large_for_the_file_system_are_reported(target: Path) -> None:
    """Ext4 stores the attributes of a file in one block, and reports an overflow only as ENOSPC."""
    xattrs = {f"user.{number}": bytes(1000) for number in range(60)}
    losses = apply_tar(Tar().file("f", xattrs=xattrs).file("g"), target)
    held = os.listxattr(target / "f")
    lost = [text.rpartition(" ")[2] for text in told(losses)]
    assert xattrs.keys() == {*held, *lost}
    assert listing(target).keys() == {"f", "g"}


@pytest.mark.root
@pytest.mark.parametrize("owners", [Owners.KEEP, Owners.RECORD])
def test_a_file_system_without_attributes_reports_their_loss(owners: Owners, target: Path) -> None:
    policy = Policy(owners, Devices.RECORD)
    tar = Tar().file("f", uid=5, xattrs={"user.x": b"1"}).directory("d", gid=6, xattrs={"user.y": b"2"})
    tar.node("null", b"3", (1, 3)).file("d/g").symlink("l", "f")

    def work() -> tuple[list[str], dict[str, str]]:
        mount("none", target, "ramfs")
        losses = apply_tar(tar, target, policy=policy)
        with pytest.raises(LossRefused):
            apply_tar(Tar().file("h", xattrs={"user.x": b"1"}), target, policy=policy, losses=Losses(refuse=True))
        (target / "h").unlink()
        return told(losses), listing(target)

    lost, held = with_mounts(work)
    recorded = owners is Owners.RECORD
    expected = [
        *(["f: owner 5:0"] if recorded else []),
        "f: extended attribute user.x",
        *(["d: owner 0:6"] if recorded else []),
        "d: extended attribute user.y",
        "null: character device",
    ]
    assert lost == expected
    assert held == {"f": "644 layer", "d": "directory 755", "d/g": "644 layer", "l": "-> f"}


@pytest.mark.root
def test_a_device_that_cannot_be_recorded_leaves_no_plain_file(target: Path) -> None:
    def work() -> dict[str, str]:
        mount("none", target, "ramfs")
        apply_tar(Tar().file("null"), target)
        losses = apply_tar(Tar().node("null", b"3", (1, 3)), target, policy=Policy(devices=Devices.RECORD))
        assert told(losses) == ["null: character device"]
        return listing(target)

    assert with_mounts(work) == {}


@pytest.mark.root
def test_skipped_devices_are_reported_and_remove_existing_files(target: Path) -> None:
    policy = Policy(devices=Devices.SKIP)
    losses = apply_tar(Tar().file("null").file("dev/x"), target, policy=policy)
    losses = apply_tar(Tar().node("null", b"3", (1, 3)).node("dev", b"4", (8, 0)), target, policy=policy)
    assert told(losses) == ["null: character device", "dev: block device"]
    assert listing(target) == {}


def test_fifos_are_never_opened(target: Path) -> None:
    """To open a fifo without a writer would block forever."""
    apply_tar(Tar().node("p", b"6").node("d/p", b"6").node("q", b"6", mode=0).node("r", b"6"), target)
    upper = (
        Tar().file("p").whiteout("d").link("s", "q").node("q", b"6", mode=0o622).file("s/x").link("t", "r").file("r")
    )
    apply_tar(upper, target)
    assert listing(target) == {
        "p": "644 layer",
        "q": "fifo 622",
        "s": "directory 755",
        "s/x": "644 layer",
        "t": "fifo 644",
        "r": "644 layer",
    }
