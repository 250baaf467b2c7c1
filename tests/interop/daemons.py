# SPDX-License-Identifier: Apache-2.0
"""Lamella and containerd as processes that serve, and ctr to talk to both; an image that can be run."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lamella.changes.model import Change
from lamella.host.mounting import mount_points, unmount
from lamella.operations.layers.write import LayerOptions, write_layer
from lamella.testing.builders import directory, file, symlink, whiteout
from lamella.testing.images import SmallImage, image_of_tars, layout_files, tagged, tar_of

PATIENCE = 30.0

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
    fflush(stdout);
    usleep(500000);
    return 7;
}
"""
"""Says what it finds in the image's file system, changes it, and ends with 7.

Not at once: when a container ends, ctr stops reading what it says, and on a busy machine may not have begun.
"""

CONTAINERD = """\
version = {config}
root = "{where}/root"
state = "{where}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", {disabled}
]
[grpc]
  address = "{where}/socket"
[ttrpc]
  address = "{where}/socket.ttrpc"
"""


@dataclass(frozen=True)
class Release:
    """A containerd of this machine, by its programs."""

    name: str
    """As ``lamella serve --print-containerd-config`` has it."""
    folder: Path | None
    """Where its programs are; None for those that the system has."""

    def __str__(self) -> str:
        return f"containerd {self.name}"

    def program(self, name: str) -> str:
        """The path of one, or its name where the system is to find it."""
        return name if self.folder is None else str(self.folder / name)

    def environment(self) -> dict[str, str]:
        """With the programs where containerd looks for the one that attends to a container."""
        path = os.environ["PATH"]
        return {**os.environ, "PATH": path if self.folder is None else f"{self.folder}{os.pathsep}{path}"}

    @property
    def config(self) -> int:
        """The version of its configuration."""
        return 2 if self.name == "1.7" else 3


FIRST = Release("1.7", None)
"""What Debian's stable release has."""
SECOND = Release("2", Path(__file__).parents[2] / ".cache/containerd2/usr/bin")
"""What ``.ci/containerd2`` fetches."""


class Ctr:
    """Containerd's client, with an address and a namespace."""

    def __init__(self, address: Path, namespace: str = "tests", release: Release = FIRST) -> None:
        self.address = address
        self.namespace = namespace
        self.release = release
        self._call = [release.program("ctr"), "--address", str(address), "--namespace", namespace]

    def within(self, namespace: str) -> Ctr:
        """The same with another namespace."""
        return Ctr(self.address, namespace, self.release)

    def __call__(self, *words: str | Path, code: int = 0, stdin: bytes = b"") -> str:
        """What it says on standard output, once it has ended with ``code``."""
        return self.raw(*words, code=code, stdin=stdin).decode()

    def raw(self, *words: str | Path, code: int = 0, stdin: bytes = b"") -> bytes:
        """See `__call__`."""
        done = subprocess.run([*self._call, *words], input=stdin, capture_output=True, timeout=60, check=False)
        assert code == done.returncode, f"ctr {words}: {done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout

    def told(self, *words: str | Path) -> str:
        """What it says on standard error, once it has ended well."""
        done = subprocess.run(
            [*self._call, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"ctr {words}: {done.stderr.decode()}"
        return done.stderr.decode()

    def refused(self, *words: str | Path) -> str:
        """What it says when it fails."""
        said = self.said(*words)
        assert said, f"ctr {words} did not fail"
        return said

    def said(self, *words: str | Path) -> str:
        """What it says when it fails, and nothing when it does not."""
        done = subprocess.run(
            [*self._call, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
        return done.stderr.decode() if done.returncode else ""

    def digest(self, name: str) -> str:
        """The digest of what an image's name stands for."""
        return next(row[2] for row in self.table("images", "ls", f"name=={name}"))

    def table(self, *words: str | Path) -> list[list[str]]:
        """The words of each line but the first."""
        return [line.split() for line in self(*words).splitlines()[1:]]


@contextmanager
def folder() -> Iterator[Path]:
    """A new directory whose path is short enough for sockets in it, gone with all that is mounted in it."""
    where = Path(tempfile.mkdtemp(prefix="lamella-"))
    try:
        yield where
    finally:
        for point in reversed(mount_points(str(where))):
            unmount(point, lazy=True)
        shutil.rmtree(where)


@contextmanager
def lamella_serving(where: Path, *options: str | Path, sockets: int = 1) -> Iterator[None]:
    """``lamella serve``, until the block ends; its store is ``where/store``, its log ``where/lamella.log``."""
    addresses = [Path(word) for word in options if str(word).endswith(".sock")][:sockets]
    command = [sys.executable, "-m", "lamella", "--root", where / "store", "serve", *options]
    with (where / "lamella.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            for address in addresses:
                _await(address, process, where / "lamella.log")
            yield
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()  # or leaving the block would wait for it for ever
                raise


@contextmanager
def containerd_running(where: Path, further: str = "", disabled: str = "", release: Release = FIRST) -> Iterator[Ctr]:
    """A containerd of its own folder, until the block ends; its log is ``where/containerd.log``."""
    where.mkdir()
    config = where / "config.toml"
    config.write_text(CONTAINERD.format(where=where, disabled=disabled, config=release.config) + further)
    log_path = where / "containerd.log"
    # Containerd looks there for the program that attends to a container.
    path = {**os.environ, "PATH": f"{release.folder or ''}{os.pathsep if release.folder else ''}{os.environ['PATH']}"}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [release.program("containerd"), "--config", config], env=path, stdout=log, stderr=log
        )
    with process:
        try:
            _await(where / "socket", process, log_path)
            yield Ctr(where / "socket", release=release)
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _await(address: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(address))
            except OSError:
                pass
            else:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def small_layers(program: bytes) -> list[list[Change]]:
    """Two layers: the second removes what the first has, and goes through a link of it."""
    return [
        [
            *(directory(name) for name in ("", "bin", "proc", "sys", "dev", "etc", "real")),
            *(file("bin/it", program, mode=0o755), file("gone")),
            *(file("etc/passwd", b"root:x:0:0::/:/bin/it\n"), symlink("link", "real")),
        ],
        [whiteout("gone"), file("link/lower", b"lower")],
    ]


def runnable(program: bytes = b"") -> SmallImage:
    """The image of `small_layers`, which runs ``program``."""
    tars = []
    for layer in small_layers(program):
        tar = io.BytesIO()
        write_layer(layer, tar, LayerOptions(compression="none"))
        tars.append(tar.getvalue())
    platform = f"linux/{'arm64' if os.uname().machine == 'aarch64' else 'amd64'}"
    return image_of_tars(tars, platform, Cmd=["/bin/it"], Env=["PATH=/bin"])


def archive(image: SmallImage, tag: str) -> bytes:
    """The image as an archive that can be imported."""
    return tar_of(layout_files([tagged(image.descriptor, tag)], image.blobs))


def compiled(gcc: str, where: Path) -> bytes:
    """`PROGRAM`, which needs no libraries."""
    source, made = where / "program.c", where / "program"
    source.write_text(PROGRAM)
    subprocess.run([gcc, "-static", "-o", made, source], check=True)
    return made.read_bytes()
