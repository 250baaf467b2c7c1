# SPDX-License-Identifier: Apache-2.0
"""Times, modes, owners and links equal those of the layers exactly, whatever the target is like."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Needs
from tests.security.people import mount, with_mounts
from tests.security.routes import apply_tar
from tests.security.surroundings import listing
from tests.security.tars import Tar

from lamella import host
from lamella.changes.apply import apply
from lamella.changes.model import Buffer, Entry, Kind, Posix, Put
from lamella.errors import InvalidInput, SizeMismatch
from lamella.layers.directory.sink import DirectorySink
from lamella.paths import LayerPath

OLD = 1_234_567_890_123_456_789
NEW = 1_600_000_000_987_654_321

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def mtime(path: Path) -> int:
    return os.lstat(path).st_mtime_ns


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(os.lstat(path).st_mode):o}"


def owner(path: Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


TIMES = {
    "nanoseconds": 1_600_000_000_000_000_001,
    "the epoch": 0,
    "before the epoch": -1_000_000_000,
    "a fraction before the epoch": -1_500_000_000,
    "a nanosecond before the epoch": -1,
    "the last second of 32 bits": (1 << 31) * 10**9 - 1,
    "after 2038": (1 << 31) * 10**9 + 5,
    "the last year that ext4 has": (1 << 33) * 10**9 + 7,
}


@pytest.mark.parametrize("when", TIMES)
def test_every_kind_of_file_keeps_its_time(when: str, target: Path) -> None:
    ns = TIMES[when]
    tar = Tar().directory("./", mtime=ns).file("d/f", mtime=ns).symlink("d/l", "f", mtime=ns).directory("d", mtime=ns)
    apply_tar(tar.add("d/p", b"6", mtime=ns), target)
    assert dict.fromkeys(("", "d", "d/f", "d/l", "d/p"), ns) == {
        name: mtime(target / name) for name in ("", "d", "d/f", "d/l", "d/p")
    }


def test_links_and_directories_are_exact_without_proc(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a file system root without /proc."""
    monkeypatch.setattr(host, "names_open_files", lambda: False)
    apply_tar(Tar().directory("d", mtime=OLD).add("d/l", b"2", target="x", uid=7, gid=8, mtime=NEW), target)
    assert [mtime(target / "d"), mtime(target / "d/l")] == [OLD, NEW]
    assert owner(target / "d/l") == ((7, 8) if os.geteuid() == 0 else (os.geteuid(), os.getegid()))


@pytest.mark.parametrize("seconds", [1 << 35, 1 << 62, (1 << 63) - 1, -(1 << 63)])
def test_times_beyond_the_file_system_do_no_harm(seconds: int, target: Path) -> None:
    apply_tar(Tar().directory("d", mtime=seconds * 10**9).file("d/f", mtime=seconds * 10**9), target)
    assert listing(target) == {"d": "directory 755", "d/f": "644 layer"}


def settled(target: Path) -> Path:
    """A lower layer whose directories all have the time OLD."""
    tar = Tar().directory("./", mtime=OLD)
    for name in ("a", "a/b", "a/b/c", "e"):
        tar.directory(name, mtime=OLD)
    tar.file("a/f").file("a/b/f").file("a/b/c/f").symlink("a/l", "b").file("e/x/f").directory("e/x", mtime=OLD)
    apply_tar(tar, target)
    return target


UPPERS = {
    "files": Tar().file("a/b/new").file("a/b/c/new").symlink("a/new", "x").link("e/new", "a/f"),
    "files through a link": Tar().file("a/l/new").file("a/l/c/f"),
    "replaced files": Tar().file("a/b/f").file("a/f"),
    "whiteouts": Tar().whiteout("a/b/c/f").whiteout("a/f").whiteout("e/x").whiteout("a/nothing"),
    "whiteouts through a link": Tar().whiteout("a/l/f").whiteout("a/l/c"),
    "an opaque marker": Tar().opaque("a/b").opaque("e"),
    "a directory in place of a file": Tar().file("a/b/f/new"),
    "a file in place of a directory": Tar().file("a/b/c").file("e/x"),
    "a hard link in place of a file": Tar().link("a/b/f", "a/f"),
}


@pytest.mark.parametrize("upper", UPPERS)
def test_directories_that_a_layer_does_not_state_keep_their_times(upper: str, target: Path) -> None:
    settled(target)
    apply_tar(UPPERS[upper], target)
    here = [name for name in ("", "a", "a/b", "a/b/c", "e", "e/x") if (target / name).is_dir()]
    assert dict.fromkeys(here, OLD) == {name: mtime(target / name) for name in here}


def test_stated_directories_have_their_times_at_any_position_in_the_layer(target: Path) -> None:
    settled(target)
    tar = Tar().directory("a", mtime=NEW).file("a/new").file("a/b/new").directory("a/b", mtime=NEW)
    tar.directory("e", mtime=OLD).whiteout("e/x").directory("e", mtime=NEW).directory("g", mtime=NEW).file("g/h/i")
    apply_tar(tar, target)
    names = ("", "a", "a/b", "a/b/c", "e", "g", "g/h")
    assert [mtime(target / name) for name in names] == [OLD, NEW, NEW, OLD, NEW, NEW, 0]


def test_a_removed_and_recreated_directory_keeps_no_old_metadata(target: Path) -> None:
    apply_tar(Tar().directory("d", 0o700, mtime=OLD, xattrs={"user.a": b"1"}).file("d/f"), target)
    apply_tar(Tar().whiteout("d").file("d/g"), target)
    assert (mode(target / "d"), mtime(target / "d"), os.listxattr(target / "d")) == ("755", 0, [])
    apply_tar(Tar().directory("d", 0o700, mtime=OLD, xattrs={"user.a": b"1"}), target)
    apply_tar(Tar().opaque("d"), target)
    assert (mode(target / "d"), mtime(target / "d"), os.listxattr(target / "d")) == ("700", OLD, ["user.a"])
    apply_tar(Tar().symlink("d", "x"), target)
    apply_tar(Tar().file("d/g"), target)
    assert listing(target) == {"d": "-> x", "x": "directory 755", "x/g": "644 layer"}


def test_a_directory_over_a_directory_replaces_all_its_metadata(target: Path) -> None:
    apply_tar(Tar().directory("d", 0o2750, mtime=OLD, xattrs={"user.a": b"1", "user.b": b"2"}).file("d/f"), target)
    apply_tar(Tar().directory("d", 0o1705, mtime=NEW, xattrs={"user.b": b"3", "user.c": b"4"}), target)
    held = {name: os.getxattr(target / "d", name) for name in os.listxattr(target / "d")}
    assert held == {"user.b": b"3", "user.c": b"4"}
    assert (mode(target / "d"), mtime(target / "d"), os.listdir(target / "d")) == ("1705", NEW, ["f"])


def test_the_root_takes_the_metadata_of_its_entry(target: Path) -> None:
    apply_tar(Tar().directory("./", 0o1711, mtime=NEW, xattrs={"user.a": b"1"}).file("f"), target)
    assert (mode(target), mtime(target), os.getxattr(target, "user.a")) == ("1711", NEW, b"1")
    apply_tar(Tar().directory("/", 0o755, mtime=OLD), target)
    assert (mode(target), mtime(target), os.listxattr(target)) == ("755", OLD, [])


def test_hard_links_across_layers_share_a_file(target: Path) -> None:
    apply_tar(Tar().file("a", b"one").link("b", "a"), target)
    apply_tar(Tar().link("c", "b").file("d/e", b"x").link("d/f", "c"), target)
    assert os.lstat(target / "a").st_nlink == 4
    apply_tar(Tar().file("a", b"two"), target)
    assert {"a": "644 two", "b": "644 one", "c": "644 one", "d/f": "644 one"}.items() <= listing(target).items()
    apply_tar(Tar().whiteout("b").link("c", "a"), target)
    assert (os.lstat(target / "a").st_nlink, os.lstat(target / "d" / "f").st_nlink) == (2, 1)
    assert (target / "a").samefile(target / "c")


def test_a_hard_link_keeps_the_metadata_of_its_file(target: Path) -> None:
    tar = Tar().file("f", mode=0o4751, mtime=OLD, xattrs={"user.a": b"1"}).link("h", "f", mode=0o777, mtime=NEW)
    apply_tar(tar, target)
    assert (mode(target / "h"), mtime(target / "h"), os.getxattr(target / "h", "user.a")) == ("4751", OLD, b"1")


@pytest.mark.root
def test_set_id_bits_and_capabilities_survive_the_change_of_owner(target: Path) -> None:
    tar = Tar()
    for bits in (0o4755, 0o2755, 0o6711, 0o7777, 0o4000):
        tar.file(f"f{bits:o}", b"x" * 100_000, bits, uid=1000, gid=100).directory(f"d{bits:o}", bits, uid=1000, gid=100)
        tar.file(f"d{bits:o}/f", mode=bits, uid=7)
    tar.file("ping", mode=0o755, uid=3, gid=4, xattrs={"security.capability": CAPABILITY})
    tar.node("null", b"3", (1, 3), 0o666, uid=5, gid=6).node("sda", b"4", (8, 0), 0o6660, uid=7, gid=8)
    tar.node("large", b"3", (4095, 1048575), 0o600)
    apply_tar(tar, target)
    for bits in (0o4755, 0o2755, 0o6711, 0o7777, 0o4000):
        assert (mode(target / f"f{bits:o}"), owner(target / f"f{bits:o}")) == (f"{bits:o}", (1000, 100))
        assert (mode(target / f"d{bits:o}"), owner(target / f"d{bits:o}")) == (f"{bits:o}", (1000, 100))
        assert (mode(target / f"d{bits:o}" / "f"), owner(target / f"d{bits:o}" / "f")) == (f"{bits:o}", (7, 0))
    assert os.getxattr(target / "ping", "security.capability") == CAPABILITY
    assert {"null": "c 666 1:3", "sda": "b 6660 8:0", "large": "c 600 4095:1048575"}.items() <= listing(target).items()
    assert [owner(target / name) for name in ("ping", "null", "sda")] == [(3, 4), (5, 6), (7, 8)]


@pytest.mark.root
@pytest.mark.parametrize("device", [(4096, 0), (0, 1 << 20), (1 << 31, 0), (1 << 40, 1 << 40)])
def test_an_impossible_device_number_is_refused(device: tuple[int, int], target: Path) -> None:
    with pytest.raises(InvalidInput, match="numbers end at"):
        apply_tar(Tar().node("c", b"3", device), target)
    assert listing(target) == {}


@pytest.mark.root
@pytest.mark.parametrize("number", [0xFFFFFFFF, 1 << 32, 1 << 40])
def test_an_impossible_owner_is_refused(number: int, target: Path) -> None:
    """The first one (-1) would tell the system to keep the owner."""
    tars = (
        Tar().file("f", mode=0o4755, uid=number),
        Tar().directory("d", gid=number),
        Tar().symlink("l", "x", uid=number),
        Tar().node("p", b"6", gid=number),
    )
    for tar in tars:
        with pytest.raises(InvalidInput, match="owner"):
            apply_tar(tar, target)
    assert [name for name, told in listing(target).items() if told.startswith("4755")] == []


class Watched:
    """Content that inspects its own file while it is written."""

    def __init__(self, path: Path) -> None:
        self.size = 2
        self.extents = None
        self.stored = False
        self.seen: list[tuple[str, tuple[int, int]]] = []
        self._path = path

    def chunks(self) -> Iterator[Buffer]:
        for _ in range(2):
            self.seen.append((mode(self._path), owner(self._path)))
            yield b"x"


def test_set_id_bits_are_set_last(target: Path) -> None:
    content = Watched(target / "f")
    entry = Entry(LayerPath("f"), Kind.FILE, Posix(0o6755, os.geteuid(), os.getegid(), 0), 2)
    apply([Put(entry, content)], DirectorySink(target))
    assert {told for told, _ in content.seen} == {"755"}
    assert mode(target / "f") == "6755"


def every_kind(tar: Tar) -> Tar:
    tar.file("f", mode=0o646).file("x", mode=0o777, uid=5, gid=6).directory("d", 0o737).directory(
        "e", 0o775, uid=5, gid=6
    )
    tar.file("d/f", mode=0o600).file("i/j/f", mode=0o666).symlink("l", "f", uid=5, gid=6).symlink("m", "f")
    tar.node("p", b"6", mode=0o622).node("q", b"6", mode=0o660, uid=5, gid=6).node("c", b"3", (1, 3), 0o606)
    return tar.directory("s", 0o2775, gid=6).file("s/f", mode=0o644).directory("s/d", 0o700).link("h", "f")


def facts(target: Path) -> dict[str, tuple[str, tuple[int, int], list[str]]]:
    return {
        name: (mode(target / name), owner(target / name), os.listxattr(target / name, follow_symlinks=False))
        for name in listing(target)
    }


@pytest.mark.root
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_umask_has_no_effect(umask: int, target: Path) -> None:
    (target / "one").mkdir()
    (target / "two").mkdir()
    before = os.umask(0o022)
    try:
        apply_tar(every_kind(Tar()), target / "one")
        os.umask(umask)
        apply_tar(every_kind(Tar()), target / "two")
    finally:
        os.umask(before)
    assert facts(target / "one") == facts(target / "two")


@pytest.mark.root
@pytest.mark.parametrize("giving", ["a group", "an ACL", "both"])
def test_files_inherit_nothing_from_the_target_directory(giving: str, target: Path, needs: Needs) -> None:
    (target / "plain").mkdir()
    (target / "giving").mkdir()
    os.chown(target / "giving", 0, 99)
    if giving != "an ACL":
        (target / "giving").chmod(0o2755)
    if giving != "a group":
        acl = ("-d", "-m", "u:77:rwx,g:88:rwx,o::rwx,m::rwx")
        subprocess.run([needs("setfacl"), *acl, target / "giving"], check=True)
    apply_tar(every_kind(Tar()), target / "plain")
    apply_tar(every_kind(Tar()), target / "giving")
    assert facts(target / "plain") == facts(target / "giving")


@pytest.mark.root
def test_a_set_group_id_directory_with_a_default_acl_is_exact(target: Path, needs: Needs) -> None:
    """Counterpart: metadata that the layer states for such directories stays, and their entries are exact too."""
    (target / "model").mkdir()
    subprocess.run([needs("setfacl"), "-d", "-m", "u:77:rwx", target / "model"], check=True)
    subprocess.run([needs("setfacl"), "-m", "u:77:rwx", target / "model"], check=True)
    names = ("system.posix_acl_access", "system.posix_acl_default")
    acl = {name: os.getxattr(target / "model", name) for name in names}
    tar = Tar().directory("d", 0o2775, gid=9, xattrs=acl).file("d/f", mode=0o640).directory("d/e", 0o750)
    tar.file("g", mode=0o674, xattrs={names[0]: acl[names[0]]}).node("d/p", b"6", mode=0o644)
    apply_tar(tar, target)
    assert acl == {name: os.getxattr(target / "d", name) for name in os.listxattr(target / "d")}
    assert mode(target / "d") == "2775"
    told = {name: facts(target)[name] for name in ("d/f", "d/e", "d/p", "g")}
    assert {
        "d/f": ("640", (0, 0), []),
        "d/e": ("750", (0, 0), []),
        "d/p": ("644", (0, 0), []),
        "g": ("674", (0, 0), [names[0]]),
    } == told


def test_a_large_sparse_file_stays_sparse(memory: Path) -> None:
    size = 20 << 30
    pieces = [(0, b"start"), (10 << 30, b"m" * 5000), (size - 3, b"end")]
    apply_tar(Tar().sparse("f", size, pieces).sparse("hole", size, []).sparse("tail", 1 << 20, [(4096, b"x")]), memory)
    for name in ("f", "hole", "tail"):
        assert os.lstat(memory / name).st_blocks <= 64 * 512
    assert [size, size, 1 << 20] == [os.lstat(memory / name).st_size for name in ("f", "hole", "tail")]
    with (memory / "f").open("rb") as file:
        for offset, data in pieces:
            assert os.pread(file.fileno(), len(data), offset) == data
        assert os.pread(file.fileno(), 4096, 5 << 30) == bytes(4096)


class Short:
    """Content that ends before its extents do."""

    size = 100
    extents = ((0, 10), (50, 10))
    stored = False

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    def chunks(self) -> tuple[bytes, ...]:
        return self._chunks


@pytest.mark.parametrize("chunks", [(), (b"x" * 10,), (b"x" * 15,), (b"x" * 21,), (b"x" * 20, b"y")])
def test_content_that_does_not_fill_its_extents_is_refused(chunks: tuple[bytes, ...], target: Path) -> None:
    entry = Entry(LayerPath("f"), Kind.FILE, Posix(0o644, 0, 0, 0), 100)
    with pytest.raises(SizeMismatch):
        apply([Put(entry, Short(*chunks))], DirectorySink(target))


@pytest.mark.root
def test_a_mounted_file_system_below_is_written_like_the_rest(target: Path) -> None:
    (target / "d").mkdir()

    def work() -> dict[str, tuple[str, int]]:
        mount("none", target / "d", "tmpfs")
        apply_tar(Tar().directory("d", 0o2750, mtime=OLD).file("d/e/f", mode=0o600, mtime=NEW), target)
        return {name: (mode(target / name), mtime(target / name)) for name in listing(target)}

    assert with_mounts(work) == {"d": ("2750", OLD), "d/e": ("755", 0), "d/e/f": ("600", NEW)}


def test_the_order_of_entries_has_no_effect(target: Path) -> None:
    entries = ("directory", "child", "sub", "whiteout")
    outcomes = []
    for number, order in enumerate(itertools.permutations(entries)):
        place = target / str(number)
        place.mkdir()
        apply_tar(Tar().file("d/old", mtime=OLD).directory("d", 0o700, mtime=OLD), place)
        tar = Tar()
        for name in order:
            match name:
                case "directory":
                    tar.directory("d", 0o711, mtime=NEW)
                case "child":
                    tar.file("d/f", mtime=NEW)
                case "sub":
                    tar.directory("d/sub", 0o700, mtime=NEW)
                case _:
                    tar.whiteout("d/old")
        apply_tar(tar, place)
        outcomes.append({name: (told, mtime(place / name)) for name, told in listing(place).items()})
    assert [outcomes[0]] * len(outcomes) == outcomes
    assert outcomes[0]["d"] == ("directory 711", NEW)
