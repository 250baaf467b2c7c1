# SPDX-License-Identifier: Apache-2.0
"""If CI is set, a missing tool is a failure, whichever way the test skips."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TESTS = """
import pytest

@pytest.mark.interop
def test_that_asks_for_its_tool(needs):
    needs("no-such-tool-anywhere")

@pytest.mark.interop
def test_that_skips_itself():
    pytest.skip("for some reason")

@pytest.mark.interop
@pytest.mark.skip(reason="by a mark")
def test_that_is_marked():
    pass

def test_that_has_its_tool(needs):
    assert needs("sh").endswith("/sh")
"""


def counts(folder: Path, ci: bool) -> dict[str, int]:
    """Run the tests of a folder with the settings of this project and return the counts of pytest."""
    shutil.copy(ROOT / "tests/conftest.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": "true"} if ci else {})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1]
    return {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}


@pytest.mark.parametrize(
    ("ci", "expected"),
    [(False, {"passed": 1, "skipped": 3}), (True, {"passed": 1, "failed": 2, "error": 1})],
    ids=["here", "in CI"],
)
def test_a_skipped_interop_test_fails_only_in_ci(tmp_path: Path, ci: bool, expected: dict[str, int]) -> None:
    (tmp_path / "test_tools.py").write_text(TESTS)
    assert counts(tmp_path, ci) == expected


def test_a_module_that_skips_itself_fails_in_ci(tmp_path: Path) -> None:
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('no_such_module_anywhere')\n")
    (tmp_path / "test_other.py").write_text("def test_something():\n    pass\n")
    counted = counts(tmp_path, ci=True)
    assert counted == {"error": 1}
