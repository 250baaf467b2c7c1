# SPDX-License-Identifier: Apache-2.0
"""Images that grow by one measure alone: entries in a layer, or layers in an image."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus.layouts import Layout
from benchmarks.corpus.packages import DAY
from benchmarks.workloads import Bench, Workload, lamella_unpack, present

ENTRIES = (10_000, 100_000, 1_000_000)
LAYERS = 127
PER_DIRECTORY = 100


def _members(first: int, count: int) -> Iterator[bytes]:
    """Yield small files, a hundred to a directory, as the blocks of a tar."""
    for number in range(first, first + count):
        folder, place = divmod(number, PER_DIRECTORY)
        if place == 0:
            member = tarfile.TarInfo(f"srv/{folder // 100:03}/{folder:06}")
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, DAY
        else:
            member = tarfile.TarInfo(f"srv/{folder // 100:03}/{folder:06}/file{number:08}.txt")
            member.mode, member.mtime, member.size = 0o644, DAY + number % 1000, 100
        yield member.tobuf(tarfile.PAX_FORMAT) + (f"{number:099}\n".encode().ljust(512, b"\0") if place else b"")


def write_image(layout: Path, layers: int, entries: int) -> None:
    """Write an image of so many layers with so many entries each, as gzip."""
    image = Layout(layout)
    descriptors, diff_ids = [], []
    for number in range(layers):
        blob = layout / "layer"
        plain = hashlib.sha256()
        with gzip.GzipFile(blob, "wb", compresslevel=1, mtime=0) as out:
            buffered = io.BufferedWriter(out, 1 << 20)
            for block in itertools.chain(_members(number * entries, entries), [bytes(1024)]):
                plain.update(block)
                buffered.write(block)
            buffered.flush()
            buffered.detach()
        descriptors.append(image.add_blob("application/vnd.oci.image.layer.v1.tar+gzip", blob))
        diff_ids.append(f"sha256:{plain.hexdigest()}")
    image.write_image(descriptors, diff_ids, "gzip")


def workloads(bench: Bench, most_entries: int) -> Iterator[tuple[Workload, int]]:
    """Yield the work on each image with the number of its entries; the image is removed when the next is asked for."""
    sizes = [(1, entries) for entries in ENTRIES if entries <= most_entries]
    for layers, entries in (*sizes, (LAYERS, 1_000)):
        layout = bench.fresh()
        write_image(layout, layers, entries)
        rounds = 1 if entries > 100_000 else 3
        yield (
            Workload(f"growth {layers} x {entries:,}", present(lamella_unpack(bench, layout)), rounds=rounds),
            layers * entries,
        )
        shutil.rmtree(layout)
