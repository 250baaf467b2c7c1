# SPDX-License-Identifier: Apache-2.0
"""Times composite images (CIM): `python -m benchmarks.cim`, a synthetic Windows layer written, opened, listed.

The floor is what reading the blob takes by itself: decompressing it, and hashing it and its tar. Memory is that of the
larger of the two processes that write an image.
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

from benchmarks.measure import Contender, Sample, take_turns, timed
from lamella.changes.apply import apply
from lamella.changes.model import Buffer, Change, Entry, Inline, Kind, Link, Put, Windows
from lamella.changes.tree import walk
from lamella.formats.ntfs.basic_information import ARCHIVE, DIRECTORY
from lamella.formats.regf import MemoryKey, encode_hive
from lamella.layers.cim.host_files import CONFIG, HIVES
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.tree import CimTree
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.paths import LayerPath, join
from lamella.streams.blob_reader import BlobReader
from lamella.streams.blob_writer import BlobWriter

ENTRIES = 85_000
BYTES = 1_200_000_000
PER_ENTRY = 25e-6
FILES_IN_DIRECTORY = 8
LINKS = 0.1
"""Of the files; many of a Windows base layer have a second name."""
DESCRIPTORS = 40
NOW = 1_683_356_889_123_456_700
LAMELLA = str(Path(sys.executable).with_name("lamella"))


def layer(entries: int, total: int, seed: int = 1) -> Iterator[Change]:
    """Yield a base layer: hives, then directories of the shape of WinSxS with files of all sizes, no two the same."""
    rng = random.Random(seed)
    descriptors = [
        b"\1\0\4\x84" + bytes(8) + bytes(4) + b"\x14\0\0\0" + b"\2\0\x1c\0\1\0\0\0" + b"\0\0\x14\0" + rng.randbytes(20)
        for _ in range(DESCRIPTORS)
    ]
    # A third of it repeats, so that gzip has something to do, as it has with programs.
    pool = b"".join(rng.randbytes(384) + bytes(64) + b"Microsoft Windows " * 11 for _ in range(1 << 14))

    def put(path: LayerPath, data: bytes | None) -> Put:
        made, read, written, changed = (NOW + rng.randrange(10**9) * 100 for _ in range(4))
        attributes = DIRECTORY if data is None else ARCHIVE
        facet = Windows(attributes, made, read, written, changed, rng.choice(descriptors))
        if data is None:
            return Put(Entry(path, Kind.DIRECTORY, None, 0, "", facet), None)
        return Put(Entry(path, Kind.FILE, None, len(data), "", facet), Inline(data))

    made = LayerPath("")
    for name in CONFIG.split("/"):
        made = join(made, name)
        yield put(made, None)
    for name in HIVES:
        yield put(join(made, name), encode_hive(MemoryKey(name)))
    top = LayerPath("Files/Windows/WinSxS")
    yield put(top, None)
    files = round((entries - 12) * FILES_IN_DIRECTORY / (FILES_IN_DIRECTORY + 1))
    sizes = [rng.lognormvariate(8.5, 2) for _ in range(files)]
    scale = total / sum(sizes)
    directory, earlier = top, LayerPath("")
    for number, size in enumerate(sizes):
        if number % FILES_IN_DIRECTORY == 0:
            name = f"amd64_microsoft-windows-{rng.getrandbits(40):010x}_31bf3856ad364e35_10.0.20348.1_none_{number:08x}"
            directory = join(top, name)
            yield put(directory, None)
        path = join(directory, f"component-{number:x}.{rng.choice(('dll', 'mui', 'manifest', 'exe', 'sys'))}")
        if earlier and rng.random() < LINKS:
            yield Link(path, earlier)
            continue
        yield put(path, _content(pool, number, round(size * scale), rng))
        earlier = path


def _content(pool: bytes, number: int, size: int, rng: random.Random) -> bytes:
    data = bytearray(number.to_bytes(8, "little"))
    while len(data) < size:
        start = rng.randrange(len(pool) >> 1)
        data += pool[start : start + size - len(data)]
    return bytes(data[:size])


def write_blob(path: Path, entries: int, total: int) -> None:
    """Write the layer as go-winio's tar, compressed with gzip."""
    with path.open("wb") as file, BlobWriter(file, compression="gzip", level=1) as writer:

        def write(data: Buffer) -> None:
            writer.write(data)

        apply(layer(entries, total), WindowsTarSink(write))
        writer.finish()


def read_blob(path: Path) -> None:
    """Decompress and hash."""
    with BlobReader(path) as reader:
        reader.finish()


def compared(place: Path, blob: Path, rounds: int) -> tuple[Contender, Contender]:
    """Let the floor and the whole work take turns; the last image stays."""
    log, images = place / "log", place / "images"

    def before() -> None:
        shutil.rmtree(images, ignore_errors=True)

    def floor() -> Sample:
        return timed([[sys.executable, "-m", "benchmarks.cim", "--read", str(blob)]], log)

    def whole() -> Sample:
        return timed([[LAMELLA, "-q", "apply", str(blob), str(images / "base.cim"), "--as", "cim"]], log)

    contenders = Contender("floor", floor), Contender("written", whole, before)
    take_turns(contenders, rounds, lambda _: None)
    for contender in contenders:
        if contender.failure is not None:
            sys.exit(contender.failure)
    return contenders


def best(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the median of the wall seconds."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def read_one(image: CimLayer, path: LayerPath) -> None:
    """Open the image and read a file."""
    with CimTree(image) as tree:
        for _ in tree.open(path).chunks():
            pass


def list_all(image: CimLayer) -> int:
    """Return the number of files, each with all its metadata."""
    with CimTree(image) as tree:
        return sum(1 for _ in walk(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--bytes", type=int, default=BYTES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, default=Path("/dev/shm"))  # where all is measured
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blob", type=Path, help="Keep the layer here, and use it where it is there.")
    asked = parser.parse_args()
    if asked.read is not None:
        read_blob(asked.read)
        return
    place = Path(tempfile.mkdtemp(prefix="lamella-cim-", dir=asked.place))
    try:
        blob = asked.blob or place / "layer.tar.gz"
        if not blob.exists():
            write_blob(blob, asked.entries, asked.bytes)
        floor, written = compared(place, blob, asked.rounds)
        few = place / "few.tar.gz"
        write_blob(few, asked.entries // 10, asked.bytes // 10)
        peak = written.peak_mb
        with CimTree(CimLayer(place / "images/base.cim")) as tree:
            one = next(entry.path for entry in _files(tree))
        opening = best(lambda: read_one(CimLayer(place / "images/base.cim"), one), 20)
        listing = best(lambda: list_all(CimLayer(place / "images/base.cim")))
        log = place / "log"
        command = timed([[LAMELLA, "cim", "ls", "-R", str(place / "images/base.cim")]], log).wall
        _, small = compared(place, few, 1)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    bar = 1.1 * floor.wall + asked.entries * PER_ENTRY
    print(f"reading the blob      {floor.wall:8.2f} s {floor.peak_mb:8.0f} MB")
    print(f"writing the image     {written.wall:8.2f} s {peak:8.0f} MB   at most {bar:.2f} s, 150 MB")
    print(f"  processor time      {statistics.median(sample.cpu for sample in written.samples):8.2f} s")
    each = (written.wall - 1.1 * floor.wall) / asked.entries * 1e6
    grown = (peak - small.peak_mb) * 1e6 / (asked.entries - asked.entries // 10)
    print(f"  over 1.1 x reading  {each:8.1f} µs an entry, at most 25; {grown:.0f} bytes an entry, at most 700")
    print(f"opening, one file     {opening * 1e3:8.2f} ms   at most 5")
    print(f"listing all           {listing:8.2f} s    at most 1.5; by the command line {command:.2f} s")


def _files(tree: CimTree) -> Iterator[Entry]:
    return (entry for change in walk(tree) if isinstance(change, Put) and (entry := change.entry).kind is Kind.FILE)


if __name__ == "__main__":
    main()
