# SPDX-License-Identifier: Apache-2.0
"""The modules, functions and classes that docs/architecture.md names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lamella

PACKAGE = Path(lamella.__file__ or "").parent
PAGE = PACKAGE.parents[1] / "docs" / "architecture.md"


def definitions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_each_step_of_a_flow_names_an_existing_definition() -> None:
    steps = re.findall(r"`([a-z_/0-9]+\.py):(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(steps) > 30
    missing = [f"{path}:{name}" for path, name in steps if name not in definitions(PACKAGE / path)]
    assert missing == []


def test_each_module_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`([a-z_]+/[a-z_/0-9]*[a-z_0-9]+\.py)\b", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 20
    root = PAGE.parents[1]
    assert sorted(path for path in named if not (PACKAGE / path).exists() and not (root / path).exists()) == []
