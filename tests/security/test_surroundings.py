# SPDX-License-Identifier: Apache-2.0
"""The check of the outside files: if it missed changes, every other test here would pass."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.security.surroundings import furnish, state_of

DEEDS: dict[str, Callable[[Path], object]] = {
    "a read": lambda o: (o / "secret").read_bytes(),
    "a list": lambda o: os.listdir(o / "empty"),
    "a write": lambda o: (o / "secret").write_bytes(b"a sEcret"),
    "a mode": lambda o: (o / "etc").chmod(0o755),
    "an owner": lambda o: os.chown(o / "tool", os.getuid(), os.getgid()),
    "an attribute": lambda o: os.setxattr(o / "passwd", "user.kept", b"2"),
    "a time": lambda o: os.utime(o / "passwd"),
    "a link's time": lambda o: os.utime(o / "link", ns=(5, 5), follow_symlinks=False),
    "a further name elsewhere": lambda o: os.link(o / "secret", o.parent / "room" / "out" / "f"),
    "a new file": lambda o: (o / "empty" / "new").touch(),
    "a new file beside the target": lambda o: (o.parent / "room" / "new").touch(),
    "a removal": lambda o: (o / "fifo").unlink(),
    "a removal beside the target": lambda o: (o.parent / "room" / "out-of-bounds" / "fifo").unlink(),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_every_change_is_seen(deed: str, tmp_path: Path) -> None:
    furnish(tmp_path)
    (tmp_path / "room" / "out").mkdir()
    before = state_of(tmp_path, without="room/out")
    DEEDS[deed](tmp_path / "outside")
    assert before != state_of(tmp_path, without="room/out")


def test_the_check_changes_nothing_and_ignores_the_target(tmp_path: Path) -> None:
    furnish(tmp_path)
    (tmp_path / "room" / "out").mkdir()
    before = state_of(tmp_path, without="room/out")
    (tmp_path / "room" / "out" / "f").touch()
    (tmp_path / "room" / "out").chmod(0o777)
    assert state_of(tmp_path, without="room/out") == before
