# SPDX-License-Identifier: Apache-2.0
"""PAX records of Windows layers: file attributes, times, security descriptors and extended attributes.

The dialect is that of go-winio's backuptar; ``docs/formats/windows.md`` lists the rules.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Final, TypeAlias, TypeVar

from lamella.errors import FormatError, InvalidInput, Unsupported
from lamella.formats.ntfs import basic_information, extended_attributes
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
_MAX_CACHED: Final = 8192
_SHAPES: Final = 64
_LONGEST: Final = 2048
"""Maximum length of a cached value in bytes."""


WindowsRecords: TypeAlias = tuple[
    int | None, int | None, int | None, int | None, int | None, bytes | None, Mapping[str, bytes] | None
]
"""Attributes; creation, access, write and change time in nanoseconds; security descriptor in self-relative form,
unparsed; extended attributes. None for missing records."""


class RecordReader:
    """Reads the records of many members; repeated values, the usual case, are looked up instead of parsed.

    ``unwrap`` reverts go-winio's overflow of times that 64 bits of nanoseconds cannot hold.
    """

    __slots__ = ("_attributes", "_descriptors", "_extended", "_legacy", "_unwrap")

    def __init__(self, *, unwrap: bool = True) -> None:
        self._unwrap = unwrap
        self._attributes: dict[bytes, int] = {}
        self._descriptors: dict[bytes, bytes] = {}
        self._legacy: dict[bytes, bytes] = {}
        self._extended: dict[tuple[str, ...], tuple[str, ...]] = {}

    def read(self, records: Mapping[str, bytes], at: int) -> WindowsRecords:
        """Parse the records of the member at offset ``at``. Raises FormatError, Unsupported."""
        get = records.get
        attributes = creation = access = write = change = descriptor = extended = None
        others = len(records)
        value = get(ATTRIBUTES)
        if value is not None:
            others -= 1
            attributes = self._attributes.get(value)
            if attributes is None:
                attributes = self._parse_attributes(value, at)
        value = get(CREATION)
        if value is not None:
            others -= 1
            creation = self._parse_time(CREATION, value, at)
        # An empty value means that the record is not set, as for all keys that override a header field.
        value = get(ACCESS)
        if value:
            others -= 1
            access = self._parse_time(ACCESS, value, at)
        value = get(WRITE)
        if value:
            others -= 1
            write = self._parse_time(WRITE, value, at)
        value = get(CHANGE)
        if value:
            others -= 1
            change = self._parse_time(CHANGE, value, at)
        value = get(SECURITY)
        if value is not None:
            others -= 1
            descriptor = self._descriptors.get(value)
            if descriptor is None:
                descriptor = _cache(self._descriptors, value, _decode_base64(SECURITY, value, at))
        if others:
            if descriptor is None and SDDL in records:
                descriptor = self._parse_sddl(records[SDDL], at)
            keys = tuple(records)
            named = self._extended.get(keys)
            if named is None:
                named = self._find_extended(keys)
            if named:
                extended = {key[len(EXTENDED) :]: _decode_extended(key, records[key], at) for key in named}
        return attributes, creation, access, write, change, descriptor or None, extended

    def _find_extended(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """The ``keys`` of extended attributes; cached, since most members have one of a few sets of keys."""
        named = tuple(key for key in keys if key.startswith(EXTENDED))
        if len(keys) < 16:
            if len(self._extended) >= _SHAPES:
                self._extended.clear()
            self._extended[keys] = named
        return named

    def _parse_attributes(self, value: bytes, at: int) -> int:
        try:
            bits = parse_decimal(value)
        except ValueError:
            bits = -1
        if not 0 <= bits <= 0xFFFFFFFF:
            raise FormatError(STRUCTURE, at, f"{ATTRIBUTES} {value[:40]!r} is not a 32-bit decimal number")
        return _cache(self._attributes, value, bits)

    def _parse_time(self, key: str, value: bytes, at: int) -> int:
        seconds, _, fraction = value.partition(b".")
        digits = seconds + fraction
        if digits.isdigit() and 0 < len(seconds) < 12 and 0 < len(fraction) < 8:  # whole ticks, the usual case
            return int(digits) * _SCALES[len(fraction)]
        try:
            time = parse_pax_time(value.decode("latin-1"))
        except InvalidInput as error:
            raise FormatError(STRUCTURE, at, f"{key}: {error}") from None
        if not -_MAX_TIME <= time <= _MAX_TIME:
            raise FormatError(STRUCTURE, at, f"{key} beyond 64 bits")
        return basic_information.unwrap_time(time) if time % basic_information.TICK and self._unwrap else time

    def _parse_sddl(self, value: bytes, at: int) -> bytes:
        descriptor = self._legacy.get(value)
        if descriptor is None:
            from lamella.formats.ntfs import sddl

            try:
                descriptor = sddl.parse(value.decode("utf-8")).encode()
            except Unsupported as error:
                raise Unsupported(f"{SDDL} at offset {at}: {error}", hint=error.hint) from None
            except (UnicodeDecodeError, InvalidInput) as error:
                raise FormatError(STRUCTURE, at, f"{SDDL}: {error}") from None
            _cache(self._legacy, value, descriptor)
        return descriptor


def _decode_extended(key: str, value: bytes, at: int) -> bytes:
    data = _decode_base64(key, value, at)
    problem = extended_attributes.check(key[len(EXTENDED) :].encode("utf-8", "surrogateescape"), data)
    if problem is not None:
        raise FormatError(STRUCTURE, at, f"{key[:80]!r}: {problem}")
    return data


def _decode_base64(key: str, value: bytes, at: int) -> bytes:
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except binascii.Error as error:
        raise FormatError(STRUCTURE, at, f"{key[:80]!r} is not base64: {error}") from None


def _cache(known: dict[bytes, V], value: bytes, meaning: V) -> V:
    if len(value) <= _LONGEST:
        if len(known) >= _MAX_CACHED:
            known.clear()
        known[value] = meaning
    return meaning


class RecordWriter:
    """Formats the records of many members; repeated security descriptors are encoded once."""

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
        """Format the records of one member;

        None omits a record. Raises InvalidInput for values that no record can hold.
        """
        if not 0 <= attributes <= 0xFFFFFFFF:
            raise InvalidInput(f"file attributes {attributes:#x} exceed 32 bits")
        records = {ATTRIBUTES: b"%d" % attributes}
        if creation_time is not None:
            records[CREATION] = format_pax_time(creation_time).encode()
        records |= times(access_time, change_time)
        if security_descriptor:
            encoded = self._descriptors.get(security_descriptor)
            if encoded is None:
                encoded = binascii.b2a_base64(security_descriptor, newline=False)
                _cache(self._descriptors, security_descriptor, encoded)
            records[SECURITY] = encoded
        if extended_attributes:
            for name, value in extended_attributes.items():
                _check_extended(name, value)
                records[EXTENDED + name] = binascii.b2a_base64(value, newline=False)
        if mount_point:
            records[MOUNT_POINT] = b"1"
        return records


def times(access_time: int | None, change_time: int | None) -> dict[str, bytes]:
    """The records of an alternate stream: the times of its file that have no header field."""
    records = {}
    if access_time is not None:
        records[ACCESS] = format_pax_time(access_time).encode()
    if change_time is not None:
        records[CHANGE] = format_pax_time(change_time).encode()
    return records


def _check_extended(name: str, value: bytes) -> None:
    problem = extended_attributes.check(name.encode("utf-8", "surrogateescape"), value)
    if problem is None and "=" in name:
        problem = "the key of a PAX record cannot contain '='"
    if problem is not None:
        raise InvalidInput(f"extended attribute {name[:80]!r}: {problem}")
