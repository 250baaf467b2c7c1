# SPDX-License-Identifier: Apache-2.0
"""A container is run from a snapshot of each kind, and what it changed is in the snapshot that comes of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.changes.model import Change
from lamella.host.mounting import mount_points
from lamella.host.mounting import unmount as unmount_point
from lamella.oci.config import ContainerConfig, ImageConfig, RootFs
from lamella.operations.runtime.bundle import write_runtime_config
from lamella.store.mounting import mount_all, mounted, unmount
from lamella.store.snapshots.snapshotter import open_snapshotter
from lamella.store.store import Store
from lamella.testing.builders import directory, file, symlink, whiteout

pytestmark = [pytest.mark.interop, pytest.mark.root]

PROGRAM = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) {
    char text[16] = "";
    FILE *lower = fopen("/link/lower", "r");
    fgets(text, sizeof text, lower);
    fclose(lower);
    printf("%s %d %d\n", text, access("/gone", F_OK), getuid());
    unlink("/link/lower");
    FILE *made = fopen("/made", "w");
    fputs("made", made);
    fclose(made);
    return 7;
}
"""


@pytest.fixture
def program(needs: Callable[..., str], tmp_path: Path) -> bytes:
    source, made = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    subprocess.run([needs("gcc"), "-static", "-o", made, source], check=True)
    return made.read_bytes()


@pytest.fixture(autouse=True)
def nothing_stays_mounted(tmp_path: Path) -> Iterator[None]:
    yield
    for point in reversed(mount_points(str(tmp_path))):
        unmount_point(point, lazy=True)


@pytest.mark.parametrize("kind", ["overlay", "directory", "erofs"])
def test_a_container_runs_from_a_snapshot(kind: str, program: bytes, needs: Callable[..., str], tmp_path: Path) -> None:
    snapshots = open_snapshotter(kind, Store.open(tmp_path / "store").namespace("tests").context)
    layers: list[list[Change]] = [
        [
            *(directory(name) for name in ("", "bin", "proc", "sys", "dev", "etc", "real")),
            *(file("bin/it", program, mode=0o755), file("gone")),
            *(file("etc/passwd", b"root:x:0:0::/:/bin/it\n"), symlink("link", "real")),
        ],
        [whiteout("gone"), file("link/lower", b"lower")],
    ]
    parent = ""
    for number, layer in enumerate(layers):
        snapshots.prepare("key", parent)
        apply(layer, snapshots.sink("key"))
        parent = f"layer {number}"
        snapshots.commit(parent, "key")
    bundle = tmp_path / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    mount_all(snapshots.prepare("container", parent), bundle / "rootfs")
    write_runtime_config(
        bundle,
        ImageConfig(
            architecture="amd64", os="linux", rootfs=RootFs(diff_ids=[]), config=ContainerConfig(cmd=["/bin/it"])
        ),
    )
    done = subprocess.run(
        [
            *(needs("runc"), "--root", tmp_path / "state"),
            *("run", "--bundle", bundle, f"lamella-{kind}-{os.getpid()}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (7, "lower -1 0\n"), done.stderr
    unmount(bundle / "rootfs")
    snapshots.commit("result", "container")
    with mounted(snapshots.view("view", "result")) as root:
        assert (root / "made").read_text() == "made"
        assert os.listdir(root / "real") == []
