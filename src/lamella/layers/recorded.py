# SPDX-License-Identifier: Apache-2.0
"""Owners and devices that a file system could not take, kept in extended attributes beside the file instead.

Two forms are in use, and both are spoken here:

- ``user.rootlesscontainers``, the protobuf message ``rootlesscontainers.Resource`` (``uint32 uid = 1``,
  ``uint32 gid = 2``), as umoci and PRoot write it: ids inside the container, 4294967295 for "as it is".
- ``user.containers.override_stat``, the text ``uid:gid:mode[:type[-major-minor]]`` with an octal mode, as
  containers/storage and fuse-overlayfs write it.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from lamella.changes.model import Kind, Posix
from lamella.errors import InvalidInput
from lamella.formats.varint import encode_varint

ROOTLESS: Final = "user.rootlesscontainers"
OVERRIDE: Final = "user.containers.override_stat"

_SAME: Final = 0xFFFFFFFF
_LONGEST: Final = 256
"""Bytes of a record that are looked at; the real ones take at most twelve, and some fifty."""


def encode_owner(uid: int, gid: int) -> bytes:
    """The record of an owner.

    As umoci does, an id of 0 is written as "as it is"; for 0:0, which is what a file without a record has, no record
    is needed at all.
    """
    return b"\x08" + encode_varint(uid or _SAME) + b"\x10" + encode_varint(gid or _SAME)


def decode_owner(value: bytes) -> tuple[int | None, int | None]:
    """User and group of a record; None stands for "as it is". Raises InvalidInput."""
    if len(value) > _LONGEST:
        raise InvalidInput(f"{ROOTLESS}: a record of {len(value)} bytes")
    ids = [0, 0]
    at = 0
    while at < len(value):
        tag, at = _read_varint(value, at)
        field, form = tag >> 3, tag & 7
        if form == 0 and field:
            number, at = _read_varint(value, at)
            if field in (1, 2):
                ids[field - 1] = number & 0xFFFFFFFF
            continue
        if form == 2:
            length, at = _read_varint(value, at)
            at += length
        elif form in (1, 5):
            at += 8 if form == 1 else 4
        if form not in (1, 2, 5) or field in (0, 1, 2) or at > len(value):
            raise InvalidInput(f"{ROOTLESS}: malformed record {value.hex()}")
    uid, gid = ids
    return None if uid == _SAME else uid, None if gid == _SAME else gid


def _read_varint(value: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(value):
            break
        byte = value[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise InvalidInput(f"{ROOTLESS}: malformed record {value.hex()}")


class Override(Struct):
    """What a file stands for. ``mode`` has the twelve permission bits alone."""

    uid: int
    gid: int
    mode: int
    kind: Kind | None = None
    """None where the record does not say: then it is what it is."""
    device: tuple[int, int] = (0, 0)


_TYPES: Final = {
    Kind.FILE: "file",
    Kind.DIRECTORY: "dir",
    Kind.SYMLINK: "symlink",
    Kind.FIFO: "pipe",
    Kind.CHARACTER: "char",
    Kind.BLOCK: "block",
}
_KINDS: Final = {name: kind for kind, name in _TYPES.items()}
_FORM: Final = re.compile(
    rb"([0-9]{1,10}):([0-9]{1,10}):([0-7]{1,8})(?::(?:(file|dir|symlink|pipe)|(char|block)-([0-9]{1,10})-([0-9]{1,10})))?"
)


def encode_override(kind: Kind, posix: Posix) -> bytes:
    """The record of a file of ``kind`` with the owner, mode and device numbers of ``posix``."""
    text = f"{posix.uid}:{posix.gid}:{posix.mode:04o}:{_TYPES[kind]}"
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        text += f"-{posix.device[0]}-{posix.device[1]}"
    return text.encode("ascii")


def decode_override(value: bytes) -> Override:
    """What a record says. Type bits within its mode, which some tools write, are dropped. Raises InvalidInput."""
    match = _FORM.fullmatch(value)
    if match is None:
        raise InvalidInput(f"{OVERRIDE}: malformed record {value[:_LONGEST]!r}")
    uid, gid, mode, plain, special, major, minor = match.groups()
    if int(uid) > _SAME or int(gid) > _SAME:
        raise InvalidInput(f"{OVERRIDE}: an id above {_SAME} in {value!r}")
    kind = plain or special
    return Override(
        int(uid),
        int(gid),
        int(mode, 8) & 0o7777,
        _KINDS[kind.decode("ascii")] if kind else None,
        (int(major), int(minor)) if special else (0, 0),
    )
