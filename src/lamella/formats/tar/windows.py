# SPDX-License-Identifier: Apache-2.0
"""PAX records of Windows layers: attributes, times, security descriptors and extended attributes of a member.

The dialect is that of go-winio's backuptar. ``docs/formats/windows.md`` lists its rules.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Final, TypeAlias, TypeVar

from lamella.errors import FormatError, InvalidInput, Unsupported
from lamella.formats.ntfs import extended_attributes, filetime
from lamella.formats.tar.fields import MAX_NUMBER, parse_decimal
from lamella.times import SECOND, format_pax_time, parse_pax_time

V = TypeVar("V")

STRUCTURE: Final = "PAX record"

ATTRIBUTES: Final = "MSWINDOWS.fileattr"
SECURITY: Final = "MSWINDOWS.rawsd"
SDDL: Final = "MSWINDOWS.sd"
MOUNT_POINT: Final = "MSWINDOWS.mountpoint"
EXTENDED: Final = "MSWINDOWS.xattr."
CREATION: Final = "LIBARCHIVE.creationtime"
ACCESS: Final = "atime"
WRITE: Final = "mtime"
CHANGE: Final = "ctime"

_SCALES: Final[tuple[int, ...]] = tuple(10 ** (9 - digits) for digits in range(8))
_MAX_TIME: Final = MAX_NUMBER * SECOND
_REMEMBERED: Final = 8192
_SHAPES: Final = 64
_LONGEST: Final = 2048
"""Bytes of a value that is worth remembering."""


WindowsRecords: TypeAlias = tuple[
    int | None, int | None, int | None, int | None, int | None, bytes | None, Mapping[str, bytes] | None
]
"""Attributes; creation, access, write and change time in nanoseconds; security descriptor in self-relative form, not
looked into; extended attributes. None for what the records do not say."""


class RecordReader:
    """Reads the records of many members; values that repeat, as nearly all do, are looked up and not parsed.

    ``unwrap`` takes back what go-winio does to times that 64 bits of nanoseconds cannot hold.
    """

    __slots__ = ("_attributes", "_descriptors", "_extended", "_legacy", "_unwrap")

    def __init__(self, *, unwrap: bool = True) -> None:
        self._unwrap = unwrap
        self._attributes: dict[bytes, int] = {}
        self._descriptors: dict[bytes, bytes] = {}
        self._legacy: dict[bytes, bytes] = {}
        self._extended: dict[tuple[str, ...], tuple[str, ...]] = {}

    def read(self, records: Mapping[str, bytes], at: int) -> WindowsRecords:
        """What ``records``, of the member at the offset ``at``, say. Raises FormatError, Unsupported."""
        get = records.get
        attributes = creation = access = write = change = descriptor = extended = None
        others = len(records)
        value = get(ATTRIBUTES)
        if value is not None:
            others -= 1
            attributes = self._attributes.get(value)
            if attributes is None:
                attributes = self._attribute_bits(value, at)
        value = get(CREATION)
        if value is not None:
            others -= 1
            creation = self._time(CREATION, value, at)
        # As with all keys that stand for a field, an empty value means that nothing is said.
        value = get(ACCESS)
        if value:
            others -= 1
            access = self._time(ACCESS, value, at)
        value = get(WRITE)
        if value:
            others -= 1
            write = self._time(WRITE, value, at)
        value = get(CHANGE)
        if value:
            others -= 1
            change = self._time(CHANGE, value, at)
        value = get(SECURITY)
        if value is not None:
            others -= 1
            descriptor = self._descriptors.get(value)
            if descriptor is None:
                descriptor = _remember(self._descriptors, value, _unbase64(SECURITY, value, at))
        if others:
            if descriptor is None and SDDL in records:
                descriptor = self._from_sddl(records[SDDL], at)
            keys = tuple(records)
            named = self._extended.get(keys)
            if named is None:
                named = self._extended_keys(keys)
            if named:
                extended = {key[len(EXTENDED) :]: _extended(key, records[key], at) for key in named}
        return attributes, creation, access, write, change, descriptor or None, extended

    def _extended_keys(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``keys`` that name extended attributes; most members have one of a few sets of keys."""
        named = tuple(key for key in keys if key.startswith(EXTENDED))
        if len(keys) < 16:
            if len(self._extended) >= _SHAPES:
                self._extended.clear()
            self._extended[keys] = named
        return named

    def _attribute_bits(self, value: bytes, at: int) -> int:
        try:
            bits = parse_decimal(value)
        except ValueError:
            bits = -1
        if not 0 <= bits <= 0xFFFFFFFF:
            raise FormatError(STRUCTURE, at, f"{ATTRIBUTES} {value[:40]!r} is not a decimal number of 32 bits")
        return _remember(self._attributes, value, bits)

    def _time(self, key: str, value: bytes, at: int) -> int:
        seconds, _, fraction = value.partition(b".")
        digits = seconds + fraction
        if digits.isdigit() and 0 < len(seconds) < 12 and 0 < len(fraction) < 8:  # whole ticks, as nearly all have
            return int(digits) * _SCALES[len(fraction)]
        try:
            time = parse_pax_time(value.decode("latin-1"))
        except InvalidInput as error:
            raise FormatError(STRUCTURE, at, f"{key}: {error}") from None
        if not -_MAX_TIME <= time <= _MAX_TIME:
            raise FormatError(STRUCTURE, at, f"{key} beyond 64 bits")
        return filetime.unwrap(time) if time % filetime.TICK and self._unwrap else time

    def _from_sddl(self, value: bytes, at: int) -> bytes:
        descriptor = self._legacy.get(value)
        if descriptor is None:
            from lamella.formats.ntfs import sddl

            try:
                descriptor = sddl.parse(value.decode("utf-8")).encode()
            except Unsupported as error:
                raise Unsupported(f"{SDDL} at offset {at}: {error}", hint=error.hint) from None
            except (UnicodeDecodeError, InvalidInput) as error:
                raise FormatError(STRUCTURE, at, f"{SDDL}: {error}") from None
            _remember(self._legacy, value, descriptor)
        return descriptor


def _extended(key: str, value: bytes, at: int) -> bytes:
    data = _unbase64(key, value, at)
    problem = extended_attributes.check(key[len(EXTENDED) :].encode("utf-8", "surrogateescape"), data)
    if problem is not None:
        raise FormatError(STRUCTURE, at, f"{key[:80]!r}: {problem}")
    return data


def _unbase64(key: str, value: bytes, at: int) -> bytes:
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except binascii.Error as error:
        raise FormatError(STRUCTURE, at, f"{key[:80]!r} is not base64: {error}") from None


def _remember(known: dict[bytes, V], value: bytes, meaning: V) -> V:
    if len(value) <= _LONGEST:
        if len(known) >= _REMEMBERED:
            known.clear()
        known[value] = meaning
    return meaning


class RecordWriter:
    """Makes the records of many members; security descriptors that repeat are encoded once."""

    __slots__ = ("_descriptors",)

    def __init__(self) -> None:
        self._descriptors: dict[bytes, bytes] = {}

    def make(
        self,
        attributes: int,
        *,
        creation_time: int | None,
        access_time: int | None,
        change_time: int | None,
        security_descriptor: bytes | None = None,
        extended_attributes: Mapping[str, bytes] | None = None,
        mount_point: bool = False,
    ) -> dict[str, bytes]:
        """The records of one member; what is None is left out. Raises InvalidInput for what no record can hold."""
        if not 0 <= attributes <= 0xFFFFFFFF:
            raise InvalidInput(f"file attributes {attributes:#x} are not a number of 32 bits")
        records = {ATTRIBUTES: b"%d" % attributes}
        if creation_time is not None:
            records[CREATION] = format_pax_time(creation_time).encode()
        records |= times(access_time, change_time)
        if security_descriptor:
            encoded = self._descriptors.get(security_descriptor)
            if encoded is None:
                encoded = binascii.b2a_base64(security_descriptor, newline=False)
                _remember(self._descriptors, security_descriptor, encoded)
            records[SECURITY] = encoded
        if extended_attributes:
            for name, value in extended_attributes.items():
                _check_extended(name, value)
                records[EXTENDED + name] = binascii.b2a_base64(value, newline=False)
        if mount_point:
            records[MOUNT_POINT] = b"1"
        return records


def times(access_time: int | None, change_time: int | None) -> dict[str, bytes]:
    """The records that an alternate stream has: the times of its file that no header field holds."""
    records = {}
    if access_time is not None:
        records[ACCESS] = format_pax_time(access_time).encode()
    if change_time is not None:
        records[CHANGE] = format_pax_time(change_time).encode()
    return records


def _check_extended(name: str, value: bytes) -> None:
    problem = extended_attributes.check(name.encode("utf-8", "surrogateescape"), value)
    if problem is None and "=" in name:
        problem = "the key of a PAX record cannot hold '='"
    if problem is not None:
        raise InvalidInput(f"extended attribute {name[:80]!r}: {problem}")
