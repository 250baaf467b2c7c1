# SPDX-License-Identifier: Apache-2.0
"""Times registry hives: `python -m benchmarks.hives`, a synthetic hive of some 18 MB and a delta of 1 % of its keys."""

from __future__ import annotations

import random
import resource
import struct
import time
from collections.abc import Callable
from typing import TypeVar

from lamella.formats.regf import Hive, HiveKey, Layering, MemoryKey, encode_hive, merge_keys
from lamella.formats.regf.keys import REG_BINARY, REG_DWORD, REG_SZ

T = TypeVar("T")

KEYS = 100_000
VALUES = 2  # of each key
SUBKEYS = 9
ROUNDS = 3


def synthetic(seed: int = 1) -> MemoryKey:
    """Return keys of the shape of a SOFTWARE hive: class ids with a few short values each."""
    rng = random.Random(seed)
    root = MemoryKey("ROOT", time=1)
    level, made = [root], 1
    names = ("InprocServer32", "ProgID", "TypeLib", "Version", "shell", "open", "command", "DefaultIcon")
    while made < KEYS:
        following = []
        for parent in level:
            for number in range(SUBKEYS):
                if made < KEYS:
                    name = (
                        names[number] if number < len(names) and rng.random() < 0.5 else f"{{{rng.getrandbits(32):X}}}"
                    )
                    key = parent.make(name)
                    key.put("", REG_SZ, f"Item {made}\0".encode("utf-16-le"))
                    kind = rng.random()
                    if kind < 0.7:
                        key.put("Flags", REG_DWORD, struct.pack("<I", made))
                    elif kind < 0.999:
                        key.put("Path", REG_SZ, ("C:\\" + "x" * rng.randrange(12) + "\0").encode("utf-16-le"))
                    else:
                        key.put("Blob", REG_BINARY, rng.randbytes(rng.randrange(20_000)))
                    following.append(key)
                    made += 1
        level = following
    return root


def delta_of(root: HiveKey, seed: int = 2) -> MemoryKey:
    """Return a delta that changes, adds and removes keys and values all over the hive."""
    rng = random.Random(seed)
    delta = MemoryKey("ROOT", time=2)
    for _ in range(KEYS // 100):
        key, above = root, delta
        while rng.random() < 0.9 and (subkeys := key.subkeys()):
            key = rng.choice(subkeys)
            above = above.make(key.name)
        above.put("Changed", REG_SZ, "by the layer\0".encode("utf-16-le"))
        above.hide("Path")
        if rng.random() < 0.2 and (leaves := [one for one in key.subkeys() if not one.subkeys()]):
            above.make(rng.choice(leaves).name).layering = Layering.TOMBSTONE
    return delta


def walk(key: HiveKey) -> tuple[int, int]:
    """Read all that is there."""
    keys, values, waiting = 0, 0, [key]
    while waiting:
        one = waiting.pop()
        keys += 1
        values += len(one.values())
        waiting += one.subkeys()
    return keys, values


def measured(what: str, function: Callable[[], T]) -> T:
    """Print the best of a few rounds."""
    best, result = float("inf"), None
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    print(f"{what:24}{best * 1000:10.1f} ms")
    assert result is not None
    return result


def main() -> None:
    base = encode_hive(synthetic())
    delta = encode_hive(delta_of(Hive(base).root_key))
    print(f"base {len(base) / 1e6:.1f} MB, delta {len(delta) / 1e6:.1f} MB")
    path = [key := Hive(base).root_key]
    while subkeys := key.subkeys():
        path.append(key := subkeys[-1])
    name = "\\".join(key.name for key in path[1:])
    measured("open and look up", lambda: Hive(base).key(name))
    keys, values = measured("read all", lambda: walk(Hive(base).root_key))
    measured("read and write all", lambda: encode_hive(Hive(base).root_key))
    result = measured("merge", lambda: encode_hive(merge_keys(Hive(base).root_key, Hive(delta, layered=True).root_key)))
    print(f"{keys} keys, {values} values; result {len(result) / 1e6:.1f} MB; ", end="")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
