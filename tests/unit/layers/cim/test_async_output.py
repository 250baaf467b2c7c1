# SPDX-License-Identifier: Apache-2.0
"""The writer thread for region files: reading buffered bytes, and reporting errors."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.unit.layers.cim.test_layer import contents, file, write

from lamella.changes.model import Change
from lamella.errors import Exhausted
from lamella.formats.cim.contents import ROOM, Region
from lamella.formats.cim.structures import RegionType
from lamella.layers.cim.async_output import RegionOutput, WriteBehind


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lamella-cim"]


def test_contents_of_many_buffers_are_read_back_and_each_is_kept_once(tmp_path: Path) -> None:
    rng = random.Random(5)
    pool = [rng.randbytes(rng.choice((10, 4000, 4096, 16_000, 16_384, 40_000, 1_200_000))) for _ in range(150)]
    order = [pool[number] if number < 150 else rng.choice(pool) for number in range(400)]
    layer = write(tmp_path / "x.cim", [file(f"f{number}", data) for number, data in enumerate(order)])
    assert {f"f{number}": data for number, data in enumerate(order)} == contents(layer)
    stored = sum(path.stat().st_size for path in tmp_path.glob("region_*_[12]"))
    assert sum(map(len, pool)) < stored < sum(map(len, pool)) + len(pool) * 4096 + 8192
    assert threads() == []


def test_buffered_bytes_are_read_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    whole = RegionOutput.append

    def held(self: RegionOutput, data: memoryview) -> None:
        may_write.wait()
        whole(self, data)

    monkeypatch.setattr(RegionOutput, "append", held)
    behind = WriteBehind()
    output = RegionOutput(tmp_path / "region", behind)
    region = Region(RegionType.SMALL_DATA, 0, output)
    places = [region.put(bytes([number]) * 700_000) & (1 << 48) - 1 for number in range(4)]
    assert os.stat(tmp_path / "region").st_size == 0
    assert region.read(places[3], 5) == b"\3" * 5
    within = -places[1] % ROOM
    assert region.read(places[0], 9) == b"\0" * 9
    threading.Timer(0.05, may_write.set).start()
    assert region.read(places[1] + within - 3, 6) == b"\1" * 6  # in two buffers, which takes their being written
    region.flush()
    behind.stop()
    output.close()
    assert (tmp_path / "region").read_bytes()[places[2] :][:700_000] == b"\2" * 700_000


def test_truncated_content_is_removed_from_the_file(tmp_path: Path) -> None:
    behind = WriteBehind()
    output = RegionOutput(tmp_path / "region", behind)
    region = Region(RegionType.DATA, 0, output)
    region.put(b"a" * 1_500_000)
    before = region.size
    for size in (10, 3_000_000):
        region.put(b"b" * size)
        region.truncate(before)
    at = region.put(b"c" * 10) & (1 << 48) - 1
    region.flush()
    behind.drain()
    behind.stop()
    output.close()
    raw = (tmp_path / "region").read_bytes()
    assert len(raw) == at + 10
    assert raw[4096:1_504_096] == b"a" * 1_500_000
    assert raw[at:] == b"c" * 10
    assert b"b" not in raw


@pytest.mark.parametrize("size", [100, 1000])
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    real, written = os.write, 0

    def write_some(descriptor: int, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > size * 10_000:
            raise OSError(errno.ENOSPC, "no space left on device")
        return real(descriptor, data[: 1 + len(data) // 2])

    def changes() -> Iterable[Change]:
        for number in range(400):
            yield file(f"f{number}", number.to_bytes(2, "big") * 20_000)
            time.sleep(0)

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(Exhausted, match="no space left"):
        write(tmp_path / "x.cim", changes())
    assert list(tmp_path.iterdir()) == []
    assert threads() == []
