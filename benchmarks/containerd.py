# SPDX-License-Identifier: Apache-2.0
"""A containerd of the benchmark's own: root, state and socket in one folder, nothing but the two snapshotters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.measure import CommandFailed, Sample, timed

# Garbage collection would remove, in the middle of a measurement, what the last one left.
CONFIG = """\
version = 2
root = "{where}/root"
state = "{where}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{where}/socket"
[ttrpc]
  address = "{where}/socket.ttrpc"
[plugins."io.containerd.gc.v1.scheduler"]
  schedule_delay = "24h"
  startup_delay = "24h"
  deletion_threshold = 0
  mutation_threshold = 1000000000
"""


class Containerd:
    """A running containerd; leaving the block stops it and removes its folder."""

    def __init__(self, where: Path, further: str = "") -> None:
        """``further`` is added to its configuration."""
        self._where = where
        self._further = further
        self._log = where / "ctr.log"
        self._content = where / "root/io.containerd.content.v1.content/blobs/sha256"
        self._ctr = ("ctr", "--address", str(where / "socket"), "--namespace", "bench")
        self._daemon: subprocess.Popen[bytes] | None = None
        self._imported: set[Path] = set()

    def __enter__(self) -> Self:
        self._where.mkdir(parents=True)
        config = self._where / "config.toml"
        config.write_text(CONFIG.format(where=self._where) + self._further)
        with (self._where / "containerd.log").open("wb") as log:
            self._daemon = subprocess.Popen(["containerd", "--config", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while subprocess.run([*self._ctr, "version"], capture_output=True, check=False).returncode:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                lines = (self._where / "containerd.log").read_text().splitlines()
                self.__exit__(None, None, None)
                raise RuntimeError(f"containerd did not start: {lines[-1:]}")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            try:
                self._daemon.wait(10)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        for line in Path("/proc/self/mounts").read_text().splitlines():
            target = line.split()[1]
            if target.startswith(f"{self._where}/"):
                subprocess.run(["umount", "-l", target], check=False)
        shutil.rmtree(self._where, ignore_errors=True)

    def _call(self, *arguments: str) -> str:
        done = subprocess.run([*self._ctr, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _timed(self, *arguments: str, before_it: tuple[str, ...] = ()) -> Sample:
        """Time one call; the memory and the processor time are the daemon's, which does the work."""
        daemon = Path(f"/proc/{self._daemon.pid if self._daemon else 0}")
        (daemon / "clear_refs").write_text("5")  # resets the daemon's high-water mark
        before = _cpu_seconds(daemon)
        sample = timed([[*before_it, *self._ctr, *arguments]], self._log)
        peak = next(int(line.split()[1]) for line in (daemon / "status").open() if line.startswith("VmHWM"))
        return Sample(sample.wall, sample.cpu + _cpu_seconds(daemon) - before, peak)

    def import_layout(self, layout: Path) -> None:
        """Take an OCI layout's images into the content store, once."""
        if layout in self._imported:
            return
        with subprocess.Popen(["tar", "-C", str(layout), "-c", "oci-layout", "index.json", "blobs"], stdout=-1) as tar:
            subprocess.run(
                [*self._ctr, "images", "import", "--local", "--no-unpack", "--all-platforms", "--base-name", "b", "-"],
                stdin=tar.stdout,
                capture_output=True,
                check=True,
            )
        self._imported.add(layout)

    def take_archive(self, archive: Path) -> Sample:
        """Time the import of an archive, nothing unpacked."""
        return self._timed("images", "import", "--local", "--no-unpack", "--all-platforms", str(archive))

    def forget(self, name: str) -> None:
        """Remove an image and all blobs, which no collection does here."""
        self._call("images", "rm", name)
        for digest in self._blobs():
            self._call("content", "rm", digest)
            (self._content / digest.removeprefix("sha256:")).unlink(missing_ok=True)
        self._imported.clear()

    def unpack(self, layout: Path, tag: str, snapshotter: str) -> Sample:
        """Time the unpacking of an image that was imported."""
        digest = manifest_digest(layout, tag)
        return self._timed("snapshots", "--snapshotter", snapshotter, "unpack", "--snapshotter", snapshotter, digest)

    def remove_snapshots(self, snapshotter: str) -> None:
        """Remove all snapshots, the youngest first."""
        rows = [line.split() for line in self._call("snapshots", "--snapshotter", snapshotter, "ls").splitlines()[1:]]
        parents = {row[0]: row[1] if len(row) == 3 else None for row in rows}
        while parents:
            for leaf in set(parents) - set(parents.values()):
                self._call("snapshots", "--snapshotter", snapshotter, "rm", leaf)
                del parents[leaf]

    def commit_tree(self, name: str, fill: Callable[[Path], None]) -> Path:
        """Make a snapshot of the native kind, filled by the function, and return where its files are."""
        active = f"{name}-active"
        self._call("snapshots", "--snapshotter", "native", "prepare", active)
        mounts = self._call("snapshots", "--snapshotter", "native", "mounts", "/target", active)
        (place,) = (Path(word) for word in mounts.split() if word.startswith(str(self._where)))
        fill(place)
        self._call("snapshots", "--snapshotter", "native", "commit", name, active)
        return place

    def diff(self, name: str, against: str | None, media_type: str) -> tuple[Sample, int]:
        """Time the making of a layer blob, against another snapshot or from nothing; return its size too."""
        before = self._blobs()
        order = (name,) if against is None else (against, name)
        arguments = ("snapshots", "--snapshotter", "native", "diff", "--media-type", media_type, "--keep", *order)
        # ctr goes on to print the whole blob, which is not what is compared: it stops where that can't be written.
        sample = self._timed(*arguments, before_it=("sh", "-c", '"$@" > /dev/full || :', "sh"))
        made = self._blobs().items() - before.items()
        for digest, _ in made:
            self._call("content", "rm", digest)
            (self._content / digest.removeprefix("sha256:")).unlink(missing_ok=True)
        if not made:
            raise CommandFailed(f"ctr snapshots diff: {self._log.read_text().strip()}")
        return sample, sum(size for _, size in made)

    def _blobs(self) -> dict[str, int]:
        if not self._content.exists():
            return {}
        return {f"sha256:{path.name}": path.stat().st_size for path in self._content.iterdir()}


def manifest_digest(layout: Path, tag: str) -> str:
    """Return the digest of the manifest that a layout gives a tag to."""
    for manifest in json.loads((layout / "index.json").read_text())["manifests"]:
        if manifest["annotations"]["org.opencontainers.image.ref.name"] == tag:
            return str(manifest["digest"])
    raise LookupError(f"{layout} has no image {tag}")


def _cpu_seconds(process: Path) -> float:
    """Return the processor time of a process and of its children that have ended, such as unpigz."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
