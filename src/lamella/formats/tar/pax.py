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
"""What Go and libarchive read at most of one extended header."""

FIELDS: Final = frozenset({"path", "linkpath", "size", "uid", "gid", "mtime", "uname", "gname"})
"""Keys that stand for a field of the header itself."""

_NOT_GLOBAL: Final = ("SCHILY.xattr.", "LIBARCHIVE.xattr.", SPARSE, "GNU.volume.", "MSWINDOWS.")
_MAX_TIME: Final = MAX_NUMBER * SECOND

_C_STRINGS: Final = frozenset({"path", "linkpath", "uname", "gname"})

_SETS_KEPT: Final = 256
_not_sparse: set[tuple[str, ...]] = set()
"""Keys of records that were seen together, none of them about holes: most members of an archive have the same."""

_HEADS_KEPT: Final = 1024
_heads: dict[bytes, tuple[str, int]] = {}
"""What stands before the first ``=`` of a record, its length and its key -> the key, the bytes without the line end."""


def parse(data: bytes, at: int, max_records: int) -> dict[str, bytes]:
    """The records of one extended header that begins at ``at``; the last of several with one key counts.

    The offsets and lengths of GNU's sparse format 0.0, which repeats its keys, come out as the map that 0.1 would
    have. Raises FormatError, and Exhausted beyond ``max_records``.
    """
    nul = b"\0" in data
    if not nul and b"GNU.sparse." not in data:
        usual = _parse_usual(data, max_records)
        if usual is not None:
            return usual
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
            raise FormatError(STRUCTURE, at, f"the record at byte {position} of its data does not end where it says")
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


def _parse_usual(data: bytes, max_records: int) -> dict[str, bytes] | None:
    """The records where each is one line with its length in the shortest form; None where that is not so."""
    lines = data.split(b"\n")
    if lines.pop() or len(lines) > max_records:
        return None
    records: dict[str, bytes] = {}
    known = _heads.get
    for line in lines:
        head, _, value = line.partition(b"=")
        found = known(head) or _learned(head)
        if found is None:
            return None
        key, length = found
        if length != len(line):
            return None
        records[key] = value
    return records


def _learned(head: bytes) -> tuple[str, int] | None:
    """What `_heads` has of ``head``; None where it is nothing usual."""
    digits, _, key = head.partition(b" ")
    if not key or not digits.isdigit() or len(digits) > 4 or digits[:1] == b"0":
        return None
    found = key.decode("utf-8", "surrogateescape"), int(digits) - 1
    if found[1] <= len(head):  # a line without ``=`` would be taken for a record
        return None
    if len(head) < 64:
        if len(_heads) >= _HEADS_KEPT:
            _heads.clear()
        _heads[head] = found
    return found


def decimal(digits: bytes, what: str, at: int) -> int:
    """The number in a record. Raises FormatError."""
    try:
        return parse_decimal(digits)
    except ValueError as error:
        raise FormatError(STRUCTURE, at, f"malformed {what} {digits[:40]!r}: {error}") from None


def overrides(records: Mapping[str, bytes], at: int) -> tuple[int | None, int | None, int | None]:
    """Uid, gid and mtime in nanoseconds; None where a record is empty or not there. Raises FormatError."""
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
    """Make sure that a global header says nothing that only some readers would apply to every member.

    Raises FormatError.
    """
    for key in records:
        if key in ("path", "linkpath", "size") or key.startswith(_NOT_GLOBAL):
            raise FormatError(GLOBAL, at, f"{key[:80]!r} cannot apply to every member alike")


def is_sparse(records: Mapping[str, bytes]) -> bool:
    """Whether any record is one of GNU's for sparse files."""
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


def leave_data_alone(records: Mapping[str, bytes]) -> bool:
    """Whether the header itself says how large the data is, and where in the file it lies, as far as is known."""
    return tuple(records) in _not_sparse and "size" not in records and "SCHILY.realsize" not in records


def format_record(key: bytes, value: bytes) -> bytes:
    """One record, its length counting its own digits."""
    size = len(key) + len(value) + 3
    total = size + len(str(size))
    if len(str(total)) > len(str(size)):
        total += 1
    return b"%d %b=%b\n" % (total, key, value)


def format_records(records: Mapping[str, bytes]) -> bytes:
    """The data of an extended header, sorted by the bytes of the keys.

    Raises InvalidInput for what no reader would take: an empty key, one with ``=`` or NUL, NUL in a name, and a
    header over 1 MiB.
    """
    lines = []
    for key, value in sorted((key.encode("utf-8", "surrogateescape"), value) for key, value in records.items()):
        if not key or b"=" in key or b"\0" in key:
            raise InvalidInput(f"{key!r} cannot be the key of a PAX record")
        if b"\0" in value and key.decode("utf-8", "surrogateescape") in _C_STRINGS:
            raise InvalidInput(f"NUL in {key.decode()} {value[:80]!r}")
        lines.append(format_record(key, value))
    data = b"".join(lines)
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"PAX records of {len(data)} bytes are over the {MAX_BYTES} that readers take")
    return data
