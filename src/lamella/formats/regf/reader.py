# SPDX-License-Identifier: Apache-2.0
"""Reads hives key by key."""

from __future__ import annotations

import struct
from typing import Final

from lamella.errors import FormatError, NotFound
from lamella.formats.regf import cells
from lamella.formats.regf.cells import KEY, NIL, ROOT, SEGMENT, SHARED, TAG, VALUE, Cells
from lamella.formats.regf.keys import Layering, Value, fold, split_path

_WIDTHS: Final = {b"lf": 2, b"lh": 2, b"li": 1}
"""Words per element of each kind of list: the offset, and for some a hint, which is ignored."""

_LAYERINGS: Final = tuple(Layering)
_VALUE_SIZE: Final = VALUE.size
_KEY_SIZE: Final = KEY.size


class Hive(Cells):
    """A hive of version 1.3 to 1.6 in memory; keys are read lazily.

    ``layered`` tells whether keys and values may have layering marks; the default is the flag in the base block.
    Without it these bits are ignored. The constructor reads the base block and the headers of the bins. Raises
    FormatError, also while keys are read, and Unsupported for logs, other versions and, without ``dirty``, for a hive
    whose last changes are only in its log.
    """

    __slots__ = ("_descriptors",)

    def __init__(self, data: bytes, *, dirty: bool = False, layered: bool | None = None) -> None:
        super().__init__(data, dirty=dirty)
        if layered is not None:
            self.layered = layered
        self._descriptors: dict[int, bytes] = {}

    @property
    def root_key(self) -> HiveKey:
        """The root key, whose name has no meaning."""
        return HiveKey(self, self.root, ROOT, 0)

    def key(self, path: str) -> HiveKey:
        """The key at ``path``, separated by backslashes or slashes. Raises NotFound."""
        key = self.root_key
        names = split_path(path)
        for number, name in enumerate(names):
            found = key.subkey(name)
            if found is None:
                above = "\\" + "\\".join(names[:number])
                raise NotFound(f"there is no key {name!r} in {above!r}")
            key = found
        return key

    def _read_descriptor(self, offset: int) -> bytes:
        found = self._descriptors.get(offset)
        if found is None:
            at, end = self.claim(offset, SHARED, "sk")
            if end - at < cells.SECURITY.size:
                raise FormatError("sk", offset, f"only {end - at} bytes")
            signature, _, _, _, size = cells.SECURITY.unpack_from(self._data, at)
            at += cells.SECURITY.size
            if signature != b"sk":
                raise FormatError("sk", offset, f"the signature is {signature!r}")
            if size > end - at:
                raise FormatError("sk", offset, f"a descriptor of {size} bytes, but only {end - at} left in the cell")
            found = self._descriptors[offset] = self._data[at : at + size]
        return found

    def _read_value(self, offset: int, key: int) -> Value:
        at, end = self.claim(offset, key, "vk")
        if end - at < _VALUE_SIZE:
            raise FormatError("vk", offset, f"only {end - at} bytes")
        signature, name_size, size, where, kind, flags = VALUE.unpack_from(self._data, at)
        if signature != b"vk":
            raise FormatError("vk", offset, f"the signature is {signature!r}")
        at += _VALUE_SIZE
        if name_size > end - at:
            raise FormatError("vk", offset, f"a name of {name_size} bytes, but only {end - at} left in the cell")
        raw = self._data[at : at + name_size]
        name = raw.decode("latin-1") if flags & cells.VALUE_COMPRESSED_NAME else _decode_utf16(raw, "vk", offset)
        if flags & cells.VALUE_TOMBSTONE and self.layered:
            return Value(name, kind, b"", True)
        if size & cells.INLINE:
            size ^= cells.INLINE
            if size > 4:
                raise FormatError("vk", offset, f"{size} bytes of inline data")
            return Value(name, kind, self._data[at - 12 : at - 12 + size])
        return Value(name, kind, self._read_data(where, size, offset) if size else b"")

    def _read_data(self, offset: int, size: int, value: int) -> bytes:
        at, end = self.claim(offset, value, "data")
        if size <= end - at:
            return self._data[at : at + size]
        # A cell that is large enough holds the data itself in any version, as other writers do it.
        if size <= SEGMENT or self.minor < 4 or end - at < cells.BIG.size:
            raise FormatError("data", offset, f"{size} bytes of data in a cell of {end - at}")
        signature, count, where = cells.BIG.unpack_from(self._data, at)
        if signature != b"db":
            raise FormatError("db", offset, f"the signature is {signature!r}")
        if count != -(-size // SEGMENT):
            raise FormatError("db", offset, f"{count} segments for {size} bytes")
        parts = []
        for segment in self._read_words(where, count, 1, value, "db"):
            at, end = self.claim(segment, value, "db segment")
            part = min(size, SEGMENT)
            if part > end - at:
                raise FormatError("db segment", segment, f"only {end - at} of {part} bytes")
            parts.append(self._data[at : at + part])
            size -= part
        return b"".join(parts)

    def _read_words(self, offset: int, count: int, width: int, owner: int, what: str, skip: int = 0) -> tuple[int, ...]:
        """Read every ``width``-th word of a cell, after ``skip`` bytes; all must differ."""
        at, end = self.claim(offset, owner, what)
        if skip + count * width * 4 > end - at:
            raise FormatError(what, offset, f"{count} elements in a cell of {end - at} bytes")
        words = struct.unpack_from(f"<{count * width}I", self._data, at + skip)[::width]
        if len(set(words)) != count:
            raise FormatError(what, offset, "two elements refer to the same cell")
        return words

    def _read_subkeys(self, offset: int, key: int, *, leaf: bool = False) -> tuple[int, ...]:
        """Read the key offsets of a list of subkeys, or of all lists in a list of lists."""
        at, _ = self.claim(offset, key, "subkeys")
        signature, count = TAG.unpack_from(self._data, at)  # fits the smallest cell
        width = _WIDTHS.get(signature)
        if width is not None:
            return self._read_words(offset, count, width, key, signature.decode(), TAG.size)
        if signature != b"ri" or leaf:
            raise FormatError("subkeys", offset, f"the signature is {signature!r}")
        lists = self._read_words(offset, count, 1, key, "ri", TAG.size)
        return tuple(found for one in lists for found in self._read_subkeys(one, key, leaf=True))


class HiveKey:
    """A key of a hive. Its values and subkeys are read and checked on each call."""

    __slots__ = (
        "_class",
        "_class_size",
        "_hive",
        "_security",
        "_subkey_count",
        "_subkeys",
        "_value_count",
        "_values",
        "control",
        "depth",
        "flags",
        "inherit_class",
        "layering",
        "name",
        "offset",
        "time",
    )

    def __init__(self, hive: Hive, offset: int, parent: int, depth: int) -> None:
        at, end = hive.claim(offset, parent, "nk")
        if end - at < _KEY_SIZE:
            raise FormatError("nk", offset, f"only {end - at} bytes")
        if depth > cells.DEEPEST:
            raise FormatError("nk", offset, f"the key is deeper than {cells.DEEPEST} levels")
        data = hive._data  # noqa: SLF001  # Hive and HiveKey share state
        (
            signature,
            flags,
            self.time,
            layer,
            _,
            self._subkey_count,
            _,
            self._subkeys,
            _,
            self._value_count,
            self._values,
            self._security,
            self._class,
            _,
            self.control,
            _,
            _,
            _,
            name_size,
            self._class_size,
        ) = KEY.unpack_from(data, at)
        if signature != b"nk":
            raise FormatError("nk", offset, f"the signature is {signature!r}")
        at += _KEY_SIZE
        if name_size > end - at:
            raise FormatError("nk", offset, f"a name of {name_size} bytes, but only {end - at} left in the cell")
        if not name_size and depth:
            raise FormatError("nk", offset, "the name is empty")
        raw = data[at : at + name_size]
        self.name = raw.decode("latin-1") if flags & cells.KEY_COMPRESSED_NAME else _decode_utf16(raw, "nk", offset)
        if flags & cells.KEY_PREDEFINED:
            self._value_count = 0  # the field is a handle
        self.flags = flags & (cells.KEY_OWN_FLAGS if depth else cells.KEY_OWN_FLAGS & ~cells.KEY_NO_DELETE)
        if hive.layered and layer:
            self.layering = _LAYERINGS[layer & cells.LAYER_SEMANTICS]
            self.inherit_class = bool(layer & cells.INHERIT_CLASS)
        else:
            self.layering = Layering.MERGE
            self.inherit_class = False
        self.offset = offset
        self.depth = depth
        self._hive = hive

    @property
    def security(self) -> bytes:
        """The self-relative security descriptor."""
        return self._hive._read_descriptor(self._security)  # noqa: SLF001

    @property
    def class_name(self) -> str:
        """The class name, often empty."""
        size = self._class_size
        if not size or self._class == NIL:
            return ""
        at, end = self._hive.claim(self._class, self.offset, "class name")
        if size > end - at:
            raise FormatError("class name", self._class, f"{size} bytes in a cell of {end - at}")
        return _decode_utf16(self._hive._data[at : at + size], "class name", self._class)  # noqa: SLF001

    def subkeys(self) -> list[HiveKey]:
        """Subkeys in the order of the list: sorted by folded names in a valid hive."""
        if not self._subkey_count:
            return []
        hive, offset, depth = self._hive, self.offset, self.depth + 1
        found = hive._read_subkeys(self._subkeys, offset)  # noqa: SLF001
        if len(found) != self._subkey_count:
            raise FormatError("nk", offset, f"{self._subkey_count} subkeys, but {len(found)} listed")
        if len(set(found)) != len(found):
            raise FormatError("nk", offset, "a subkey is listed twice")
        return [HiveKey(hive, one, offset, depth) for one in found]

    def subkey(self, name: str) -> HiveKey | None:
        """Find a subkey, ignoring case, or return None."""
        wanted = fold(name)
        return next((key for key in self.subkeys() if fold(key.name) == wanted), None)

    def values(self) -> list[Value]:
        """Values with their data, in the order of the hive."""
        count = self._value_count
        if not count:
            return []
        value, offset = self._hive._read_value, self.offset  # noqa: SLF001
        words = self._hive._read_words(self._values, count, 1, offset, "values")  # noqa: SLF001
        return [value(one, offset) for one in words]

    def value(self, name: str) -> Value | None:
        """Find a value, ignoring case, or return None."""
        wanted = fold(name)
        return next((value for value in self.values() if fold(value.name) == wanted), None)

    def __repr__(self) -> str:
        return f"<HiveKey {self.name!r} at {self.offset}>"


def _decode_utf16(raw: bytes, what: str, offset: int) -> str:
    if len(raw) % 2:
        raise FormatError(what, offset, f"a UTF-16 name of {len(raw)} bytes")
    return raw.decode("utf-16-le", "surrogatepass")
