# SPDX-License-Identifier: Apache-2.0
"""What the documents for users show is what happens.

The blocks of a document are run in their order, in one empty directory. In a ``console`` block, a line after ``$`` is
given to a shell, and the lines below it are all that it prints. A ``python`` block is run in one namespace with those
before it, and a ``text`` block right behind it is what it prints. ``…`` stands for any text within a line, where that
depends on the machine or the clock. Other blocks are not run.
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
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n(?:\n*```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)

Step = tuple[int, str, str, str]
"""Number of the line, language, code, and what it prints."""


def steps(document: str) -> Iterator[Step]:
    """What a document says can be run."""
    for block in BLOCK.finditer(document):
        language, code, output = block.groups(default="")
        line = document.count("\n", 0, block.start(2)) + 1
        if language == "python":
            yield line, language, code, output
            continue
        for command in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", code, re.MULTILINE):
            yield line + code.count("\n", 0, command.start()), language, command[1], command[2]


def perform(step: Step, namespace: dict[str, Any]) -> str:
    """Do one step and return what it prints."""
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
    """Whether ``printed`` is what is ``shown``."""
    return re.fullmatch(re.escape(shown).replace("…", ".*"), printed) is not None


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md", "docs/store.md", "docs/surgery.md", "docs/windows.md"])
def test_what_a_document_shows_is_what_happens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    namespace: dict[str, Any] = {}
    count = 0
    for step in steps((ROOT / name).read_text(encoding="utf-8")):
        printed = perform(step, namespace)
        assert agree(step[3], printed), f"{name}:{step[0]}: {step[2]}\nshown:\n{step[3]}\nprinted:\n{printed}"
        count += 1
    assert count >= 5


def test_a_wrong_output_in_a_document_is_noticed() -> None:
    assert agree("digest sha256:…\nend\n", "digest sha256:0123\nend\n")
    assert not agree("digest sha256:…\n", "digest sha256:0123\nend\n")
    assert not agree("", "something\n")
    assert not agree("a.b\n", "axb\n")


def test_commands_and_python_are_found_with_what_they_print() -> None:
    document = (
        "Text\n```console\n$ one\nout\nput\n$ two\n```\n```sh\nnot run\n```\n```python\nx = 1\n```\n```text\n1\n```\n"
    )
    assert list(steps(document)) == [
        (3, "console", "one", "out\nput\n"),
        (6, "console", "two", ""),
        (12, "python", "x = 1\n", "1\n"),
    ]
