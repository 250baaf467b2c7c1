# SPDX-License-Identifier: Apache-2.0
"""The releases of containerd that are tested with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.interop.daemons import FIRST, SECOND, Release


@pytest.fixture(scope="session", params=[FIRST, SECOND], ids=str)
def release(request: pytest.FixtureRequest, needs: Callable[..., str]) -> Release:
    """Return a containerd, the system's or the one that ``.ci/containerd2`` fetches."""
    found: Release = request.param
    needs(found.program("containerd"), found.program("ctr"))
    return found
