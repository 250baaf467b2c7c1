# SPDX-License-Identifier: Apache-2.0
"""Stacks say in which order they are read; kinds are found by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lamella.errors import InvalidInput
from lamella.layers import kinds
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.stack import LayerStack


def test_a_stack_gives_its_layers_in_the_order_that_is_asked_for() -> None:
    stack = LayerStack(["base", "middle"]).with_top("top")
    assert stack.base_first() == ("base", "middle", "top")
    assert stack.nearest_first() == ("top", "middle", "base")
    assert len(stack) == 3
    assert LayerStack.from_nearest(["top", "middle", "base"]) == stack
    assert {stack: 1}[LayerStack(["base", "middle", "top"])] == 1
    assert "base" in repr(stack)


def test_a_stack_cannot_be_iterated_in_no_order() -> None:
    with pytest.raises(TypeError):
        iter(LayerStack(["base"]))  # type: ignore[call-overload]


def test_sinks_are_made_by_name(tmp_path: Path) -> None:
    for name in ("plain", "upper", "lower"):
        (tmp_path / name).mkdir()
    for sink, kind in (
        (kinds.sink("directory", tmp_path / "plain"), DirectorySink),
        (kinds.sink("overlay", tmp_path / "upper"), OverlaySink),
        (kinds.sink("overlay", tmp_path / "upper", [tmp_path / "lower"]), OverlaySink),
    ):
        assert type(sink) is kind
        assert sink.layered == (kind is OverlaySink)
        sink.abort()


def test_what_no_kind_offers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"unknown kind of layer .flying.; choose from directory, overlay"):
        kinds.sink("flying", tmp_path)
    with pytest.raises(InvalidInput, match="no parents"):
        kinds.sink("directory", tmp_path, [tmp_path])


def test_the_table_of_kinds_loads_none_of_them() -> None:
    code = "import sys, lamella.layers.kinds; print([m for m in sys.modules if m.startswith('lamella.layers.')])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "['lamella.layers.kinds']"
