# SPDX-License-Identifier: Apache-2.0
"""The demo, with a few packages instead of all of them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parents[2] / "demo" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Import the demo as a module whose temporary files are in ``tmp_path``."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec = importlib.util.spec_from_file_location("lamella_demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_demo_proves_its_trees_equal_and_leaves_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, DEMO, "--quick"], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "after/ and again/ are equal" in ran.stdout
    assert ran.stdout.count("\nlayer    sha256:") == 3
    assert os.listdir(tmp_path) == []


def test_the_demo_fails_if_the_trees_differ(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    compare = demo.compare

    def spoiled(left: Path, right: Path) -> tuple[int, list[str]]:
        (right / "etc/motd").write_text("packed with Lamello\n")
        result: tuple[int, list[str]] = compare(left, right)
        return result

    monkeypatch.setattr(demo, "compare", spoiled)
    assert demo.main(["--quick"]) == 1
    output = capsys.readouterr()
    assert "M /etc/motd" in output.err
    assert "are equal" not in output.out
    assert os.listdir(tmp_path) == []


def test_a_difference_only_in_content_is_found(demo: ModuleType, tmp_path: Path) -> None:
    for name, text in (("left", "one"), ("right", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
        for path in (tmp_path / name / "file", tmp_path / name):
            os.utime(path, ns=(0, 1))
    count, differences = demo.compare(tmp_path / "left", tmp_path / "right")
    assert count == 2
    assert [" ".join(line.split()[:2]) for line in differences] == ["M /file", "- put", "+ put"]
