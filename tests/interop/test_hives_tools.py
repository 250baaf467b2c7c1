# SPDX-License-Identifier: Apache-2.0
"""hivex reads the hives that Lamella writes, and Lamella those that hivex has changed."""

from __future__ import annotations

import base64
import random
import struct
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from tests.unit.formats.regf.hives import small, utf16

from lamella.formats.regf import Hive, Key, Layering, MemoryKey, encode_hive, merge_keys
from lamella.formats.regf.keys import REG_BINARY, REG_DWORD, REG_EXPAND_SZ, REG_MULTI_SZ, REG_QWORD, REG_SZ

pytestmark = pytest.mark.interop

Needs = Callable[..., str]

SIZES = (0, 1, 4, 5, 100, 3000, 16344, 16345, 16353, 32_700, 40_000)

TYPES = {
    REG_SZ: "string",
    REG_EXPAND_SZ: "expand",
    REG_BINARY: "binary",
    REG_DWORD: "int32",
    REG_QWORD: "int64",
    REG_MULTI_SZ: "string-list",
}


def busy(seed: int, keys: int) -> MemoryKey:
    """Return many keys with values of all the kinds that hivex has names for."""
    rng = random.Random(seed)
    root = MemoryKey("ROOT", time=133_500_000_000_000_000)
    made = [root]
    for number in range(keys):
        parent = rng.choice(made[-20:]) if number % 3 else root
        key = parent.make(rng.choice(["Name ", "größe", "日本", "{c5}"]) + str(number))
        key.time = 133_500_000_000_000_000 + number * 10_000_000
        key.put("", REG_SZ, utf16(f"default {number}\0"))
        key.put("n", REG_DWORD, struct.pack("<I", number))
        key.put("q", REG_QWORD, struct.pack("<Q", number << 20))
        key.put("path", REG_EXPAND_SZ, utf16("%SystemRoot%\\größe\0"))
        key.put("list", REG_MULTI_SZ, utf16("a\0bc\0\0"))
        key.put("blob", REG_BINARY, rng.randbytes(rng.choice(SIZES)))
        made.append(key)
    return root


def expected(key: Key) -> Any:
    """Return what hivex should say of a key: its time in seconds, values and subkeys."""
    values = {}
    for name, kind, data, _ in key.values():
        shown: Any = data
        if kind in (REG_SZ, REG_EXPAND_SZ):
            shown = data.decode("utf-16-le").removesuffix("\0")
        elif kind == REG_MULTI_SZ:
            shown = data.decode("utf-16-le").split("\0")[:-2]
        elif kind in (REG_DWORD, REG_QWORD):
            shown = int.from_bytes(data, "little")
        values[name] = (TYPES[kind], shown)
    return key.time // 10_000_000 * 10_000_000, values, {one.name: expected(one) for one in key.subkeys()}


def shown(node: ET.Element) -> Any:
    """Return the same from hivexml's document."""
    values: dict[str, Any] = {}
    for value in node.findall("value"):
        kind, text = value.get("type", ""), value.get("value", "")
        data: Any = text
        if kind == "binary":
            data = base64.b64decode(text)
        elif kind == "string-list":
            data = [item.text or "" for item in value.findall("string")]
            data = data[:-1] if data[-1:] == [""] else data  # it shows the end of the list as one more text
        elif kind in ("int32", "int64"):
            data = int(text)
        values[value.get("key", "")] = (kind, data)
    mtime = datetime.fromisoformat(node.findtext("mtime") or "").timestamp()
    ticks = (int(mtime) + 11_644_473_600) * 10_000_000
    return ticks, values, {one.get("name"): shown(one) for one in node.findall("node")}


def by_hivex(program: str, path: Path) -> Any:
    document = subprocess.run([program, path], capture_output=True, check=True)
    assert document.stderr == b""
    root = ET.fromstring(document.stdout).find("node")
    assert root is not None
    return shown(root)


@pytest.mark.parametrize("keys", [0, 1, 40, 1200])
def test_hivex_reads_what_we_write(needs: Needs, tmp_path: Path, keys: int) -> None:
    root = busy(keys, keys)
    (tmp_path / "hive").write_bytes(encode_hive(root))
    assert expected(root) == by_hivex(needs("hivexml"), tmp_path / "hive")


def test_hivex_reads_what_we_merge(needs: Needs, tmp_path: Path) -> None:
    base, delta = busy(1, 200), MemoryKey("DELTA", time=133_600_000_000_000_000)
    for number, key in enumerate(base.subkeys()[:60]):
        above = delta.make(key.name.upper())
        above.put("large", REG_BINARY, bytes(50_000))
        above.hide("N")
        above.layering = Layering(number % 4)
    merge = merge_keys(Hive(encode_hive(base)).root_key, Hive(encode_hive(delta), layered=True).root_key)
    (tmp_path / "hive").write_bytes(encode_hive(merge))
    assert expected(merge) == by_hivex(needs("hivexml"), tmp_path / "hive")


def test_hivex_does_not_mind_the_marks_of_a_delta(needs: Needs, tmp_path: Path) -> None:
    delta = MemoryKey("DELTA", time=133_600_000_000_000_000)
    delta.make("gone").layering = Layering.TOMBSTONE
    (tmp_path / "hive").write_bytes(encode_hive(delta))
    assert by_hivex(needs("hivexml"), tmp_path / "hive")[2].keys() == {"gone"}


def test_we_read_what_hivex_writes(needs: Needs, tmp_path: Path) -> None:
    """Hivex writes into a hive in place: cells that it frees and appends stand among ours."""
    program = needs("hivexsh")
    (tmp_path / "hive").write_bytes(encode_hive(small()))
    script = (
        "cd \\Control\nsetval 2\nText\nstring:hello\nBytes\nhex:3:01,02,03,04,05\n"
        "add Fresh\ncd Fresh\nsetval 1\n@\ndword:7\n"
        "cd \\services\ncd s1\ndel\n"
        f"commit {tmp_path / 'changed'}\n"
    )
    subprocess.run([program, "-w", tmp_path / "hive"], input=script.encode(), capture_output=True, check=True)
    hive = Hive((tmp_path / "changed").read_bytes())
    assert hive.key("control").values() == [
        ("Text", REG_SZ, utf16("hello\0"), False),
        ("Bytes", REG_BINARY, b"\1\2\3\4\5", False),
    ]
    assert hive.key("control\\fresh").values() == [("", REG_DWORD, b"\7\0\0\0", False)]
    assert [key.name for key in hive.key("services").subkeys()] == ["s0", "s2"]
    assert hive.key("control\\fresh").security == hive.key("control").security
