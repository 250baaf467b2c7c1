# SPDX-License-Identifier: Apache-2.0
"""The language of filters."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InvalidInput
from lamella.store.metadata.filters import MAX_EXPRESSION, parse_filters

FIELDS: Mapping[str, str] = {
    "name": "docker.io/library/alpine:3.20",
    "parent": "",
    "digest": "sha256:abc",
    "labels.tier": "cache",
    "labels.a.b": "dotted",
    "labels.containerd.io/gc.root": "2024",
    "labels.space": "a b",
    "labels.quoted": 'say "x"',
}


def passes(*expressions: str, fields: Mapping[str, str] = FIELDS) -> bool:
    return parse_filters(expressions).matches(lambda path: fields.get(".".join(path)))


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "name",
        "parent",
        'parent==""',
        "name==docker.io/library/alpine:3.20",
        'name=="docker.io/library/alpine:3.20"',
        " name == docker.io/library/alpine:3.20",
        "name!=other",
        "missing!=x",
        "labels.tier==cache,digest==sha256:abc",
        "labels.tier==cache, digest==sha256:abc",
        "labels.a.b==dotted",
        'labels."a.b"==dotted',
        'labels."containerd.io/gc.root"',
        'labels."containerd.io/gc.root"==2024',
        'labels.space=="a b"',
        r'labels.quoted=="say \"x\""',
        r'labels.tier=="\x63ache"',
        r'labels.tier=="\143ache"',
        r'labels.tier=="\u0063\U00000061che"',
        "name~=alpine",
        "name~=^docker",
        "name~=/library/",
        "name~=|library/alp|",
        r"name~=/library\/alpine/",
        'name~="library/(alpine|busybox)"',
        r"name~=/\\d\\.\\d+$/",
        "missing~=^$",
        "labels.tier~=c.c",
        "digest==sha256:abc,name",
    ],
)
def test_a_matching_object_passes_the_filter(expression: str) -> None:
    assert passes(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "missing",
        "missing==x",
        'missing==""',
        'missing!=""',
        "name==alpine",
        "labels.tier!=cache",
        "labels.tier==cache,digest==other",
        "labels",
        "name~=busybox",
        "name~=(",
        "name~=(?=docker)",
        'missing~="."',
        "Name",
    ],
)
def test_other_objects_do_not_pass_the_filter(expression: str) -> None:
    assert not passes(expression)


@pytest.mark.parametrize(
    "expression",
    [
        ",",
        "name,",
        ",name",
        ".name",
        "name.",
        "name..x",
        "name=",
        "name==",
        "parent==",
        "missing~=.",
        "name===x",
        "name=~x",
        "name==x,",
        "name==a b",
        "name==x ",
        "name ",
        " ",
        "labels.containerd.io/gc.root",
        "labels./x/",
        "labels.|x|==y",
        "name==/x/",
        "name==|x|",
        'name=="x',
        'name=="x\ny"',
        r'name=="\q"',
        r'name=="\400"',
        r'name=="\x4"',
        r'name=="\ud800"',
        r'name=="\U00110000"',
        r"name~=/\d/",
        'name=="x"y',
        "name==.x",
        "name-x==y",
        "na\u00efve",
        "name~=(a+)+",
        "x" * (MAX_EXPRESSION + 1),
    ],
)
def test_a_malformed_filter_is_refused(expression: str) -> None:
    with pytest.raises(InvalidInput):
        parse_filters([expression])


def test_no_expression_passes_everything() -> None:
    assert passes()
    assert passes("missing", "")
    assert parse_filters(["missing", ""]).everything
    assert not parse_filters(["name"]).everything


def test_an_object_passes_if_one_expression_matches() -> None:
    assert passes("missing", "name==x", "labels.tier==cache")
    assert not passes("missing", "name==x")


def test_one_malformed_expression_among_several_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="at character 5"):
        parse_filters(["name", "name=x"])


def test_an_escaped_byte_that_is_not_utf8_matches_nothing() -> None:
    assert not passes(r'name=="\xff"', fields={"name": "\u00ff"})


TEXT = st.characters(exclude_categories=["Cs"])
ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n"}


@given(
    st.lists(st.text(TEXT, max_size=12), min_size=1, max_size=4),
    st.text(TEXT, max_size=20),
)
def test_every_path_and_value_can_be_quoted(path: list[str], value: str) -> None:
    def quoted(text: str) -> str:
        return '"' + "".join(ESCAPES.get(character, character) for character in text) + '"'

    wanted = parse_filters([f"{'.'.join(map(quoted, path))}=={quoted(value)}"])
    assert wanted.matches(lambda asked: value if asked == tuple(path) else None)
    assert not wanted.matches(lambda asked: value + "x")


@given(st.text(st.sampled_from('ab.,=!~"/|\\ x1\n\u00e9'), max_size=24))
def test_any_text_is_a_filter_or_raises_invalid_input(text: str) -> None:
    try:
        wanted = parse_filters([text])
    except InvalidInput:
        return
    assert wanted.matches(lambda path: None) in (True, False)
