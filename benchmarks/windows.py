# SPDX-License-Identifier: Apache-2.0
"""Times Windows layers: `python -m benchmarks.windows`, a synthetic layer of 85,000 entries.

Read into nothing, it is set beside the same entries as a POSIX layer with PAX records, in turns; onto a folder and
back, beside that layer onto a directory and back. Processor seconds are those of the reading thread alone.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Sample, timed
from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.model import Change, Content, Entry, Inline, Kind, Link, Posix, Put, Windows
from lamella.changes.whiteouts import PutRecord
from lamella.formats.tar.windows import times
from lamella.formats.tar.writer import TarWriter
from lamella.layers.tar.source import tar_changes
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.layers.windows.transforms import default_security
from lamella.paths import LayerPath

ENTRIES = 85_000
ROUNDS = 5
BUFFER = 1 << 20
START = 1_600_000_000_000_000_000


def entries(seed: int = 1) -> Iterator[Change]:
    """Yield changes of the shape of a server's base layer: a component store, and hard links to it from elsewhere."""
    rng = random.Random(seed)
    security = default_security()
    noise = rng.randbytes(1 << 20)

    def facet(attributes: int, descriptor: bytes | None) -> tuple[Posix, Windows]:
        made = START + rng.randrange(10**8) * 10**9 + rng.randrange(10**7) * 100
        used = made + rng.randrange(10**15) // 100 * 100
        changed = made + rng.randrange(10**15) // 100 * 100
        return Posix(0o644, 0, 0, made), Windows(attributes, made, used, made, changed, descriptor)

    def directory(path: str) -> Put:
        posix, windows = facet(0x10, security.directory)
        return Put(Entry(LayerPath(path), Kind.DIRECTORY, posix, 0, "", windows), None)

    for path in ("Files", "Files/Windows", "Files/Windows/System32", "Files/Windows/WinSxS"):
        yield directory(path)
    count = 4
    number = 0
    while count < ENTRIES:
        component = f"Files/Windows/WinSxS/amd64_microsoft-windows-component-{rng.getrandbits(64):016x}_10.0.1"
        yield directory(component)
        count += 1
        for _ in range(rng.randrange(1, 9)):
            number += 1
            path = LayerPath(f"{component}/module{number:06}.dll")
            size = min(int(rng.expovariate(1 / 3000)), len(noise) // 2)
            at = rng.randrange(len(noise) // 2)
            posix, windows = facet(0x20, security.file)
            yield Put(Entry(path, Kind.FILE, posix, size, "", windows), Inline(noise[at : at + size]))
            count += 1
            if rng.random() < 0.3:
                yield Link(LayerPath(f"Files/Windows/System32/module{number:06}.dll"), path)
                count += 1


class Nothing:
    """Takes all changes and keeps none."""

    view = None
    layered = True

    def put(self, entry: Entry, content: Content | None) -> None: ...
    def link(self, path: LayerPath, target: LayerPath) -> None: ...
    def stream(self, path: LayerPath, name: str, content: Content) -> None: ...
    def whiteout(self, path: LayerPath) -> None: ...
    def opaque(self, path: LayerPath, record: PutRecord) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


def write_posix(path: Path) -> None:
    """Write the entries as a POSIX layer with the records that GNU tar's --format=posix gives: the three times."""
    flags = {Kind.FILE: "0", Kind.DIRECTORY: "5"}
    facets: dict[LayerPath, Windows] = {}
    with path.open("wb") as file:
        writer = TarWriter(file.write)
        for change in entries():
            assert isinstance(change, (Put, Link))
            content, size, linkname, flag = None, 0, "", "1"
            if isinstance(change, Link):
                name, linkname = change.path, change.target
                windows = facets[linkname]
            else:
                name, content, size, flag = (
                    change.entry.path,
                    change.content,
                    change.entry.size,
                    flags[change.entry.kind],
                )
                assert change.entry.windows is not None
                windows = facets[name] = change.entry.windows
            times_of = times(windows.access_time, windows.change_time)
            mtime = windows.write_time or 0
            writer.member(
                name, flag, mode=0o644, uid=0, gid=0, size=size, mtime=mtime, linkname=linkname, records=times_of
            )
            for chunk in content.chunks() if content is not None else ():
                writer.data(chunk)
            writer.finish_member()
        writer.close()


def write_windows(path: Path) -> None:
    with path.open("wb") as file:
        apply(entries(), WindowsTarSink(file.write))


def read(path: Path, changes: Callable[[Callable[[], memoryview]], Source]) -> float:
    """Read a tar into nothing; return the processor seconds that took."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(BUFFER)

        def following() -> memoryview:
            return memoryview(buffer)[: file.readinto(buffer)]

        start = time.thread_time()
        apply(changes(following), Nothing())
        return time.thread_time() - start


def reading(posix: Path, windows: Path, rounds: int) -> None:
    pairs = [(read(posix, tar_changes), read(windows, windows_tar_changes)) for _ in range(rounds)]
    for name, place in (("POSIX with PAX", 0), ("Windows", 1)):
        print(f"read, {name:28}{statistics.median(pair[place] for pair in pairs):8.2f} s")
    print(f"read, ratio of pairs            {statistics.median(two / one for one, two in pairs):8.2f}  (bar 1.3)")


def folders(posix: Path, windows: Path, work: Path) -> None:
    program = [sys.executable, "-m", "lamella"]
    for name, layer, kind in (("POSIX", posix, "directory"), ("Windows", windows, "windows")):
        folder, back = work / f"folder-{kind}", work / "back.tar"
        there = timed([[*program, "apply", "-q", str(layer), str(folder), "--as", kind]], work / "log")
        again = timed(
            [[*program, "diff", "-q", str(folder), "-o", str(back), "--as", kind, "--compress", "none"]], work / "log"
        )
        show(f"{name} layer onto a folder", there)
        show(f"{name} folder to a layer", again)
        if kind == "windows" and back.read_bytes() != layer.read_bytes():
            raise SystemExit("the layer did not come back as it was")
        shutil.rmtree(folder)
        back.unlink()


def show(what: str, sample: Sample) -> None:
    print(f"{what:34}{sample.wall:6.2f} s, processor {sample.cpu:5.2f} s, peak {sample.peak_kib / 1024:4.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-folders", action="store_true")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="lamella-windows-", dir="/dev/shm"))
    try:
        posix, windows = work / "posix.tar", work / "windows.tar"
        write_posix(posix)
        write_windows(windows)
        print(f"{ENTRIES} entries; tars of {posix.stat().st_size / 1e6:.0f} and {windows.stat().st_size / 1e6:.0f} MB")
        reading(posix, windows, arguments.rounds)
        if not arguments.no_folders:
            folders(posix, windows, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
