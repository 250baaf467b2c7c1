# SPDX-License-Identifier: Apache-2.0
"""What all tests share: tools of other projects, the rule that nothing is skipped in silence, hypothesis' settings."""

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

# A shared machine is no stopwatch; and CI tries the same examples each time, so that a red run is the change's doing.
settings.register_profile("lamella", deadline=None, derandomize=IN_CI, print_blob=True)
settings.load_profile("lamella")

Needs = Callable[..., str]


def _absent(reason: str) -> None:
    if IN_CI:
        pytest.fail(f"{reason}, and CI must have it", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def needs() -> Needs:
    """Return a function that gives the path of the first tool named, once all that are named are on this machine."""

    def find(*tools: str) -> str:
        paths = [(tool, shutil.which(tool)) for tool in tools]
        missing = [tool for tool, path in paths if path is None]
        if missing:
            _absent(f"this test needs {' and '.join(missing)}")
        return paths[0][1] or ""

    return find


def pytest_configure() -> None:
    """Heed the signals that a job in the background ignores: programs that the tests start and stop inherit that."""
    for name, usual in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),  # which Windows lacks
    ):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what only root can do where the tests run as somebody else."""
    if item.get_closest_marker("root") and (sys.platform == "win32" or os.geteuid() != 0):
        _absent("this test needs root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped interop test into a failed one in CI, whatever skipped it."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("interop"):
        report.outcome = "failed"
        report.longrepr = f"an interop test was skipped, which CI does not allow: {call.excinfo and call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Allow no module to skip itself whole in CI: its tests would not even be counted."""
    report = yield
    if IN_CI and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself, which CI does not allow"
    return report
