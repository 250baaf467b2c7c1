# SPDX-License-Identifier: Apache-2.0
"""Typed mounts, made by the kernel: what they show, what they refuse, and that none is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella.errors import Conflict, Denied, InvalidInput, LamellaError, NotFound, Unsupported
from lamella.host import mounting as host_mounting
from lamella.store.contract import BindMount, ErofsMount, OverlayMount
from lamella.store.mounting import is_mounted, mount_all, mounted, unmount

pytestmark = pytest.mark.root


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Path]:
    """A directory beneath which nothing stays mounted."""
    yield tmp_path
    for point in reversed(host_mounting.mount_points(str(tmp_path))):
        host_mounting.unmount(point, lazy=True)


def directory(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text(name)
    return path


def upper(where: Path) -> tuple[Path, Path]:
    return directory(where / "upper"), directory(where / "work")


NAMES = ["plain", "with space", "co:lon", "com,ma", "back\\slash", "all: ,\\ of\tthem\n☃", "\udcff"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("many", [2, 60], ids=["in one call", "option by option"])
def test_directories_with_any_name_can_be_overlaid(where: Path, name: str, many: int) -> None:
    top = directory(where / name)
    lower = [directory(top / (f"{number}-{name}" + "x" * 80), f"f{number}") for number in range(many)]
    over, work = upper(top)
    target = directory(top / "target")
    mount_all([OverlayMount(tuple(lower), over, work, ("index=off",))], target)
    assert sorted(os.listdir(target)) == sorted(f"f{number}" for number in range(many))
    (target / "new").touch()
    assert os.listdir(over) == ["new"]
    assert is_mounted(target)
    unmount(target)
    assert not is_mounted(target)
    with mounted([OverlayMount(tuple(lower))]) as root, pytest.raises(OSError, match="Read-only"):
        (root / "new").touch()


def test_paths_longer_than_a_value_may_be_are_named_by_descriptors(where: Path) -> None:
    top = where / ("a" * 200) / ("b" * 200)
    lower = [directory(top / f"{number}", f"f{number}") for number in range(40)]
    over, work = upper(top)
    with mounted([OverlayMount(tuple(lower), over, work)]) as root:
        assert len(os.listdir(root)) == 40
        (root / "new").touch()
    assert os.listdir(over) == ["new"]


def test_a_kernel_without_the_newer_calls_still_takes_many_layers(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(host_mounting, "_configure_overlay", refuse)
    lower = [directory(where / f"{number}-{'x' * 100}", f"f{number}") for number in range(128)]
    before = len(os.listdir("/proc/self/fd"))
    with mounted([OverlayMount(tuple(lower))]) as root:
        assert len(os.listdir(root)) == 128
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_overlay_of_one_directory_is_that_directory_read_only(where: Path) -> None:
    one = directory(where / "one", "f")
    with mounted([OverlayMount((one,))]) as root:
        assert os.listdir(root) == ["f"]
        with pytest.raises(OSError, match="Read-only"):
            (root / "f").unlink()


def test_an_overlay_of_its_upper_directory_alone_is_that_directory(where: Path) -> None:
    over, work = upper(where)
    with mounted([OverlayMount((), over, work)]) as root:
        (root / "new").touch()
    assert os.listdir(over) == ["new"]


def test_a_bind_is_read_only_where_it_is_asked_for(where: Path) -> None:
    source = directory(where / "source", "f")
    with mounted([BindMount(source)]) as root:
        (root / "g").touch()
    with mounted([BindMount(source, readonly=True)]) as root, pytest.raises(OSError, match="Read-only"):
        (root / "h").touch()
    assert sorted(os.listdir(source)) == ["f", "g"]


def test_other_users_cannot_reach_a_mount(where: Path) -> None:
    with mounted([BindMount(directory(where / "source"))]) as root:
        assert root.parent.stat().st_mode & 0o777 == 0o700
        hidden = root.parent
    assert not hidden.exists()


def test_the_last_of_several_mounts_is_visible_and_all_are_unmounted(where: Path) -> None:
    first, second = directory(where / "first", "1"), directory(where / "second", "2")
    target = directory(where / "target")
    mount_all([BindMount(first), BindMount(second)], target)
    assert os.listdir(target) == ["2"]
    (target / "2").unlink()
    mount_all([BindMount(first)], directory(target / "inside"))
    unmount(target)
    assert (os.listdir(target), os.listdir(second)) == ([], ["inside"])
    assert host_mounting.mount_points(str(where)) == []


def test_if_one_mount_fails_none_remains(where: Path) -> None:
    target = directory(where / "target")
    with pytest.raises(NotFound, match="missing"):
        mount_all([BindMount(directory(where / "source")), BindMount(where / "missing")], target)
    assert host_mounting.mount_points(str(where)) == []
    with pytest.raises(InvalidInput, match="nothing to mount"):
        mount_all([], target)


def test_an_error_says_what_and_where(where: Path) -> None:
    target = directory(where / "target")
    (where / "not an image").write_bytes(b"\0" * 8192)
    with pytest.raises(LamellaError, match=r"EROFS image at .*target"):
        mount_all([ErofsMount(where / "not an image")], target)
    with pytest.raises(NotFound):
        mount_all([BindMount(target)], where / "missing")
    with pytest.raises(NotFound, match="nothing is mounted"):
        unmount(target)


def test_a_mount_in_use_is_unmounted_lazily_only(where: Path) -> None:
    target = directory(where / "target")
    mount_all([BindMount(directory(where / "source", "f"))], target)
    with (target / "f").open() as file:
        with pytest.raises(Conflict, match="in use") as caught:
            unmount(target)
        assert "--lazy" in (caught.value.hint or "")
        unmount(target, lazy=True)
        assert not is_mounted(target)
        assert file.read() == "f"


def test_leaving_a_block_unmounts_a_mount_that_is_in_use(where: Path) -> None:
    source = directory(where / "source", "f")
    with mounted([BindMount(source)]) as root:
        file = (root / "f").open()
    with file:
        assert not root.exists()
        assert file.read() == "f"
    assert os.listdir(source) == ["f"]


def test_an_image_is_mounted_as_a_file_or_by_a_loop_device(
    where: Path, needs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = where / "image"
    subprocess.run(
        [needs("mkfs.erofs"), "--quiet", image, directory(where / "tree", "f")], check=True, capture_output=True
    )
    target = directory(where / "target")
    with mounted([ErofsMount(image)]) as root:
        assert os.listdir(root) == ["f"]
    mount = host_mounting._mount

    def older(source: str, *rest: object) -> None:
        if source == str(image):
            raise OSError(15, "Block device required")
        mount(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(host_mounting, "_mount", older)
    mount_all([ErofsMount(image)], target)
    assert os.listdir(target) == ["f"]
    shown = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {target} " in line)
    assert "/dev/loop" in shown
    unmount(target)


def test_fuse_overlayfs_mounts_an_overlay_that_the_kernel_refuses(
    where: Path, needs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("fuse-overlayfs")
    odd = where / "co:lon, comma"
    lower = (directory(odd / "lower, \\ one", "1"), directory(odd / "two", "2"))
    over, work = upper(odd)
    outer = directory(where / "outer")
    mount_all([OverlayMount(lower, over, work)], outer)
    # The upper directory of an overlay cannot lie in another one.
    (outer / "upper").mkdir()
    (outer / "work").mkdir()
    mount = OverlayMount(lower, outer / "upper", outer / "work")
    with mounted([mount]) as root:
        assert sorted(os.listdir(root)) == ["1", "2"]
        (root / "3").write_text("3")
        (root / "1").unlink()
        assert sorted(os.listdir(root)) == ["2", "3"]
    assert (outer / "upper" / "3").read_text() == "3"
    assert sorted(os.listdir(lower[0])) == ["1"]
    colon = directory(where / "with: a colon")
    with pytest.raises(Unsupported):
        mount_all([OverlayMount((colon, *lower), outer / "upper", outer / "work")], directory(where / "again"))
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "fuse-overlayfs" else real(name))
    with pytest.raises(Unsupported, match="overlay") as caught:
        mount_all([mount], where / "again")
    assert "upper directory" in (caught.value.hint or "")


def test_an_error_about_missing_privileges_has_a_hint(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(host_mounting, "bind", refuse)
    with pytest.raises(Denied) as caught:
        mount_all([BindMount(where)], directory(where / "target"))
    assert "unshare" in (caught.value.hint or "")
    monkeypatch.setattr(host_mounting, "erofs", refuse)
    with pytest.raises(Denied) as caught:
        mount_all([ErofsMount(where)], directory(where / "image"))
    assert "needs root" in (caught.value.hint or "")
    assert "unshare" not in (caught.value.hint or "")


def test_fuse_overlayfs_binds_a_directory_that_the_kernel_refuses(
    where: Path, needs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("fuse-overlayfs")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(host_mounting, "bind", refuse)
    lower = directory(where / "lower", "f")
    for mount in (BindMount(lower, readonly=True), OverlayMount((lower,))):
        with mounted([mount]) as root:
            assert os.listdir(root) == ["f"]
            with pytest.raises(OSError, match="Read-only"):
                (root / "new").touch()
    assert os.listdir(lower) == ["f"]
