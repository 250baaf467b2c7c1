# SPDX-License-Identifier: Apache-2.0
"""Layers that the kernel checks as they are read, as far as this system's kernel can."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.store.snapshots.test_erofs import commit, opened

from lamella.changes.job import Job
from lamella.errors import Cancelled, Integrity, Unsupported
from lamella.host.mounting import mount_points, unmount
from lamella.progress import Cancellation
from lamella.store.check.check import check
from lamella.store.check.repair import repair
from lamella.store.contract import ErofsMount
from lamella.store.mounting import mounted
from lamella.store.snapshots.drivers import verity
from lamella.store.store import Store
from lamella.testing.builders import file
from lamella.testing.reading import outline

pytestmark = [pytest.mark.root, pytest.mark.interop]

CONTENT = os.urandom(300_000)


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, needs: Callable[..., str]) -> Iterator[None]:
    needs("veritysetup")
    yield
    for point in reversed(mount_points(str(tmp_path))):
        unmount(point, lazy=True)


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: Callable[..., str]) -> Path:
    """Let loop devices stand for those that check, which not every kernel has; what was run is in the file."""
    devices, log, program = tmp_path / "mapper", tmp_path / "log", tmp_path / "veritysetup"
    devices.mkdir()
    program.write_text(
        f"""#!/bin/sh -e
        echo "$1" >> {log}
        case "$1" in
        open) ln -s "$({needs("losetup")} --read-only --find --show "$2")" "{devices}/$3" ;;
        close) losetup --detach "$(readlink "{devices}/$3")"; rm "{devices}/$3" ;;
        *) exec {needs("veritysetup")} "$@" ;;
        esac"""
    )
    program.chmod(0o755)
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: str(program) if name == "veritysetup" else which(name))
    monkeypatch.setattr(verity, "DEVICES", devices)
    return log


def damage(path: Path) -> None:
    """Change a byte of the content, whatever else is in the image."""
    path.chmod(0o600)
    raw = path.read_bytes()
    at = raw.index(CONTENT[:4096])
    with path.open("r+b") as opened_file:
        opened_file.seek(at + 5000)
        opened_file.write(bytes([raw[at + 5000] ^ 1]))


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    path.chmod(0o600)
    yield path
    path.chmod(0o400)


def verified(place: Path, needs: Callable[..., str]) -> bool:
    root = (place / "layer.roothash").read_text()
    command = [needs("veritysetup"), "verify", f"{place}/layer.erofs", f"{place}/layer.verity", root]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_sealed_layer_has_the_hashes_that_veritysetup_checks(tmp_path: Path, needs: Callable[..., str]) -> None:
    snapshots = opened(tmp_path, "dm-verity")
    commit(snapshots, "one", file("f", CONTENT))
    commit(snapshots, "other", file("f", CONTENT))
    one, other = snapshots.directory("one"), snapshots.directory("other")
    assert sorted(os.listdir(one)) == ["layer.erofs", "layer.roothash", "layer.verity", "mnt"]
    for name in ("layer.roothash", "layer.verity"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
        assert (one / name).stat().st_mode & 0o777 == 0o400
    assert snapshots.usage("one").inodes == 3
    assert verified(one, needs)
    damage(one / "layer.erofs")
    assert not verified(one, needs)


def test_damage_of_a_sealed_image_gives_an_error(tmp_path: Path) -> None:
    snapshots = opened(tmp_path, "dm-verity")
    commit(snapshots, "base", file("f", CONTENT))
    place = snapshots.directory("base")
    if not Path("/sys/class/misc/device-mapper").exists():
        with pytest.raises(Unsupported, match="device-mapper") as refused:
            snapshots.view("view", "base")
        assert "CONFIG_DM_VERITY" in (refused.value.hint or "")
        assert [one.name for one in snapshots.list()] == ["base"]
        return
    mounts = snapshots.view("view", "base")
    assert str(mounts[0].image).startswith("/dev/mapper/lamella-")  # type: ignore[union-attr]
    with mounted(mounts) as root:
        assert (root / "f").read_bytes() == CONTENT
    snapshots.remove("view")
    damage(place / "layer.erofs")
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with (
        mounted(snapshots.view("view", "base")) as root,
        pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))),
    ):
        (root / "f").read_bytes()
    snapshots.remove("view")
    snapshots.remove("base")
    assert not any(path.name.startswith("lamella-") for path in Path("/dev/mapper").iterdir())


def test_a_sealed_image_is_mounted_by_its_device_which_is_closed_on_removal(tmp_path: Path, pretended: Path) -> None:
    commit(opened(tmp_path, "dm-verity"), "base", file("f", b"1"))
    snapshots = opened(tmp_path)  # nobody has to ask again
    commit(snapshots, "plain", file("f", b"1"))
    (device,) = snapshots.view("view", "base")
    assert device == ErofsMount(next((tmp_path / "mapper").iterdir()))
    with mounted([device]) as root:
        assert os.listdir(root) == ["f"]
    assert snapshots.mounts("view") == (device,)
    snapshots.prepare("key", "base")
    assert pretended.read_text().split() == ["open"]
    with snapshots.tree("key") as tree:
        assert outline(tree) == {"f": "file 1"}
    snapshots.view("of plain", "plain")
    for key in ("view", "key", "base"):
        snapshots.remove(key)
    assert pretended.read_text().split() == ["open", "close"]
    assert os.listdir(tmp_path / "mapper") == []


def test_an_interrupted_seal_is_started_over(tmp_path: Path, needs: Callable[..., str]) -> None:
    snapshots = opened(tmp_path, "dm-verity")
    snapshots.prepare("key")
    place = snapshots.directory("key")
    (place / "layer.roothash").write_text("0" * 64)
    (place / "layer.verity").write_text("nothing")
    snapshots.commit("base", "key")
    assert verified(snapshots.directory("base"), needs)


def test_a_malformed_root_hash_is_reported(tmp_path: Path) -> None:
    snapshots = opened(tmp_path, "dm-verity")
    commit(snapshots, "base", file("f", b"1"))
    path = snapshots.directory("base") / "layer.roothash"
    path.chmod(0o600)
    path.write_text("--help")
    with pytest.raises(Integrity, match="root hash"):
        snapshots.view("view", "base")


def test_a_file_sealed_with_fs_verity_is_immutable(tmp_path: Path, needs: Callable[..., str]) -> None:
    disk, where = tmp_path / "disk", tmp_path / "ext4"
    with disk.open("wb") as made:
        made.truncate(32 << 20)
    subprocess.run([needs("mkfs.ext4"), "-q", "-O", "verity", disk], check=True)
    where.mkdir()
    if subprocess.run(["mount", "-o", "loop", disk, where], capture_output=True, check=False).returncode:
        pytest.fail("the kernel has no ext4 with verity, which it needs no support of its own for")
    snapshots = opened(where, "fs-verity")
    if not Path("/sys/fs/ext4/features/verity").exists():
        with pytest.raises(Unsupported, match="fs-verity") as refused:
            commit(snapshots, "base", file("f", CONTENT))
        assert "CONFIG_FS_VERITY" in (refused.value.hint or "")
        return
    commit(snapshots, "base", file("f", CONTENT))
    image = snapshots.directory("base") / "layer.erofs"
    with pytest.raises(PermissionError):
        image.open("r+b")
    with mounted(snapshots.view("view", "base")) as root:
        assert (root / "f").read_bytes() == CONTENT


def test_sealing_needs_no_program_and_mounting_names_the_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: Callable[..., str]
) -> None:
    snapshots = opened(tmp_path, "dm-verity")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "veritysetup" else which(name))
    commit(snapshots, "base", file("f", b"1"))
    with pytest.raises(Unsupported, match="veritysetup") as caught:
        snapshots.view("view", "base")
    assert "cryptsetup-bin" in (caught.value.hint or "")
    monkeypatch.undo()
    assert verified(snapshots.directory("base"), needs)


def faults(root: Path) -> list[tuple[str, str]]:
    with Store.open(root / "store", readonly=True) as store:
        return [(found.id, found.problem) for found in check(store).faults]


def test_a_check_finds_damage_in_sealed_images_only(tmp_path: Path) -> None:
    snapshots = opened(tmp_path, "dm-verity")
    for name in ("sound", "image", "tree", "cut"):
        commit(snapshots, name, file("f", CONTENT), file(name, b"1"))
    commit(opened(tmp_path), "plain", file("f", CONTENT))
    assert faults(tmp_path) == []
    damage(snapshots.directory("image") / "layer.erofs")
    damage(snapshots.directory("plain") / "layer.erofs")  # of which nobody can tell
    with writable(snapshots.directory("tree") / "layer.verity") as path, path.open("r+b") as tree:
        tree.seek(4096 + 17)
        tree.write(b"?")
    with writable(snapshots.directory("cut") / "layer.erofs") as path:
        os.truncate(path, path.stat().st_size - 4096)
    found = dict(faults(tmp_path))
    assert sorted(found) == ["cut", "image", "tree"]
    assert "does not match its hash" in found["image"]
    assert "damaged hash tree at 4096" in found["tree"]
    assert "hashes of" in found["cut"]


@pytest.mark.parametrize("lost", ["layer.roothash", "layer.verity"])
def test_a_check_finds_an_incomplete_seal(tmp_path: Path, lost: str) -> None:
    snapshots = opened(tmp_path, "dm-verity")
    commit(snapshots, "base", file("f", CONTENT))
    (snapshots.directory("base") / lost).unlink()
    ((name, problem),) = faults(tmp_path)
    assert name == "base"
    assert "missing" in problem


def test_a_check_of_seals_can_be_cancelled(tmp_path: Path) -> None:
    commit(opened(tmp_path, "dm-verity"), "base", file("f", CONTENT))
    cancel = Cancellation()
    cancel.cancel()
    with Store.open(tmp_path / "store", readonly=True) as store, pytest.raises(Cancelled):
        check(store, job=Job(cancel=cancel))


def test_a_repair_removes_a_damaged_snapshot_which_can_be_unpacked_again(tmp_path: Path) -> None:
    snapshots = opened(tmp_path, "dm-verity")
    commit(snapshots, "base", file("f", CONTENT))
    damage(snapshots.directory("base") / "layer.erofs")
    with Store.open(tmp_path / "store") as store:
        assert repair(store, check(store)).left == ()
        assert check(store).sound
    commit(snapshots, "base", file("f", CONTENT))
    assert faults(tmp_path) == []
