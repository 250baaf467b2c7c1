# SPDX-License-Identifier: Apache-2.0
"""Privileges are enabled for a block, also for nested and overlapping blocks, and always released."""

from __future__ import annotations

import threading

import pytest
from tests.native.stub import BACKUP, RESTORE, SECURITY, Stub

from lamella.errors import Conflict, Denied, Exhausted, InvalidInput, LamellaError
from lamella.host.windows.security import BACKUP as BACKUP_NAME
from lamella.host.windows.security import RESTORE as RESTORE_NAME
from lamella.host.windows.security import SECURITY as SECURITY_NAME
from lamella.host.windows.security import Privileges


@pytest.fixture
def privileges(stub: Stub) -> Privileges:
    return Privileges(stub)


def test_the_calls_have_the_arguments_that_windows_expects(stub: Stub, privileges: Privileges) -> None:
    with privileges(BACKUP_NAME):
        assert stub.log == [
            "OpenProcessToken process=-1 access=0x28",
            "LookupPrivilegeValueW system=(null) name=SeBackupPrivilege",
            "AdjustTokenPrivileges none=0 count=1 luid=0:9 attributes=2 room=16 previous=yes",
            "CloseHandle token",
        ]
        stub.clear()
    assert stub.log == [
        "OpenProcessToken process=-1 access=0x28",
        "AdjustTokenPrivileges none=0 count=1 luid=0:9 attributes=0 room=0 previous=no",
        "CloseHandle token",
    ]


def test_privileges_are_held_inside_the_block_and_nowhere_else(stub: Stub, privileges: Privileges) -> None:
    with privileges(BACKUP_NAME, RESTORE_NAME):
        assert stub.process_enabled == BACKUP | RESTORE
    assert stub.leaks() == {}


def test_previously_enabled_privileges_stay_enabled(stub: Stub, privileges: Privileges) -> None:
    stub.account(7, BACKUP)
    with privileges(BACKUP_NAME, RESTORE_NAME):
        pass
    assert stub.process_enabled == BACKUP


def test_the_inner_of_two_blocks_takes_nothing_from_the_outer(stub: Stub, privileges: Privileges) -> None:
    with privileges(BACKUP_NAME):
        with privileges(BACKUP_NAME, RESTORE_NAME):
            assert stub.process_enabled == BACKUP | RESTORE
        assert stub.process_enabled == BACKUP
    assert stub.process_enabled == 0


def test_blocks_that_overlap_without_nesting_keep_a_privilege_until_the_last_ends(
    stub: Stub, privileges: Privileges
) -> None:
    first, second = privileges(BACKUP_NAME), privileges(BACKUP_NAME)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert stub.process_enabled == BACKUP
    second.__exit__(None, None, None)
    assert stub.process_enabled == 0


def test_a_privilege_named_twice_is_counted_twice(stub: Stub, privileges: Privileges) -> None:
    with privileges(BACKUP_NAME, BACKUP_NAME):
        assert stub.process_enabled == BACKUP
    assert stub.leaks() == {}


def test_success_with_error_1300_means_that_the_account_lacks_it(stub: Stub, privileges: Privileges) -> None:
    stub.account(BACKUP)
    with pytest.raises(Denied, match=r"SeRestorePrivilege.*does not hold.*1300"), privileges(BACKUP_NAME, RESTORE_NAME):
        raise AssertionError("never here")
    assert stub.leaks() == {}


def test_an_old_error_1300_does_not_make_a_good_call_fail(stub: Stub, privileges: Privileges) -> None:
    stub.account(BACKUP)
    with pytest.raises(Denied), privileges(RESTORE_NAME):
        pass
    with privileges(BACKUP_NAME):
        assert stub.process_enabled == BACKUP


def test_a_name_that_is_no_privilege_is_invalid_input(stub: Stub, privileges: Privileges) -> None:
    with pytest.raises(InvalidInput), privileges("SeNothing"):
        pass
    assert stub.leaks() == {}


@pytest.mark.parametrize("call", ["OpenProcessToken", "LookupPrivilegeValueW", "AdjustTokenPrivileges"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_failure_of_any_call_on_the_way_in_leaves_nothing_held(
    stub: Stub, privileges: Privileges, call: str, after: int
) -> None:
    stub.fail(call, after=after)
    if (call, after) == ("OpenProcessToken", 1):  # the way out
        with pytest.raises(Exhausted), privileges(BACKUP_NAME, RESTORE_NAME):
            pass
        return
    with pytest.raises(Exhausted), privileges(BACKUP_NAME, RESTORE_NAME):
        raise AssertionError("never here")
    assert stub.failed == call
    assert stub.leaks() == {}
    with privileges(BACKUP_NAME, RESTORE_NAME):
        assert stub.process_enabled == BACKUP | RESTORE
    assert stub.leaks() == {}


def test_an_error_of_the_block_is_raised_and_the_privileges_are_released(stub: Stub, privileges: Privileges) -> None:
    with pytest.raises(ValueError, match="mine"), privileges(BACKUP_NAME):
        raise ValueError("mine")
    assert stub.leaks() == {}


def test_one_failed_release_does_not_keep_the_others(stub: Stub, privileges: Privileges) -> None:
    with pytest.raises(Exhausted, match="restore"), privileges(BACKUP_NAME, RESTORE_NAME):
        stub.fail("AdjustTokenPrivileges")
    assert stub.process_enabled == RESTORE
    assert stub.leaks().get("handles", 0) == 0


def test_privileges_of_a_thread_do_not_affect_other_threads(stub: Stub, privileges: Privileges) -> None:
    held, checked = threading.Event(), threading.Event()
    seen: list[int] = []

    def other() -> None:
        held.wait(10)
        seen.append(stub.enabled)
        checked.set()

    with stub.in_thread(other), privileges.in_thread(SECURITY_NAME):
        assert stub.enabled == SECURITY
        assert stub.process_enabled == 0
        held.set()
        assert checked.wait(10)
    assert seen == [0]
    assert stub.leaks() == {}


def test_the_calls_of_a_threads_block_come_in_order(stub: Stub, privileges: Privileges) -> None:
    with privileges.in_thread(SECURITY_NAME):
        pass
    assert stub.log == [
        "OpenThreadToken thread=-2 access=0x28 as_self=0",
        "ImpersonateSelf level=2",
        "OpenThreadToken thread=-2 access=0x28 as_self=0",
        "LookupPrivilegeValueW system=(null) name=SeSecurityPrivilege",
        "AdjustTokenPrivileges none=0 count=1 luid=0:8 attributes=2 room=16 previous=yes",
        "CloseHandle token",
        "RevertToSelf",
    ]


def test_a_threads_blocks_nest(stub: Stub, privileges: Privileges) -> None:
    with privileges.in_thread(SECURITY_NAME):
        with privileges.in_thread(SECURITY_NAME, BACKUP_NAME):
            assert stub.enabled == SECURITY | BACKUP
        assert stub.enabled == SECURITY
        assert stub.impersonates
    assert stub.leaks() == {}


def test_a_thread_that_impersonates_already_keeps_doing_so(stub: Stub, privileges: Privileges) -> None:
    with privileges.in_thread(SECURITY_NAME):
        other = Privileges(stub)  # somebody else in the same process, who counts for himself
        with other.in_thread(BACKUP_NAME):
            assert stub.enabled == SECURITY | BACKUP
        assert stub.impersonates
    assert stub.leaks() == {}


def test_a_thread_token_starts_with_the_privileges_of_the_process(stub: Stub, privileges: Privileges) -> None:
    with privileges(BACKUP_NAME), privileges.in_thread(SECURITY_NAME):
        assert stub.enabled == SECURITY | BACKUP
    assert stub.leaks() == {}


@pytest.mark.parametrize("after", range(5))
def test_a_failure_of_any_call_in_a_threads_block_reverts(stub: Stub, privileges: Privileges, after: int) -> None:
    stub.fail(after=after)
    with pytest.raises(LamellaError), privileges.in_thread(SECURITY_NAME):
        pass
    assert stub.failed
    assert stub.leaks() == {}
    with privileges.in_thread(SECURITY_NAME):
        assert stub.enabled == SECURITY
    assert stub.leaks() == {}


def test_another_thread_cannot_end_a_threads_block(stub: Stub, privileges: Privileges) -> None:
    block = privileges.in_thread(SECURITY_NAME)
    block.__enter__()
    failures: list[type[BaseException]] = []

    def end() -> None:
        try:
            block.__exit__(None, None, None)
        except Conflict as error:
            failures.append(type(error))

    with stub.in_thread(end):
        pass
    assert failures == [Conflict]


def test_many_threads_release_all_privileges_of_the_process(stub: Stub, privileges: Privileges) -> None:
    def work() -> None:
        for _ in range(50):
            with privileges(BACKUP_NAME, RESTORE_NAME):
                assert stub.process_enabled & BACKUP

    with stub.in_thread(work), stub.in_thread(work), stub.in_thread(work):
        work()
    assert stub.leaks() == {}
