# SPDX-License-Identifier: Apache-2.0
"""Windows layers on the command line: what lies below is given alike to apply and to diff."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.cli.conftest import Run
from tests.unit.layers.test_windows_dialect import file_at, write

BASE = [file_at("Files/a")]
ABOVE = [file_at("Files/b"), file_at("Hives/System_Delta", b"")]


@pytest.fixture
def layers(tmp_path: Path, lamella: Run) -> Path:
    for name, changes, parents in (("base", BASE, ()), ("above", ABOVE, ("--parent", tmp_path / "base"))):
        (tmp_path / f"{name}.tar").write_bytes(write(changes)[0])
        done = lamella("apply", tmp_path / f"{name}.tar", tmp_path / name, "--as", "windows", *parents)
        assert done.returncode == 0, done.stderr
    return tmp_path


def test_a_layer_is_read_with_its_parents_named(layers: Path, lamella: Run) -> None:
    where = ("--as", "windows", "--parent", layers / "base")
    done = lamella("diff", layers / "above", "-o", layers / "again.tar", "--compress", "none", *where)
    assert done.returncode == 0, done.stderr
    assert (layers / "above.tar").read_bytes() == (layers / "again.tar").read_bytes()
    assert "/Files/b" in lamella("diff", layers / "above", *where).stdout


def test_a_parent_that_is_not_there_is_told(layers: Path, lamella: Run) -> None:
    done = lamella("diff", layers / "above", "--as", "windows", "--parent", layers / "missing")
    assert (done.returncode, done.stdout) == (4, "")
    assert "parent layer" in done.stderr


@pytest.mark.parametrize("kind", ["directory", "overlay", "cim"])
def test_layers_of_other_kinds_take_no_parents_to_be_read(layers: Path, lamella: Run, kind: str) -> None:
    done = lamella("diff", layers / "above", "--as", kind, "--parent", layers / "base")
    assert done.returncode == 2
    assert "--parent is for the folder of a Windows layer" in done.stderr
