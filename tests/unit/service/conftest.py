# SPDX-License-Identifier: Apache-2.0
"""A server for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.service.serving import Client, Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Return a store that is served."""
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Client:
    """Return a client of a server that serves an empty store."""
    return served.client
