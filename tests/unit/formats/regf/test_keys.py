# SPDX-License-Identifier: Apache-2.0
"""What a delta makes of the hive below it."""

from __future__ import annotations

import pytest
from tests.unit.formats.regf.hives import OTHER_SECURITY, picture, read_back, small

from lamella.errors import InvalidInput
from lamella.formats.regf import Hive, Key, Layering, MemoryKey, encode_hive, merge_keys
from lamella.formats.regf.keys import REG_SZ, SYMLINK


def tree(key: Key) -> dict[str, object]:
    """Return values by their names and subkeys by theirs."""
    values = {value.name: value.data.decode() for value in key.values()}
    return values | {f"{one.name}\\": tree(one) for one in key.subkeys()}


def base() -> MemoryKey:
    root = MemoryKey("BASE", time=10)
    root.put("a", REG_SZ, b"1")
    root.put("b", REG_SZ, b"2")
    sub = root.make("Sub")
    sub.put("x", REG_SZ, b"1")
    sub.make("deep").put("y", REG_SZ, b"1")
    root.make("Other").put("z", REG_SZ, b"1")
    return root


BASE = {"a": "1", "b": "2", "Sub\\": {"x": "1", "deep\\": {"y": "1"}}, "Other\\": {"z": "1"}}


def result(delta: MemoryKey, below: MemoryKey | None = None) -> Hive:
    """Merge by way of bytes, as images do."""
    lower = read_back(below or base()).root_key
    return Hive(encode_hive(merge_keys(lower, Hive(encode_hive(delta), layered=True).root_key)))


def test_an_empty_delta_changes_nothing() -> None:
    assert tree(result(MemoryKey("DELTA")).root_key) == BASE


def test_values_are_put_over_those_below_in_their_places() -> None:
    delta = MemoryKey("DELTA")
    delta.put("new", REG_SZ, b"3")
    delta.put("A", REG_SZ, b"4")
    assert [(value.name, value.data) for value in result(delta).root_key.values()] == [
        ("A", b"4"),
        ("b", b"2"),
        ("new", b"3"),
    ]


def test_a_tombstone_removes_a_value() -> None:
    delta = MemoryKey("DELTA")
    delta.hide("A")
    delta.hide("never there")
    assert tree(result(delta).root_key) == {name: value for name, value in BASE.items() if name != "a"}


def test_subkeys_merge_and_keep_the_spelling_below() -> None:
    delta = MemoryKey("DELTA")
    delta.make("SUB").make("DEEP").put("w", REG_SZ, b"2")
    delta.make("Fresh").make("er").put("v", REG_SZ, b"3")
    assert tree(result(delta).root_key) == BASE | {
        "Sub\\": {"x": "1", "deep\\": {"y": "1", "w": "2"}},
        "Fresh\\": {"er\\": {"v": "3"}},
    }


def test_a_tombstone_removes_a_key_with_all_that_is_in_it() -> None:
    delta = MemoryKey("DELTA")
    delta.make("sub").layering = Layering.TOMBSTONE
    delta.make("never there").layering = Layering.TOMBSTONE
    assert tree(result(delta).root_key) == {name: value for name, value in BASE.items() if name != "Sub\\"}


def test_superseding_a_key_locally_hides_its_values_and_keeps_its_subkeys() -> None:
    delta = MemoryKey("DELTA")
    sub = delta.make("SUB")
    sub.layering = Layering.SUPERSEDE_LOCAL
    sub.put("only", REG_SZ, b"5")
    assert tree(result(delta).root_key) == BASE | {"Sub\\": {"only": "5", "deep\\": {"y": "1"}}}


def test_superseding_a_tree_leaves_nothing_of_what_is_below() -> None:
    delta = MemoryKey("DELTA")
    sub = delta.make("SUB")
    sub.layering = Layering.SUPERSEDE_TREE
    sub.put("only", REG_SZ, b"5")
    deep = sub.make("deep")
    deep.layering = Layering.SUPERSEDE_TREE
    deep.hide("y")
    sub.make("gone").layering = Layering.TOMBSTONE
    assert tree(result(delta).root_key) == {name: value for name, value in BASE.items() if name != "Sub\\"} | {
        "SUB\\": {"only": "5", "deep\\": {}}
    }


def test_the_class_is_inherited_where_the_delta_says_so() -> None:
    below = MemoryKey("BASE", class_name="below")
    assert result(MemoryKey("D", class_name="above"), below).root_key.class_name == "above"
    assert result(MemoryKey("D"), below).root_key.class_name == ""
    assert result(MemoryKey("D", class_name="above", inherit_class=True), below).root_key.class_name == "below"
    superseding = MemoryKey("D", class_name="above", inherit_class=True, layering=Layering.SUPERSEDE_LOCAL)
    assert result(superseding, below).root_key.class_name == "above"
    alone = MemoryKey("D", class_name="above", inherit_class=True)
    assert merge_keys(None, alone).class_name == "above"


@pytest.mark.parametrize(("below", "above", "newest"), [(10, 20, 20), (20, 10, 20)])
def test_the_newest_time_counts(below: int, above: int, newest: int) -> None:
    assert result(MemoryKey("D", time=above), MemoryKey("B", time=below)).root_key.time == newest


def test_the_descriptor_is_the_deltas_and_a_link_stays_a_link() -> None:
    below = MemoryKey("B")
    below.make("link").flags = SYMLINK
    below.make("link").control = 0x10
    delta = MemoryKey("D", security=OTHER_SECURITY)
    delta.make("link").control = 0x02
    merge = result(delta, below)
    assert merge.root_key.security == OTHER_SECURITY
    assert (merge.key("link").flags, merge.key("link").control) == (SYMLINK, 0x12)


def test_the_result_bears_no_marks() -> None:
    delta = MemoryKey("DELTA", layering=Layering.SUPERSEDE_LOCAL, inherit_class=True)
    delta.make("new").layering = Layering.SUPERSEDE_TREE
    delta.hide("a")
    merge = result(delta)
    assert (merge.layered, merge.minor) == (False, 5)


def test_a_delta_of_a_delta_goes_over_both() -> None:
    first, second = MemoryKey("1"), MemoryKey("2")
    first.make("Sub").put("first", REG_SZ, b"1")
    first.make("New").put("n", REG_SZ, b"1")
    second.make("Sub").hide("x")
    second.make("New").layering = Layering.TOMBSTONE
    stacked = merge_keys(merge_keys(base(), first), second)
    assert tree(stacked) == BASE | {"Sub\\": {"first": "1", "deep\\": {"y": "1"}}}


def test_what_a_delta_does_not_mention_comes_unchanged() -> None:
    delta = MemoryKey("DELTA", time=1)
    merge = merge_keys(small(), delta)
    assert [picture(key) for key in small().subkeys()] == [picture(key) for key in merge.subkeys()]


def test_a_delta_cannot_remove_the_root() -> None:
    with pytest.raises(InvalidInput, match="the delta removes the root key 'D'"):
        merge_keys(base(), MemoryKey("D", layering=Layering.TOMBSTONE))


def test_names_that_clash_in_one_hive_are_refused() -> None:
    below = base()
    below.make("clash").name = "SUB"
    delta = MemoryKey("D")
    delta.make("Sub")
    with pytest.raises(InvalidInput, match="two names in key 'BASE' differ at most in case"):
        encode_hive(merge_keys(below, delta))
