# SPDX-License-Identifier: Apache-2.0
"""Labels, field masks, and the names of namespaces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import Integrity, InvalidInput
from lamella.store.metadata.labels import (
    check_key,
    check_labels,
    check_namespace,
    decode_labels,
    encode_labels,
    merge_labels,
)

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
LABELS = st.dictionaries(KEYS, st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=5)
OLD = {"a": "1", "b.c/d": "2"}


@pytest.mark.parametrize(
    ("new", "fields", "expected"),
    [
        ({"x": "9"}, [], {"x": "9"}),
        ({"x": "9", "y": ""}, [], {"x": "9"}),
        ({"x": "9"}, ["labels"], {"x": "9"}),
        ({"x": "9"}, ["labels.x"], {**OLD, "x": "9"}),
        ({"x": "9"}, ["labels.a"], {"b.c/d": "2"}),
        ({"a": ""}, ["labels.a"], {"b.c/d": "2"}),
        ({"b.c/d": "3", "a": "9"}, ["labels.b.c/d"], {"a": "1", "b.c/d": "3"}),
        ({"x": "9"}, ["labels.y", "labels.x"], {**OLD, "x": "9"}),
        ({"x": "9"}, ["labels.a", "labels"], {"x": "9"}),
    ],
)
def test_a_field_mask_selects_the_labels_that_change(
    new: dict[str, str], fields: list[str], expected: dict[str, str]
) -> None:
    assert merge_labels(OLD, new, fields) == expected
    assert OLD == {"a": "1", "b.c/d": "2"}


@pytest.mark.parametrize("fields", [["size"], ["labels."], [""], ["Labels"], ["labels", "digest"], ["labelsx"]])
def test_other_fields_are_refused(fields: list[str]) -> None:
    with pytest.raises(InvalidInput):
        merge_labels(OLD, {}, fields)


def test_a_label_has_a_maximum_size_in_bytes() -> None:
    check_labels({"k": "v" * 4095, "\u00e9": "v" * 4094})
    for labels in ({"k": "v" * 4096}, {"k" * 4097: ""}, {"k": "\u00e9" * 2048}, {"": "v"}, {"k": "\ud800"}):
        with pytest.raises(InvalidInput):
            check_labels(labels)


@given(LABELS)
def test_labels_round_trip_through_the_database(labels: dict[str, str]) -> None:
    assert decode_labels(encode_labels(labels)) == labels
    assert encode_labels(dict(reversed(labels.items()))) == encode_labels(labels)


def test_empty_labels_encode_to_the_default_of_the_column() -> None:
    assert encode_labels({}) == "{}"
    assert decode_labels("{}") == {}


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "{"])
def test_malformed_labels_in_the_database_raise_integrity(text: str) -> None:
    with pytest.raises(Integrity):
        decode_labels(text)


@given(LABELS, LABELS, st.lists(KEYS.map(lambda key: f"labels.{key}"), min_size=1, max_size=4))
def test_a_field_mask_changes_no_other_label(old: dict[str, str], new: dict[str, str], fields: list[str]) -> None:
    merged = merge_labels(old, new, fields)
    named = {field.partition(".")[2] for field in fields}
    assert {key: value for key, value in merged.items() if key not in named} == {
        key: value for key, value in old.items() if key not in named
    }
    assert {key: merged.get(key, "") for key in named} == {key: new.get(key, "") for key in named}
    assert "" not in {merged[key] for key in named & merged.keys()}


@pytest.mark.parametrize("name", ["default", "k8s.io", "a-b_c.d", "A1", "a" * 76])
def test_valid_names_of_namespaces_are_accepted(name: str) -> None:
    assert check_namespace(name) == name


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a/b", "a b", "a\n", "\u00e9", "a" * 77, "../a"])
def test_invalid_names_of_namespaces_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_namespace(name)


def test_a_key_is_any_non_empty_text() -> None:
    assert check_key("a/b c\u00e9", "the key") == "a/b c\u00e9"
    for key in ("", "x" * 32769, "\ud800"):
        with pytest.raises(InvalidInput, match="the key"):
            check_key(key, "the key")
