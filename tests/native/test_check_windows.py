# SPDX-License-Identifier: Apache-2.0
"""The checks for a real Windows host pass on the stub, except for those that it cannot run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tests.native.stub import SECURITY, Stub

from lamella.host.windows.system import WindowsSystem

SCRIPT = Path(__file__).parents[2] / "tools" / "check_windows.py"


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_windows", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_check_of_files_holds_on_the_stub(stub: Stub, windows: WindowsSystem, checks: ModuleType) -> None:
    stub.account(7, SECURITY)
    windows.files.make_directory("C:\\check")
    left_to_ntfs = (checks.check_names, checks.check_upper_case)  # the stub takes any name, and knows little of case
    files = tuple(check for check in checks.FILES if check not in left_to_ntfs)
    found = dict(checks.run(windows, "C:\\check", (*files, *checks.OTHERS)))
    assert found == dict.fromkeys(found)
    assert len(found) == 8


def test_a_failed_check_reports_the_value_found(stub: Stub, windows: WindowsSystem, checks: ModuleType) -> None:
    windows.files.make_directory("C:\\check")
    ((promise, problem),) = checks.run(windows, "C:\\check", (checks.check_security_descriptor,))
    assert promise == checks.check_security_descriptor.__doc__
    assert "error 1314" in problem  # nothing is held


def test_names_that_ntfs_cannot_have_raise_unsafe_path(stub: Stub, windows: WindowsSystem, checks: ModuleType) -> None:
    windows.files.make_directory("C:\\check")
    ((_, problem),) = checks.run(windows, "C:\\check", (checks.check_names,))
    assert problem is not None
    assert problem.startswith("NTFS takes")
