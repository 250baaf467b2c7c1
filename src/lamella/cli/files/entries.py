# SPDX-License-Identifier: Apache-2.0
"""Files of a tree, as lines for people and as JSON."""

from __future__ import annotations

import stat
from typing import Any, Final

from lamella.changes.model import TYPE_BITS, Entry, Kind, Windows
from lamella.cli.console import Console
from lamella.times import SECOND, format_pax_time

LONG_RIGHT: Final = frozenset({1, 2, 3})
"""Columns of `long_row` that are flush right."""


def long_row(entry: Entry, name: str, console: Console) -> list[str]:
    """Mode, owner, group, size (device numbers), time in UTC, and name."""
    posix = entry.posix
    shown = console.name(name)
    shown += link_text(entry, console)
    if posix is None:
        windows = entry.windows
        if windows is None:
            return ["?", "?", "?", str(entry.size), "?", shown]
        time = "?" if windows.write_time is None else utc(windows.write_time)
        return [_attributes(entry, windows.attributes), "-", "-", str(entry.size), time, shown]
    device = entry.kind in (Kind.CHARACTER, Kind.BLOCK)
    size = f"{posix.device[0]},{posix.device[1]}" if device else str(entry.size)
    mode = stat.filemode(posix.mode | TYPE_BITS[entry.kind]) + ("+" if posix.xattrs else "")
    return [mode, str(posix.uid), str(posix.gid), size, utc(posix.mtime), shown]


def link_text(entry: Entry, console: Console) -> str:
    """Where a symbolic link leads, or a hard link to a file of the layers below; nothing for other files."""
    if entry.kind is Kind.SYMLINK:
        return f" -> {console.name(entry.target)}"
    return f" => {console.name(f'/{entry.target}')}" if entry.target else ""


def _attributes(entry: Entry, attributes: int) -> str:
    """Kind, then read-only, hidden, system, archive as letters."""
    kind = {Kind.DIRECTORY: "d", Kind.SYMLINK: "l"}.get(entry.kind, "-")
    letters = ((0x1, "r"), (0x2, "h"), (0x4, "s"), (0x20, "a"))
    return kind + "".join(letter if attributes & bit else "-" for bit, letter in letters)


def utc(ns: int) -> str:
    """A time for people, to the second."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(ns // SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"@{format_pax_time(ns)}"


def entry_document(entry: Entry) -> dict[str, Any]:
    """An entry for machines. The time is in seconds, as text, with all of its fraction."""
    document: dict[str, Any] = {"path": f"/{entry.path}", "kind": entry.kind.value}
    if entry.kind is Kind.FILE:
        document["size"] = entry.size
    if entry.kind is Kind.SYMLINK:
        document["target"] = entry.target
    elif entry.target:
        document["link"] = f"/{entry.target}"
    posix = entry.posix
    if posix is not None:
        document |= {
            "mode": f"{posix.mode:04o}",
            "uid": posix.uid,
            "gid": posix.gid,
            "mtime": format_pax_time(posix.mtime),
        }
        if entry.kind in (Kind.CHARACTER, Kind.BLOCK):
            document["device"] = list(posix.device)
        if posix.xattrs:
            from base64 import b64encode

            document["xattrs"] = {name: b64encode(value).decode() for name, value in sorted(posix.xattrs.items())}
    if entry.windows is not None:
        document["windows"] = _windows_document(entry.windows)
    return document


def _windows_document(windows: Windows) -> dict[str, Any]:
    """What NTFS keeps of a file: attributes as a number, times as `entry_document` has them, bytes in base64."""
    from base64 import b64encode

    times = {
        "created": windows.creation_time,
        "accessed": windows.access_time,
        "written": windows.write_time,
        "changed": windows.change_time,
    }
    document: dict[str, Any] = {"attributes": windows.attributes}
    document |= {name: format_pax_time(time) for name, time in times.items() if time is not None}
    for name, value in (("security_descriptor", windows.security_descriptor), ("reparse", windows.reparse)):
        if value is not None:
            document[name] = b64encode(value).decode()
    if windows.extended_attributes:
        attributes = sorted(windows.extended_attributes.items())
        document["extended_attributes"] = {name: b64encode(value).decode() for name, value in attributes}
    return document
