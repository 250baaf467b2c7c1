# SPDX-License-Identifier: Apache-2.0
"""Races: an attacker swaps directories for links to the outside while layers are applied."""

from __future__ import annotations

import itertools
import mmap
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.security.routes import apply_tar
from tests.security.surroundings import furnish, state_of
from tests.security.tars import Tar

from lamella.errors import LamellaError

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
SECONDS = 1.0
WIDTH = 6


def swap(target: Path, victims: list[str], links: list[str], swapped: mmap.mmap) -> None:
    """Swap each directory for a link for a moment, forever; ``swapped`` counts up to 255."""
    os.chdir(target)
    for number in itertools.count():
        victim, link = victims[number % len(victims)], links[number % len(links)]
        aside = f".aside-{number}"
        for step, one, other in (
            (os.rename, victim, aside),
            (os.symlink, link, victim),
            (os.unlink, victim, None),
            (os.rename, aside, victim),
        ):
            try:
                step(one) if other is None else step(one, other)  # type: ignore[call-arg,arg-type]
            except OSError:
                continue
            if step is os.symlink:
                swapped[0] = min(swapped[0] + 1, 255)
                time.sleep(0.0002 * (number % 4))


@contextmanager
def attacker(work: Callable[[], None]) -> Iterator[None]:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def layers() -> list[bytes]:
    """Two layers with the names of outside files, so that an escape hits something."""
    lower, upper = Tar(), Tar()
    for number in range(WIDTH):
        top = f"d{number}"
        lower.directory(top, 0o755, mtime=5)
        for name in ("secret", "tool", "passwd", "etc/passwd", "etc/nested/file", "empty/f"):
            lower.file(f"{top}/{name}", mode=0o600, mtime=7)
        for count in range(20):
            lower.file(f"{top}/etc/nested/{count}").directory(f"{top}/e/{count}")
    for number in range(WIDTH):
        top = f"d{number}"
        upper.directory(f"{top}/etc", 0o777, uid=7, mtime=9)
        upper.whiteout(f"{top}/secret").link(f"{top}/new", f"{top}/passwd")
        upper.file(f"{top}/tool", b"x" * 5000, 0o4755, uid=7).whiteout(f"{top}/etc/nested").opaque(f"{top}/e")
        upper.node(f"{top}/fifo", b"6").symlink(f"{top}/link", "new").file(f"{top}/empty", mode=0o666)
        upper.directory(top, 0o777, mtime=11, xattrs={"user.x": b"1"}).whiteout(f"{top}/etc")
    return [lower.done(), upper.done()]


@pytest.fixture
def room(memory: Path) -> Iterator[Path]:
    """A target on tmpfs, for many swaps in little time; the files around it are watched too."""
    furnish(memory)
    (memory / "room" / "out").mkdir()
    before = state_of(memory, without="room/out")
    yield memory / "room" / "out"
    assert state_of(memory, without="room/out") == before, "something outside of the target was touched"


@pytest.mark.parametrize("descriptors", [None, 40], ids=["", "with few descriptors"])
@pytest.mark.parametrize("depth", ["top", "inside"])
def test_directories_swapped_for_links_are_not_followed(depth: str, descriptors: int | None, room: Path) -> None:
    target, outside = room, room.parent.parent / "outside"
    tops = [f"d{number}" for number in range(WIDTH)]
    if depth == "top":
        victims, links = tops, [str(outside), "../outside", "../../outside"]
    else:
        victims = [f"{top}/{name}" for name in ("etc", "etc/nested", "e") for top in tops]
        links = [f"{outside}/etc", "../../../outside/etc", str(outside)]
    stack = layers()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    swapped = mmap.mmap(-1, 1)
    for layer in stack:
        apply_tar(layer, target)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        with attacker(lambda: swap(target, victims, links, swapped)):
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                for layer in stack:
                    with suppress(LamellaError):
                        apply_tar(layer, target)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert swapped[0] > 50


def test_files_swapped_for_links_are_not_followed(room: Path) -> None:
    """The object that an attacker puts at the path of a file just before it is created."""
    target, outside = room, room.parent.parent / "outside"
    (target / "d").mkdir()

    def work() -> None:
        os.chdir(target / "d")
        for number in itertools.count():
            name = f"f{number % 50}"
            try:
                os.unlink(name)
            except OSError:
                pass
            try:
                os.symlink(f"{outside}/secret" if number % 2 else f"{outside}/new", name)
            except OSError:
                pass

    tar = Tar()
    for number in range(50):
        tar.file(f"d/f{number}", mode=0o4777, uid=7, gid=7, mtime=9, xattrs={"user.x": b"1"})
    data = tar.done()
    with attacker(work):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with suppress(LamellaError):
                apply_tar(data, target)


def facts(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return stat.filemode(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, os.listxattr(path)


def test_new_files_swapped_for_hard_links_do_not_change_other_files(room: Path) -> None:
    """Calls that follow no symbolic link still reach the target of a hard link: owner, mode and attributes."""
    (room / "d").mkdir()
    others = [room / "secret", room / "tool"]
    for other in others:
        other.write_bytes(b"kept")
        other.chmod(0o600)
        os.utime(other, ns=(5, 5))
    before = [facts(other) for other in others]
    kinds = ("fifo", "link", "device", "directory")
    names = [f"{kind}{number}" for kind in kinds for number in range(30)]
    swapped = mmap.mmap(-1, 1)

    def work() -> None:
        os.chdir(room / "d")
        for number in itertools.count():
            for name in names:
                try:
                    status = os.lstat(name)
                    if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
                        os.link(others[number % 2], ".own")
                        if stat.S_ISDIR(status.st_mode):
                            os.rename(name, f".aside-{number}-{name}")
                        os.rename(".own", name)
                        swapped[0] = min(swapped[0] + 1, 255)
                except OSError:
                    with suppress(OSError):
                        os.unlink(".own")

    tar = Tar()
    for number in range(30):
        tar.node(f"d/fifo{number}", b"6", mode=0o4777, uid=7, xattrs={"security.capability": CAPABILITY})
        tar.add(f"d/link{number}", b"2", target="x", uid=7, gid=7)
        tar.node(f"d/device{number}", b"3", (1, 3), mode=0o2777, gid=7).directory(f"d/directory{number}", mtime=9)
    data = tar.done()
    with attacker(work):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with suppress(LamellaError):
                apply_tar(data, room)
    assert swapped[0] > 50
    assert before == [facts(other) for other in others]
