# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: external tools, the rule that CI skips nothing silently, settings of hypothesis."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("lamella.testing")

IN_CI = bool(os.environ.get("CI"))

# No deadline, because shared machines vary; CI derives examples from the test, so a failure is caused by the change.
settings.register_profile("lamella", deadline=None, derandomize=IN_CI, print_blob=True)
settings.load_profile("lamella")

Needs = Callable[..., str]


def _absent(reason: str) -> None:
    if IN_CI:
        pytest.fail(f"{reason}, and CI must have it", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def needs() -> Needs:
    """Return a function that returns the path of the first named tool, or skips if one of the tools is missing."""

    def find(*tools: str) -> str:
        paths = [(tool, shutil.which(tool)) for tool in tools]
        missing = [tool for tool, path in paths if path is None]
        if missing:
            _absent(f"this test needs {' and '.join(missing)}")
        return paths[0][1] or ""

    return find


def pytest_configure() -> None:
    """Restore the signals that background jobs ignore, because programs started by tests inherit them."""
    for name, usual in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),  # missing on Windows
    ):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need root if they run as another user."""
    if item.get_closest_marker("root") and (sys.platform == "win32" or os.geteuid() != 0):
        _absent("this test needs root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped interop test into a failure in CI."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("interop"):
        report.outcome = "failed"
        report.longrepr = f"an interop test was skipped, which CI does not allow: {call.excinfo and call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail modules that skip themselves in CI: their tests would not even be counted."""
    report = yield
    if IN_CI and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself, which CI does not allow"
    return report
