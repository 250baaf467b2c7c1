# SPDX-License-Identifier: Apache-2.0
"""Who a process of an image runs as, by the image's own passwd and group files (image-spec, config.md, "User")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from lamella.changes.contracts import Tree
from lamella.changes.model import Kind, dense
from lamella.changes.tree import resolve
from lamella.errors import Exhausted, InvalidInput, NotFound
from lamella.paths import LayerPath

_LARGEST: Final = 8 << 20
"""Bytes of a passwd or group file that are read."""
_LAST_ID: Final = (1 << 32) - 2


class Account(Struct, frozen=True):
    """The ids a process gets, and its home where passwd says."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()
    home: str | None = None


def find_account(tree: Tree, user: str) -> Account:
    """The account that ``user`` means in ``tree``: ``user``, ``uid``, either with ``:group`` or ``:gid``; empty is 0.

    Without a group, the group of passwd and the further groups of the group file count; with one, it alone. An id
    need not be in the files, a name must. Raises NotFound, InvalidInput.
    """
    name, colon, group = user.partition(":")
    if colon and not group:
        raise InvalidInput(f"malformed user {user!r}: the group after the colon is empty")
    uid = _number(name or "0")
    home: str | None = None
    known: str | None = None
    gid = 0
    for fields in _lines(tree, "etc/passwd", 7):
        found = _number(fields[2])
        if found is None or (fields[0] != name if uid is None else found != uid):
            continue
        known, uid, gid, home = fields[0], found, _number(fields[3]) or 0, fields[5] or None
        break
    if uid is None:
        raise NotFound(f"the image's /etc/passwd has no user {name!r}", hint="give the user as a number")
    if group:
        return Account(uid, _group(tree, group), (), home)
    further = {
        number
        for fields in _lines(tree, "etc/group", 4)
        if known is not None and known in fields[3].split(",") and (number := _number(fields[2])) is not None
    }
    return Account(uid, gid, tuple(sorted(further - {gid})), home)


def _group(tree: Tree, group: str) -> int:
    gid = _number(group)
    if gid is None:
        for fields in _lines(tree, "etc/group", 4):
            if fields[0] == group and (gid := _number(fields[2])) is not None:
                break
        else:
            raise NotFound(f"the image's /etc/group has no group {group!r}", hint="give the group as a number")
    return gid


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text[:20])
    if number > _LAST_ID:
        raise InvalidInput(f"the id {text[:20]} is above {_LAST_ID}")
    return number


def _lines(tree: Tree, path: str, count: int) -> Iterator[list[str]]:
    """The fields of each well-formed line; nothing where the file is not there."""
    try:
        at = resolve(tree, LayerPath(path))
    except (NotFound, InvalidInput):  # nothing there, or links that go round
        return
    entry = tree.lookup(at)
    if entry is None or entry.kind is not Kind.FILE:
        return
    if entry.size > _LARGEST:
        raise Exhausted(f"the image's /{path} has {entry.size} bytes, more than the {_LARGEST} that are read")
    raw = b"".join(bytes(chunk) for chunk in dense(tree.open(at)))
    for line in raw.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.rstrip("\r").split(":")
        if len(fields) >= count and not line.startswith("#"):
            yield fields
