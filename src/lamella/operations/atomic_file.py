# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their name when they are complete, and not before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from lamella.errors import AlreadyExists, Conflict, InvalidInput, from_os

_LONGEST: Final = 200
"""Bytes of the wanted name that the temporary one repeats: names end at 255."""


def unfinished(wanted: Path) -> Path:
    """A hidden name beside ``wanted``, for what is to have that name when it is complete."""
    name = os.fsdecode(os.fsencode(wanted.name)[:_LONGEST])
    return wanted.with_name(f".{name}.unfinished-{os.urandom(4).hex()}")


def refuse_within(directory: str | os.PathLike[str], output: str | os.PathLike[str], what: str) -> None:
    """Raise InvalidInput where ``output`` would lie in ``directory``, which it is made from."""
    root = os.path.realpath(directory)
    parent = os.path.dirname(os.path.realpath(output))
    if os.path.commonpath((root, parent)) == root:
        raise InvalidInput(
            f"{what} {os.fspath(output)!r} would lie in {os.fspath(directory)!r}, which it is made from",
            hint="write it to another place",
        )


@contextmanager
def replacing(target: Path, *, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which becomes ``target`` when the block ends well and is removed when it does not.

    What is at ``target`` already gives way at the end, unless ``exclusive`` is set: then it is an error. A link is
    written through, a device or fifo (``/dev/null``) is written as it is. Raises AlreadyExists, Conflict (a
    directory), Denied, Exhausted.
    """
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
        aside = unfinished(real)
        file = open(aside, "xb")  # noqa: SIM115  # closed before it gets its name
        try:
            with file:
                yield file
            os.replace(aside, real)
        except BaseException as error:
            try:
                os.unlink(aside)
            except OSError as failure:
                error.add_note(f"the unfinished file {os.fspath(aside)!r} is left: {failure.strerror}")
            raise
    except OSError as error:
        raise from_os(error, f"write {os.fspath(target)!r}") from error
