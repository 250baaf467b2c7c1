# SPDX-License-Identifier: Apache-2.0
"""The work that is measured, and who does it.

Every contender reads the same blobs or trees and writes to the same file system, into a directory that did not exist
before; removing it again is not timed. bsdtar and GNU tar check no digest and know no whiteout, umoci also
records a digest of every file, containerd works in a daemon, with unpigz where that is installed.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.containerd import Containerd
from benchmarks.corpus.layouts import layers_of
from benchmarks.measure import Contender, Sample, timed

LAMELLA = "lamella"
# The command line of the package that runs this.
LAMELLA_COMMAND = str(Path(sys.executable).with_name("lamella"))
TAR_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Bar:
    """How much of a peer's wall time (or of its output's size) Lamella may take at most; or seconds, without a peer."""

    peer: str
    most: float
    of: str = "time"
    who: str = LAMELLA


@dataclass(slots=True)
class Workload:
    """One piece of work and its contenders, the first of which is Lamella."""

    name: str
    contenders: list[Contender]
    bars: tuple[Bar, ...] = ()
    rounds: int | None = None
    """How often each contender works, if not as often as all others."""


@dataclass(slots=True)
class Bench:
    """Where the work is done, and the contenders that this machine has."""

    work: Path
    containerd: Containerd | None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def fresh(self) -> Path:
        """Return a path on the measured file system that does not exist."""
        return self.work / f"out{next(self._numbers)}"

    def process(
        self, name: str, commands: Callable[[Path], Sequence[Sequence[str]]], *, makes_target: bool, sized: bool = False
    ) -> Contender | None:
        """Return a contender that runs commands with a fresh target, or None where its program is missing."""
        if shutil.which(commands(self.work)[0][0]) is None:
            return None
        target = self.fresh()

        def before() -> None:
            if not makes_target:
                target.mkdir()

        def after() -> None:
            subprocess.run(["rm", "-rf", str(target)], check=True)

        def work() -> Sample:
            return timed(commands(target), self.work / "log")

        return Contender(name, work, before, after, (lambda: target.stat().st_size) if sized else (lambda: None))


def present(*contenders: Contender | None) -> list[Contender]:
    """Return the contenders that this machine has."""
    return [contender for contender in contenders if contender is not None]


def lamella_unpack(bench: Bench, layout: Path, tag: str = "gzip") -> Contender | None:
    """Lamella's part of unpacking an image."""
    return bench.process(
        LAMELLA, lambda to: [[LAMELLA_COMMAND, "unpack", "--quiet", f"oci:{layout}:{tag}", str(to)]], makes_target=True
    )


def unpack(bench: Bench, layout: Path, tag: str, bars: tuple[Bar, ...], *, native: bool = False) -> Workload:
    """An image to a root file system."""
    blobs = [str(blob) for blob in layers_of(layout, tag)]
    flag = {"gzip": "-xzpf", "zstd": "-xpf"}[tag]
    contenders = present(
        lamella_unpack(bench, layout, tag),
        bench.process(
            "bsdtar", lambda to: [["bsdtar", "-xpf", blob, "-C", str(to)] for blob in blobs], makes_target=False
        ),
        bench.process(
            "GNU tar",
            lambda to: [["tar", "--numeric-owner", *_zstd(tag), flag, blob, "-C", str(to)] for blob in blobs],
            makes_target=False,
        ),
        # umoci 0.4 reads no zstd.
        bench.process(
            "umoci", lambda to: [["umoci", "unpack", "--image", f"{layout}:{tag}", str(to)]], makes_target=True
        )
        if tag == "gzip"
        else None,
    )
    if bench.containerd is not None:
        contenders.append(_containerd_unpack(bench.containerd, layout, tag, "overlayfs", "containerd"))
        if native:
            contenders.append(_containerd_unpack(bench.containerd, layout, tag, "native", "containerd native"))
    return Workload(f"unpack {layout.name} {tag}", contenders, bars)


def _zstd(tag: str) -> list[str]:
    return ["--zstd"] if tag == "zstd" else []


def _containerd_unpack(daemon: Containerd, layout: Path, tag: str, snapshotter: str, name: str) -> Contender:
    return Contender(
        name,
        work=lambda: daemon.unpack(layout, tag, snapshotter),
        before=lambda: daemon.import_layout(layout),
        after=lambda: daemon.remove_snapshots(snapshotter),
    )


def fill_from(layout: Path, tag: str) -> Callable[[Path], None]:
    """Return a function that lays an image's files out in a directory, without the whiteouts."""

    def fill(place: Path) -> None:
        for blob in layers_of(layout, tag):
            subprocess.run(["tar", "--numeric-owner", "-xzpf", str(blob), "-C", str(place)], check=True)
        subprocess.run(["find", str(place), "-name", ".wh.*", "-delete"], check=True)

    return fill


def change(place: Path) -> None:
    """Change a tree as a build step would: of every 300 files one is removed, one appended to, one has a new mode."""
    files = sorted(
        entry.path
        for folder, _, _ in os.walk(place)
        for entry in os.scandir(folder)
        if entry.is_file(follow_symlinks=False)
    )
    for number, path in enumerate(files):
        match number % 300:
            case 0:
                os.unlink(path)
            case 100:
                with open(path, "ab") as stream:
                    stream.write(b"changed\n")
            case 200:
                os.chmod(path, os.stat(path).st_mode ^ 0o010)
            case _:
                pass
    new = place / "opt/new"
    new.mkdir(parents=True)
    for number in range(200):
        (new / f"file{number}").write_text(json.dumps(list(range(number * 10))))


def pack(bench: Bench, tree: Path, snapshot: str) -> Iterator[Workload]:
    """A root file system to one layer's blob: as a tar, as gzip by default, as gzip that is fast."""

    def lamella(name: str, *options: str) -> Contender | None:
        return bench.process(
            name,
            lambda to: [[LAMELLA_COMMAND, "diff", "--quiet", str(tree), "-o", str(to), *options]],
            makes_target=True,
            sized=True,
        )

    def tar(name: str, *command: str) -> Contender | None:
        return bench.process(
            name, lambda to: [[*command, "-f", str(to), "-C", str(tree), "."]], makes_target=True, sized=True
        )

    yield Workload(
        "pack tar",
        present(
            lamella(LAMELLA, "--compress", "none"),
            tar("bsdtar", "bsdtar", "--format=pax", "-c"),
            tar("GNU tar", "tar", "--format=pax", "-c"),
            *_containerd_diff(bench.containerd, snapshot, None, TAR_LAYER),
        ),
        (Bar("containerd", 0.7),),
    )
    yield Workload(
        "pack gzip",
        present(
            lamella(LAMELLA, "--compress", "gzip"),
            lamella("lamella fast", "--compress", "gzip", "--level", "4"),
            tar("bsdtar", "bsdtar", "--format=pax", "-cz"),
            tar("GNU tar", "tar", "--format=pax", "-cz"),
            *_containerd_diff(bench.containerd, snapshot, None, f"{TAR_LAYER}+gzip"),
        ),
        (
            Bar("containerd", 0.5),
            Bar("containerd", 1.01, of="size"),
            Bar("containerd", 0.3, who="lamella fast"),
            Bar("containerd", 1.08, of="size", who="lamella fast"),
        ),
    )


def diff(bench: Bench, lower: Path, upper: Path) -> Workload:
    """Two nearly equal trees to the layer between them: mostly the cost of the walk."""
    return Workload(
        "diff",
        present(
            bench.process(
                LAMELLA,
                lambda to: [
                    [LAMELLA_COMMAND, "diff", "--quiet", str(lower), str(upper), "-o", str(to), "--compress", "gzip"]
                ],
                makes_target=True,
                sized=True,
            ),
            *_containerd_diff(bench.containerd, "upper", "lower", f"{TAR_LAYER}+gzip"),
        ),
        (Bar("containerd", 0.4),),
    )


def _containerd_diff(daemon: Containerd | None, name: str, against: str | None, media_type: str) -> list[Contender]:
    if daemon is None:
        return []
    size = 0

    def work() -> Sample:
        nonlocal size
        sample, size = daemon.diff(name, against, media_type)
        return sample

    return [Contender("containerd", work, size=lambda: size)]


def start(bench: Bench) -> Workload:
    """What every call pays before it does anything."""
    python = sys.executable

    def contender(name: str, *command: str) -> Contender | None:
        return bench.process(name, lambda _: [command], makes_target=True)

    return Workload(
        "start",
        present(
            contender("lamella --help", LAMELLA_COMMAND, "--help"),
            contender("import lamella", python, "-I", "-c", "import lamella"),
            contender("bare python", python, "-I", "-c", "pass"),
        ),
        rounds=15,
    )
