# SPDX-License-Identifier: Apache-2.0
"""Unpacking an image: no partial result is visible, after a kill or with competing targets."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.people import NOBODY, as_nobody, mount, person, with_mounts
from tests.security.routes import apply_tar, gzipped, image_of
from tests.security.surroundings import listing
from tests.security.tars import Tar

from lamella.changes.job import Job
from lamella.errors import AlreadyExists, Cancelled, Exhausted, UnsafePath
from lamella.images.resolve import open_platform_image
from lamella.operations.unpack import UnpackOptions, unpack
from lamella.progress import Cancellation

PROGRAM = [sys.executable, "-P", "-m", "lamella"]


@pytest.fixture
def room(target: Path) -> Iterator[Path]:
    """The parent of targets, which only has the outside files."""
    target.rmdir()
    yield target.parent
    subprocess.run(["rm", "-rf", *(target.parent / name for name in around(target.parent))], check=True)


def image(place: Path, *layers: Tar) -> str:
    tars = [layer.done() for layer in layers]
    return image_of(place, map(gzipped, tars), tars)


def large(place: Path) -> str:
    tar = Tar().directory("./", 0o755)
    for number in range(4000):
        tar.file(f"d{number % 50}/f{number}", b"x" * 500, 0o4755)
    return image(place, tar, Tar().file("last"))


def around(room: Path) -> set[str]:
    return {name for name in os.listdir(room) if name not in ("outside", "out-of-bounds")}


@pytest.mark.parametrize("entries", [1, 1500])
def test_a_kill_leaves_a_hidden_directory_that_others_cannot_enter_and_the_next_unpack_removes(
    entries: int, memory: Path, tmp_path: Path
) -> None:
    name = large(tmp_path / "image")
    with subprocess.Popen([*PROGRAM, "unpack", name, memory / "new"], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while sum(len(files) for name in around(memory) for _, _, files in os.walk(memory / name)) < entries:
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
    (left,) = around(memory)
    assert left.startswith(".new.unfinished-")
    assert stat.S_IMODE(os.lstat(memory / left).st_mode) == 0o700
    subprocess.run([*PROGRAM, "unpack", "-q", name, memory / "new"], check=True)
    assert around(memory) == {"new"}
    assert len(os.listdir(memory / "new")) == 51


def test_one_of_several_competing_targets_wins(memory: Path, tmp_path: Path) -> None:
    name = large(tmp_path / "image")
    command = [*PROGRAM, "unpack", "-q", name, str(memory / "new")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 5, 5]
    assert sorted(map(bool, errors)) == [False, True, True]
    assert around(memory) == {"new"}
    assert sum(len(files) for _, _, files in os.walk(memory / "new")) == 4001


class Watching(Cancellation):
    """Inspects the directory at each check for cancellation."""

    def __init__(self, room: Path) -> None:
        super().__init__()
        self._room = room
        self.seen: list[tuple[str, int]] = []

    def check(self) -> None:
        for name in around(self._room):
            self.seen.append((name, stat.S_IMODE(os.lstat(self._room / name).st_mode)))


def test_other_users_have_no_access_before_the_end(room: Path, tmp_path: Path) -> None:
    """Other users cannot reach set-id files while an image is unpacked, whatever the mode of its root."""
    tar = Tar().directory("./", 0o777)
    for number in range(600):
        tar.file(f"f{number}", mode=0o4755)
    watching = Watching(room)
    with open_platform_image(image(tmp_path / "image", tar, tar)) as opened:
        unpack(opened, room / "new", job=Job(cancel=watching))
    assert {mode for _, mode in watching.seen} == {0o700}
    assert stat.S_IMODE(os.lstat(room / "new").st_mode) == 0o777
    assert around(room) == {"new"}


class Busy(Cancellation):
    """Another process creates the target meanwhile."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self._target = target

    def check(self) -> None:
        if not self._target.exists():
            self._target.mkdir()


def test_a_target_created_meanwhile_is_kept(room: Path, tmp_path: Path) -> None:
    tar = Tar()
    for number in range(600):
        tar.file(f"f{number}")
    with open_platform_image(image(tmp_path / "image", tar)) as opened, pytest.raises(AlreadyExists):
        unpack(opened, room / "new", job=Job(cancel=Busy(room / "new")))
    assert around(room) == {"new"}
    assert os.listdir(room / "new") == []


def test_a_link_at_the_target_is_not_followed(room: Path, outside: Path, tmp_path: Path) -> None:
    name = image(tmp_path / "image", Tar().file("f"))
    for target in (outside, outside / "empty", room / "nowhere"):
        (room / "new").symlink_to(target)
        with open_platform_image(name) as opened, pytest.raises(AlreadyExists):
            unpack(opened, room / "new")
        (room / "new").unlink()
    assert around(room) == set()


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "漢" * 85, "\udcff" * 255, ".", " ", "new\n"])
def test_targets_may_have_names_of_any_length(name: str, room: Path, tmp_path: Path) -> None:
    if name == ".":
        (room / "new").mkdir()
        with open_platform_image(image(tmp_path / "image", Tar().file("f"))) as opened, pytest.raises(AlreadyExists):
            unpack(opened, room / "new" / ".")
        (room / "new").rmdir()
        return
    with open_platform_image(image(tmp_path / "image", Tar().file("f"))) as opened:
        unpack(opened, room / name)
    assert around(room) == {name}


@pytest.fixture
def commons() -> Iterator[Path]:
    """A directory that the unprivileged user owns and can reach."""
    top = Path(tempfile.mkdtemp(prefix="lamella-test-"))
    os.chown(top, *person())
    yield top
    subprocess.run(["chmod", "-R", "u+rwx", top], check=True)
    shutil.rmtree(top)


@pytest.mark.parametrize("mode", [0o555, 0o000, 0o755])
@pytest.mark.parametrize("fails", [False, True], ids=["", "and fails"])
def test_a_root_without_owner_permissions_is_unpacked(mode: int, fails: bool, commons: Path, tmp_path: Path) -> None:
    """As in the images of Fedora."""
    when = 1_600_000_000_123_456_789
    lower = (
        Tar().directory("./", mode, uid=5, mtime=when).file("d/f", mode=0o400, uid=6).directory("d", mode, mtime=when)
    )
    with open_platform_image(image(tmp_path / "image", lower, Tar().file("x/" * 60 + "f"))) as opened:
        unpack(opened, tmp_path / "loads-all-modules")

        def work() -> None:
            unpack(opened, commons / "new", job=Job(cancel=Stopping() if fails else None))

        if fails:
            with pytest.raises(Cancelled):
                as_nobody(work)
            assert os.listdir(commons) == []
            return
        as_nobody(work)
    status = os.lstat(commons / "new")
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (mode, when)
    assert os.listdir(commons) == ["new"]
    assert status.st_uid == (NOBODY if os.geteuid() == 0 else os.geteuid())


class Stopping(Cancellation):
    """Cancels once the first layer is unpacked."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0

    def check(self) -> None:
        self._asked += 1
        if self._asked > 1:
            raise Cancelled("enough")


def test_a_deep_image_that_fails_leaves_no_staging_directory(room: Path, tmp_path: Path) -> None:
    """Deep directories are removed within the unfinished directory."""
    broken = Tar().file("d/" * 200 + "f").file("../x")
    name = image(tmp_path / "image", Tar().file("e/" * 200 + "f"), broken)
    with open_platform_image(name) as opened, pytest.raises(UnsafePath):
        unpack(opened, room / "new")
    assert around(room) == set()


def test_merging_keeps_existing_files(room: Path, tmp_path: Path) -> None:
    (room / "new" / "d").mkdir(parents=True)
    (room / "new" / "d" / "mine").write_bytes(b"mine")
    with open_platform_image(image(tmp_path / "image", Tar().file("d/f").whiteout("d/other"))) as opened:
        unpack(opened, room / "new", UnpackOptions(merge=True))
    assert listing(room / "new") == {"d": "directory 755", "d/f": "644 layer", "d/mine": "644 mine"}


def test_names_are_not_written_in_another_encoding(room: Path, tmp_path: Path) -> None:
    name = image(tmp_path / "image", Tar().file("é"))
    command = [*PROGRAM, "unpack", "-q", name, str(room / "new")]
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=plain, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.splitlines()[1]) == (7, "hint: set PYTHONUTF8=1 in the environment")
    assert around(room) == set()
    subprocess.run(command, env={**plain, "PYTHONUTF8": "1"}, check=True)
    assert os.listdir(room / "new") == ["é"]


@pytest.mark.root
@pytest.mark.parametrize("options", ["size=1m", "nr_inodes=20"])
def test_a_full_disk_is_reported(options: str, target: Path) -> None:
    """Files already written by a layer applied in place stay, and the outside files are unchanged."""
    tar = Tar().symlink("l", "..")
    for number in range(100):
        tar.file(f"l/f{number}", b"x" * 50_000)

    def work() -> tuple[bool, int]:
        mount("none", target, "tmpfs", options)
        with pytest.raises(Exhausted, match="No space left"):
            apply_tar(tar, target)
        written = os.listdir(target)
        open_files = len(os.listdir("/proc/self/fd"))
        with pytest.raises(Exhausted, match="No space left"):
            apply_tar(Tar().directory("d", 0o700).sparse("s", 1 << 40, [(0, b"x" * 2_000_000)]).file("d/f"), target)
        return 0 < len(written) < 100, len(os.listdir("/proc/self/fd")) - open_files

    assert with_mounts(work) == (True, 0)
