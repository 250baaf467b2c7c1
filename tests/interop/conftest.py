# SPDX-License-Identifier: Apache-2.0
"""The releases of containerd that are tested with, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.interop.daemons import FIRST, SECOND, Release, folder


@pytest.fixture(scope="session", params=[FIRST, SECOND], ids=str)
def release(request: pytest.FixtureRequest, needs: Callable[..., str]) -> Release:
    """Return a containerd, the system's or the one that ``.ci/containerd2`` fetches."""
    found: Release = request.param
    needs(found.program("containerd"), found.program("ctr"))
    return found


@pytest.fixture
def where() -> Iterator[Path]:
    """Yield a directory for a server and its sockets, gone at the end with all that is mounted in it."""
    with folder() as where:
        yield where
