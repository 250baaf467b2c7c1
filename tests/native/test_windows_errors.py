# SPDX-License-Identifier: Apache-2.0
"""Error codes of Windows become categories of Lamella's errors."""

from __future__ import annotations

import pytest

from lamella import errors
from lamella.errors import LamellaError
from lamella.host.windows.errors import (
    check_hresult,
    check_win32,
    from_hresult,
    from_ntstatus,
    from_win32,
    win32_of_hresult,
    win32_of_ntstatus,
)


@pytest.mark.parametrize(
    ("code", "category"),
    [
        (2, errors.NotFound),
        (3, errors.NotFound),
        (5, errors.Denied),
        (32, errors.Unavailable),
        (80, errors.AlreadyExists),
        (87, errors.InvalidInput),
        (112, errors.Exhausted),
        (120, errors.Unsupported),
        (123, errors.InvalidInput),
        (145, errors.Conflict),
        (183, errors.AlreadyExists),
        (995, errors.Cancelled),
        (1009, errors.Integrity),
        (1300, errors.Denied),
        (1314, errors.Denied),
        (1392, errors.Integrity),
        (4395, errors.Conflict),
        (64999, LamellaError),
    ],
)
def test_a_win32_code_becomes_its_category_and_is_named(code: int, category: type[LamellaError]) -> None:
    error = from_win32(code, "try 'x'")
    assert category is type(error)
    assert str(error).startswith("try 'x': ")
    assert f"(error {code})" in str(error)


def test_a_missing_privilege_has_a_hint() -> None:
    assert from_win32(1300, "x").hint == "run as an administrator, in an elevated session"
    assert from_win32(1314, "x").hint == "run as an administrator, in an elevated session"
    assert from_win32(5, "x").hint is None


@pytest.mark.parametrize("result", [0x80070005, 0x80070005 - (1 << 32)])
def test_an_hresult_of_either_sign_gives_the_win32_code_in_it(result: int) -> None:
    error = from_hresult(result, "x")
    assert (errors.Denied, "x: access is denied (error 5)") == (type(error), str(error))


def test_facilities_other_than_win32_are_distinguished() -> None:
    assert win32_of_hresult(0x80040005) is None
    assert win32_of_hresult(0xC0370106) is None  # one of the compute service's own
    assert "(HRESULT 0xC0370106)" in str(from_hresult(0xC0370106, "x"))
    assert type(from_hresult(0x80004001, "x")) is errors.Unsupported


def test_positive_hresults_are_successes() -> None:
    check_hresult(0, "x")
    check_hresult(1, "x")
    with pytest.raises(LamellaError):
        check_hresult(-1, "x")


def test_every_win32_code_but_success_raises() -> None:
    check_win32(0, "x")
    with pytest.raises(errors.NotFound):
        check_win32(2, "x")


def test_windows_is_asked_only_for_an_unknown_ntstatus() -> None:
    def never(status: int) -> int:
        raise AssertionError(f"asked about {status}")

    known = from_ntstatus(0xC0000034 - (1 << 32), "x", never)
    assert errors.NotFound is type(known)
    answers = {0xC000009A - (1 << 32): 1450}
    assert errors.Exhausted is type(from_ntstatus(0xC000009A - (1 << 32), "x", answers.__getitem__))
    assert win32_of_ntstatus(0xC000050B) == 4395
