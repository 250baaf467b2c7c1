# SPDX-License-Identifier: Apache-2.0
"""What Lamella writes, in the hands of others: umoci, skopeo, GNU tar, bsdtar, crun and runc."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.changes.dump import dump
from lamella.changes.tree import walk
from lamella.layers.directory.tree import DirectoryTree

pytestmark = [pytest.mark.interop, pytest.mark.root]

Needs = Callable[..., str]

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
SECONDS = 1_700_000_000 * 10**9

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    char here[99];
    printf("%s %d %s\n", getenv("WHO"), getuid(), getcwd(here, sizeof here));
    return 7;
}
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def lamella(needs: Needs) -> Callable[..., str]:
    """Run the command line."""
    import sys

    program = Path(sys.executable).with_name("lamella")

    def call(*arguments: str | Path) -> str:
        return run(program, *arguments).stdout

    return call


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory with everything that a Linux layer can hold."""
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/ping").write_bytes(b"ping")
    os.setxattr(root / "usr/bin/ping", "security.capability", CAPABILITY)
    (root / "usr/bin/sudo").write_bytes(b"sudo")
    (root / "usr/bin/sudo").chmod(0o4755)
    (root / "etc").mkdir()
    (root / "etc/shadow").write_bytes(b"secret")
    os.chown(root / "etc/shadow", 0, 42)
    (root / "etc/shadow").chmod(0o640)
    os.link(root / "etc/shadow", root / "etc/shadow-")
    os.symlink("usr/bin", root / "bin")
    os.mkfifo(root / "pipe", 0o622)
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    (root / ("long" * 40)).write_bytes(b"long name")
    (root / "\u00fcber \u2603").write_bytes(b"snowman")
    os.chown(root / "\u00fcber \u2603", 3_000_000, 3_000_000)  # more than the octal field of a ustar header holds
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    with open(root / "holes", "wb") as file:
        file.truncate(5_000_000)
        file.write(b"end")
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(SECONDS, SECONDS), follow_symlinks=False)
    return root


def text_of(tree: Path) -> list[str]:
    """Canonical text of a directory but for its root, which no tool takes from a layer without an entry for it."""
    with DirectoryTree(tree, owners="actual") as there:
        return list(dump(walk(there), extents=False))[1:]


def test_umoci_unpacks_what_pack_wrote_to_the_very_same_tree(
    lamella: Callable[..., str], tree: Path, needs: Needs, tmp_path: Path
) -> None:
    for compression in ("gzip", "none"):
        lamella("pack", tree, f"oci:{tmp_path}/image:{compression}", "--compress", compression)
        run(needs("umoci"), "unpack", "--image", f"{tmp_path}/image:{compression}", tmp_path / compression)
        assert text_of(tmp_path / compression / "rootfs") == text_of(tree)


def test_umoci_applies_the_layer_that_diff_wrote(
    lamella: Callable[..., str], tree: Path, needs: Needs, tmp_path: Path
) -> None:
    upper = tmp_path / "upper"
    run("cp", "-a", tree, upper)
    (upper / "etc/shadow").unlink()
    (upper / "usr/bin/ping").unlink()
    (upper / "usr/bin/ping").mkdir()
    (upper / "usr/bin/ping/inside").write_bytes(b"type change")
    (upper / "usr/bin/sudo").write_bytes(b"changed")
    (upper / "usr/bin/sudo").chmod(0o755)
    for path in sorted(upper.rglob("*")):
        os.utime(path, ns=(SECONDS, SECONDS), follow_symlinks=False)
    lamella("pack", tree, f"oci:{tmp_path}/image:base")
    lamella("diff", tree, upper, "-o", tmp_path / "layer.tar.gz", "--exact")
    lamella("append", f"oci:{tmp_path}/image:base", tmp_path / "layer.tar.gz", f"oci:{tmp_path}/image:more")
    run(needs("umoci"), "unpack", "--image", f"{tmp_path}/image:more", tmp_path / "bundle")
    lamella("unpack", f"oci:{tmp_path}/image:more", tmp_path / "ours")
    assert text_of(tmp_path / "bundle/rootfs") == text_of(upper)
    assert text_of(tmp_path / "ours") == text_of(upper)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_skopeo_reads_what_pack_wrote(
    compression: str, lamella: Callable[..., str], tree: Path, needs: Needs, tmp_path: Path
) -> None:
    name = f"oci:{tmp_path}/image:it"
    packed = json.loads(lamella("pack", tree, name, "--compress", compression, "--cmd", "/bin/sh", "--json"))
    seen = json.loads(run(needs("skopeo"), "inspect", "--raw", name).stdout)
    assert seen["layers"][0]["digest"] == packed["layers"][0]["digest"]
    assert json.loads(run(needs("skopeo"), "inspect", "--config", name).stdout)["config"]["Cmd"] == ["/bin/sh"]
    run(needs("skopeo"), "--insecure-policy", "copy", name, f"docker-archive:{tmp_path}/out.tar:it:latest")


def test_gnu_tar_and_bsdtar_list_a_layer_without_a_warning(
    lamella: Callable[..., str], tree: Path, needs: Needs, tmp_path: Path
) -> None:
    lamella("diff", tree, "-o", tmp_path / "layer.tar", "--compress", "none")
    listed = run(needs("tar"), "-tf", tmp_path / "layer.tar", "--quoting-style=literal")
    assert listed.stderr == ""
    also = run(needs("bsdtar"), "-tf", tmp_path / "layer.tar")
    assert also.stderr == ""
    assert len(listed.stdout.splitlines()) == len(also.stdout.splitlines()) == len([tree, *tree.rglob("*")])


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_runtime_starts_a_bundle(runtime: str, lamella: Callable[..., str], needs: Needs, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "work").mkdir()
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("app:x:1234:1234::/work:/bin/sh\n")
    (tmp_path / "program.c").write_text(PROGRAM)
    run(needs("gcc"), "-static", "-o", root / "bin/program", tmp_path / "program.c")
    name = f"oci:{tmp_path}/image:it"
    lamella("pack", root, name, "--cmd", "/bin/program", "--env", "WHO=lamella", "--user", "app", "--workdir", "/work")
    lamella("unpack", name, tmp_path / "bundle", "--bundle")
    command = f"{needs(runtime)} run -b {tmp_path}/bundle lamella-{os.getpid()}"
    if runtime == "crun" and os.path.ismount("/sys/fs/cgroup/unified"):
        # crun refuses a host with both versions of cgroups; in a mount namespace of its own it sees the first alone.
        command = f"umount /sys/fs/cgroup/unified && {command}"
        command = f"mount --make-rprivate / && {command}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "lamella 1234 /work\n", done.stderr
    assert done.returncode == 7
