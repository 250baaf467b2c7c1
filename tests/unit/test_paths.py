# SPDX-License-Identifier: Apache-2.0
"""Lookup of directories relative to the one found last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lamella.paths import Way

Nested = dict[str, "Nested"]
NAMES = st.sampled_from(["a", "b", "aa", "ab", "abc"])
TREES: st.SearchStrategy[Nested] = st.recursive(
    st.just({}), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)
PATHS = st.lists(st.lists(NAMES, max_size=5).map("/".join), max_size=20)


@given(TREES, PATHS)
def test_the_lookup_agrees_with_a_walk_from_the_root(tree: Nested, paths: list[str]) -> None:
    way = Way(tree)
    for path in paths:
        found: Nested | None = tree
        for name in path.split("/") if path else ():
            found = None if found is None else found.get(name)
        assert way.find(path, lambda directory, name: directory.get(name)) is found


def test_the_lookup_opens_only_new_components() -> None:
    asked: list[str] = []

    def step(directory: str, name: str) -> str:
        asked.append(name)
        return f"{directory}/{name}"

    way = Way("")
    for path in ("a/b/c", "a/b/c/d", "a/b", "a/bc", "a/bc", "a"):
        assert way.find(path, step) == f"/{path}"
    assert asked == ["a", "b", "c", "d", "bc"]


def test_the_lookup_ends_at_a_failed_component() -> None:
    def step(directory: str, name: str) -> str:
        if name == "bad":
            raise ValueError
        return f"{directory}/{name}"

    way = Way("")
    for _ in range(2):
        try:
            way.find("a/bad/c", step)
        except ValueError:
            continue
        raise AssertionError("it did not fail")
    assert way.find("a/c", step) == "/a/c"
