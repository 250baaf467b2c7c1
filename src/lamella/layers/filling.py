# SPDX-License-Identifier: Apache-2.0
"""Content into files that are open."""

from __future__ import annotations

import os

from lamella.changes.model import Content
from lamella.errors import SizeMismatch


def write_rest(file: int, chunk: bytes | bytearray | memoryview, done: int) -> None:
    """Write what a call left of ``chunk`` after ``done`` bytes."""
    view = memoryview(chunk)
    while done < len(view):
        done += os.write(file, view[done:])


def write_sparse(file: int, content: Content, path: str) -> None:
    """Write content with holes, and leave them. Raises SizeMismatch where it does not fill its extents."""
    extents = content.extents or ()
    wanted = sum(length for _, length in extents)
    written = left = 0
    places = iter(extents)
    for chunk in content.chunks():
        view = memoryview(chunk)
        while view:
            if not left:
                place = next(places, None)
                if place is None:
                    raise SizeMismatch(f"content of {path!r}", expected=wanted, actual="more")
                offset, left = place
                os.lseek(file, offset, os.SEEK_SET)
                continue
            done = os.write(file, view[:left])
            left -= done
            written += done
            view = view[done:]
    if written != wanted:
        raise SizeMismatch(f"content of {path!r}", expected=wanted, actual=written)
    os.ftruncate(file, content.size)
