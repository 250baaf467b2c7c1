# SPDX-License-Identifier: Apache-2.0
"""Fixtures: every test runs beside files that it must not change; their full state is compared afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.surroundings import furnish, state_of

TARGET = "room/out"


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set of files for all tests; no test may change it."""
    base = tmp_path_factory.mktemp("base")
    furnish(base)
    return base


@pytest.fixture(autouse=True)
def base(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The parent of all outside files; the working directory is inside, for relative names."""
    target = furnished / TARGET
    target.mkdir()
    target.chmod(0o755)
    monkeypatch.chdir(furnished / "outside")
    before = state_of(furnished, without=TARGET)
    yield furnished
    after = state_of(furnished, without=TARGET)
    if os.path.lexists(target):
        target.rename(tmp_path / "what-is-left-of-the-target")
    assert before == after, "something outside of the target was touched"


@pytest.fixture
def outside(base: Path) -> Path:
    """A directory that no layer may reach."""
    return base / "outside"


@pytest.fixture
def target(base: Path) -> Path:
    """The target of layers; its path is a prefix of the path of a sibling."""
    return base / TARGET


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory on tmpfs if available, for work that would wait for a disk."""
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK) or shutil.disk_usage(place).free < 1 << 30:
        yield tmp_path
        return
    top = Path(tempfile.mkdtemp(prefix="lamella-test-", dir=place))
    yield top
    # Not by shutil, which recurses once per level.
    subprocess.run(["rm", "-rf", top], check=True)
