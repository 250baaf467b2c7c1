# SPDX-License-Identifier: Apache-2.0
"""Deep or slow Windows layers are accepted or refused in linear time."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.layers.windows.test_tar import file_at, windows, write

from lamella.changes.model import Change, Entry, Inline, Kind, Put, Whiteout
from lamella.cli.main import run
from lamella.formats.cim.record_tables import Directories
from lamella.layers.cim import host_files
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.sink import CimSink
from lamella.layers.directory.dirfd_cache import remove_tree
from lamella.layers.overlay_view import Listings
from lamella.layers.stack import LayerStack
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.sink import WindowsSink
from lamella.operations.layers.apply import ApplyOptions, apply_blob
from lamella.operations.layers.diff import DiffOptions, diff
from lamella.paths import LayerPath
from lamella.testing.images import image_of_tars, tagged, write_layout

DEEP = "Files/" + "d/" * 4000 + "file"


def folder(path: str) -> Put:
    return Put(Entry(LayerPath(path), Kind.DIRECTORY, None, 0, "", windows(0x10)), None)


class TestAFileBelow4000Directories:
    @pytest.fixture
    def blob(self, tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / "deep.tar"
        path.write_bytes(write([file_at(DEEP, b"deep")])[0])
        yield path
        # Too deep for shutil.
        parent = os.open(tmp_path, os.O_RDONLY)
        for name in os.listdir(tmp_path):
            remove_tree(parent, name)
        os.close(parent)

    @pytest.mark.parametrize("parents", [0, 1])
    def test_survives_a_folder_byte_for_byte(self, blob: Path, tmp_path: Path, parents: int) -> None:
        below = [tmp_path / "base"] * parents
        (tmp_path / "base.tar").write_bytes(write([folder("Files")])[0])
        for place in below:
            apply_blob(tmp_path / "base.tar", place, ApplyOptions(kind="windows"))
        apply_blob(blob, tmp_path / "layer", ApplyOptions(kind="windows", parents=below))
        diff(None, tmp_path / "layer", tmp_path / "again.tar", DiffOptions(kind="windows", compression="none"))
        assert run(["-q", "ls", f"windows:{tmp_path}/layer::{DEEP}"]) == 0
        assert blob.read_bytes() == (tmp_path / "again.tar").read_bytes()

    def test_is_found_in_a_view_and_flattened(self, blob: Path, tmp_path: Path) -> None:
        image = image_of_tars([blob.read_bytes()], "windows/amd64")
        write_layout(str(tmp_path / "images"), [tagged(image.descriptor, "v")], image.blobs)
        name, platform = f"oci:{tmp_path}/images:v", ["--platform", "windows/amd64"]
        assert run(["-q", "ls", f"{name}::{DEEP}", *platform]) == 0
        assert run(["-q", "flatten", name, f"oci:{tmp_path}/images:flat", *platform]) == 0


def hiding(tmp_path: Path, count: int) -> float:
    """The processor seconds of hiding that many directories of the parent's utility VM, without those of the disk."""
    base, above = WindowsLayer(tmp_path / f"base{count}"), WindowsLayer(tmp_path / f"above{count}")
    changes: list[Change] = [*map(folder, ("Files", "UtilityVM", "UtilityVM/Files"))]
    for number in range(count):
        changes.append(folder(f"UtilityVM/Files/d{number}"))
        changes.append(file_at(f"UtilityVM/Files/d{number}/a", b""))
    from lamella.changes.apply import apply

    apply(changes, WindowsSink(base))
    sink = WindowsSink(above, parents=LayerStack([base]))
    try:
        sink.whiteout(LayerPath("UtilityVM/Files/d0"))
        gc.collect()
        start = time.thread_time()
        for number in range(1, count):
            sink.whiteout(LayerPath(f"UtilityVM/Files/d{number}"))
        return time.thread_time() - start
    finally:
        sink.abort()


def test_hiding_directories_of_the_utility_vm_takes_linear_time(tmp_path: Path) -> None:
    short, long = 1000, 4000
    assert hiding(tmp_path, long) < 8 * hiding(tmp_path, short) + 0.3


def test_files_put_into_many_directories_in_turn_do_not_reload_their_names() -> None:
    taken = 0

    def fold(name: str) -> str:
        nonlocal taken
        taken += 1
        return name

    directories = Directories(fold, lambda directory: {})
    count, rounds = 700, 40
    for directory in range(count):
        directories.add(directory)
    for number in range(rounds):
        for directory in range(count):
            directories.changing(directory)[f"{number}"] = f"{number}", directory
    assert taken <= 4 * count * rounds
    assert [directories.in_order(directory)[0] for directory in (0, count - 1)] == [sorted(map(str, range(rounds)))] * 2


def test_directories_of_an_image_read_in_turn_are_parsed_a_few_times_only() -> None:
    listings: Listings[dict[str, int]] = Listings()
    reads = 0
    for _ in range(20):
        for directory in range(6000):
            if listings.get(directory) is None:
                reads += 1
                listings.keep(directory, {"name": directory})
            assert listings.get(directory) == {"name": directory}
    assert reads <= 4 * 6000


def replacing(tmp_path: Path, count: int) -> float:
    """The processor seconds of replacing that many directories, while as many links wait for the end of the layer."""
    hive = f"{host_files.CONFIG}/SYSTEM"
    sink = CimSink(CimLayer(tmp_path / f"{count}.cim"))
    try:
        sink.put(file_at(hive).entry, Inline(b"hello"))
        for number in range(count):
            sink.link(LayerPath(f"l{number}"), LayerPath(hive))
        gc.collect()
        start = time.thread_time()
        for number in range(count):
            sink.put(folder(f"d{number}").entry, None)
            sink.put(file_at(f"d{number}").entry, Inline(b"hello"))
        return time.thread_time() - start
    finally:
        sink.abort()


def test_replacing_directories_with_deferred_links_takes_linear_time(tmp_path: Path) -> None:
    assert replacing(tmp_path, 8000) < 8 * replacing(tmp_path, 2000) + 0.1


def test_a_hidden_directory_of_the_utility_vm_can_be_put_again(tmp_path: Path) -> None:
    base = tmp_path / "base"
    blobs: dict[str, list[Change]] = {
        "base": [*map(folder, ("Files", "UtilityVM", "UtilityVM/Files", "UtilityVM/Files/d", "UtilityVM/Files/d/e"))],
        "above": [
            Whiteout(LayerPath("UtilityVM/Files/D")),
            folder("UtilityVM/Files/D"),
            file_at("UtilityVM/Files/D/e"),
        ],
    }
    for name, changes in blobs.items():
        (tmp_path / f"{name}.tar").write_bytes(write(changes)[0])
    apply_blob(tmp_path / "base.tar", base, ApplyOptions(kind="windows"))
    apply_blob(tmp_path / "above.tar", tmp_path / "above", ApplyOptions(kind="windows", parents=[base]))
    assert [path.name for path in (tmp_path / "above/UtilityVM/Files").iterdir()] == ["D"]
    assert (tmp_path / "above/UtilityVM/Files/D/e").read_bytes() == b"hello"
