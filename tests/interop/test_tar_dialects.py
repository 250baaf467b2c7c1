# SPDX-License-Identifier: Apache-2.0
"""Other tools' archives are read as they meant them, and they read ours without a word."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tests.unit.formats.tar.archives import Read, read

from lamella.formats.tar import TarWriter

pytestmark = pytest.mark.interop

SECOND: Final = 1_000_000_000
WHEN: Final = 1_600_000_000
LONG: Final = "d" * 90 + "/" + "e" * 90
SPARSE: Final = "holes"
TYPES: Final = {stat.S_IFLNK: "2", stat.S_IFDIR: "5", stat.S_IFIFO: "6"}
Needs = Callable[..., str]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with one of everything that needs no privilege."""
    root = tmp_path_factory.mktemp("tree")
    (root / "empty").touch()
    (root / "file").write_bytes(bytes(range(256)) * 5)
    (root / "set-id").write_bytes(b"x")
    (root / "set-id").chmod(0o6755)
    os.link(root / "file", root / "hard")
    (root / "soft").symlink_to("../some where/else")
    (root / "soft-long").symlink_to("t" * 150)
    os.mkfifo(root / "fifo", 0o600)
    (root / LONG).mkdir(parents=True)
    (root / LONG / ("f" * 120)).write_bytes(b"deep")
    (root / "été").write_bytes(b"accents")
    Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9")).write_bytes(b"not utf-8")
    with (root / SPARSE).open("wb") as out:
        for number in range(40):
            out.seek(number * 65536)
            out.write(b"%03d" % number * 1000)
        out.truncate(40 * 65536 + 77)
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(WHEN * SECOND, WHEN * SECOND + 123_456_789), follow_symlinks=False)
    return root


def names(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*")}


def check(found: list[Read], tree: Path, *, whole_seconds: bool) -> set[str]:
    """Compare members with the files they were made of; gives the names that were met."""
    met = set()
    contents: dict[str, bytes] = {}
    for one in found:
        name = one.name.removeprefix("./").rstrip("/")
        if name in ("", "."):
            continue
        met.add(name)
        status = (tree / name).lstat()
        mode, uid, gid, mtime = one.member.facet
        if one.member.typeflag == "2":
            assert one.member.linkname == os.readlink(tree / name)
        else:
            assert mode == status.st_mode & 0o7777
        assert (uid, gid) == (status.st_uid, status.st_gid)
        assert mtime == (WHEN * SECOND if whole_seconds else status.st_mtime_ns)
        if one.member.typeflag == "1":
            assert contents[one.member.linkname.removeprefix("./")] == (tree / name).read_bytes()
        elif one.member.typeflag == "0":
            assert hashlib.sha256(one.data).digest() == hashlib.sha256((tree / name).read_bytes()).digest()
            contents[name] = one.data
        else:
            assert one.member.typeflag == TYPES[stat.S_IFMT(status.st_mode)]
    return met


def run(*arguments: str | Path, **more: Any) -> bytes:
    done = subprocess.run([str(argument) for argument in arguments], capture_output=True, **more)
    assert done.stderr.decode() == ""
    assert done.returncode == 0
    return bytes(done.stdout)


class TestReading:
    @pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar", "v7"])
    @pytest.mark.parametrize("step", [512, 1 << 20])
    def test_gnu_tar(self, needs: Needs, tree: Path, form: str, step: int) -> None:
        tar = needs("tar")
        exclude = {"ustar": ["./soft-long"], "v7": ["./soft-long", "./" + LONG, "./fifo"]}.get(form, [])
        wanted = names(tree) - {name[2:] for name in exclude}
        if form == "v7":
            wanted -= {f"{LONG}/{'f' * 120}"}
        if form == "ustar":
            exclude.append(f"./{LONG}/{'f' * 120}")
            wanted -= {f"{LONG}/{'f' * 120}"}
        options = [f"--exclude={name}" for name in exclude]
        made = run(tar, "-C", tree, f"--format={form}", *options, "-cf", "-", ".")
        assert check(read(made, step), tree, whole_seconds=form != "pax") == wanted

    @pytest.mark.parametrize(
        "options",
        [
            ["--format=gnu"],
            ["--format=oldgnu"],
            ["--format=pax", "--sparse-version=0.0"],
            ["--format=pax", "--sparse-version=0.1"],
            ["--format=pax", "--sparse-version=1.0"],
        ],
        ids=lambda options: options[-1].strip("-"),
    )
    def test_gnu_tar_with_holes(self, needs: Needs, tree: Path, options: list[str]) -> None:
        made = run(needs("tar"), "-C", tree, *options, "-S", "--hole-detection=raw", "-cf", "-", SPARSE, "file")
        holes, dense = read(made)
        assert check([holes, dense], tree, whole_seconds="pax" not in options[0]) == {SPARSE, "file"}
        assert holes.member.stored_size < holes.member.size
        assert len(holes.member.extents or ()) == 40
        assert dense.member.extents is None

    @pytest.mark.parametrize("form", ["pax", "gnutar", "ustar", "v7tar"])
    def test_bsdtar(self, needs: Needs, tree: Path, form: str) -> None:
        bsdtar = needs("bsdtar")
        exclude = {"ustar": ["soft-long", "d" * 90], "v7tar": ["soft-long", "d" * 90, "fifo"]}.get(form, [])
        options = [f"--exclude={name}" for name in exclude]
        done = subprocess.run(
            [bsdtar, "-C", tree, f"--format={form}", *options, "-cf", "-", "."],
            capture_output=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        wanted = {name for name in names(tree) if not name.startswith(tuple(exclude) or ("\0",))}
        assert check(read(done.stdout), tree, whole_seconds=form != "pax") == wanted

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_tarfile(self, tree: Path, form: int) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name in ("file", "hard", "soft", "été", "set-id"):
                info = archive.gettarinfo(tree / name, name)
                info.mtime = WHEN
                archive.addfile(info, io.BytesIO((tree / name).read_bytes()) if info.isreg() else None)
        assert check(read(out.getvalue()), tree, whole_seconds=True) == {"file", "hard", "soft", "été", "set-id"}

    def test_a_global_header_of_gnu_tar(self, needs: Needs, tree: Path) -> None:
        options = ["--format=pax", "--pax-option=globexthdr.name=g,comment=hello,mtime=1234.5"]
        made = run(needs("tar"), "-C", tree, *options, "-cf", "-", "empty", "file")
        # each member has its own mtime here, which wins
        assert check(read(made), tree, whole_seconds=False) == {"empty", "file"}
        assert b"comment=hello" in made


def ours() -> bytes:
    """An archive with one of everything that the writer can be asked for."""
    out = io.BytesIO()
    writer = TarWriter(out.write)
    common: dict[str, Any] = {"mode": 0o644, "uid": os.getuid(), "gid": os.getgid(), "mtime": WHEN * SECOND}
    capability = {"SCHILY.xattr.user.lamella": b"a\0\xff"}
    writer.member("dir/", "5", size=0, **(common | {"mode": 0o755}))
    for name, data, more in (
        ("dir/file", b"hello" * 1000, {}),
        ("dir/time", b"", {"mtime": WHEN * SECOND + 123_456_789}),
        ("dir/early", b"x", {"mtime": -SECOND}),
        ("dir/" + "n" * 90 + "/" + "m" * 90, b"deep", {}),
        ("dir/" + "n" * 200, b"long", {}),
        ("dir/été", b"accents", {}),
        ("dir/attribute", b"y", {"records": capability}),
        ("dir/set-id", b"z", {"mode": 0o6755}),
    ):
        writer.member(name, "0", size=len(data), **{**common, **more})
        writer.data(data)
    writer.member("dir/hard", "1", size=0, linkname="dir/file", **common)
    writer.member("dir/soft", "2", size=0, linkname="t" * 150, **common)
    writer.member("dir/fifo", "6", size=0, **common)
    writer.close()
    return out.getvalue()


class TestWriting:
    @pytest.mark.parametrize("tool", ["tar", "bsdtar"])
    def test_other_tools_list_and_unpack_it_without_a_warning(self, needs: Needs, tmp_path: Path, tool: str) -> None:
        program = needs(tool)
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        archive = tmp_path / "ours.tar"
        archive.write_bytes(ours())
        listed = run(program, "-tvf", archive, env=environment).decode().splitlines()
        assert len(listed) == 12
        out = tmp_path / "out"
        out.mkdir()
        # the one time before 1970 is remarked on by GNU tar, as it should be
        excluded = ["--exclude=dir/early"]
        run(program, "-C", out, "-xpf", archive, *excluded, env=environment)
        assert (out / "dir/file").read_bytes() == b"hello" * 1000
        assert (out / "dir/hard").stat().st_ino == (out / "dir/file").stat().st_ino
        assert os.readlink(out / "dir/soft") == "t" * 150
        assert (out / "dir/été").read_bytes() == b"accents"
        assert (out / ("dir/" + "n" * 200)).read_bytes() == b"long"
        assert (out / "dir" / ("n" * 90) / ("m" * 90)).read_bytes() == b"deep"
        assert (out / "dir/time").stat().st_mtime_ns == WHEN * SECOND + 123_456_789
        assert (out / "dir/file").stat().st_mtime_ns == WHEN * SECOND
        assert (out / "dir/set-id").stat().st_mode & 0o7777 == 0o6755
        assert (out / "dir/fifo").is_fifo()
