# SPDX-License-Identifier: Apache-2.0
"""An image with everything that layers have, unpacked by Lamella, umoci and a real containerd: the same tree."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamella.changes.dump import dump
from lamella.changes.tree import walk
from lamella.images.resolve import open_platform_image
from lamella.layers.directory.tree import DirectoryTree
from lamella.operations.layers.apply import apply_blob
from lamella.operations.pack import PackOptions, pack
from lamella.operations.unpack import unpack
from lamella.testing.images import OCI, compact, digest, tagged, write_layout

pytestmark = [pytest.mark.interop, pytest.mark.root]

Needs = Callable[..., str]

BIG_TIME = 1_599_999_999
"""Of both names of one file: whether a link's header changes the file is where engines differ."""

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000").decode("latin-1")


class LayerOfEverything:
    """A tar in the making, by the standard library."""

    def __init__(self) -> None:
        self._raw = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._raw, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._clock = 1_600_000_000

    def add(self, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: Any) -> LayerOfEverything:
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, len(data)
        member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        self._clock += 61
        member.mtime = self._clock
        for field, value in fields.items():
            setattr(member, field, value)
        self._tar.addfile(member, io.BytesIO(data))
        return self

    def folder(self, name: str, **fields: Any) -> LayerOfEverything:
        return self.add(name, tarfile.DIRTYPE, **fields)

    def link(self, name: str, target: str, kind: bytes = tarfile.SYMTYPE, **fields: Any) -> LayerOfEverything:
        return self.add(name, kind, linkname=target, **fields)

    def bytes(self) -> bytes:
        self._tar.close()
        return self._raw.getvalue()


def layers_of_everything() -> list[bytes]:
    base = (
        LayerOfEverything()
        .folder("./")
        .folder("usr/")
        .folder("usr/bin/")
        .folder("usr/lib/", mode=0o2775, gid=50)
        .link("bin", "usr/bin")
        .link("lib", "/usr/lib")
        .add("usr/bin/sudo", data=b"#!", mode=0o4755, uid=0)
        .add("usr/bin/mail", data=b"#!m", mode=0o2755, gid=8)
        .add("usr/bin/ping", data=b"ping", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": CAPABILITY})
        .add("usr/lib/big", data=random.Random(1).randbytes(3_000_000), mtime=BIG_TIME)
        .add("usr/lib/empty", mode=0o600, uid=1000, gid=1000)
        .link("usr/lib/big-again", "usr/lib/big", tarfile.LNKTYPE, mtime=BIG_TIME)
        .folder("tmp/", mode=0o1777)
        .folder("dev/")
        .add("dev/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)
        .add("dev/sda", tarfile.BLKTYPE, mode=0o660, gid=6, devmajor=8, devminor=0)
        .add("dev/pipe", tarfile.FIFOTYPE, mode=0o622)
        .folder("etc/")
        .add("etc/passwd", data=b"root:x:0:0::/:/bin/sh\n")
        .add("etc/shadow", data=b"secret", mode=0o640, gid=42)
        .folder("var/")
        .folder("var/cache/")
        .add("var/cache/one", data=b"1")
        .add("var/cache/two", data=b"2")
        .folder("opt/")
        .folder("opt/app/")
        .add("opt/app/" + "long-name-" * 20, data=b"long")
        .add("opt/app/\u00fcml\u00e4ut \u2603", data=b"unicode")
        .link("opt/current", "app")
        .add("change-me", data=b"a file")
        .folder("become-file/")
        .add("become-file/inside", data=b"x")
    )
    second = (
        LayerOfEverything()
        .folder("etc/")
        .add("etc/.wh.shadow")
        .add("etc/passwd", data=b"root:x:0:0::/:/bin/bash\n", mode=0o600)
        .folder("var/")
        .folder("var/cache/", mode=0o700)
        .add("var/cache/.wh..wh..opq")
        .add("var/cache/three", data=b"3")
        .folder("change-me/")
        .add("change-me/inside", data=b"now a directory")
        .add("become-file", data=b"now a file")
        .add("lib/through-a-link", data=b"lands in usr/lib")
        .add("bin/tool", data=b"lands in usr/bin", mode=0o755)
    )
    third = (
        LayerOfEverything()
        .add("opt/.wh.current")
        .folder("opt/")
        .add(".wh.tmp")
        .folder("tmp/", mode=0o1777, uid=7)
        .link("usr/lib/link-to-link", "../bin/tool")
        .add("usr/lib/big", data=b"replaced; the other name keeps the old bytes")
        .folder("usr/lib/", mode=0o755)
        .folder("usr/bin/")
        .folder("usr/")
        .folder("./")
    )
    return [layer.bytes() for layer in (base, second, third)]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout that has the image as ``all``."""
    import gzip

    tars = layers_of_everything()
    blobs = [gzip.compress(tar, 6, mtime=0) for tar in tars]
    config = compact(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
            "history": [{"created_by": "test"}] * len(tars),
        }
    )
    manifest = compact(
        {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "config": {"mediaType": OCI + "config.v1+json", "digest": digest(config), "size": len(config)},
            "layers": [
                {"mediaType": OCI + "layer.v1.tar+gzip", "digest": digest(blob), "size": len(blob)} for blob in blobs
            ],
        }
    )
    entry = {"mediaType": OCI + "manifest.v1+json", "digest": digest(manifest), "size": len(manifest)}
    place = tmp_path_factory.mktemp("peers") / "layout"
    write_layout(str(place), [tagged(entry, "all")], {digest(raw): raw for raw in (config, manifest, *blobs)})
    return place


def text_of(tree: Path) -> list[str]:
    """The canonical text of a directory."""
    with DirectoryTree(tree, owners="actual") as there:
        return list(dump(walk(there)))


@pytest.fixture(scope="module")
def ours(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What Lamella makes of it."""
    target = tmp_path_factory.mktemp("ours") / "root"
    with open_platform_image(f"oci:{layout}:all", "linux/amd64") as image:
        unpacked = unpack(image, target)
    assert [str(loss) for loss in unpacked.losses] == []
    return text_of(target)


def test_umoci_unpacks_the_same_tree(layout: Path, ours: list[str], needs: Needs, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    subprocess.run([needs("umoci"), "unpack", "--image", f"{layout}:all", str(bundle)], check=True, capture_output=True)
    assert text_of(bundle / "rootfs") == ours


CONFIG = """\
version = 2
root = "{where}/root"
state = "{where}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{where}/socket"
[ttrpc]
  address = "{where}/socket.ttrpc"
"""

Ctr = Callable[..., str]


@pytest.fixture(scope="module")
def ctr(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ctr]:
    """A containerd of the tests' own; calls its ``ctr``."""
    daemon_path, tool = needs("containerd"), needs("ctr")
    where = Path(f"/tmp/lamella-containerd-{os.getpid()}")  # the path of a socket must be short
    where.mkdir(mode=0o700)
    (where / "config.toml").write_text(CONFIG.format(where=where))

    def call(*arguments: str, check: bool = True) -> str:
        command = [tool, "--address", f"{where}/socket", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if check:
            assert done.returncode == 0, f"ctr {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    with (where / "log").open("wb") as log:
        daemon = subprocess.Popen([daemon_path, "--config", f"{where}/config.toml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while "Server" not in call("version", check=False):
            assert daemon.poll() is None, (where / "log").read_text()
            assert time.monotonic() < deadline, (where / "log").read_text()
            time.sleep(0.1)
        yield call
    finally:
        daemon.terminate()
        daemon.wait(20)
        shutil.rmtree(where, ignore_errors=True)


@pytest.mark.parametrize("snapshotter", ["native", "overlayfs"])
def test_containerd_unpacks_the_same_tree(
    snapshotter: str, layout: Path, ours: list[str], ctr: Ctr, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", str(layout), "-cf", str(archive), "oci-layout", "index.json", "blobs"], check=True)
    ctr("images", "import", "--base-name", "test/all", "--snapshotter", snapshotter, str(archive))
    target = tmp_path / "mounted"
    target.mkdir()
    ctr("images", "mount", "--snapshotter", snapshotter, "test/all:all", str(target))
    try:
        theirs = text_of(target)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    if snapshotter == "native":
        # It copies the layers below, and gives directories the time of that moment.
        assert sorted(map(untimed, theirs)) == sorted(map(untimed, ours))
    else:
        # The root has the time of the mount. And applied into an upper directory alone, a file put through a link of
        # a lower layer replaces that link by a directory; Lamella does there as everywhere, and as the others do.
        assert [line for line in theirs if not behind_links(line)] == [line for line in ours if not behind_links(line)]


def untimed(line: str) -> str:
    """A line of canonical text, without the time if it is a directory's."""
    words = line.split(" ")
    return " ".join(words[:4] + words[5:]) if words[1] == "directory" else line


def behind_links(line: str) -> bool:
    """Whether the line is about the root, or about what the second layer puts through links of the first."""
    path = line.split(" ")[5]
    return path in {".", "bin", "lib"} or path.endswith(("bin/tool", "lib/through-a-link"))


def test_gnu_tar_and_bsdtar_extract_the_same_base_layer(layout: Path, needs: Needs, tmp_path: Path) -> None:
    tar = layers_of_everything()[0]
    source = tmp_path / "base.tar"
    source.write_bytes(tar)
    trees = []
    for name, command in {
        "tar": [needs("tar"), "--xattrs", "--xattrs-include=*", "--same-owner", "-xpf", str(source), "-C"],
        "bsdtar": [needs("bsdtar"), "-xpf", str(source), "-C"],
    }.items():
        target = tmp_path / name
        target.mkdir()
        subprocess.run([*command, str(target)], check=True, capture_output=True)
        trees.append(text_of(target))
    with open_platform_image(f"oci:{layout}:all", "linux/amd64") as image, image.layers[0].open() as blob:
        apply_blob(blob, tmp_path / "ours")
    ours = text_of(tmp_path / "ours")
    # Both set the times of some directories before they put the last file there.
    files = [line for line in ours if not line.startswith("put directory")]
    for theirs in trees:
        assert [line for line in theirs if not line.startswith("put directory")] == files
        assert len(theirs) == len(ours)


@pytest.fixture(scope="module")
def with_holes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """An OCI layout that has an image whose layer keeps holes as ``holes``, and the files of that image."""
    where = tmp_path_factory.mktemp("holes")
    root = where / "tree"
    long = root / ("d" * 150)
    long.mkdir(parents=True)
    for path, offset in (
        (root / "middle", 1 << 20),
        (root / "first", 0),
        (root / "last", (3 << 20) - 6),
        (long / "x", 0),
    ):
        with path.open("wb") as out:
            out.seek(offset)
            out.write(b"sparse")
            out.truncate(3 << 20)
    with (root / "nothing").open("wb") as out:
        out.truncate(3 << 20)
    pack(root, f"oci:{where / 'layout'}:holes", options=PackOptions(sparse=True, compression="none"))
    assert max(blob.stat().st_size for blob in (where / "layout/blobs/sha256").iterdir()) < 100_000
    return where / "layout", contents(root)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_umoci_reads_kept_holes(with_holes: tuple[Path, dict[str, bytes]], needs: Needs, tmp_path: Path) -> None:
    layout, files = with_holes
    bundle = tmp_path / "bundle"
    subprocess.run([needs("umoci"), "unpack", "--image", f"{layout}:holes", bundle], check=True, capture_output=True)
    assert contents(bundle / "rootfs") == files


def test_containerd_reads_kept_holes(with_holes: tuple[Path, dict[str, bytes]], ctr: Ctr, tmp_path: Path) -> None:
    layout, files = with_holes
    archive, target = tmp_path / "image.tar", tmp_path / "mounted"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "oci-layout", "index.json", "blobs"], check=True)
    ctr("images", "import", "--base-name", "test/sparse", "--snapshotter", "native", str(archive))
    target.mkdir()
    ctr("images", "mount", "--snapshotter", "native", "test/sparse:holes", str(target))
    try:
        theirs = contents(target)
    finally:
        subprocess.run(["umount", target], check=True)
    assert theirs == files


def test_bsdtar_reads_kept_holes(with_holes: tuple[Path, dict[str, bytes]], needs: Needs, tmp_path: Path) -> None:
    layout, files = with_holes
    with open_platform_image(f"oci:{layout}:holes", "linux/amd64") as image:
        blob = layout / "blobs/sha256" / image.layers[0].descriptor.digest.removeprefix("sha256:")
    (tmp_path / "out").mkdir()
    subprocess.run([needs("bsdtar"), "-xpf", blob, "-C", tmp_path / "out"], check=True, capture_output=True)
    assert contents(tmp_path / "out") == files
