# SPDX-License-Identifier: Apache-2.0
"""A directory on disk, read as a tree."""

from __future__ import annotations

import errno
import os
import resource
import socket
from pathlib import Path

import pytest

from lamella.changes.dump import dump
from lamella.changes.model import Kind, dense
from lamella.changes.tree import walk
from lamella.errors import Conflict, InvalidInput, NotFound, Unsupported
from lamella.layers.directory.attrs import OVERRIDE, ROOTLESS, encode_owner
from lamella.layers.directory.tree import DirectoryTree
from lamella.paths import LayerPath

WHEN = 1_600_000_000_123_456_789


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "root"
    top.mkdir(mode=0o755)
    return top


def path(text: str) -> LayerPath:
    return LayerPath(text)


def settle(*files: Path) -> None:
    for file in files:
        os.utime(file, ns=(WHEN, WHEN), follow_symlinks=False)


def lines(root: Path) -> list[str]:
    with DirectoryTree(root) as tree:
        return list(dump(walk(tree), inline=64))


@pytest.mark.root
def test_each_kind_of_file_comes_with_all_its_metadata(root: Path) -> None:
    (root / "d").mkdir(mode=0o700)
    (root / "f").write_bytes(b"hello")
    os.chown(root / "f", 12, 34)
    (root / "f").chmod(0o4751)
    (root / "l").symlink_to("../nowhere")
    os.lchown(root / "l", 5, 6)
    os.mkfifo(root / "p", 0o640)
    os.mknod(root / "c", 0o20666, os.makedev(1, 3))
    os.mknod(root / "b", 0o60600, os.makedev(259, 70000))
    for name in ("c", "p"):
        (root / name).chmod(0o646)
    settle(*root.iterdir(), root)
    assert lines(root) == [
        "put directory 0755 0:0 1600000000.123456789 .",
        "put block 0600 0:0 1600000000.123456789 b device=259:70000",
        "put character 0646 0:0 1600000000.123456789 c device=1:3",
        "put directory 0700 0:0 1600000000.123456789 d",
        "put file 4751 12:34 1600000000.123456789 f size=5 text=hello",
        "put symlink 0777 5:6 1600000000.123456789 l target=../nowhere",
        "put fifo 0646 0:0 1600000000.123456789 p",
    ]


def test_names_come_in_the_order_of_their_bytes(root: Path) -> None:
    names = [b"a", b"a.b", b"a-b", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"\xff", b"\xef\xbf\xbd", b"Z"]
    for name in names:
        (root / os.fsdecode(name)).touch()
    with DirectoryTree(root) as tree:
        assert sorted(names) == [os.fsencode(entry.path) for entry in tree.entries(path(""))]


def test_times_before_1970_are_kept(root: Path) -> None:
    (root / "old").touch()
    os.utime(root / "old", ns=(-1_500_000_001, -1_500_000_001))
    with DirectoryTree(root) as tree:
        entry = tree.lookup(path("old"))
    assert entry is not None
    assert entry.posix is not None
    assert entry.posix.mtime == -1_500_000_001


def test_a_socket_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server, DirectoryTree(root) as tree:
        server.bind("sock")
        assert tree.entries(path("")) == []
        assert tree.lookup(path("sock")) is None
        with pytest.raises(NotFound):
            tree.open(path("sock"))


def test_looking_up_what_is_not_there_gives_none(root: Path) -> None:
    (root / "f").touch()
    (root / "l").symlink_to(".")
    with DirectoryTree(root) as tree:
        for missing in ("x", "x/y", "f/x", "l/f", "n" * 300):
            assert tree.lookup(path(missing)) is None
        root_entry = tree.lookup(path(""))
        assert root_entry is not None
        assert root_entry.kind is Kind.DIRECTORY


def test_listing_what_is_no_directory_is_an_error(root: Path) -> None:
    (root / "f").touch()
    (root / "l").symlink_to(".")
    with DirectoryTree(root) as tree:
        with pytest.raises(NotFound):
            tree.entries(path("x"))
        with pytest.raises(InvalidInput, match="is a file, not a directory"):
            tree.entries(path("f"))
        with pytest.raises(InvalidInput, match="is a symlink, not a directory"):
            tree.entries(path("l"))


def test_opening_what_is_no_file_is_an_error(root: Path) -> None:
    (root / "d").mkdir()
    os.mkfifo(root / "p")
    with DirectoryTree(root) as tree:
        for odd in ("d", "p", ""):
            with pytest.raises(InvalidInput, match="not a file"):
                tree.open(path(odd))
        with pytest.raises(NotFound):
            tree.open(path("x/y"))


def test_the_root_must_be_a_directory(root: Path) -> None:
    (root / "f").touch()
    with pytest.raises(Conflict):
        DirectoryTree(root / "f")
    with pytest.raises(NotFound):
        DirectoryTree(root / "x")


def test_a_link_that_leads_to_the_root_is_followed(root: Path) -> None:
    (root / "d").mkdir()
    (root / "l").symlink_to("d")
    with DirectoryTree(root / "l") as tree:
        assert tree.entries(path("")) == []


def test_names_of_one_file_share_an_identity(root: Path) -> None:
    (root / "d").mkdir()
    (root / "a").write_bytes(b"x")
    os.link(root / "a", root / "d" / "b")
    (root / "s").symlink_to("a")
    os.link(root / "s", root / "t", follow_symlinks=False)
    (root / "single").touch()
    with DirectoryTree(root) as tree:
        for listed in (False, True):
            if listed:
                tree.entries(path(""))
                tree.entries(path("d"))
            assert tree.identity(path("a")) is not None
            assert tree.identity(path("a")) == tree.identity(path("d/b"))
            assert tree.identity(path("s")) == tree.identity(path("t"))
            assert tree.identity(path("s")) != tree.identity(path("a"))
            assert tree.identity(path("single")) is None
        changes = [line for line in dump(walk(tree)) if line.startswith("link")]
    assert changes == ["link d/b target=a", "link t target=s"]


@pytest.mark.parametrize("size", [0, 1, 4096, 256 * 1024, 256 * 1024 + 1, 3 * 1024 * 1024 + 17])
def test_content_is_whole_whatever_its_size_and_as_often_as_asked(root: Path, size: int) -> None:
    data = os.urandom(size)
    (root / "f").write_bytes(data)
    with DirectoryTree(root) as tree:
        content = tree.open(path("f"))
        assert content.size == size
        for _ in range(2):
            assert b"".join(map(bytes, dense(content))) == data


def test_two_readers_of_one_file_do_not_disturb_each_other(root: Path) -> None:
    data = os.urandom(2_500_000)
    (root / "f").write_bytes(data)
    with DirectoryTree(root) as tree:
        content = tree.open(path("f"))
        one, other = bytearray(), bytearray()
        for mine, yours in zip(content.chunks(), content.chunks(), strict=True):
            one += mine
            other += yours
    assert bytes(one) == bytes(other) == data


def test_holes_are_told_and_read_as_zeros(root: Path) -> None:
    size = 5 << 20
    with open(root / "f", "wb") as file:
        file.truncate(size)
        file.seek(1 << 20)
        file.write(b"data" * 1024)
    (root / "empty").touch()
    os.truncate(root / "empty", size)
    with DirectoryTree(root) as tree:
        content = tree.open(path("f"))
        if content.extents is None:
            pytest.fail("the file system of the test keeps no holes")
        assert sum(length for _, length in content.extents) < size
        assert sum(len(chunk) for chunk in content.chunks()) < size
        whole = b"".join(map(bytes, dense(content)))
        assert whole == (root / "f").read_bytes()
        nothing = tree.open(path("empty"))
        assert nothing.extents == ()
        assert list(nothing.chunks()) == []


def test_the_same_bytes_are_found_the_same_and_others_not(root: Path) -> None:
    for name, data in (("a", b"x" * 300_000), ("b", b"x" * 300_000), ("c", b"x" * 299_999 + b"y"), ("d", b"x")):
        (root / name).write_bytes(data)
        (root / f"small-{name}").write_bytes(data[-40:])
    with DirectoryTree(root) as one, DirectoryTree(root) as other:
        for prefix in ("", "small-"):
            assert one.same_content(path(f"{prefix}a"), other, path(f"{prefix}b"))
            assert one.same_content(path(f"{prefix}a"), other, path(f"{prefix}a"))
            assert not one.same_content(path(f"{prefix}a"), other, path(f"{prefix}c"))
            assert not one.same_content(path(f"{prefix}a"), other, path(f"{prefix}d"))


def test_files_with_holes_compare_by_what_they_read_as(root: Path) -> None:
    size = 3 << 20
    for name, at, data in (("a", 0, b""), ("b", 1 << 20, b"\0" * 4096), ("c", 1 << 20, b"x"), ("d", 0, b"\0" * size)):
        with open(root / name, "wb") as file:
            file.truncate(size)
            file.seek(at)
            file.write(data)
    with DirectoryTree(root) as tree:
        assert tree.same_content(path("a"), tree, path("b"))
        assert tree.same_content(path("a"), tree, path("d"))
        assert not tree.same_content(path("a"), tree, path("c"))
        assert not tree.same_content(path("b"), tree, path("c"))


@pytest.mark.root
def test_attributes_of_the_tree_are_reported_and_those_of_the_host_are_not(root: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    (root / "f").touch()
    (root / "d").mkdir()
    (root / "l").symlink_to("f")
    for name, value in {
        "user.x": b"1",
        "security.capability": capability,
        "trusted.overlay.opaque": b"y",
        "trusted.other": b"1",
        "user.overlay.origin": b"1",
        "user.fuseoverlayfs.opaque": b"y",
        "security.ima": b"\x01",
        ROOTLESS: b"\x08\x05",
    }.items():
        os.setxattr(root / "f", name, value)
    os.setxattr(root / "d", "user.empty", b"")
    os.setxattr(root / "l", "trusted.x", b"1", follow_symlinks=False)
    with DirectoryTree(root) as tree:
        found = {entry.path: dict(entry.posix.xattrs) for entry in tree.entries(path("")) if entry.posix is not None}
        alone = tree.lookup(path("f"))
    assert {"d": {"user.empty": b""}, "f": {"security.capability": capability, "user.x": b"1"}, "l": {}} == found
    assert alone is not None
    assert alone.posix is not None
    assert alone.posix.xattrs == found[path("f")]
    with DirectoryTree(root, xattrs="capability") as tree:
        found = {entry.path: dict(entry.posix.xattrs) for entry in tree.entries(path("")) if entry.posix is not None}
    assert {"d": {}, "f": {"security.capability": capability}, "l": {}} == found
    with DirectoryTree(root, xattrs="none") as tree:
        assert all(not entry.posix.xattrs for entry in tree.entries(path("")) if entry.posix is not None)


def test_attributes_of_the_root_are_reported(root: Path) -> None:
    os.setxattr(root, "user.x", b"1")
    with DirectoryTree(root) as tree:
        entry = tree.lookup(path(""))
    assert entry is not None
    assert entry.posix is not None
    assert entry.posix.xattrs == {"user.x": b"1"}


def test_a_file_system_without_attributes_is_asked_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (root / name).touch()
    asked: list[str] = []

    def lister(directory: int) -> object:
        def refuse(name: str) -> list[str]:
            asked.append(name)
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        return refuse

    monkeypatch.setattr("lamella.host.xattr_lister", lister)
    with DirectoryTree(root) as tree:
        assert len(tree.entries(path(""))) == 3
        assert len(tree.entries(path(""))) == 3
    assert asked == ["a"]


def test_many_attribute_names_are_listed_whole(root: Path) -> None:
    (root / "f").touch()
    names = [f"user.{'n' * 200}{number}" for number in range(10)]
    try:
        for name in names:
            os.setxattr(root / "f", name, b"1")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    with DirectoryTree(root) as tree:
        (entry,) = tree.entries(path(""))
    assert entry.posix is not None
    assert sorted(os.listxattr(root / "f")) == sorted(entry.posix.xattrs)


class TestRecordedOwners:
    """Ownership as it was recorded by a process that could not set it."""

    def owners(self, root: Path) -> dict[str, tuple[int, int]]:
        with DirectoryTree(root, owners="recorded") as tree:
            top = tree.lookup(path(""))
            entries = [*([top] if top is not None else []), *tree.entries(path(""))]
            return {entry.path: (entry.posix.uid, entry.posix.gid) for entry in entries if entry.posix is not None}

    @pytest.mark.root
    def test_records_count_and_our_own_ids_stand_for_root(self, root: Path) -> None:
        for name in ("plain", "recorded", "group", "foreign"):
            (root / name).touch()
            os.chown(root / name, 1000, 1000)
        os.chown(root / "foreign", 77, 78)
        os.chown(root, 1000, 1000)
        os.setxattr(root / "recorded", ROOTLESS, encode_owner(5, 6))
        os.setxattr(root / "group", ROOTLESS, encode_owner(0, 42))
        assert self.owners(root) == {
            "": (0, 0),
            "foreign": (77, 78),
            "group": (0, 42),
            "plain": (0, 0),
            "recorded": (5, 6),
        }

    @pytest.mark.root
    def test_root_believes_no_record_unless_told_to(self, root: Path) -> None:
        (root / "f").touch()
        os.chown(root / "f", 1000, 1000)
        os.setxattr(root / "f", ROOTLESS, encode_owner(5, 6))
        os.setxattr(root / "f", OVERRIDE, b"0:0:4755:file")
        with DirectoryTree(root) as tree:
            entry = tree.lookup(path("f"))
        assert entry is not None
        assert entry.posix is not None
        assert (entry.posix.uid, entry.posix.gid, entry.posix.mode) == (1000, 1000, 0o644)

    def test_a_recorded_device_is_a_device_and_no_file(self, root: Path) -> None:
        for name, record in (("null", b"0:5:0666:char-1-3"), ("disk", b"0:6:0660:block-8-1"), ("f", b"7:8:4755:file")):
            (root / name).touch()
            os.setxattr(root / name, OVERRIDE, record)
        settle(root / "null", root / "disk", root / "f")
        with DirectoryTree(root, owners="recorded") as tree:
            found = [line for line in dump(walk(tree)) if not line.endswith(" .")]
            with pytest.raises(InvalidInput, match="is a character device, not a file"):
                tree.open(path("null"))
        assert found == [
            "put block 0660 0:6 1600000000.123456789 disk device=8:1",
            "put file 4755 7:8 1600000000.123456789 f size=0",
            "put character 0666 0:5 1600000000.123456789 null device=1:3",
        ]

    def test_a_record_that_does_not_fit_the_file_is_an_error(self, root: Path) -> None:
        (root / "d").mkdir()
        os.setxattr(root / "d", OVERRIDE, b"0:0:0644:file")
        with (
            DirectoryTree(root, owners="recorded") as tree,
            pytest.raises(Unsupported, match="'d' is a directory, and is recorded as a file"),
        ):
            tree.entries(path(""))

    def test_a_malformed_record_is_an_error_that_names_the_file(self, root: Path) -> None:
        (root / "f").touch()
        os.setxattr(root / "f", ROOTLESS, b"\x08")
        with (
            DirectoryTree(root, owners="recorded") as tree,
            pytest.raises(InvalidInput, match=r"'f': user\.rootlesscontainers"),
        ):
            tree.entries(path(""))


def deep(root: Path, levels: int) -> None:
    """``levels`` directories one in the other, with a file after each on the way back up."""
    at = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        os.close(os.open("z", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=at))
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


def remove_deep(root: Path) -> None:
    from lamella.layers.directory.dirfd_cache import remove_tree

    parent = os.open(root.parent, os.O_RDONLY)
    try:
        remove_tree(parent, root.name)
    finally:
        os.close(parent)


def test_a_tree_of_4000_levels_is_walked_in_a_moment_with_few_descriptors(root: Path) -> None:
    deep(root, 4000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 160, hard))
    try:
        with DirectoryTree(root) as tree:
            count = 0
            for change in walk(tree):
                count += 1
                del change
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        remove_deep(root)
    assert count == 8001


def test_closing_gives_all_descriptors_back(root: Path) -> None:
    for number in range(20):
        (root / str(number)).mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with DirectoryTree(root) as tree:
        assert len(list(walk(tree))) == 21
        assert len(os.listdir("/proc/self/fd")) > before
    assert len(os.listdir("/proc/self/fd")) == before
