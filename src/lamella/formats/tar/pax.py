# SPDX-License-Identifier: Apache-2.0
"""PAX extended headers: ``LENGTH KEY=VALUE`` lines (POSIX.1-2017, pax, "pax Extended Header")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lamella.errors import Exhausted, FormatError, InvalidInput
from lamella.formats.tar.fields import MAX_NUMBER, parse_decimal
from lamella.times import SECOND, parse_pax_time

STRUCTURE: Final = "PAX header"
GLOBAL: Final = "PAX global header"

SPARSE: Final = "GNU.sparse."
SPARSE_MAP: Final = "GNU.sparse.map"

MAX_BYTES: Final = 1 << 20
"""Maximum size of one extended header in Go and libarchive."""

FIELDS: Final = frozenset({"path", "linkpath", "size", "uid", "gid", "mtime", "uname", "gname"})
"""Keys that override a field of the header."""

_NOT_GLOBAL: Final = ("SCHILY.xattr.", "LIBARCHIVE.xattr.", SPARSE, "GNU.volume.", "MSWINDOWS.")
_MAX_TIME: Final = MAX_NUMBER * SECOND

_C_STRINGS: Final = frozenset({"path", "linkpath", "uname", "gname"})

_SETS_KEPT: Final = 256
_not_sparse: set[tuple[str, ...]] = set()
"""Cache: sets of keys without sparse records; most members of an archive have the same keys."""

_HEADS_KEPT: Final = 1024
_heads: dict[bytes, tuple[str, int]] = {}
"""Cache: record up to ``=`` (length and key) -> key, length without the newline."""


def parse(data: bytes, at: int, max_records: int) -> dict[str, bytes]:
    """Parse the records of the extended header at offset ``at``; of repeated keys, the last wins.

    The repeated keys of GNU's sparse format 0.0 are converted to the map of format 0.1.
    Raises FormatError, and Exhausted beyond ``max_records``.
    """
    nul = b"\0" in data
    if not nul and b"GNU.sparse." not in data:
        canonical = _parse_canonical(data, max_records)
        if canonical is not None:
            return canonical
    records: dict[str, bytes] = {}
    fragments: list[bytes] = []
    position, end = 0, len(data)
    left = max_records
    while position < end:
        space = data.find(b" ", position, position + 20)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise FormatError(STRUCTURE, at, f"no record length at byte {position} of its data")
        stop = position + int(digits)
        if stop > end or stop <= space + 1 or data[stop - 1] != 0x0A:
            raise FormatError(STRUCTURE, at, f"wrong length of the record at byte {position} of its data")
        equals = data.find(b"=", space + 1, stop - 1)
        if equals <= space + 1:
            raise FormatError(STRUCTURE, at, f"the record at byte {position} of its data has no key")
        key = data[space + 1 : equals].decode("utf-8", "surrogateescape")
        value = data[equals + 1 : stop - 1]
        if nul and ("\0" in key or (key in _C_STRINGS and b"\0" in value)):
            raise FormatError(STRUCTURE, at, f"NUL in the record {key[:80]!r}")
        left -= 1
        if left < 0:
            raise Exhausted(f"{STRUCTURE} at offset {at}: more than {max_records} records")
        if key == "GNU.sparse.offset" or key == "GNU.sparse.numbytes":
            if (key == "GNU.sparse.offset") != (len(fragments) % 2 == 0) or b"," in value:
                raise FormatError(STRUCTURE, at, "sparse offsets and lengths do not alternate")
            fragments.append(value)
        else:
            records[key] = value
        position = stop
    if fragments:
        records[SPARSE_MAP] = b",".join(fragments)
    return records


def _parse_canonical(data: bytes, max_records: int) -> dict[str, bytes] | None:
    """Fast path for records without newlines whose lengths have no leading zeros; None for others."""
    lines = data.split(b"\n")
    if lines.pop() or len(lines) > max_records:
        return None
    records: dict[str, bytes] = {}
    known = _heads.get
    for line in lines:
        head, _, value = line.partition(b"=")
        found = known(head) or _learn_head(head)
        if found is None:
            return None
        key, length = found
        if length != len(line):
            return None
        records[key] = value
    return records


def _learn_head(head: bytes) -> tuple[str, int] | None:
    """Parse ``head`` for `_heads`; None unless canonical."""
    digits, _, key = head.partition(b" ")
    if not key or not digits.isdigit() or len(digits) > 4 or digits[:1] == b"0":
        return None
    found = key.decode("utf-8", "surrogateescape"), int(digits) - 1
    if found[1] <= len(head):  # the line has no ``=``
        return None
    if len(head) < 64:
        if len(_heads) >= _HEADS_KEPT:
            _heads.clear()
        _heads[head] = found
    return found


def decimal(digits: bytes, what: str, at: int) -> int:
    """Parse the number in a record. Raises FormatError."""
    try:
        return parse_decimal(digits)
    except ValueError as error:
        raise FormatError(STRUCTURE, at, f"malformed {what} {digits[:40]!r}: {error}") from None


def overrides(records: Mapping[str, bytes], at: int) -> tuple[int | None, int | None, int | None]:
    """Uid, gid and mtime (nanoseconds); None for empty or missing records. Raises FormatError."""
    uid, gid, mtime = records.get("uid"), records.get("gid"), records.get("mtime")
    time = None
    if mtime:
        try:
            time = parse_pax_time(mtime.decode("latin-1"))
        except InvalidInput as error:
            raise FormatError(STRUCTURE, at, str(error)) from None
        if not -_MAX_TIME <= time <= _MAX_TIME:
            raise FormatError(STRUCTURE, at, "mtime beyond 64 bits")
    return decimal(uid, "uid", at) if uid else None, decimal(gid, "gid", at) if gid else None, time


def check_global(records: Mapping[str, bytes], at: int) -> None:
    """Reject global records that only some readers would apply to every member. Raises FormatError."""
    for key in records:
        if key in ("path", "linkpath", "size") or key.startswith(_NOT_GLOBAL):
            raise FormatError(GLOBAL, at, f"{key[:80]!r} cannot apply to every member")


def is_sparse(records: Mapping[str, bytes]) -> bool:
    """Whether any record is a GNU sparse record."""
    keys = tuple(records)
    if keys in _not_sparse:
        return False
    for key in keys:
        if key.startswith(SPARSE):
            return True
    if len(keys) < 16 and sum(map(len, keys)) < 512:
        if len(_not_sparse) >= _SETS_KEPT:
            _not_sparse.clear()
        _not_sparse.add(keys)
    return False


def is_header_size(records: Mapping[str, bytes]) -> bool:
    """Whether the size of the data is certainly that in the header: no size or sparse records."""
    return tuple(records) in _not_sparse and "size" not in records and "SCHILY.realsize" not in records


def format_record(key: bytes, value: bytes) -> bytes:
    """Format one record; its length includes the digits of the length."""
    size = len(key) + len(value) + 3
    total = size + len(str(size))
    if len(str(total)) > len(str(size)):
        total += 1
    return b"%d %b=%b\n" % (total, key, value)


def format_records(records: Mapping[str, bytes]) -> bytes:
    """Format the data of an extended header, sorted by the bytes of the keys.

    Raises InvalidInput for data that readers reject: an empty key, a key with ``=`` or NUL, a name with NUL, more than
    1 MiB.
    """
    lines = []
    for key, value in sorted((key.encode("utf-8", "surrogateescape"), value) for key, value in records.items()):
        if not key or b"=" in key or b"\0" in key:
            raise InvalidInput(f"invalid key of a PAX record: {key!r}")
        if b"\0" in value and key.decode("utf-8", "surrogateescape") in _C_STRINGS:
            raise InvalidInput(f"NUL in {key.decode()} {value[:80]!r}")
        lines.append(format_record(key, value))
    data = b"".join(lines)
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"PAX records of {len(data)} bytes exceed the {MAX_BYTES} that readers accept")
    return data
