# SPDX-License-Identifier: Apache-2.0
"""Isolation of tests of registries from the settings of the user who runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.registry.isolation import isolate


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use only settings below the test's directory."""
    isolate(monkeypatch, tmp_path)
