# SPDX-License-Identifier: Apache-2.0
"""The examples in the documentation produce the output shown, and its relative links lead to files and headings.

The blocks of a document run in order, in one empty directory. In a ``console`` block, the shell runs each line after
``$``, and the lines below it are its whole output. ``python`` blocks share one namespace, and a ``text`` block right
after one is its output. ``…`` matches any text within a line that depends on the machine or the clock. Other blocks do
not run.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)
LINK = re.compile(r"\]\(([^)\s]*)\)")
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n(?:\n*```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)

Step = tuple[int, str, str, str]
"""Line number, language, code and output."""


def steps(document: str) -> Iterator[Step]:
    """Return the steps of a document."""
    for block in BLOCK.finditer(document):
        language, code, output = block.groups(default="")
        line = document.count("\n", 0, block.start(2)) + 1
        if language == "python":
            yield line, language, code, output
            continue
        for command in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", code, re.MULTILINE):
            yield line + code.count("\n", 0, command.start()), language, command[1], command[2]


def perform(step: Step, namespace: dict[str, Any]) -> str:
    """Run one step and return its output."""
    line, language, code, _ = step
    if language == "console":
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "-c", f"umask 022; {code}"],
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile("\n" * (line - 1) + code, "document", "exec"), namespace)
    return printed.getvalue()


def agree(shown: str, printed: str) -> bool:
    """Return whether ``printed`` matches ``shown``."""
    return re.fullmatch(re.escape(shown).replace("…", ".*"), printed) is not None


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md", "docs/store.md", "docs/surgery.md", "docs/windows.md"])
def test_examples_print_the_output_shown(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    namespace: dict[str, Any] = {}
    count = 0
    for step in steps((ROOT / name).read_text(encoding="utf-8")):
        printed = perform(step, namespace)
        assert agree(step[3], printed), f"{name}:{step[0]}: {step[2]}\nshown:\n{step[3]}\nprinted:\n{printed}"
        count += 1
    assert count >= 5


def test_a_wrong_output_in_a_document_is_found() -> None:
    assert agree("digest sha256:…\nend\n", "digest sha256:0123\nend\n")
    assert not agree("digest sha256:…\n", "digest sha256:0123\nend\n")
    assert not agree("", "something\n")
    assert not agree("a.b\n", "axb\n")


def anchors(document: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", document, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Return the relative links of a document that lead to no file, or to no heading in it."""
    broken = []
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.is_file() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    assert broken_links(document) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# The title, here\n```sh\n# a comment\n```\n", encoding="utf-8")
    document = tmp_path / "document.md"
    document.write_text(
        "# Own\n[a](other.md) [b](other.md#the-title-here) [c](#own) [d](https://example.com/x.md)\n"
        "[e](missing.md) [f](other.md#a-comment) [g](#other)\n",
        encoding="utf-8",
    )
    assert broken_links(document) == ["missing.md", "other.md#a-comment", "#other"]


def test_commands_and_python_blocks_are_found_with_their_output() -> None:
    document = (
        "Text\n```console\n$ one\nout\nput\n$ two\n```\n```sh\nnot run\n```\n```python\nx = 1\n```\n```text\n1\n```\n"
    )
    assert list(steps(document)) == [
        (3, "console", "one", "out\nput\n"),
        (6, "console", "two", ""),
        (12, "python", "x = 1\n", "1\n"),
    ]
