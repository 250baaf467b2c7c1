# SPDX-License-Identifier: Apache-2.0
"""Whom a user of an image config means."""

from __future__ import annotations

import pytest

from lamella.changes.model import Change
from lamella.changes.tree import fold
from lamella.errors import Exhausted, InvalidInput, NotFound
from lamella.operations.runtime.bundle import Account, find_account
from lamella.testing.builders import fifo, file, sparse, symlink

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# app:x:1:1::/wrong:/bin/sh
broken line
short:x:5
app:x:1000:100:App:/srv/app:/bin/false
odd:x:nine:9::/odd:
"""
GROUP = b"""root:x:0:
users:x:100:app
audio:x:29:other,app
video:x:44:app
wheel:x:10:apple,root
"""
FILES: list[Change] = [file("etc/passwd", PASSWD), file("etc/group", GROUP)]


@pytest.mark.parametrize(
    ("user", "account"),
    [
        ("", Account(0, 0, (10,), "/root")),
        ("root", Account(0, 0, (10,), "/root")),
        ("app", Account(1000, 100, (29, 44), "/srv/app")),
        ("1000", Account(1000, 100, (29, 44), "/srv/app")),
        ("app:audio", Account(1000, 29, (), "/srv/app")),
        ("app:7", Account(1000, 7, (), "/srv/app")),
        ("1000:users", Account(1000, 100, (), "/srv/app")),
        ("4242", Account(4242, 0)),
        ("4242:4343", Account(4242, 4343)),
        (":7", Account(0, 7, (), "/root")),
    ],
)
def test_users_and_groups_are_found_by_name_and_by_number(user: str, account: Account) -> None:
    assert find_account(fold(FILES), user) == account


@pytest.mark.parametrize("user", ["nobody", "odd", "broken line", "app:nobody"])
def test_an_unknown_user_name_is_not_found(user: str) -> None:
    with pytest.raises(NotFound, match="has no"):
        find_account(fold(FILES), user)


def test_numeric_users_need_no_passwd() -> None:
    assert find_account(fold([]), "7:8") == Account(7, 8)
    assert find_account(fold([]), "") == Account(0, 0)


@pytest.mark.parametrize("user", ["app:", "99999999999", "1:99999999999"])
def test_malformed_users_are_refused(user: str) -> None:
    with pytest.raises(InvalidInput):
        find_account(fold(FILES), user)


def test_files_are_found_through_links_inside_the_image() -> None:
    tree = fold([symlink("etc", "/../../private"), symlink("private/passwd", "../real"), file("real", PASSWD)])
    assert find_account(tree, "app") == Account(1000, 100, (), "/srv/app")


def test_a_passwd_that_is_no_regular_file_is_not_read() -> None:
    assert find_account(fold([fifo("etc/passwd"), symlink("etc/group", "group")]), "5") == Account(5, 0)


def test_a_giant_file_is_refused() -> None:
    with pytest.raises(Exhausted, match="/etc/passwd"):
        find_account(fold([file("etc/passwd", sparse(1 << 40))]), "app")
