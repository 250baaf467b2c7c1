# SPDX-License-Identifier: Apache-2.0
"""What writers of composite images leave when they are killed is removed by the next one, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.layers.windows.test_tar import file_at

from lamella.changes.apply import apply
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.sink import CimSink

WRITER = """
import sys
from pathlib import Path
from tests.unit.layers.windows.test_tar import file_at
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.sink import CimSink

sink = CimSink(CimLayer(Path(sys.argv[1])), windows=False)
put = file_at("f", bytes(range(256)) * (3 << 12))
sink.put(put.entry, put.content)
print("under way", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of writing ``x.cim``."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, os.fspath(tmp_path / "x.cim")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"under way\n"
        yield process
        process.kill()


def names(place: Path) -> set[str]:
    return set(os.listdir(place))


def write(path: Path) -> set[str]:
    """Write an image; the names that its directory has then and had not before."""
    before = names(path.parent)
    apply([file_at("g")], CimSink(CimLayer(path), windows=False))
    with OpenCim(CimLayer(path)):
        pass
    return names(path.parent) - before


def test_the_next_image_takes_away_what_a_killed_writer_left(tmp_path: Path, writer: subprocess.Popen[bytes]) -> None:
    writer.kill()
    writer.wait()
    left = names(tmp_path)
    assert len(left) == 4
    assert all(name.startswith(".x.unfinished-") for name in left)
    made = write(tmp_path / "y.cim")
    assert names(tmp_path) == made
    assert len(made) == 7


def test_a_living_writer_is_left_alone(tmp_path: Path, writer: subprocess.Popen[bytes]) -> None:
    of_the_writer = names(tmp_path)
    write(tmp_path / "y.cim")
    assert of_the_writer < names(tmp_path)
    del writer


def test_files_that_nobody_can_tell_to_be_left_over_stay(tmp_path: Path) -> None:
    others = {
        ".x.unfinished-0123abcd": b"not empty",
        ".x.unfinished-0123abcd-0": b"beside one that is not",
        ".x.unfinished-4567abcd-0": b"without a mark",
        "x.unfinished-0123abcd": b"",
        "region_01234567-89ab-cdef-0123-456789abcdef_0": b"of nobody knows whom",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".z.unfinished-0123abcd").symlink_to(".x.unfinished-0123abcd")
    os.mkfifo(tmp_path / ".f.unfinished-0123abcd")
    before = names(tmp_path)
    write(tmp_path / "y.cim")
    assert before <= names(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in others} == others
