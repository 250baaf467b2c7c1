# SPDX-License-Identifier: Apache-2.0
"""Regipy, python-registry and libregf read the hives that Lamella writes, and all see the same in them.

What two of them misread of any hive is left out for them: regipy takes the bytes of names in Latin-1 for UTF-8, and
libregf looks for data of one to three bytes, which stand in the value itself, at the wrong end of their four bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tests.unit.formats.regf.hives import utf16

from lamella.formats.regf import Hive, Key, Layering, MemoryKey, encode_hive, merge_keys
from lamella.formats.regf.keys import REG_BINARY, REG_DWORD, REG_EXPAND_SZ, REG_MULTI_SZ, REG_QWORD, REG_SZ

pytestmark = pytest.mark.interop

Seen: TypeAlias = tuple[int, dict[str, tuple[int, bytes]], dict[str, Any]]
"""Of a key: its time in ticks, its values as type and data by name, its subkeys by name."""

SIZES = (0, 4, 5, 100, 3000, 16344, 16345, 32_688, 32_689, 50_000)
NAMES = ("Name ", "日本", "{c5-", "größe")
TIME = 133_500_000_000_000_000


def busy(keys: int, names: Sequence[str], sizes: Sequence[int]) -> MemoryKey:
    """Keys with these names, and values of all types and sizes."""
    rng = random.Random(keys)
    root = MemoryKey("ROOT", time=TIME)
    made = [root]
    for number in range(keys):
        parent = rng.choice(made[-20:]) if number % 3 else root
        key = parent.make(f"{names[number % len(names)]}{number}")
        key.time = TIME + number * 10_000_000
        key.put("", REG_SZ, utf16(f"default {number}\0"))
        key.put("n", REG_DWORD, number.to_bytes(4, "little"))
        key.put("q", REG_QWORD, (number << 20).to_bytes(8, "little"))
        key.put("path", REG_EXPAND_SZ, utf16("%SystemRoot%\\größe\0"))
        key.put("list", REG_MULTI_SZ, utf16("a\0bc\0\0"))
        key.put("大きさ", REG_BINARY, rng.randbytes(sizes[number % len(sizes)]))
        made.append(key)
    return root


def expected(key: Key) -> Seen:
    values = {name: (kind, bytes(data)) for name, kind, data, _ in key.values()}
    return key.time, values, {one.name: expected(one) for one in key.subkeys()}


def by_libregf(path: Path) -> Seen:
    import pyregf

    def seen(key: Any) -> Seen:
        values = {value.name or "": (value.type, value.data or b"") for value in key.values}
        return key.get_last_written_time_as_integer(), values, {one.name: seen(one) for one in key.sub_keys}

    file = pyregf.file()
    file.open(str(path))
    try:
        return seen(file.get_root_key())
    finally:
        file.close()


def by_python_registry(path: Path) -> Seen:
    from datetime import datetime

    from Registry import Registry

    def seen(key: Any) -> Seen:
        since = key.timestamp() - datetime(1601, 1, 1)  # noqa: DTZ001 - as the reader gives it
        ticks = (since.days * 86400 + since.seconds) * 10_000_000 + since.microseconds * 10
        values = {
            "" if value.name() == "(default)" else value.name(): (value.value_type(), value.raw_data())
            for value in key.values()
        }
        return ticks, values, {one.name(): seen(one) for one in key.subkeys()}

    with path.open("rb") as file:
        return seen(Registry.Registry(file).root())


def by_regipy(path: Path) -> Seen:
    from regipy.registry import RegistryHive

    kinds = {
        "REG_SZ": REG_SZ,
        "REG_EXPAND_SZ": REG_EXPAND_SZ,
        "REG_BINARY": REG_BINARY,
        "REG_DWORD": REG_DWORD,
        "REG_MULTI_SZ": REG_MULTI_SZ,
        "REG_QWORD": REG_QWORD,
    }

    def data(kind: int, value: Any) -> bytes:
        """The bytes of what the reader has made a text or a number of."""
        if kind in (REG_SZ, REG_EXPAND_SZ):
            return utf16(f"{value}\0")
        if kind == REG_MULTI_SZ:
            return utf16("".join(f"{one}\0" for one in value) + "\0")
        if kind in (REG_DWORD, REG_QWORD):
            return int(value).to_bytes(4 if kind == REG_DWORD else 8, "little")
        return bytes.fromhex(value) if isinstance(value, str) else bytes(value or b"")

    def seen(key: Any) -> Seen:
        values = {}
        for value in key.iter_values(trim_values=False):
            kind = kinds[value.value_type]
            values["" if value.name == "(default)" else value.name] = kind, data(kind, value.value)
        return key.header.last_modified, values, {one.name: seen(one) for one in key.iter_subkeys() or ()}

    return seen(RegistryHive(str(path)).root)  # type: ignore[no-untyped-call]


READERS = [
    pytest.param(by_libregf, NAMES, SIZES, id="libregf"),
    pytest.param(by_python_registry, NAMES, (*SIZES, 1, 2, 3), id="python-registry"),
    pytest.param(by_regipy, NAMES[:3], (*SIZES, 1, 2, 3), id="regipy"),
]


@pytest.mark.parametrize(("reader", "names", "sizes"), READERS)
@pytest.mark.parametrize("keys", [0, 1, 40, 900])
def test_a_reader_sees_all_that_was_written(
    reader: Callable[[Path], Seen], names: Sequence[str], sizes: Sequence[int], keys: int, tmp_path: Path
) -> None:
    root = busy(keys, names, sizes)
    (tmp_path / "hive").write_bytes(encode_hive(root))
    assert expected(root) == reader(tmp_path / "hive")


@pytest.mark.parametrize(("reader", "names", "sizes"), READERS)
def test_a_reader_sees_what_a_delta_made_of_a_hive(
    reader: Callable[[Path], Seen], names: Sequence[str], sizes: Sequence[int], tmp_path: Path
) -> None:
    base, delta = busy(120, names, sizes), MemoryKey("DELTA", time=TIME + 10**12)
    for number, key in enumerate(base.subkeys()[:40]):
        above = delta.make(key.name.upper())
        above.put("large", REG_BINARY, bytes(50_000))
        above.hide("N")
        above.layering = Layering(number % 4)
    merge = merge_keys(Hive(encode_hive(base)).root_key, Hive(encode_hive(delta), layered=True).root_key)
    (tmp_path / "hive").write_bytes(encode_hive(merge))
    assert expected(merge) == reader(tmp_path / "hive")
