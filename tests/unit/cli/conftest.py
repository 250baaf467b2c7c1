# SPDX-License-Identifier: Apache-2.0
"""The command line as tests use it."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.cli.main import run

Run = Callable[..., subprocess.CompletedProcess[str]]


class Terminal(io.TextIOWrapper):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def lamella(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command line in this process; ``stdin`` is its standard input.

    ``terminal`` makes its standard output one. Output is text with surrogate escapes for bytes that are not UTF-8.
    """

    def call(*arguments: str | Path, stdin: bytes = b"", terminal: bool = False) -> subprocess.CompletedProcess[str]:
        output = Terminal(io.BytesIO()) if terminal else io.TextIOWrapper(io.BytesIO())
        streams = {"stdout": output, "stderr": io.TextIOWrapper(io.BytesIO())}
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            words = [str(argument) for argument in arguments]
            code = run(words)
        texts = []
        for stream in streams.values():
            stream.flush()
            assert isinstance(stream.buffer, io.BytesIO)
            texts.append(stream.buffer.getvalue().decode("utf-8", "surrogateescape"))
        return subprocess.CompletedProcess(words, code, texts[0], texts[1])

    return call


@pytest.fixture
def program() -> str:
    """Return the path of the installed console script."""
    return str(Path(sys.executable).with_name("lamella"))
