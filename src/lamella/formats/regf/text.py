# SPDX-License-Identifier: Apache-2.0
r"""Keys and values as canonical text.

::

    [\] time=2024-03-01T12:00:00Z security=5e1ca7fe03b1
    @=REG_SZ:"the default value"

    [\ControlSet001\Services\Disk] time=2024-03-01T12:00:00.1234567Z security=5e1ca7fe03b1 class="x" layer=supersede
    "Start"=REG_DWORD:0x00000000
    "Group"=REG_MULTI_SZ:["a", "b"]
    "Blob"=REG_BINARY:0001ff
    "Gone"=-

Keys come parents first, sorted by their folded names, values as the hive has them. ``security`` begins the SHA-256 of
the descriptor. ``class``, ``flags`` and ``control`` follow if they are not empty, then ``layer`` and
``inherit-class`` where a delta marks the key; ``-`` is a tombstone of a value. Data is shown by its type if that
preserves all bytes, else in hexadecimal. All is visible ASCII, escaped as in JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from lamella.errors import Exhausted
from lamella.formats.regf.keys import (
    REG_DWORD,
    REG_DWORD_BIG_ENDIAN,
    REG_EXPAND_SZ,
    REG_LINK,
    REG_MULTI_SZ,
    REG_QWORD,
    REG_SZ,
    TYPE_NAMES,
    Key,
    Layering,
    Value,
    fold,
)

_LONGEST: Final = 1 << 30
_TICKS: Final = 10_000_000
_EPOCH: Final = datetime(1601, 1, 1)  # noqa: DTZ001  # FILETIMEs are UTC, and only printed here
_NUMBERS: Final = {REG_DWORD: (4, "little"), REG_DWORD_BIG_ENDIAN: (4, "big"), REG_QWORD: (8, "little")}
LAYER_NAMES: Final = {
    Layering.TOMBSTONE: "tombstone",
    Layering.SUPERSEDE_LOCAL: "supersede",
    Layering.SUPERSEDE_TREE: "supersede-tree",
}


def walk(key: Key, path: str = "") -> Iterator[tuple[str, Key]]:
    """Yield ``key`` and all keys below it with their paths, parents first, lazily.

    Raises Exhausted if the paths exceed 1 GiB of text, which deep keys in a small file can reach.
    """
    yield path or "\\", key
    stack: list[tuple[str, Key]] = [(path, one) for one in _sort_reversed(key)]
    total = 0
    while stack:
        above, key = stack.pop()
        path = f"{above}\\{_escape(key.name)}"
        total += len(path)
        if total > _LONGEST:
            raise Exhausted(f"the paths of all keys exceed {_LONGEST >> 20} MiB of text")
        yield path, key
        stack += [(path, one) for one in _sort_reversed(key)]


def _sort_reversed(key: Key) -> list[Key]:
    return sorted(key.subkeys(), key=lambda one: fold(one.name), reverse=True)


def dump(key: Key, path: str = "") -> Iterator[str]:
    """Yield the lines of ``key`` at ``path`` and of all keys below it."""
    for number, (place, one) in enumerate(walk(key, path)):
        if number:
            yield ""
        yield f"[{place}] {' '.join(_format_attributes(one))}"
        for value in one.values():
            yield value_line(value)


def _format_attributes(key: Key) -> Iterator[str]:
    yield f"time={time_text(key.time)}"
    yield f"security={_hash_descriptor(key.security)}"
    if key.class_name:
        yield f"class={_quote(key.class_name)}"
    if key.flags:
        yield f"flags={key.flags:#06x}"
    if key.control:
        yield f"control={key.control:#04x}"
    if key.layering is not Layering.MERGE:
        yield f"layer={LAYER_NAMES[key.layering]}"
    if key.inherit_class:
        yield "inherit-class"


@lru_cache(256)
def _hash_descriptor(descriptor: bytes) -> str:
    return hashlib.sha256(descriptor).hexdigest()[:12]


def value_line(value: Value) -> str:
    """Format one value."""
    name = _quote(value.name) if value.name else "@"
    if value.tombstone:
        return f"{name}=-"
    match meaning(value):
        case str() as text:
            shown = _quote(text)
        case list() as texts:
            shown = f"[{', '.join(map(_quote, texts))}]"
        case int() as number:
            shown = f"{number:#0{2 + 2 * len(value.data)}x}"
        case _:
            shown = value.data.hex()
    return f"{name}={type_name(value.type)}:{shown}"


def meaning(value: Value) -> str | list[str] | int | None:
    """Decode the data by its type; None if that would lose bytes, or for other types."""
    data = value.data
    if value.type in _NUMBERS:
        size, order = _NUMBERS[value.type]
        return int.from_bytes(data, "little" if order == "little" else "big") if len(data) == size else None
    if value.type not in (REG_SZ, REG_EXPAND_SZ, REG_LINK, REG_MULTI_SZ) or len(data) % 2:
        return None
    text = data.decode("utf-16-le", "surrogatepass")
    if value.type == REG_LINK:
        return text
    if not text.endswith("\0"):
        return None
    text = text[:-1]
    if value.type != REG_MULTI_SZ:
        return text
    if not text:
        return []
    texts = text.split("\0")
    return texts[:-1] if texts[-1] == "" and all(texts[:-1]) else None


def type_name(kind: int) -> str:
    """Name of a value type, or its number."""
    return TYPE_NAMES.get(kind) or f"REG_{kind:#x}"


def time_text(ticks: int) -> str:
    """Format a FILETIME as UTC with the necessary digits; as a number beyond year 9999."""
    seconds, rest = divmod(ticks, _TICKS)
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return str(ticks)
    fraction = f".{rest:07d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"


def _quote(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")


def _escape(name: str) -> str:
    return _quote(name)[1:-1]
