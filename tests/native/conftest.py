# SPDX-License-Identifier: Apache-2.0
"""The stub of Windows, built once and fresh for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Needs
from tests.native.compute_service import ComputeService
from tests.native.stub import Stub, build

from lamella.host.windows.files import Files
from lamella.host.windows.system import WindowsSystem


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, needs: Needs) -> Path:
    return build(tmp_path_factory.mktemp("windows"), needs("gcc"))


@pytest.fixture
def stub(library: Path) -> Iterator[Stub]:
    """A Windows whose account holds the three privileges, none of them enabled."""
    made = Stub(library)
    yield made
    made.on_layer(lambda *_: None)


@pytest.fixture
def windows(stub: Stub) -> WindowsSystem:
    return WindowsSystem(stub)


@pytest.fixture
def files(windows: WindowsSystem) -> Files:
    return windows.files


@pytest.fixture
def service(stub: Stub, windows: WindowsSystem) -> ComputeService:
    """The compute service, beside a folder for layers."""
    service = ComputeService(stub, windows.files)
    windows.files.make_directory("C:\\layers")
    stub.clear()
    return service


@pytest.fixture
def system(windows: WindowsSystem, service: ComputeService) -> WindowsSystem:
    """A Windows whose compute service answers."""
    return windows
