# SPDX-License-Identifier: Apache-2.0
"""Stages between a source and a sink: facets of another system, and a directory as the new root.

Callers ask for them; nothing else makes up facets. Content passes through unread, so one-shot content stays one-shot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import translate
from functools import cache
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import Source
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Change, Entry, Kind, Link, Opaque, Posix, Put, Stream, Whiteout, Windows
from lamella.errors import FormatError, InvalidInput
from lamella.formats.ntfs import basic_information, names, reparse, sddl
from lamella.formats.ntfs.basic_information import (
    ARCHIVE,
    DIRECTORY,
    READONLY,
    REPARSE_POINT,
    ns_from_ticks,
    ticks_from_ns,
)
from lamella.paths import LayerPath, beneath

_DIRECTORY_SDDL: Final = (
    "O:BAG:SYD:(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;;FA;;;BA)(A;OICIIO;GA;;;CO)"
    "(A;OICI;0x1200a9;;;BU)(A;CI;LC;;;BU)(A;CI;DC;;;BU)"
)
_FILE_SDDL: Final = "O:BAG:SYD:(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU)"

_DRIVE: Final = re.compile(r"(?:\\\\\?\\)?[cC]:(?=\\|\Z)")
_NO_WRITING: Final = ~0o222


class SecurityTemplate(Struct, frozen=True):
    """The security descriptors of directories and of other files; None for none."""

    directory: bytes | None = None
    file: bytes | None = None


@cache
def default_security() -> SecurityTemplate:
    """The descriptors that BuildKit gives to files that it builds on Linux.

    Administrators and SYSTEM own the files; users may read and execute them. Files without a descriptor inherit one
    where they are unpacked, which may deny execution.
    """
    return SecurityTemplate(sddl.parse(_DIRECTORY_SDDL).encode(), sddl.parse(_FILE_SDDL).encode())


def windows_from_posix(
    changes: Source,
    *,
    security: SecurityTemplate | None = None,
    leads_to_directory: Callable[[LayerPath, str], bool] | None = None,
    losses: Losses | None = None,
) -> Iterator[Change]:
    """Add a Windows facet to each entry that has only a POSIX facet.

    All four times are the modification time; the attributes give the kind of file; ``security`` defaults to
    `default_security`. Owners and modes have no counterpart. Targets of symbolic links get backslashes; an absolute
    target stays one on the current drive. Windows distinguishes links to directories: ``leads_to_directory`` is called
    with path and target of a link; without it, only a target that ends in a slash is a directory.

    Devices, fifos, hard links to them, and extended attributes are recorded as lost. Names are not checked. Raises
    InvalidInput for a target that does not fit a reparse point.
    """
    template = default_security() if security is None else security
    losses = Losses() if losses is None else losses
    gone: set[LayerPath] = set()
    for change in changes:
        if isinstance(change, Put):
            entry = change.entry
            if entry.kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
                gone.add(entry.path)
                losses.record(Loss(entry.path, entry.kind.value, "Windows has none"))
                continue
            gone.discard(entry.path)
            if entry.windows is None and entry.posix is not None:
                for name in entry.posix.xattrs:
                    losses.record(
                        Loss(
                            entry.path,
                            f"extended attribute {name}",
                            "a POSIX attribute",
                        )
                    )
                leads = leads_to_directory is not None and leads_to_directory(entry.path, entry.target)
                yield Put(_with_windows(entry, entry.posix, template, directory=leads), change.content)
                continue
        elif isinstance(change, Link) and change.target in gone:
            gone.add(change.path)
            losses.record(Loss(change.path, "hard link", f"its target {change.target!r} was dropped"))
            continue
        yield change


def _with_windows(entry: Entry, posix: Posix, template: SecurityTemplate, *, directory: bool) -> Entry:
    kind, time = entry.kind, ns_from_ticks(ticks_from_ns(posix.mtime))  # the resolution of a FILETIME
    target = entry.target
    attributes, descriptor, point = ARCHIVE, template.file, None
    if kind is Kind.DIRECTORY:
        attributes, descriptor = DIRECTORY, template.directory
    elif kind is Kind.SYMLINK:
        directory = directory or target.endswith("/")
        target = target.replace("/", "\\")
        attributes = REPARSE_POINT | (DIRECTORY if directory else ARCHIVE)
        try:
            point = reparse.encode(reparse.symlink(target))
        except InvalidInput as error:
            raise InvalidInput(f"{entry.path!r}: {error}") from None
    windows = Windows(attributes, time, time, time, time, descriptor, reparse=point)
    return Entry(entry.path, kind, posix, entry.size, target, windows)


def container_layer(
    changes: Source,
    *,
    security: SecurityTemplate | None = None,
    attributes: Callable[[str], int] | None = None,
    leads_to_directory: Callable[[LayerPath, str], bool] | None = None,
    clamp: int | None = None,
    base: bool = False,
    losses: Losses | None = None,
) -> Iterator[Change]:
    """Turn ``changes``, whose root is drive C, into a Windows layer: below `Files`, which gets an entry.

    `Hives` gets one too, except in a ``base`` layer; for the hives of that see `lamella.layers.windows.hives`. Implied
    parent directories get an entry too. Entries get a Windows facet by `windows_from_posix`, with the further bits that
    ``attributes`` returns for their path on the drive. The time of `Files` and `Hives` is ``clamp``, or 1970. Raises
    InvalidInput for an opaque directory, which Windows layers do not have.
    """
    time = clamp or 0
    top = Posix(0o755, 0, 0, time)
    stages = windows_from_posix(
        _in_files(changes, top, base=base), security=security, leads_to_directory=leads_to_directory, losses=losses
    )
    if attributes is not None:
        stages = _with_attributes(stages, attributes)
    yield from (_clamped(change, clamp) for change in stages) if clamp is not None else stages


def _in_files(changes: Source, top: Posix, *, base: bool) -> Iterator[Change]:
    for name in ("Files",) if base else ("Hives", "Files"):
        yield Put(Entry(LayerPath(name), Kind.DIRECTORY, top), None)
    stated = {"Files"}

    def below_files(path: LayerPath) -> LayerPath:
        return LayerPath(f"Files/{path}")

    for change in changes:
        path = change.entry.path if isinstance(change, Put) else change.path
        if not path:
            if isinstance(change, Put):
                continue
            raise InvalidInput("Windows layers have no opaque root")
        if not isinstance(change, Whiteout):
            # Windows creates no implied directories.
            parent = below_files(path).rpartition("/")[0]
            missing = []
            while parent not in stated:
                missing.append(parent)
                parent = parent.rpartition("/")[0]
            for parent in reversed(missing):
                stated.add(parent)
                yield Put(Entry(LayerPath(parent), Kind.DIRECTORY, top), None)
        match change:
            case Put(entry, content):
                if entry.kind is Kind.DIRECTORY:
                    stated.add(below_files(path))
                yield Put(replace(entry, path=below_files(path)), content)
            case Link(_, target):
                yield Link(below_files(path), below_files(target))
            case Stream(_, name, content):
                yield Stream(below_files(path), name, content)
            case Whiteout():
                yield Whiteout(below_files(path))
            case Opaque():
                raise InvalidInput(
                    f"{path!r}: Windows layers have no opaque directories",
                    hint="give a whiteout for each removed file",
                )


def _with_attributes(changes: Source, attributes: Callable[[str], int]) -> Iterator[Change]:
    for change in changes:
        if isinstance(change, Put) and change.entry.windows is not None and change.entry.path.startswith("Files/"):
            bits = attributes(change.entry.path[len("Files/") :])
            if bits:
                windows = change.entry.windows
                facet = replace(windows, attributes=windows.attributes | bits)
                change = Put(replace(change.entry, windows=facet), change.content)
        yield change


def _clamped(change: Change, latest: int) -> Change:
    if not isinstance(change, Put) or change.entry.windows is None:
        return change
    windows = change.entry.windows
    times = (windows.creation_time, windows.access_time, windows.write_time, windows.change_time)
    if all(time is None or time <= latest for time in times):
        return change
    creation, access, write, changed = (None if time is None else min(time, latest) for time in times)
    facet = replace(windows, creation_time=creation, access_time=access, write_time=write, change_time=changed)
    return Put(replace(change.entry, windows=facet), change.content)


def subtree_changes(changes: Source, directory: LayerPath, *, losses: Losses | None = None) -> Iterator[Change]:
    """The changes in ``directory``, with that as the root: drive C of a Windows image is its `Files`.

    All others are dropped. A whiteout of the directory, or of one above it, becomes an opaque root. Hard links to files
    outside, and alternate streams of the directory itself, are recorded as lost.
    """
    losses = Losses() if losses is None else losses
    cut = len(directory) + 1

    def inside(path: LayerPath) -> LayerPath | None:
        return LayerPath(path[cut:] if directory else path) if beneath(path, directory) else None

    for change in changes:
        path = inside(change.entry.path if isinstance(change, Put) else change.path)
        match change:
            case Whiteout(stated) | Opaque(stated) if not path and beneath(directory, stated):
                yield Opaque(LayerPath(""))
            case _ if path is None:
                pass
            case Put(entry, content):
                yield Put(replace(entry, path=path), content)
            case Link(stated, target):
                there = inside(target)
                if there:
                    yield Link(path, there)
                else:
                    losses.record(Loss(stated, "hard link", f"its target {target!r} is not in {directory!r}"))
            case Stream(stated, name, content):
                if path:
                    yield Stream(path, name, content)
                else:
                    losses.record(Loss(stated, f"alternate data stream {name!r}", "a root has none"))
            case Whiteout():
                yield Whiteout(path)
            case Opaque():
                yield Opaque(path)


def posix_from_windows(
    changes: Source, *, file_mode: int = 0o644, directory_mode: int = 0o755, losses: Losses | None = None
) -> Iterator[Change]:
    """Add a POSIX facet to each entry that has only a Windows facet.

    The owner is 0:0, the modification time the write time, or 1970. A read-only file gets no write permission. Links
    and mount points become symbolic links with slashes; a target on drive C becomes absolute, for a tree whose root is
    `Files`.

    Extended attributes and other reparse points are recorded as lost; alternate streams are left to the sink.
    """
    losses = Losses() if losses is None else losses
    for change in changes:
        if isinstance(change, Put) and change.entry.posix is None and change.entry.windows is not None:
            entry, windows = change.entry, change.entry.windows
            for name in windows.extended_attributes:
                losses.record(Loss(entry.path, f"extended attribute {name}", "a Windows attribute"))
            mode = directory_mode if entry.kind is Kind.DIRECTORY else file_mode
            if entry.kind is Kind.FILE and windows.attributes & READONLY:
                mode &= _NO_WRITING
            kind, target = entry.kind, entry.target
            if windows.reparse is not None:
                kind, target = _link(entry, windows.reparse, losses)
            if kind is Kind.SYMLINK:
                mode, target = 0o777, _posix_target(target)
            posix = Posix(mode, 0, 0, windows.write_time or 0)
            content = change.content if kind is Kind.FILE else None
            yield Put(Entry(entry.path, kind, posix, entry.size, target, windows), content)
        else:
            yield change


def _link(entry: Entry, buffer: bytes, losses: Losses) -> tuple[Kind, str]:
    try:
        point = reparse.decode(buffer)
    except FormatError as error:
        raise InvalidInput(f"{entry.path!r}: {error}") from None
    if not isinstance(point, reparse.Unknown):
        return Kind.SYMLINK, reparse.target(point)
    losses.record(Loss(entry.path, f"reparse point with the tag {point.tag:#x}", "only Windows can interpret it"))
    return entry.kind, entry.target


def _posix_target(target: str) -> str:
    drive = _DRIVE.match(target)
    if drive is not None:
        target = target[drive.end() :] or "\\"
    return target.replace("\\", "/") or "."


NONE: Final = "none"
"""No security descriptor: files inherit one from the directory that they are unpacked into."""


class WindowsTemplate(Struct, frozen=True):
    """Security descriptors, and attributes by patterns of paths on drive C."""

    security: SecurityTemplate
    attributes: tuple[tuple[re.Pattern[str], int], ...] = ()
    """Patterns of folded paths, and the bits that they add to the attributes."""

    def bits(self, path: str) -> int:
        """The further attributes of ``path``, which is relative to drive C and has slashes."""
        folded = names.folded(path)
        found = 0
        for pattern, bits in self.attributes:
            if pattern.match(folded):
                found |= bits
        return found


def parse_template(
    file_security: str | None = None, directory_security: str | None = None, attributes: Iterable[str] = ()
) -> WindowsTemplate:
    """Parse descriptors in SDDL, or ``none``, and attributes as ``PATTERN=hidden,system``.

    A descriptor of None is that of `default_security`. ``*`` in a pattern matches any characters, slashes included;
    case is ignored. Raises InvalidInput; Unsupported for accounts of a domain.
    """
    usual = default_security()
    security = SecurityTemplate(
        usual.directory if directory_security is None else _descriptor(directory_security),
        usual.file if file_security is None else _descriptor(file_security),
    )
    return WindowsTemplate(security, tuple(map(_attributes, attributes)))


def _descriptor(text: str) -> bytes | None:
    return None if text == NONE else sddl.parse(text).encode()


def _attributes(text: str) -> tuple[re.Pattern[str], int]:
    pattern, equals, words = text.rpartition("=")
    if not equals or not pattern:
        raise InvalidInput(f"attributes {text!r}: expected PATTERN=NAME[,NAME...]")
    bits = 0
    for word in words.split(","):
        bits |= basic_information.parse_settable(word)
    return re.compile(translate(names.folded(pattern.replace("\\", "/").removeprefix("/")))), bits
