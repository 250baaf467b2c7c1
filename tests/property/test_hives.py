# SPDX-License-Identifier: Apache-2.0
"""Hives of any shape survive writing and reading, and merge by the documented rules."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.formats.regf import Hive, Key, Layering, MemoryKey, Value, encode_hive, merge_keys
from lamella.formats.regf.keys import DEFAULT_SECURITY, fold

LETTERS = st.sampled_from(
    "aAbBßÿŸäÄµ\u03bc日/ \0\U0001f4be\ud800"
)  # adjacent halves of a surrogate pair would be read as one character
NAMES = st.text(LETTERS, min_size=1, max_size=3)
CONTENTS = st.one_of(st.binary(max_size=9), st.sampled_from([16344, 16345, 33_000]).map(bytes))
TIMES = st.integers(0, (1 << 64) - 1)
SECURITIES = st.sampled_from([DEFAULT_SECURITY, DEFAULT_SECURITY[:-1] + b"\7", b"\1"])
VALUES = st.lists(
    st.builds(Value, st.one_of(st.just(""), NAMES), st.integers(0, 0xFFFFFFFF), CONTENTS, st.just(False)),
    max_size=4,
    unique_by=lambda value: fold(value.name),
)


class Plain(NamedTuple):
    """A key of the model, which shares only the class of values with the code under test."""

    name: str
    facts: tuple[int, bytes, str, int, int]  # time, security, class, flags, control
    layering: int
    inherit_class: bool
    values: list[Value]
    subkeys: list[Plain]


def plain(subkeys: st.SearchStrategy[list[Plain]], marks: bool) -> st.SearchStrategy[Plain]:
    values = VALUES
    if marks:
        hidden = st.builds(Value, NAMES, st.just(0), st.just(b""), st.just(True))
        values = st.lists(
            st.one_of(st.builds(Value, NAMES, st.just(1), CONTENTS, st.just(False)), hidden),
            max_size=4,
            unique_by=lambda value: fold(value.name),
        )
    facts = st.tuples(
        TIMES, SECURITIES, st.text(LETTERS, max_size=2), st.sampled_from([0, 0x10, 0x1080]), st.integers(0, 255)
    )
    layerings = st.integers(0, 3) if marks else st.just(0)
    return st.builds(Plain, NAMES, facts, layerings, st.booleans() if marks else st.just(False), values, subkeys)


def trees(marks: bool) -> st.SearchStrategy[Plain]:
    leaf: st.SearchStrategy[list[Plain]] = st.just([])
    return st.recursive(
        plain(leaf, marks),
        lambda inner: plain(st.lists(inner, max_size=4, unique_by=lambda key: fold(key.name)), marks),
        max_leaves=12,
    )


def built(key: Plain) -> MemoryKey:
    time, security, class_name, flags, control = key.facts
    made = MemoryKey(key.name, time=time, security=security, class_name=class_name, flags=flags, control=control)
    made.layering, made.inherit_class = Layering(key.layering), key.inherit_class
    for value in key.values:
        if value.tombstone:
            made.hide(value.name)
        else:
            made.put(value.name, value.type, value.data)
    for one in key.subkeys:
        made.add(built(one))
    return made


def seen(key: Key) -> Plain:
    facts = (key.time, key.security, key.class_name, key.flags, key.control)
    subkeys = sorted((seen(one) for one in key.subkeys()), key=lambda one: fold(one.name))
    return Plain(key.name, facts, int(key.layering), key.inherit_class, list(key.values()), subkeys)


def sorted_plain(key: Plain) -> Plain:
    return key._replace(subkeys=sorted(map(sorted_plain, key.subkeys), key=lambda one: fold(one.name)))


def on_paper(base: Plain | None, delta: Plain) -> Plain:
    """Merge by the table of the documentation: one row for each kind of key, from top to bottom."""
    below: Any = base if delta.layering != 3 else None
    values = {fold(value.name): value for value in (below.values if below and delta.layering == 0 else [])}
    for value in delta.values:
        values[fold(value.name)] = value
    left = {fold(one.name): one for one in (below.subkeys if below else [])}
    subkeys = []
    for one in delta.subkeys:
        lower = left.pop(fold(one.name), None)
        if one.layering != 1:
            subkeys.append(on_paper(lower, one))
    time, security, class_name, flags, control = delta.facts
    if below is not None:
        time = max(time, below.facts[0])
        if delta.layering == 0:
            class_name = below.facts[2] if delta.inherit_class else class_name
            flags |= below.facts[3]
            control |= below.facts[4]
    return Plain(
        below.name if below is not None else delta.name,
        (time, security, class_name, flags, control),
        0,
        False,
        [value for value in values.values() if not value.tombstone],
        subkeys + list(left.values()),
    )


@settings(max_examples=80)
@given(trees(marks=True))
def test_a_hive_survives_writing_and_reading(root: Plain) -> None:
    data = encode_hive(built(root))
    hive = Hive(data, layered=True)
    assert sorted_plain(root) == seen(hive.root_key)
    assert encode_hive(hive.root_key) == data


@settings(max_examples=120)
@given(trees(marks=False), trees(marks=True))
def test_merging_follows_the_rules(base: Plain, delta: Plain) -> None:
    delta = delta._replace(layering=0 if delta.layering == 1 else delta.layering)
    lower, upper = Hive(encode_hive(built(base))), Hive(encode_hive(built(delta)), layered=True)
    merge = merge_keys(lower.root_key, upper.root_key)
    assert sorted_plain(on_paper(base, delta)) == seen(merge)
    result = Hive(encode_hive(merge))
    assert not result.layered
    assert seen(merge) == seen(result.root_key)


@settings(max_examples=60)
@given(trees(marks=False), trees(marks=True), trees(marks=True))
def test_deltas_can_be_merged_one_by_one_or_all_at_once(base: Plain, first: Plain, second: Plain) -> None:
    first, second = (one._replace(layering=0 if one.layering == 1 else one.layering) for one in (first, second))
    step = merge_keys(built(base), built(first))
    written = Hive(encode_hive(step)).root_key
    assert seen(merge_keys(step, built(second))) == seen(merge_keys(written, built(second)))


@given(st.text(LETTERS, max_size=5), st.text(LETTERS, max_size=5))
def test_folded_names_sort_by_their_utf16_units(first: str, second: str) -> None:
    def units(name: str) -> list[int]:
        raw = fold(name).encode("utf-16-le", "surrogatepass")
        return [int.from_bytes(raw[at : at + 2], "little") for at in range(0, len(raw), 2)]

    assert (units(first) < units(second)) == (fold(first) < fold(second))
    assert fold(fold(first)) == fold(first)
