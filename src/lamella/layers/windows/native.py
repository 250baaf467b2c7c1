# SPDX-License-Identifier: Apache-2.0
"""Paths, times and attributes of a layer's files as Windows' calls have them."""

from __future__ import annotations

from lamella.changes.model import Windows
from lamella.formats.ntfs import filetime
from lamella.formats.ntfs.attributes import ALL, DERIVED, NORMAL
from lamella.host.windows.files import Basic


def native(path: str) -> str:
    """A path of a layer as Windows wants it."""
    return path.replace("/", "\\")


def basic_of(windows: Windows, *, attributes: bool = True) -> Basic:
    """What is set on a file; a time that the layer does not state is the write time, one before 1601 is left alone."""
    write = windows.write_time

    def ticks(time: int | None) -> int:
        time = write if time is None else time
        return 0 if time is None else max(0, filetime.ticks_from_ns(time))

    settable = windows.attributes & ALL & ~DERIVED or NORMAL
    return Basic(
        ticks(windows.creation_time),
        ticks(windows.access_time),
        ticks(write),
        ticks(windows.change_time),
        settable if attributes else 0,
    )


def windows_of(basic: Basic) -> Windows:
    """The facet of a file as far as attributes and times tell it."""
    ns = filetime.ns_from_ticks
    return Windows(basic.attributes, ns(basic.creation), ns(basic.access), ns(basic.write), ns(basic.change))
