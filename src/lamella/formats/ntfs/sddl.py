# SPDX-License-Identifier: Apache-2.0
"""Security descriptors in the text form SDDL ([MS-DTYP] 2.5.1).

Domain accounts, which only a domain or machine can resolve, and entries with GUIDs, conditions or claims raise
Unsupported in both directions.
"""

from __future__ import annotations

import re
from typing import Final

from lamella.errors import InvalidInput, Unsupported
from lamella.formats.ntfs import security
from lamella.formats.ntfs.security import Ace, Acl, SecurityDescriptor, Sid

_BUILTIN: Final = {
    "BA": 544,
    "BU": 545,
    "BG": 546,
    "PU": 547,
    "AO": 548,
    "SO": 549,
    "PO": 550,
    "BO": 551,
    "RE": 552,
    "RU": 554,
    "RD": 555,
    "NO": 556,
    "MU": 558,
    "LU": 559,
    "IS": 568,
    "CY": 569,
    "ER": 573,
    "CD": 574,
    "RA": 575,
    "ES": 576,
    "MS": 577,
    "HA": 578,
    "AA": 579,
    "RM": 580,
    "HO": 584,
    "SH": 585,
}
_ALIASES: Final = {
    "WD": Sid(1, (0,)),
    "CO": Sid(3, (0,)),
    "CG": Sid(3, (1,)),
    "OW": Sid(3, (4,)),
    "NU": Sid(5, (2,)),
    "IU": Sid(5, (4,)),
    "SU": Sid(5, (6,)),
    "AN": Sid(5, (7,)),
    "ED": Sid(5, (9,)),
    "PS": Sid(5, (10,)),
    "AU": Sid(5, (11,)),
    "RC": Sid(5, (12,)),
    "SY": Sid(5, (18,)),
    "LS": Sid(5, (19,)),
    "NS": Sid(5, (20,)),
    "WR": Sid(5, (33,)),
    "UD": Sid(5, (84, 0, 0, 0, 0, 0)),
    "AC": Sid(15, (2, 1)),
    "LW": Sid(16, (4096,)),
    "ME": Sid(16, (8192,)),
    "MP": Sid(16, (8448,)),
    "HI": Sid(16, (12288,)),
    "SI": Sid(16, (16384,)),
    "AS": Sid(18, (1,)),
    "SS": Sid(18, (2,)),
    **{alias: Sid(5, (32, rid)) for alias, rid in _BUILTIN.items()},
}
_ALIAS_OF: Final = {sid: alias for alias, sid in _ALIASES.items()}
_OF_A_DOMAIN: Final = frozenset(
    ["AP", "CA", "CN", "DA", "DC", "DD", "DG", "DU", "EA", "EK", "KA", "LA", "LG", "PA", "RO", "RS", "SA"]
)

_BITS: Final = {
    "CC": 0x1,
    "DC": 0x2,
    "LC": 0x4,
    "SW": 0x8,
    "RP": 0x10,
    "WP": 0x20,
    "DT": 0x40,
    "LO": 0x80,
    "CR": 0x100,
    "SD": 0x10000,
    "RC": 0x20000,
    "WD": 0x40000,
    "WO": 0x80000,
    "GA": 0x10000000,
    "GX": 0x20000000,
    "GW": 0x40000000,
    "GR": 0x80000000,
}
_FILE: Final = {"FA": 0x1F01FF, "FR": 0x120089, "FW": 0x120116, "FX": 0x1200A0}
_RIGHTS: Final = {**_BITS, **_FILE, "KA": 0xF003F, "KR": 0x20019, "KW": 0x20006, "KX": 0x20019}
_LABEL: Final = {"NW": 0x1, "NR": 0x2, "NX": 0x4}
"""Rights of a mandatory label."""

_FILE_NAMES: Final = {mask: name for name, mask in _FILE.items()}

_FLAGS: Final = {"OI": 0x1, "CI": 0x2, "NP": 0x4, "IO": 0x8, "ID": 0x10, "SA": 0x40, "FA": 0x80}
_TYPES: Final = {
    "A": security.ACCESS_ALLOWED,
    "D": security.ACCESS_DENIED,
    "AU": security.SYSTEM_AUDIT,
    "AL": security.SYSTEM_ALARM,
    "ML": security.MANDATORY_LABEL,
    "SP": security.SCOPED_POLICY,
    "TL": security.PROCESS_TRUST_LABEL,
}
_TYPE_NAMES: Final = {number: name for name, number in _TYPES.items()}
_RAW_TYPES: Final = frozenset(["OA", "OD", "OU", "OL", "XA", "XD", "XU", "ZA", "RA", "FL"])

_DACL_FLAGS: Final = {
    "P": security.DACL_PROTECTED,
    "AR": security.DACL_AUTO_INHERIT_REQUIRED,
    "AI": security.DACL_AUTO_INHERITED,
}
_SACL_FLAGS: Final = {
    "P": security.SACL_PROTECTED,
    "AR": security.SACL_AUTO_INHERIT_REQUIRED,
    "AI": security.SACL_AUTO_INHERITED,
}
_NULL_ACL: Final = "NO_ACCESS_CONTROL"

_PART: Final = re.compile(r"([OGDS]):")
_SID: Final = re.compile(r"S-1-(?:0X[0-9A-F]{1,12}|[0-9]+)(?:-[0-9]+)*|[A-Z]{2}", re.ASCII)
_ACL_FLAGS: Final = re.compile(rf"{_NULL_ACL}|P|AR|AI")
_ACE: Final = re.compile(r"\(([^()]*)\)")
_RAW_ACE: Final = re.compile(rf"\(({'|'.join(sorted(_RAW_TYPES))});")
_NUMBER: Final = re.compile(r"0X[0-9A-F]{1,8}|[0-9]{1,11}", re.ASCII)


def parse(text: str) -> SecurityDescriptor:
    """Parse SDDL. Raises InvalidInput, Unsupported."""
    control = security.SELF_RELATIVE
    sids: dict[str, Sid] = {}
    acls: dict[str, Acl | None] = {}
    if not text.isascii():
        raise InvalidInput(f"SDDL must be ASCII, not {text[:40]!r}")
    text = text.strip()
    folded = text.upper()
    at = 0
    while at < len(folded):
        match = _PART.match(folded, at)
        if match is None or match[1] in sids or match[1] in acls:
            raise _malformed(text, at)
        part, at = match[1], match.end()
        if part in "OG":
            found = _SID.match(folded, at)
            if found is None:
                raise _malformed(text, at)
            sids[part] = _parse_sid(found[0])
            at = found.end()
            continue
        flags, aces, null, at = _parse_acl(text, folded, at, _DACL_FLAGS if part == "D" else _SACL_FLAGS)
        control |= flags | (security.DACL_PRESENT if part == "D" else security.SACL_PRESENT)
        acls[part] = None if null else Acl(tuple(aces))
    return SecurityDescriptor(control, sids.get("O"), sids.get("G"), acls.get("S"), acls.get("D"))


def _malformed(text: str, at: int) -> InvalidInput:
    return InvalidInput(f"malformed SDDL at character {at}: {text[at : at + 40]!r}")


def _parse_acl(text: str, folded: str, at: int, names: dict[str, int]) -> tuple[int, list[Ace], bool, int]:
    flags, null = 0, False
    while (match := _ACL_FLAGS.match(folded, at)) is not None:
        if match[0] == _NULL_ACL:
            null = True
        else:
            flags |= names[match[0]]
        at = match.end()
    aces = []
    while (match := _ACE.match(folded, at)) is not None:
        aces.append(_parse_ace(match[1]))
        at = match.end()
    raw = _RAW_ACE.match(folded, at)
    if raw is not None:
        raise _unsupported(raw[1])
    if null and aces:
        raise _malformed(text, at)
    return flags, aces, null, at


def _parse_ace(text: str) -> Ace:
    fields = [field.strip() for field in text.split(";")]
    if fields[0] in _RAW_TYPES:
        raise _unsupported(fields[0])
    if len(fields) != 6 or fields[0] not in _TYPES or fields[3] or fields[4]:
        raise InvalidInput(f"malformed entry of an access list {text[:80]!r}")
    kind = _TYPES[fields[0]]
    flags = _parse_letters(fields[1], _FLAGS, "flags")
    mask = _parse_mask(fields[2], _LABEL if kind == security.MANDATORY_LABEL else _RIGHTS)
    return Ace.simple(kind, flags, mask, _parse_sid(fields[5]))


def _unsupported(kind: str) -> Unsupported:
    return Unsupported(f"entries of type {kind!r} are supported as bytes, but not as SDDL")


def _parse_mask(text: str, names: dict[str, int]) -> int:
    if _NUMBER.fullmatch(text) is None:
        return _parse_letters(text, names, "rights")
    base = 16 if text.startswith("0X") else 8 if text.startswith("0") else 10
    try:
        mask = int(text, base)
    except ValueError:
        mask = -1
    if not 0 <= mask <= 0xFFFFFFFF:
        raise InvalidInput(f"malformed rights {text!r}")
    return mask


def _parse_letters(text: str, names: dict[str, int], what: str) -> int:
    value = 0
    for at in range(0, len(text), 2):
        try:
            value |= names[text[at : at + 2]]
        except KeyError:
            raise InvalidInput(f"malformed {what} {text[:40]!r}") from None
    return value


def _parse_sid(text: str) -> Sid:
    if text in _OF_A_DOMAIN:
        raise Unsupported(
            f"only a domain or machine can resolve the account {text!r}",
            hint="write its SID instead, S-1-5-21-...",
        )
    sid = _ALIASES.get(text)
    return Sid.parse(text) if sid is None else sid


def format(descriptor: SecurityDescriptor) -> str:  # noqa: A001 - used with the module's name
    """Format a descriptor: owner, group, DACL, SACL. `parse` returns a descriptor of the same meaning.

    SDDL has no place for the defaulted bits and the resource manager's byte. Raises Unsupported.
    """
    parts = []
    if descriptor.owner is not None:
        parts.append(f"O:{_format_sid(descriptor.owner)}")
    if descriptor.group is not None:
        parts.append(f"G:{_format_sid(descriptor.group)}")
    control = descriptor.control
    if control & security.DACL_PRESENT:
        parts.append(f"D:{_format_acl(descriptor.dacl, control, _DACL_FLAGS)}")
    if control & security.SACL_PRESENT:
        parts.append(f"S:{_format_acl(descriptor.sacl, control, _SACL_FLAGS)}")
    return "".join(parts)


def _format_acl(acl: Acl | None, control: int, names: dict[str, int]) -> str:
    flags = "".join(name for name, bit in names.items() if control & bit)
    if acl is None:
        return flags + _NULL_ACL
    return flags + "".join(map(_format_ace, acl.aces))


def _format_ace(ace: Ace) -> str:
    kind = _TYPE_NAMES.get(ace.type)
    sid, mask = ace.sid, ace.mask
    if kind is None or sid is None or mask is None or ace.extra:
        raise Unsupported(f"entries of type {ace.type:#x} with more than rights and a SID are not supported in SDDL")
    flags = "".join(name for name, bit in _FLAGS.items() if ace.flags & bit)
    if ace.flags & ~sum(_FLAGS.values()):
        raise Unsupported(f"SDDL has no letters for the flags {ace.flags:#x}")
    rights = _format_mask(mask, label=ace.type == security.MANDATORY_LABEL)
    return f"({kind};{flags};{rights};;;{_format_sid(sid)})"


def _format_mask(mask: int, *, label: bool) -> str:
    names = _LABEL if label else _BITS
    if not label and mask in _FILE_NAMES:
        return _FILE_NAMES[mask]
    if not mask or mask & ~sum(names.values()):
        return f"{mask:#x}"
    return "".join(name for name, bit in names.items() if mask & bit)


def _format_sid(sid: Sid) -> str:
    return _ALIAS_OF.get(sid) or str(sid)
