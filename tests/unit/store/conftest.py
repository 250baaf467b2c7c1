# SPDX-License-Identifier: Apache-2.0
"""Stores, and file systems that are small or cannot be written to."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella.store.store import LocalNamespace, Store

Mount = Callable[[str], Path]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def namespace(store: Store) -> LocalNamespace:
    return store.namespace("test")


@pytest.fixture
def tmpfs(tmp_path: Path, needs: Callable[..., str]) -> Iterator[Mount]:
    """Return a function that mounts a tmpfs with options, which is gone after the test; for root alone."""
    needs("mount", "umount")
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"tmpfs{len(mounted)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", place], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def fill(place: Path) -> Path:
    """Write a file that takes all the space there is, and return it."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise
    return filler
