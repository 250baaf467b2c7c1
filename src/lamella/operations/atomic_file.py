# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from lamella.errors import AlreadyExists, Conflict, InvalidInput, from_os
from lamella.host.durability import outputs_are_durable, sync_directory

_LONGEST: Final = 200
"""Bytes of the final name that the temporary one repeats: a name has at most 255."""


def unfinished(wanted: Path) -> Path:
    """A temporary, hidden name beside ``wanted``."""
    return wanted.with_name(f"{unfinished_prefix(wanted)}{os.urandom(4).hex()}")


def unfinished_prefix(wanted: Path) -> str:
    """How the temporary names for ``wanted`` begin."""
    name = os.fsdecode(os.fsencode(wanted.name)[:_LONGEST])
    return f".{name}.unfinished-"


def refuse_within(directory: str | os.PathLike[str], output: str | os.PathLike[str], what: str) -> None:
    """Raise InvalidInput if ``output``, which is made from ``directory``, would lie in it."""
    root = os.path.realpath(directory)
    parent = os.path.dirname(os.path.realpath(output))
    if os.path.commonpath((root, parent)) == root:
        raise InvalidInput(
            f"{what} {os.fspath(output)!r} would lie in {os.fspath(directory)!r}, which it is made from",
            hint="write it to another directory",
        )


@contextmanager
def replacing(target: Path, *, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A new file, which is renamed to ``target`` at the end of the block, or removed if the block raises.

    An existing ``target`` is replaced at the end; with ``exclusive`` it is an error. A symbolic link is followed; a
    device or fifo, such as ``/dev/null``, is written directly. The file is durable at the end (`durable_outputs`).
    Raises AlreadyExists, Conflict (a directory), Denied, Exhausted.
    """
    durable = outputs_are_durable()
    if exclusive and os.path.lexists(target):
        raise AlreadyExists(f"{os.fspath(target)!r} exists")
    real = Path(os.path.realpath(target))
    if real.is_dir():
        raise Conflict(f"{os.fspath(target)!r} is a directory")
    try:
        if real.exists() and not real.is_file():
            with open(real, "wb") as file:
                yield file
            return
        temporary = unfinished(real)
        file = open(temporary, "xb")  # noqa: SIM115  # closed before it gets its name
        try:
            with file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, real)
            if durable:
                sync_directory(real.parent)
        except BaseException as error:
            try:
                os.unlink(temporary)
            except OSError as failure:
                error.add_note(f"the unfinished file {os.fspath(temporary)!r} remains: {failure.strerror}")
            raise
    except OSError as error:
        raise from_os(error, f"write {os.fspath(target)!r}") from error
