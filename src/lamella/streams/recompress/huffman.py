# SPDX-License-Identifier: Apache-2.0
"""Writes deflate blocks from tokens, with the choices of Go's library.

Several codes of limited length can be equally short, and a block has three possible forms; reproducing the output takes
the same choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

MATCH: Final = 16
"""A token is a byte, or the length of a match shifted left by this many bits, or-ed with its distance."""

_END: Final = 256
_LITERALS: Final = 286
_DISTANCES: Final = 30
_ORDER: Final = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
"""The order of the lengths of the code length code (RFC 1951, 3.2.7)."""
_REPEAT_BITS: Final = {16: 2, 17: 3, 18: 7}
_MAX_STORED: Final = 65535


def _ranges(first: int, extra: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first value and the number of extra bits of each code (RFC 1951, 3.2.5)."""
    table = []
    for bits in extra:
        table.append((first, bits))
        first += 1 << bits
    return table


_LENGTHS: Final = [*_ranges(3, [0] * 8 + [n for n in range(1, 6) for _ in range(4)])[:28], (258, 0)]
_DISTANCE: Final = _ranges(1, [0, 0, *(n for n in range(14) for _ in range(2))])
_LENGTH_CODE: Final = [0] * 259
for _code, (_first, _extra) in enumerate(_LENGTHS):
    for _value in range(_first, min(_first + (1 << _extra), 259)):
        _LENGTH_CODE[_value] = _code
_NEAR: Final = [0] * 257
for _code, (_first, _extra) in enumerate(_DISTANCE):
    for _value in range(_first, min(_first + (1 << _extra), 257)):
        _NEAR[_value] = _code


def _distance_code(distance: int) -> int:
    return _NEAR[distance] if distance <= 256 else _NEAR[(distance - 1 >> 7) + 1] + 14


def _bits(value: int, count: int) -> str:
    """Return the bits of ``value``, lowest bit first."""
    return format(value, f"0{count}b")[::-1] if count else ""


def code_lengths(frequencies: Sequence[int], most: int) -> list[int]:
    """Return the lengths of an optimal code of at most ``most`` bits, by the package-merge algorithm.

    Of equal weights, packages come before symbols, and later symbols get shorter codes. One or two symbols get one bit
    each.
    """
    lengths = [0] * len(frequencies)
    symbols = sorted((frequency, symbol) for symbol, frequency in enumerate(frequencies) if frequency)
    count = len(symbols)
    if count <= 2:
        for _, symbol in symbols:
            lengths[symbol] = 1
        return lengths
    most = min(most, count - 1)
    weights = [frequency for frequency, _ in symbols]
    # Each level has the symbols and the pairs of the level below, by weight; only the positions of pairs matter.
    levels: list[list[bool]] = [[False] * count]
    items = weights
    for _ in range(most - 1):
        pairs = [items[at] + items[at + 1] for at in range(0, len(items) - 1, 2)]
        items, is_pair = _merged(weights, pairs)
        levels.append(is_pair)
    # Select the first 2n - 2 items of the top level; a selected pair selects two items of the level below.
    taken = 2 * count - 2
    for level in reversed(levels):
        pairs_taken = sum(level[:taken])
        for _, symbol in symbols[: min(taken, len(level)) - pairs_taken]:
            lengths[symbol] += 1
        taken = 2 * pairs_taken
    return lengths


def _merged(weights: Sequence[int], pairs: Sequence[int]) -> tuple[list[int], list[bool]]:
    items: list[int] = []
    is_pair: list[bool] = []
    at = 0
    for weight in weights:
        while at < len(pairs) and pairs[at] <= weight:
            items.append(pairs[at])
            is_pair.append(True)
            at += 1
        items.append(weight)
        is_pair.append(False)
    items += pairs[at:]
    is_pair += [True] * (len(pairs) - at)
    return items, is_pair


def codes(lengths: Sequence[int]) -> list[str]:
    """Return the canonical code of each symbol (RFC 1951, 3.2.2) as bits; empty for length 0."""
    result = [""] * len(lengths)
    code = 0
    for length in range(1, max(lengths) + 1):
        code <<= 1
        for symbol, one in enumerate(lengths):
            if one == length:
                result[symbol] = format(code, f"0{length}b")
                code += 1
    return result


_FIXED_LENGTHS: Final = [8] * 144 + [9] * 112 + [7] * 24 + [8] * 8
_FIXED: Final = codes(_FIXED_LENGTHS)
_FIXED_DISTANCES: Final = codes([5] * _DISTANCES)


def _run_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return ``lengths`` as symbols of the code length code, each with its extra bits."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(lengths):
        value = lengths[at]
        start = at
        while at < len(lengths) and lengths[at] == value:
            at += 1
        count = at - start
        if value:
            found.append((value, 0))
            count -= 1
            while count >= 3:
                found.append((16, min(count, 6) - 3))
                count -= min(count, 6)
        else:
            while count >= 11:
                found.append((18, min(count, 138) - 11))
                count -= min(count, 138)
            if count >= 3:
                found.append((17, count - 3))
                count = 0
        found += [(value, 0)] * count
    return found


class _Codes(dict[int, str]):
    """Cache of the bits of tokens."""

    def __init__(self, literals: Sequence[str], distances: Sequence[str]) -> None:
        super().__init__(enumerate(literals[:256]))
        self._literals = literals
        self._distances = distances

    def __missing__(self, token: int) -> str:
        length, distance = token >> MATCH, token & (1 << MATCH) - 1
        code = _LENGTH_CODE[length]
        first, extra = _LENGTHS[code]
        text = self._literals[257 + code] + _bits(length - first, extra)
        code = _distance_code(distance)
        first, extra = _DISTANCE[code]
        text = self[token] = text + self._distances[code] + _bits(distance - first, extra)
        return text


class _Code:
    """The dynamic code of some tokens, and their sizes in bits in this code and in the fixed one."""

    def __init__(self, tokens: Sequence[int]) -> None:
        literals, distances = [0] * _LITERALS, [0] * _DISTANCES
        self.extra = 0
        """Extra bits of lengths and distances, which neither size includes."""
        for token, count in Counter(tokens).items():
            if token < 256:
                literals[token] = count
            else:
                code = _LENGTH_CODE[token >> MATCH]
                literals[257 + code] += count
                self.extra += count * _LENGTHS[code][1]
                code = _distance_code(token & (1 << MATCH) - 1)
                distances[code] += count
                self.extra += count * _DISTANCE[code][1]
        literals[_END] = 1
        most_literals = max(symbol for symbol, count in enumerate(literals) if count) + 1
        most_distances = max((symbol for symbol, count in enumerate(distances) if count), default=-1) + 1
        if not most_distances:
            # Some decoders require one distance code even if none is used.
            distances[0] = most_distances = 1
        self.literals = code_lengths(literals, 15)[:most_literals]
        self.distances = code_lengths(distances, 15)[:most_distances]

        self.runs = _run_lengths(self.literals + self.distances)
        run_counts = [0] * len(_ORDER)
        for symbol, _ in self.runs:
            run_counts[symbol] += 1
        self.run_lengths = code_lengths(run_counts, 7)
        self.written = len(_ORDER)
        while self.written > 4 and not run_counts[_ORDER[self.written - 1]]:
            self.written -= 1

        self.fixed = 3 + _size(literals, _FIXED_LENGTHS) + 5 * sum(distances)
        self.dynamic = 17 + 3 * self.written + _size(run_counts, self.run_lengths)
        self.dynamic += sum(run_counts[symbol] * bits for symbol, bits in _REPEAT_BITS.items())
        self.dynamic += _size(literals, self.literals) + _size(distances, self.distances)


class BlockWriter:
    """Writes blocks and collects their bits."""

    def __init__(self) -> None:
        self._bits: list[str] = []

    def block(self, tokens: Sequence[int], stored: bytes | None) -> None:
        """Write a block in its shortest form; ``stored`` is its content, if available."""
        code = _Code(tokens)
        best = min(code.fixed, code.dynamic)
        # Where the bytes are out of reach, Go leaves the further bits out of both sums alike.
        if stored is not None and len(stored) <= _MAX_STORED and 8 * (len(stored) + 5) < best + code.extra:
            self.stored(stored)
        elif code.dynamic < code.fixed:
            self._coded(tokens, code)
        else:
            self._bits.append(_bits(2, 3))
            self._tokens(tokens, _FIXED, _FIXED_DISTANCES)

    def dynamic(self, tokens: Sequence[int], stored: bytes) -> None:
        """Write a block with a dynamic code, unless that saves less than a sixteenth of ``stored``."""
        code = _Code(tokens)
        if 8 * (len(stored) + 5) < code.dynamic + (code.dynamic >> 4):
            self.stored(stored)
        else:
            self._coded(tokens, code)

    def _coded(self, tokens: Sequence[int], code: _Code) -> None:
        bits = self._bits
        bits += (_bits(4, 3), _bits(len(code.literals) - 257, 5), _bits(len(code.distances) - 1, 5))
        bits.append(_bits(code.written - 4, 4))
        bits += (_bits(code.run_lengths[symbol], 3) for symbol in _ORDER[: code.written])
        run_codes = codes(code.run_lengths)
        bits += (run_codes[symbol] + _bits(number, _REPEAT_BITS.get(symbol, 0)) for symbol, number in code.runs)
        self._tokens(tokens, codes(code.literals), codes(code.distances))

    def _tokens(self, tokens: Sequence[int], literals: Sequence[str], distances: Sequence[str]) -> None:
        self._bits += map(_Codes(literals, distances).__getitem__, tokens)
        self._bits.append(literals[_END])

    def stored(self, data: bytes, *, last: bool = False) -> None:
        """Write a stored block."""
        whole = "".join((*self._bits, "100" if last else "000"))
        whole += "0" * (-len(whole) % 8)
        lengths = _bits(len(data), 16) + _bits(len(data) ^ 0xFFFF, 16)
        self._bits = [whole, lengths, _bits(int.from_bytes(data, "little"), 8 * len(data))]

    def take(self) -> bytes:
        """Return the complete bytes so far and drop them."""
        whole = "".join(self._bits)
        count = len(whole) // 8
        self._bits = [whole[8 * count :]]
        return int(whole[8 * count - 1 :: -1] if count else "0", 2).to_bytes(count, "little")


def _size(counts: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(count * length for count, length in zip(counts, lengths, strict=False))
