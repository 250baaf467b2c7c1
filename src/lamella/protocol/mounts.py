# SPDX-License-Identifier: Apache-2.0
"""Conversions between containerd's mounts, which are options of mount(8), and typed mounts.

Options are escaped as mount(2) takes them: in the directories of an overlay, commas and backslashes are escaped
by a backslash, and so are colons in lists of directories (Documentation/filesystems/overlayfs.rst).
Mounts of Windows layers have lists of paths as JSON, from the nearest parent down.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Final, assert_never

from lamella.errors import InvalidInput, Unsupported
from lamella.layers.kinds import LAYER_KINDS
from lamella.protocol.proto import types_pb2
from lamella.store.contract import (
    AddedMount,
    BindMount,
    BlockCimMount,
    CimMount,
    ErofsMount,
    Mount,
    OverlayMount,
    WindowsLayerMount,
)

LOG = logging.getLogger("lamella.service")

BIND: Final = LAYER_KINDS["directory"].mount_type
OVERLAY: Final = LAYER_KINDS["overlay"].mount_type
EROFS: Final = LAYER_KINDS["erofs"].mount_type
WINDOWS: Final = LAYER_KINDS["windows"].mount_type
CIM: Final = LAYER_KINDS["cim"].mount_type
BLOCK_CIM: Final = LAYER_KINDS["blockcim"].mount_type

_RECURSIVE: Final = "rbind"
_LOOP: Final = "loop"
_READ_ONLY: Final = "ro"
_READ_WRITE: Final = "rw"
_LOWER: Final = "lowerdir="
_UPPER: Final = "upperdir="
_WORK: Final = "workdir="
_PARENTS: Final = "parentLayerPaths="
_IMAGE: Final = "cimpath="
_IMAGES: Final = "parentCimPaths="
_BLOCKS: Final = "blockCIMType="
_MERGED: Final = "mergedCIMPath="
_INTEGRITY: Final = "enable_layer_integrity"
_FOOTER: Final = "append_vhd_footer"

_OF_BINDS: Final = frozenset({BIND, _RECURSIVE, _READ_ONLY, _READ_WRITE})
_IGNORED: Final = frozenset(
    {"nosuid", "suid", "nodev", "dev", "noexec", "exec", "async", "sync", "dirsync", "defaults"}
    | {"noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime"}
    | {f"{how}{kind}" for how in ("", "r") for kind in ("private", "shared", "slave", "unbindable")}
)
"""Options that affect neither files nor ownership."""

_MORE_LAYERS: Final = ("lowerdir+=", "datadir+=")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_BETWEEN: Final = re.compile(r"((?:[^\\:]|\\.)*)(:|\Z)", re.DOTALL)


def typed(mounts: Iterable[types_pb2.Mount]) -> tuple[Mount, ...]:
    """Parse mounts. Unknown options of Windows mounts are ignored, as by containerd, and logged.

    Raises InvalidInput, Unsupported (an unknown type, or an unknown option of another mount).
    """
    return tuple(_typed(mount) for mount in mounts)


def sent(mounts: Iterable[Mount]) -> list[types_pb2.Mount]:
    """Mounts as messages. Raises Unsupported for a path that is not UTF-8."""
    return [_sent(mount) for mount in mounts]


def _typed(mount: types_pb2.Mount) -> Mount:
    if mount.target:
        raise Unsupported(f"a mount of type {mount.type!r} has the target {mount.target!r}")
    options = list(mount.options)
    if mount.type == OVERLAY:
        return _typed_overlay(options)
    if mount.type == EROFS:
        kept = tuple(option for option in options if option not in (_READ_ONLY, _LOOP))
        if _READ_WRITE in kept:
            raise InvalidInput("an EROFS mount must be read-only")
        return ErofsMount(_path(mount.source), kept)
    if mount.type == BIND or BIND in options or _RECURSIVE in options:
        for option in options:
            if option not in _OF_BINDS and option not in _IGNORED:
                raise Unsupported(f"a bind mount has the unknown option {option!r}")
        return BindMount(_path(mount.source), readonly=_is_readonly(options))
    if mount.type in _OF_WINDOWS:
        return _typed_windows(mount)
    for kind in LAYER_KINDS.select(lambda row: mount.type and row.mount_type == mount.type):
        return _typed_added(kind, mount)
    raise Unsupported(
        f"mounts of type {mount.type!r} are not supported",
        hint=f"supported are {', '.join((BIND, OVERLAY, EROFS, *_OF_WINDOWS))}",
    )


_OF_WINDOWS: Final = {
    WINDOWS: (_PARENTS,),
    CIM: (_IMAGE, _PARENTS, _IMAGES),
    BLOCK_CIM: (_IMAGES, _BLOCKS, _MERGED, _INTEGRITY, _FOOTER),
}
"""Types of mounts of Windows layers -> their options."""


def _typed_windows(mount: types_pb2.Mount) -> Mount:
    values: dict[str, str] = {}
    for option in mount.options:
        name, equals, value = option.partition("=")
        if name + equals in _OF_WINDOWS[mount.type]:
            values[name + equals] = value
        elif option not in (_READ_ONLY, _READ_WRITE):
            LOG.warning("ignored the unknown option %r of a mount of type %r", name, mount.type)
    readonly = _is_readonly(mount.options)
    source, parents, images = _windows_path(mount.source), _paths(values, _PARENTS), _paths(values, _IMAGES)
    if mount.type == WINDOWS:
        return WindowsLayerMount(source, parents, readonly)
    if mount.type == CIM:
        image = _windows_path(values[_IMAGE]) if _IMAGE in values else None
        return CimMount(source, image, parents, images, readonly)
    kind = values.get(_BLOCKS, "file")
    if kind not in ("file", "device"):
        raise InvalidInput(f"a block CIM is in a file or a device, not in {kind!r}")
    merged = _windows_path(values[_MERGED]) if _MERGED in values else None
    return BlockCimMount(source, images, kind, merged, _INTEGRITY in values, _FOOTER in values)


def _typed_added(kind: str, mount: types_pb2.Mount) -> AddedMount:
    values: dict[str, str] = {}
    for option in mount.options:
        name, equals, value = option.partition("=")
        if name + equals == _PARENTS:
            values[_PARENTS] = value
        elif option not in (_READ_ONLY, _READ_WRITE):
            raise Unsupported(f"a mount of type {mount.type!r} has the unknown option {name!r}")
    return AddedMount(kind, _path(mount.source), _paths(values, _PARENTS), _is_readonly(mount.options))


def _paths(values: dict[str, str], name: str) -> tuple[Path, ...]:
    if name not in values:
        return ()
    import json

    try:
        found = json.loads(values[name])
    except (ValueError, RecursionError) as problem:
        raise InvalidInput(f"the option {name!r} of a mount is not JSON: {problem}") from None
    if found is None:  # an empty list in Go
        return ()
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InvalidInput(f"the option {name!r} of a mount is not a list of paths")
    return tuple(map(_windows_path, found))


def _windows_path(text: str) -> Path:
    """A Windows path, valid on Windows hosts only, without a trailing backslash."""
    if not text.startswith("/") and PureWindowsPath(text).drive:
        raise Unsupported(f"a mount has the Windows path {text[:200]!r}, and this host is not Windows")
    return _path(text.rstrip("\\"))


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
            raise Unsupported(f"an overlay has the unknown option {option.partition('=')[0]!r}")
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
    """Whether ``ro`` is the last of ``ro`` and ``rw``."""
    values = [option for option in options if option in (_READ_ONLY, _READ_WRITE)]
    return bool(values) and values[-1] == _READ_ONLY


def _parts(value: str) -> list[str]:
    """Split at colons without a backslash before them."""
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
        raise InvalidInput(f"a mount has the path {text[:200]!r}, which is not absolute")
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
            # Linux before 6.12 needs a loop device, which containerd sets up for this option.
            return types_pb2.Mount(type=EROFS, source=_text(image), options=(_READ_ONLY, _LOOP, *options))
        case WindowsLayerMount(folder, parents, readonly):
            words = [_READ_ONLY if readonly else _READ_WRITE]
            if parents:
                words.append(_PARENTS + _listed(parents))
            return types_pb2.Mount(type=WINDOWS, source=_text(folder), options=words)
        case CimMount(folder, image, parents, images, readonly):
            words = [_READ_ONLY if readonly else _READ_WRITE]
            if image is not None:
                words.append(_IMAGE + _text(image))
            if parents:
                words.append(_PARENTS + _listed(parents))
            if images:
                words.append(_IMAGES + _listed(images))
            return types_pb2.Mount(type=CIM, source=_text(folder), options=words)
        case BlockCimMount(source, images, kind, merged, integrity, footer):
            words = [_IMAGES + _listed(images), _BLOCKS + kind]
            if merged is not None:
                words.append(_MERGED + _text(merged))
            words += [_INTEGRITY] * integrity + [_FOOTER] * footer
            return types_pb2.Mount(type=BLOCK_CIM, source=_text(source), options=words)
        case AddedMount(added, place, parents, readonly):
            words = [_READ_ONLY if readonly else _READ_WRITE]
            if parents:
                words.append(_PARENTS + _listed(parents))
            return types_pb2.Mount(type=LAYER_KINDS[added].mount_type, source=_text(place), options=words)
        case _:
            assert_never(mount)


def _listed(paths: Iterable[Path]) -> str:
    import json

    return json.dumps([_text(path) for path in paths], ensure_ascii=False, separators=(",", ":"))


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
        raise Unsupported(f"the path {text!r} is not UTF-8, which messages require") from None
    return text
