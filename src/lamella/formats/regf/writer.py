# SPDX-License-Identifier: Apache-2.0
"""Hives, written from keys."""

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
"""Subkeys that one list names: what fits in the smallest bin."""

_LONGEST_KEY: Final = 256
_LONGEST_VALUE: Final = 16383
"""UTF-16 units that names of keys and of values can have."""

_ROOMS: Final = 8
"""Bins with room in them that are kept in mind."""

_REMEMBERED: Final = 1 << 16
"""Names whose spellings are kept: few names are many keys' and values'."""

_Spelling = tuple[str, bytes, bool]


def encode_hive(root: Key, *, file_name: str = "") -> bytes:
    """The hive whose root is ``root``: the same bytes for the same keys, values and order of values.

    Subkeys are sorted. It is of version 1.5, or where a key or value bears a mark of a delta, 1.6 with the flag that
    says so. Keys are asked for one by one, so ``root`` may be a view that computes them. The root's name stays, and its
    time is the hive's. Raises InvalidInput for what a hive cannot hold, Exhausted beyond 2 GiB, and what reading the
    keys raises.
    """
    return _Encoder().encode(root, file_name)


class _Encoder:
    """The bins as they grow. Offsets are those of the hive."""

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
            raise InvalidInput(f"a number that does not fit its field: {error}") from error

    def _encode(self, root: Key, file_name: str) -> bytes:
        name = encode(root.name)[0]
        at = self._cell(KEY.size + len(name))
        self._keys(root, at)
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

    def _cell(self, size: int) -> int:
        """The offset of a new cell for ``size`` bytes of content, which begins four bytes behind it."""
        length = (size + 11) & -8
        at = self._at
        if at + length > self._end:
            at = self._cell_elsewhere(length)
        else:
            self._at = at + length
        I32.pack_into(self._bins, at, -length)
        return at

    def _cell_elsewhere(self, length: int) -> int:
        """The offset of a cell in another bin than the one that is filled now, which may be gone on with later.

        A cell never crosses bins, and a segment of large data leaves a page of its bin: smaller cells go there.
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
            least = min(rooms, key=_room)
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
        """Make what is left of a bin a free cell."""
        at, end = room
        if at < end:
            I32.pack_into(self._bins, at, end - at)

    def _filled(self, content: bytes) -> int:
        at = self._cell(len(content))
        self._bins[at + 4 : at + 4 + len(content)] = content
        return at

    def _words(self, words: list[int]) -> int:
        return self._filled(struct.pack(f"<{len(words)}I", *words))

    # Records ----------------------------------------------------------------------------------------------------

    def _keys(self, root: Key, root_at: int) -> None:
        """Fill the cell of the root and all cells below it.

        The cells of sibling keys are adjacent, so that listing a key touches few pages; the cells that belong to each
        sibling follow, in the same order.
        """
        bins = self._bins
        stack = [(root, root_at, NIL, root.class_name, 0)]
        while stack:
            key, at, parent, class_name, depth = stack.pop()
            _, raw, compressed = self._spelled(key.name)
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
            class_at = self._filled(class_raw) if class_raw else NIL
            security_at = self._security(key.security)
            values = key.values()
            values_at, longest_name, most_data = self._values(values, key.name) if values else (NIL, 0, 0)
            subkeys_at, count, longest, longest_class = NIL, 0, 0, 0
            if subkeys := key.subkeys():
                if depth == layout.DEEPEST:
                    raise InvalidInput(f"the subkeys of {key.name!r} are deeper than {layout.DEEPEST} levels")
                spelled = sorted([(self._spelled(one.name), one) for one in subkeys], key=_folded)
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
                    cell = self._cell(76 + len(name))
                    listed.append((cell, name_hash(folded)))
                    children.append((one, cell, at, its_class, depth + 1))
                count = len(children)
                subkeys_at = self._list(listed)
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

    def _spelled(self, name: str) -> _Spelling:
        found = self._spellings.get(name)
        if found is None:
            if len(self._spellings) >= _REMEMBERED:
                self._spellings.clear()
            found = self._spellings[name] = (fold(name), *encode(name))
        return found

    def _list(self, listed: list[tuple[int, int]]) -> int:
        """The list, or the list of lists, of subkeys given by their cells and hashes."""
        leaves = []
        for start in range(0, len(listed), _LEAF):
            part = listed[start : start + _LEAF]
            words = struct.pack(f"<{2 * len(part)}I", *chain.from_iterable(part))
            leaves.append(self._filled(layout.TAG.pack(b"lh", len(part)) + words))
        if len(leaves) == 1:
            return leaves[0]
        if len(leaves) > 0xFFFF:
            raise InvalidInput(f"{len(listed)} subkeys in one key")
        return self._filled(layout.TAG.pack(b"ri", len(leaves)) + struct.pack(f"<{len(leaves)}I", *leaves))

    def _values(self, values: Sequence[Value], key: str) -> tuple[int, int, int]:
        """The offset of a list of values, the length of the longest name, and the size of the largest data."""
        bins = self._bins
        cell = self._cell
        longest = most = 0
        listed = []
        seen = set()
        for name, kind, data, tombstone in values:
            folded, raw, compressed = self._spelled(name)
            seen.add(folded)
            length = len(raw) if compressed else len(raw) // 2
            if length > longest:
                longest = length
                if length > _LONGEST_VALUE:
                    raise InvalidInput(f"a value's name has at most {_LONGEST_VALUE} letters, not {length}")
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
                stated, where = size, self._big(data, name)
            if size > most:
                most = size
            VALUE.pack_into(bins, at + 4, b"vk", len(raw), stated, where, kind, flags)
            bins[at + 24 : at + 24 + len(raw)] = raw
        if len(seen) != len(listed):
            raise InvalidInput(f"key {key!r} has two values whose names differ at most in case")
        return self._words(listed), longest, most

    def _big(self, data: bytes, name: str) -> int:
        if len(data) > 0xFFFF * SEGMENT:
            raise InvalidInput(f"value {name!r} is too large with {len(data)} bytes")
        # Some readers take the last four bytes of a segment's cell for no data, which they are not in a full segment.
        segments = [self._filled(data[at : at + SEGMENT] + bytes(4)) for at in range(0, len(data), SEGMENT)]
        return self._filled(layout.BIG.pack(b"db", len(segments), self._words(segments)))

    def _security(self, descriptor: bytes) -> int:
        """The offset of the one cell for a descriptor; one more key uses it."""
        known = self._securities.get(descriptor)
        if known is None:
            if not descriptor:
                raise InvalidInput("a key has no security descriptor")
            at = self._filled(layout.SECURITY.pack(b"sk", 0, 0, 0, len(descriptor)) + descriptor)
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


def _folded(item: tuple[_Spelling, Key]) -> str:
    return item[0][0]


def _room(room: tuple[int, int]) -> int:
    return room[1] - room[0]
