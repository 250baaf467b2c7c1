# SPDX-License-Identifier: Apache-2.0
"""Writes hives from keys."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Final

from lamella.errors import Exhausted, InvalidInput
from lamella.formats.regf import cells as layout
from lamella.formats.regf.cells import BIN_HEADER, I32, KEY, NIL, PAGE, SEGMENT, U32, VALUE
from lamella.formats.regf.keys import Key, Value, encode, fold, name_hash, units

_LEAF: Final = 506
"""Maximum subkeys per list: the capacity of the smallest bin."""

_LONGEST_KEY: Final = 256
_LONGEST_VALUE: Final = 16383
"""Maximum lengths of names of keys and values in UTF-16 units."""

_ROOMS: Final = 8
"""Maximum number of tracked bins with free space."""

_REMEMBERED: Final = 1 << 16
"""Maximum number of cached names; most keys and values share few names."""

_Spelling = tuple[str, bytes, bool]


def encode_hive(root: Key, *, file_name: str = "") -> bytes:
    """Encode the hive with the root key ``root``: equal keys, values and order of values give equal bytes.

    Subkeys are sorted. The version is 1.5, or 1.6 with the flag of layered keys if a key or value has a layering mark.
    Keys are read one by one, so ``root`` may be a lazy view. The name of the root is kept, and its time is that of the
    hive. Raises InvalidInput for values that a hive cannot hold, Exhausted beyond 2 GiB, and the errors of reading the
    keys.
    """
    return _Encoder().encode(root, file_name)


class _Encoder:
    """The growing bins. Offsets are relative to the first bin."""

    __slots__ = ("_at", "_bins", "_end", "_marked", "_rooms", "_securities", "_spellings")

    def __init__(self) -> None:
        self._bins = bytearray()
        self._at = 0
        self._end = 0
        self._rooms: list[tuple[int, int]] = []
        self._marked = False
        self._securities: dict[bytes, list[int]] = {}
        self._spellings: dict[str, _Spelling] = {}

    def encode(self, root: Key, file_name: str) -> bytes:
        try:
            return self._encode(root, file_name)
        except struct.error as error:
            raise InvalidInput(f"a number does not fit its field: {error}") from error

    def _encode(self, root: Key, file_name: str) -> bytes:
        name = encode(root.name)[0]
        at = self._allocate(KEY.size + len(name))
        self._write_keys(root, at)
        self._close_ring()
        for room in (*self._rooms, (self._at, self._end)):
            self._seal(room)
        layout.BIN.pack_into(self._bins, 0, b"hbin", 0, U32.unpack_from(self._bins, 8)[0], root.time)
        base = bytearray(layout.BASE_BLOCK)
        label = file_name.encode("utf-16-le", "surrogatepass")[-62:]
        minor = 6 if self._marked else 5
        layout.BASE.pack_into(base, 0, b"regf", 1, 1, root.time, 1, minor, 0, 1, at, len(self._bins), 1, label)
        if self._marked:
            U32.pack_into(base, layout.HIVE_FLAGS, layout.LAYERED)
        U32.pack_into(base, layout.CHECKSUM, layout.checksum(base))
        return b"".join((base, self._bins))

    # Cells ------------------------------------------------------------------------------------------------------

    def _allocate(self, size: int) -> int:
        """Allocate a cell for ``size`` bytes of content, which starts four bytes after the returned offset."""
        length = (size + 11) & -8
        at = self._at
        if at + length > self._end:
            at = self._allocate_elsewhere(length)
        else:
            self._at = at + length
        I32.pack_into(self._bins, at, -length)
        return at

    def _allocate_elsewhere(self, length: int) -> int:
        """Allocate a cell in another bin than the current one, which may be continued later.

        Cells never cross bins, and a segment of large data leaves a page of its bin free for smaller cells.
        """
        rooms = self._rooms
        for number, (at, end) in enumerate(rooms):
            if at + length <= end:
                rooms[number] = (self._at, self._end)
                self._at = at + length
                self._end = end
                return at
        rooms.append((self._at, self._end))
        if len(rooms) > _ROOMS:
            least = min(rooms, key=_free_space)
            rooms.remove(least)
            self._seal(least)
        start = len(self._bins)
        size = -(-(BIN_HEADER + length) // PAGE) * PAGE
        if start + size > layout.LARGEST:
            raise Exhausted("a hive has at most 2 GiB")
        self._bins += bytes(size)
        layout.BIN.pack_into(self._bins, start, b"hbin", start, size, 0)
        at = start + BIN_HEADER
        self._at = at + length
        self._end = start + size
        return at

    def _seal(self, room: tuple[int, int]) -> None:
        """Turn the rest of a bin into a free cell."""
        at, end = room
        if at < end:
            I32.pack_into(self._bins, at, end - at)

    def _write_cell(self, content: bytes) -> int:
        at = self._allocate(len(content))
        self._bins[at + 4 : at + 4 + len(content)] = content
        return at

    def _write_words(self, words: list[int]) -> int:
        return self._write_cell(struct.pack(f"<{len(words)}I", *words))

    # Records ----------------------------------------------------------------------------------------------------

    def _write_keys(self, root: Key, root_at: int) -> None:
        """Write the root key and all keys below it.

        The cells of sibling keys are adjacent, so that listing a key touches few pages; the cells that belong to each
        sibling follow, in the same order.
        """
        bins = self._bins
        stack = [(root, root_at, NIL, root.class_name, 0)]
        while stack:
            key, at, parent, class_name, depth = stack.pop()
            _, raw, compressed = self._spell(key.name)
            flags = (key.flags & layout.KEY_OWN_FLAGS) | (layout.KEY_COMPRESSED_NAME if compressed else 0)
            if not depth:
                flags |= layout.KEY_HIVE_ENTRY | layout.KEY_NO_DELETE
            layer = 0
            if key.layering or key.inherit_class:
                layer = key.layering | (layout.INHERIT_CLASS if key.inherit_class else 0)
                self._marked = True
            class_raw = class_name.encode("utf-16-le", "surrogatepass")
            if len(class_raw) > 0xFFFF:
                raise InvalidInput(f"the class of key {key.name!r} is too long")
            class_at = self._write_cell(class_raw) if class_raw else NIL
            security_at = self._write_security(key.security)
            values = key.values()
            values_at, longest_name, most_data = self._write_values(values, key.name) if values else (NIL, 0, 0)
            subkeys_at, count, longest, longest_class = NIL, 0, 0, 0
            if subkeys := key.subkeys():
                if depth == layout.DEEPEST:
                    raise InvalidInput(f"the subkeys of {key.name!r} are deeper than {layout.DEEPEST} levels")
                spelled = sorted([(self._spell(one.name), one) for one in subkeys], key=_folded_name)
                listed: list[tuple[int, int]] = []
                children = []
                previous = None
                for (folded, name, _), one in spelled:
                    if folded == previous:
                        raise InvalidInput(
                            f"key {key.name!r} has two subkeys {one.name!r}, which differ at most in case"
                        )
                    previous = folded
                    length = units(one.name)
                    if not 0 < length <= _LONGEST_KEY:
                        raise InvalidInput(f"a key's name has 1 to {_LONGEST_KEY} letters, not {length}")
                    if length > longest:
                        longest = length
                    its_class = one.class_name
                    if its_class:
                        longest_class = max(longest_class, units(its_class))
                    cell = self._allocate(76 + len(name))
                    listed.append((cell, name_hash(folded)))
                    children.append((one, cell, at, its_class, depth + 1))
                count = len(children)
                subkeys_at = self._write_list(listed)
                children.reverse()
                stack += children
            KEY.pack_into(
                bins,
                at + 4,
                b"nk",
                flags,
                key.time,
                layer,
                parent,
                count,
                0,
                subkeys_at,
                NIL,
                len(values),
                values_at,
                security_at,
                class_at,
                2 * longest,
                key.control,
                2 * longest_class,
                2 * longest_name,
                most_data,
                len(raw),
                len(class_raw),
            )
            bins[at + 80 : at + 80 + len(raw)] = raw

    def _spell(self, name: str) -> _Spelling:
        found = self._spellings.get(name)
        if found is None:
            if len(self._spellings) >= _REMEMBERED:
                self._spellings.clear()
            found = self._spellings[name] = (fold(name), *encode(name))
        return found

    def _write_list(self, listed: list[tuple[int, int]]) -> int:
        """Write the list, or list of lists, of subkeys given by offset and hash."""
        leaves = []
        for start in range(0, len(listed), _LEAF):
            part = listed[start : start + _LEAF]
            words = struct.pack(f"<{2 * len(part)}I", *chain.from_iterable(part))
            leaves.append(self._write_cell(layout.TAG.pack(b"lh", len(part)) + words))
        if len(leaves) == 1:
            return leaves[0]
        if len(leaves) > 0xFFFF:
            raise InvalidInput(f"{len(listed)} subkeys exceed the limit of one key")
        return self._write_cell(layout.TAG.pack(b"ri", len(leaves)) + struct.pack(f"<{len(leaves)}I", *leaves))

    def _write_values(self, values: Sequence[Value], key: str) -> tuple[int, int, int]:
        """Write the values; return the offset of their list, the longest name and the largest data."""
        bins = self._bins
        cell = self._allocate
        longest = most = 0
        listed = []
        seen = set()
        for name, kind, data, tombstone in values:
            folded, raw, compressed = self._spell(name)
            seen.add(folded)
            length = len(raw) if compressed else len(raw) // 2
            if length > longest:
                longest = length
                if length > _LONGEST_VALUE:
                    raise InvalidInput(f"the name of a value exceeds {_LONGEST_VALUE} letters: {length}")
            size = len(data)
            at = cell(20 + len(raw))
            listed.append(at)
            flags = layout.VALUE_COMPRESSED_NAME if compressed else 0
            if tombstone:
                flags |= layout.VALUE_TOMBSTONE
                self._marked = True
                kind, size, stated, where = 0, 0, 0, NIL
            elif size <= 4:
                stated, where = size | layout.INLINE, int.from_bytes(data, "little")
            elif size <= SEGMENT:
                stated = size
                where = cell(size)
                bins[where + 4 : where + 4 + size] = data
            else:
                stated, where = size, self._write_big(data, name)
            if size > most:
                most = size
            VALUE.pack_into(bins, at + 4, b"vk", len(raw), stated, where, kind, flags)
            bins[at + 24 : at + 24 + len(raw)] = raw
        if len(seen) != len(listed):
            raise InvalidInput(f"key {key!r} has two values whose names differ at most in case")
        return self._write_words(listed), longest, most

    def _write_big(self, data: bytes, name: str) -> int:
        if len(data) > 0xFFFF * SEGMENT:
            raise InvalidInput(f"value {name!r} is too large with {len(data)} bytes")
        # Some readers ignore the last four bytes of a segment's cell, so each cell has four spare bytes.
        segments = [self._write_cell(data[at : at + SEGMENT] + bytes(4)) for at in range(0, len(data), SEGMENT)]
        return self._write_cell(layout.BIG.pack(b"db", len(segments), self._write_words(segments)))

    def _write_security(self, descriptor: bytes) -> int:
        """Write a descriptor once, count its use, and return its offset."""
        known = self._securities.get(descriptor)
        if known is None:
            if not descriptor:
                raise InvalidInput("a key has no security descriptor")
            at = self._write_cell(layout.SECURITY.pack(b"sk", 0, 0, 0, len(descriptor)) + descriptor)
            self._securities[descriptor] = [at, 1]
            return at
        known[1] += 1
        return known[0]

    def _close_ring(self) -> None:
        """Link the descriptors in a ring, in the order in which they were met, and note how many keys use each."""
        cells = list(self._securities.items())
        for number, (descriptor, (at, count)) in enumerate(cells):
            following = cells[(number + 1) % len(cells)][1][0]
            before = cells[number - 1][1][0]
            layout.SECURITY.pack_into(self._bins, at + 4, b"sk", following, before, count, len(descriptor))


def _folded_name(item: tuple[_Spelling, Key]) -> str:
    return item[0][0]


def _free_space(room: tuple[int, int]) -> int:
    return room[1] - room[0]
