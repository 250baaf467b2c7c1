# SPDX-License-Identifier: Apache-2.0
"""Mounts as containerd writes them, words for mount(8), to typed ones and back. Nothing else reads those words.

Options are escaped as mount(2) takes them: in the directories of an overlay a backslash stands before commas and
backslashes, and before colons where several directories are in a row (Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, assert_never

from lamella.errors import InvalidInput, Unsupported
from lamella.protocol.proto import types_pb2
from lamella.store.contract import BindMount, ErofsMount, Mount, OverlayMount

BIND: Final = "bind"
OVERLAY: Final = "overlay"
EROFS: Final = "erofs"

_RECURSIVE: Final = "rbind"
_LOOP: Final = "loop"
_READ_ONLY: Final = "ro"
_READ_WRITE: Final = "rw"
_LOWER: Final = "lowerdir="
_UPPER: Final = "upperdir="
_WORK: Final = "workdir="

_OF_BINDS: Final = frozenset({BIND, _RECURSIVE, _READ_ONLY, _READ_WRITE})
_NONE_THE_MATTER: Final = frozenset(
    {"nosuid", "suid", "nodev", "dev", "noexec", "exec", "async", "sync", "dirsync", "defaults"}
    | {"noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime"}
    | {f"{how}{kind}" for how in ("", "r") for kind in ("private", "shared", "slave", "unbindable")}
)
"""Options that say nothing of which files there are, nor of who owns them."""

_MORE_LAYERS: Final = ("lowerdir+=", "datadir+=")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_BETWEEN: Final = re.compile(r"((?:[^\\:]|\\.)*)(:|\Z)", re.DOTALL)


def typed(mounts: Iterable[types_pb2.Mount]) -> tuple[Mount, ...]:
    """What ``mounts`` say. Raises InvalidInput, and Unsupported for kinds that the store does not have."""
    return tuple(_typed(mount) for mount in mounts)


def sent(mounts: Iterable[Mount]) -> list[types_pb2.Mount]:
    """``mounts`` for a client. Raises Unsupported where a path is not UTF-8, which is all that goes over the wire."""
    return [_sent(mount) for mount in mounts]


def _typed(mount: types_pb2.Mount) -> Mount:
    if mount.target:
        raise Unsupported(f"a mount of type {mount.type!r} is to be made at {mount.target!r}, beneath the others")
    options = list(mount.options)
    if mount.type == OVERLAY:
        return _typed_overlay(options)
    if mount.type == EROFS:
        kept = tuple(option for option in options if option not in (_READ_ONLY, _LOOP))
        if _READ_WRITE in kept:
            raise InvalidInput("an EROFS image cannot be written to")
        return ErofsMount(_path(mount.source), kept)
    if mount.type == BIND or BIND in options or _RECURSIVE in options:
        for option in options:
            if option not in _OF_BINDS and option not in _NONE_THE_MATTER:
                raise Unsupported(f"a bind mount has the option {option!r}, which is not known here")
        return BindMount(_path(mount.source), readonly=_is_readonly(options))
    raise Unsupported(f"mounts of type {mount.type!r} are not known here", hint="bind, overlay and erofs are")


def _typed_overlay(options: Sequence[str]) -> OverlayMount:
    lower: tuple[Path, ...] = ()
    upper: Path | None = None
    work: Path | None = None
    kept: list[str] = []
    for option in options:
        if option.startswith(_LOWER):
            lower = tuple(_path(_unescaped(one)) for one in _parts(option[len(_LOWER) :]))
        elif option.startswith(_UPPER):
            upper = _path(_unescaped(option[len(_UPPER) :]))
        elif option.startswith(_WORK):
            work = _path(_unescaped(option[len(_WORK) :]))
        elif option.startswith(_MORE_LAYERS):
            raise Unsupported(f"an overlay has the option {option.partition('=')[0]!r}, which is not known here")
        elif option not in (_READ_ONLY, _READ_WRITE):
            kept.append(option)
    if upper is not None and _is_readonly(options):
        lower, upper, work = (upper, *lower), None, None
    if upper is None:
        work = None
        if not lower:
            raise InvalidInput("an overlay has neither lower directories nor an upper one")
    return OverlayMount(lower, upper, work, tuple(kept))


def _is_readonly(options: Sequence[str]) -> bool:
    """The last word counts."""
    said = [option for option in options if option in (_READ_ONLY, _READ_WRITE)]
    return bool(said) and said[-1] == _READ_ONLY


def _parts(value: str) -> list[str]:
    """What is between the colons that no backslash stands before."""
    found: list[str] = []
    at = 0
    while True:
        match = _BETWEEN.match(value, at)
        if match is None:
            raise InvalidInput("the directories of an overlay end in a backslash")
        found.append(match[1])
        if not match[2]:
            return found
        at = match.end()


def _unescaped(value: str) -> str:
    return _ESCAPED.sub(r"\1", value)


def _path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise InvalidInput(f"a mount names {text[:200]!r}, which is not the path of a file from the root on")
    return Path(text)


def _sent(mount: Mount) -> types_pb2.Mount:
    match mount:
        case BindMount(source, readonly):
            flag = _READ_ONLY if readonly else _READ_WRITE
            return types_pb2.Mount(type=BIND, source=_text(source), options=(flag, _RECURSIVE))
        case OverlayMount(lower, upper, work, options):
            words = []
            if work is not None:
                words.append(_WORK + _escaped(_text(work), ","))
            if upper is not None:
                words.append(_UPPER + _escaped(_text(upper), ","))
            if lower:
                words.append(_LOWER + ":".join(_escaped(_text(one), ":,") for one in lower))
            return types_pb2.Mount(type=OVERLAY, source=OVERLAY, options=(*words, *options))
        case ErofsMount(image, options):
            # Before Linux 6.12 it takes a loop device, which containerd sets up for this word.
            return types_pb2.Mount(type=EROFS, source=_text(image), options=(_READ_ONLY, _LOOP, *options))
        case _:
            assert_never(mount)


def _escaped(path: str, special: str) -> str:
    path = path.replace("\\", "\\\\")
    for one in special:
        path = path.replace(one, f"\\{one}")
    return path


def _text(path: Path) -> str:
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unsupported(f"the path {text!r} is not UTF-8, and cannot be told to clients") from None
    return text
