# SPDX-License-Identifier: Apache-2.0
"""Security descriptors in self-relative form ([MS-DTYP] 2.4.2 to 2.4.6).

Pass descriptors on as their original bytes where possible: the order of the parts is free, so decoding and encoding may
change the bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final, Self, TypeVar

from msgspec import Struct

from lamella.errors import FormatError, InvalidInput

T = TypeVar("T")

STRUCTURE: Final = "security descriptor"

OWNER_DEFAULTED: Final = 0x0001
GROUP_DEFAULTED: Final = 0x0002
DACL_PRESENT: Final = 0x0004
DACL_DEFAULTED: Final = 0x0008
SACL_PRESENT: Final = 0x0010
SACL_DEFAULTED: Final = 0x0020
DACL_AUTO_INHERIT_REQUIRED: Final = 0x0100
SACL_AUTO_INHERIT_REQUIRED: Final = 0x0200
DACL_AUTO_INHERITED: Final = 0x0400
SACL_AUTO_INHERITED: Final = 0x0800
DACL_PROTECTED: Final = 0x1000
SACL_PROTECTED: Final = 0x2000
RESOURCE_MANAGER_VALID: Final = 0x4000
SELF_RELATIVE: Final = 0x8000

ACCESS_ALLOWED: Final = 0x00
ACCESS_DENIED: Final = 0x01
SYSTEM_AUDIT: Final = 0x02
SYSTEM_ALARM: Final = 0x03
MANDATORY_LABEL: Final = 0x11
SCOPED_POLICY: Final = 0x13
PROCESS_TRUST_LABEL: Final = 0x14
ACCESS_FILTER: Final = 0x15

_MASK_AND_SID: Final = frozenset({*range(4), *range(0x09, 0x0B), 0x0D, 0x0E, *range(0x11, 0x16)})
"""ACE types whose body starts with a mask and a SID; object types have GUIDs between both."""

_HEADER: Final = struct.Struct("<BBHIIII")
_ACL: Final = struct.Struct("<BBHHH")
_ACE: Final = struct.Struct("<BBH")
_MAX_SUBS: Final = 15
_MAX_ACL: Final = 0xFFFF
_MAX_AUTHORITY: Final = (1 << 48) - 1

_SID_TEXT: Final = re.compile(r"S-1-([0-9]{1,15}|0x[0-9a-f]{1,12})((?:-[0-9]{1,10}){0,15})", re.IGNORECASE | re.ASCII)


class Sid(Struct, frozen=True):
    """A security identifier; its text is ``S-1-AUTHORITY-SUB-SUB...``."""

    authority: int
    subs: tuple[int, ...] = ()

    def __str__(self) -> str:
        authority = str(self.authority) if self.authority < 1 << 32 else f"0x{self.authority:012x}"
        return "-".join(("S-1", authority, *map(str, self.subs)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text form. Raises InvalidInput."""
        match = _SID_TEXT.fullmatch(text)
        if match is None:
            raise InvalidInput(f"malformed SID {text[:80]!r}")
        authority = int(match[1], 16 if match[1][:2] in ("0x", "0X") else 10)
        subs = tuple(map(int, match[2].split("-")[1:]))
        if authority > _MAX_AUTHORITY or max(subs, default=0) > 0xFFFFFFFF:
            raise InvalidInput(f"a number in the SID {text[:80]!r} is too large")
        return cls(authority, subs)

    @classmethod
    def decode(cls, data: bytes, at: int = 0, end: int | None = None) -> Self:
        """Decode the SID at offset ``at``, inside ``end``. Raises FormatError."""
        end = len(data) if end is None else end
        if end - at < 8:
            raise FormatError("SID", at, f"only {max(0, end - at)} bytes left")
        revision, count = data[at], data[at + 1]
        if revision != 1:
            raise FormatError("SID", at, f"unknown revision {revision}")
        if count > _MAX_SUBS:
            raise FormatError("SID", at, f"{count} sub-authorities exceed the limit of {_MAX_SUBS}")
        if at + 8 + 4 * count > end:
            raise FormatError("SID", at, f"{count} sub-authorities do not fit")
        subs: tuple[int, ...] = struct.unpack_from(f"<{count}I", data, at + 8)
        return cls(int.from_bytes(data[at + 2 : at + 8], "big"), subs)

    def encode(self) -> bytes:
        """Encode the binary form. Raises InvalidInput for numbers out of range."""
        if not 0 <= self.authority <= _MAX_AUTHORITY or len(self.subs) > _MAX_SUBS:
            raise InvalidInput(f"no SID can be {self}")
        try:
            subs = struct.pack(f"<{len(self.subs)}I", *self.subs)
        except struct.error:
            raise InvalidInput(f"no SID can be {self}") from None
        return bytes((1, len(self.subs))) + self.authority.to_bytes(6, "big") + subs


class Ace(Struct, frozen=True):
    """An access control entry; ``body`` is the data after the header of type, flags and size.

    Conditions and the GUIDs of object entries stay unparsed in the body.
    """

    type: int
    flags: int
    body: bytes

    @classmethod
    def simple(cls, type_: int, flags: int, mask: int, sid: Sid) -> Self:
        """Create an entry with only a mask and a SID."""
        return cls(type_, flags, mask.to_bytes(4, "little") + sid.encode())

    @property
    def mask(self) -> int | None:
        """Access mask; None for types not known to start with one."""
        if self.type not in _MASK_AND_SID and not 0x05 <= self.type <= 0x10:
            return None
        return int.from_bytes(self.body[:4], "little") if len(self.body) >= 4 else None

    @property
    def sid(self) -> Sid | None:
        """Trustee; None for types whose SID does not follow the mask. Raises FormatError."""
        return Sid.decode(self.body, 4) if self.type in _MASK_AND_SID else None

    @property
    def extra(self) -> bytes:
        """Data after the SID (a condition, claim or padding); the whole body without a SID."""
        sid = self.sid
        return self.body if sid is None else self.body[12 + 4 * len(sid.subs) :]


class Acl(Struct, frozen=True):
    """An access control list, with ordered entries. Lists with object entries have revision 4."""

    aces: tuple[Ace, ...]
    revision: int = 2

    @classmethod
    def decode(cls, data: bytes, at: int = 0) -> Self:
        """Decode the list at offset ``at``, without unused bytes at its end. Raises FormatError."""
        if at + _ACL.size > len(data):
            raise FormatError("ACL", at, f"only {max(0, len(data) - at)} bytes left")
        revision, _, size, count, _ = _ACL.unpack_from(data, at)
        if revision not in (2, 3, 4):
            raise FormatError("ACL", at, f"unknown revision {revision}")
        end = at + size
        if size < _ACL.size or end > len(data):
            raise FormatError("ACL", at, f"the size {size} does not fit")
        aces = []
        position = at + _ACL.size
        for _ in range(count):
            if position + _ACE.size > end:
                raise FormatError("ACE", position, f"only {end - position} bytes of the list left")
            kind, flags, length = _ACE.unpack_from(data, position)
            if length < _ACE.size or position + length > end:
                raise FormatError("ACE", position, f"the size {length} does not fit")
            ace = Ace(kind, flags, bytes(data[position + _ACE.size : position + length]))
            if kind in _MASK_AND_SID:
                Sid.decode(data, position + 8, position + length)
            aces.append(ace)
            position += length
        return cls(tuple(aces), revision)

    def encode(self) -> bytes:
        """Encode the binary form. Raises InvalidInput if it is too long."""
        parts = []
        for ace in self.aces:
            size = _ACE.size + len(ace.body)
            if size > _MAX_ACL:
                raise InvalidInput(f"an ACE of {size} bytes is too long")
            parts.append(_ACE.pack(ace.type, ace.flags, size) + ace.body)
        size = _ACL.size + sum(map(len, parts))
        if size > _MAX_ACL:
            raise InvalidInput(f"an ACL of {size} bytes is too long")
        return _ACL.pack(self.revision, 0, size, len(parts), 0) + b"".join(parts)


class SecurityDescriptor(Struct, frozen=True):
    """Owner, group, SACL and DACL. A list that is None, but present by `control`, is a NULL list.

    A NULL DACL allows everyone, an empty DACL no one.
    """

    control: int
    owner: Sid | None = None
    group: Sid | None = None
    sacl: Acl | None = None
    dacl: Acl | None = None
    resource_manager: int = 0
    """A byte for use by resource managers."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a descriptor, with its parts in any order. Raises FormatError."""
        if len(data) < _HEADER.size:
            raise FormatError(STRUCTURE, 0, f"only {len(data)} of {_HEADER.size} bytes")
        revision, resource_manager, control, owner, group, sacl, dacl = _HEADER.unpack_from(data)
        if revision != 1:
            raise FormatError(STRUCTURE, 0, f"unknown revision {revision}")
        if not control & SELF_RELATIVE:
            raise FormatError(STRUCTURE, 2, "not in self-relative form")
        return cls(
            control,
            _decode_part(data, 4, owner, Sid.decode),
            _decode_part(data, 8, group, Sid.decode),
            _decode_part(data, 12, sacl, Acl.decode) if control & SACL_PRESENT else None,
            _decode_part(data, 16, dacl, Acl.decode) if control & DACL_PRESENT else None,
            resource_manager,
        )

    def encode(self) -> bytes:
        """Encode as owner, group, SACL, DACL. Raises InvalidInput for a list whose present bit is not set."""
        for acl, bit, name in ((self.sacl, SACL_PRESENT, "SACL"), (self.dacl, DACL_PRESENT, "DACL")):
            if acl is not None and not self.control & bit:
                raise InvalidInput(
                    f"the descriptor has a {name}, but its control bits {self.control:#x} do not state it"
                )
        body = bytearray()
        offsets = []
        for part in (self.owner, self.group, self.sacl, self.dacl):
            offsets.append(_HEADER.size + len(body) if part is not None else 0)
            if part is not None:
                body += part.encode()
                body += bytes(-len(body) % 4)
        return _HEADER.pack(1, self.resource_manager, self.control | SELF_RELATIVE, *offsets) + body


def _decode_part(data: bytes, field: int, offset: int, decode: Callable[[bytes, int], T]) -> T | None:
    if not offset:
        return None
    if not _HEADER.size <= offset <= len(data):
        raise FormatError(STRUCTURE, field, f"the offset {offset} is out of range")
    return decode(data, offset)
