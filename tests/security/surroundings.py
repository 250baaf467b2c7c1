# SPDX-License-Identifier: Apache-2.0
"""Files around a target that every test must leave unchanged."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Final, TypeAlias

WHEN: Final = 1_500_000_000_123_456_789
_EARLY: Final = 1_000_000_000

State: TypeAlias = dict[str, tuple[object, ...]]


def furnish(base: Path) -> None:
    """Create files of every kind that an attack may aim at, in ``base`` and beside the target.

    Access times are older than the others, so that a single read is visible on a file system mounted with relatime.
    """
    for place in (base / "outside", base / "room" / "outside", base / "room" / "out-of-bounds"):
        place.mkdir(parents=True)
        (place / "secret").write_bytes(b"a secret")
        (place / "secret").chmod(0o600)
        (place / "tool").write_bytes(b"#!/bin/sh\n")
        (place / "tool").chmod(0o4755)
        (place / "passwd").write_bytes(b"root:x:0:0\n")
        (place / "etc").mkdir(mode=0o755)
        (place / "etc" / "passwd").write_bytes(b"root:x:0:0\n")
        (place / "etc" / "nested").mkdir()
        (place / "etc" / "nested" / "file").write_bytes(b"nested")
        (place / "empty").mkdir(mode=0o700)
        (place / "link").symlink_to("secret")
        os.link(place / "secret", place / "second-name")
        os.mkfifo(place / "fifo")
        try:
            os.setxattr(place / "passwd", "user.kept", b"1")
            os.setxattr(place / "etc", "user.kept", b"2")
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
    for directory, names, files in os.walk(base, topdown=False):
        for name in (*names, *files):
            os.utime(os.path.join(directory, name), ns=(_EARLY, WHEN), follow_symlinks=False)
    os.utime(base, ns=(_EARLY, WHEN))


def state_of(base: Path, *, without: str) -> State:
    """Return the full state of ``base`` and its files, except ``without`` and the files below it.

    Nothing is touched by looking: access times are among the facts. The directory in which ``without`` lies changes
    with it, so that of this one the names in it alone count.
    """
    state: State = {}
    todo = [""]
    lively = os.path.dirname(without)
    while todo:
        path = todo.pop()
        full = os.path.join(base, path) if path else os.fspath(base)
        status = os.lstat(full)
        facts: tuple[object, ...] = ()
        if path != lively:
            facts = (
                *(oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink, status.st_ino, status.st_rdev),
                *(status.st_mtime_ns, status.st_ctime_ns),
            )
        if stat.S_ISLNK(status.st_mode):
            facts += (os.readlink(full),)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            if path != lively:
                facts += (status.st_atime_ns,)
            file = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME)
            try:
                names = os.listxattr(file)
                facts += tuple((name, os.getxattr(file, name)) for name in sorted(names))
                if stat.S_ISREG(status.st_mode):
                    facts += (status.st_size, hashlib.sha256(os.read(file, 1 << 20)).hexdigest())
                else:
                    inside = sorted(os.path.join(path, name) for name in os.listdir(file))
                    todo += [name for name in inside if name != without]
            finally:
                os.close(file)
        state[path or "."] = facts
    return state


def listing(root: Path) -> dict[str, str]:
    """Return the files in ``root`` for comparison: kind, permission bits, and content or target."""
    found: dict[str, str] = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            full = os.path.join(directory, name)
            status = os.lstat(full)
            mode = stat.S_IMODE(status.st_mode)
            match stat.S_IFMT(status.st_mode):
                case stat.S_IFDIR:
                    told = f"directory {mode:o}"
                case stat.S_IFLNK:
                    told = f"-> {os.readlink(full)}"
                case stat.S_IFREG:
                    with open(full, "rb") as file:
                        told = f"{mode:o} {file.read(64).decode('latin-1')}"
                case stat.S_IFIFO:
                    told = f"fifo {mode:o}"
                case kind:
                    letter = "c" if kind == stat.S_IFCHR else "b"
                    told = f"{letter} {mode:o} {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            found[os.path.relpath(full, root)] = told
    return found
