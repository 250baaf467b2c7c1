# SPDX-License-Identifier: Apache-2.0
"""Patterns are searched for as RE2 does, or refused."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InvalidInput
from lamella.store.metadata.re2 import MAX_PATTERN, compile_pattern


def found(pattern: str, text: str) -> bool | None:
    compiled = compile_pattern(pattern)
    return None if compiled is None else compiled.search(text) is not None


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("bar", "foobarbaz", True),
        ("^bar", "foobarbaz", False),
        ("o+b", "foobar", True),
        ("end$", "the end", True),
        ("end$", "the end\n", False),
        (r"end\z", "the end\n", False),
        ("(?m)end$", "the end\nof it", True),
        ("(?i)BAR", "foobar", True),
        (r"^\d+$", "123", True),
        (r"^\d+$", "\u0661\u0662", False),
        (r"^\w$", "\u00e9", False),
        ("^[[:alpha:]]+$", "abc", True),
        ("^[[:alpha:]-]+$", "a-c", True),
        ("^[^[:space:]]$", " ", False),
        ("^[--/]$", ".", True),
        ("^[]a]+$", "a]", True),
        ("^[a&&b]+$", "a&b", True),
        (r"^\Qa+b\E$", "a+b", True),
        (r"^\x41$", "A", True),
        (r"^\x{1F600}$", "\U0001f600", True),
        ("^(?P<name>a)(?:b)(c)$", "abc", True),
        ("^(?<name>a)$", "a", True),
        ("^a{2}$", "aa", True),
        ("a{,3}", "a{,3}", True),
        ("a{,3}", "aa", False),
        ("{", "{", True),
        (r"^([0-9]{1,3}\.){3}[0-9]{1,3}$", "192.168.1.10", True),
        ("^(foo|bar)/.*/.+$", "bar/x/y", True),
        ("^(foo|bar){2}$", "foobar", True),
        ("", "anything", True),
    ],
)
def test_a_pattern_finds_what_re2_finds(pattern: str, text: str, expected: bool) -> None:
    assert found(pattern, text) is expected


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "[", "a**", "*", "(?=a)", "(?!a)", "(?<=a)", r"(a)\1", "a*+b", r"\Z", "(?P=n)", "a{1001}", "\\"],
)
def test_a_pattern_that_is_invalid_in_re2_is_no_pattern(pattern: str) -> None:
    assert compile_pattern(pattern) is None


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)*$", "(a*)*b", "((a{1,4}){4}){4}", "([ab]*c){5}", "a*a*a*a*a*b"])
def test_patterns_that_backtrack_without_bound_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="too long"):
        compile_pattern(pattern)


def test_a_pattern_has_a_maximum_length() -> None:
    assert found("a" * MAX_PATTERN, "b") is False
    with pytest.raises(InvalidInput):
        compile_pattern("a" * (MAX_PATTERN + 1))


@given(
    st.text(st.sampled_from("ab01.*+?|()[]{},-^$\\&~:=!<>PdwszQEx#\n"), max_size=14), st.text("ab01.\n-", max_size=20)
)
def test_a_search_for_any_pattern_ends_soon(pattern: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            compiled = compile_pattern(pattern)
        except InvalidInput:
            return
    start = time.monotonic()
    if compiled is not None:
        compiled.search(text)
    assert time.monotonic() - start < 5


@given(st.text(max_size=40))
def test_an_escaped_text_matches_itself(text: str) -> None:
    assert found(f"^{re.escape(text)}$", text) is True
