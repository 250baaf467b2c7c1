# SPDX-License-Identifier: Apache-2.0
"""The limit of open files: raised for the command line, and as it was for the programs that it starts."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"


def with_limits(soft: int, hard: int, code: str, *arguments: str | Path) -> str:
    """What ``code`` prints in a process that starts with these limits."""
    prelude = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
    command = [sys.executable, "-P", "-c", f"{prelude}os.execv(sys.executable, sys.argv[1:])"]
    command += [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_soft_limit_becomes_the_hard_one() -> None:
    code = f"from lamella.host.open_files import raise_soft_limit; raise_soft_limit(); {SHOW}"
    assert with_limits(100, 400, code) == "400 400\n"
    assert with_limits(400, 400, code) == "400 400\n"


@pytest.mark.parametrize("soft", [100, 400])
def test_another_program_has_the_original_limit(soft: int) -> None:
    code = (
        "import subprocess, sys; from lamella.host.open_files import raise_soft_limit, with_original_limit;"
        "raise_soft_limit();"
        f"subprocess.run(with_original_limit([sys.executable, '-c', {SHOW!r}]), check=True)"
    )
    assert with_limits(soft, 400, code) == f"{soft} 400\n"


def test_a_program_has_its_arguments_its_descriptors_and_its_exit_code_untouched() -> None:
    code = (
        "import os, subprocess, sys; from lamella.host.open_files import raise_soft_limit, with_original_limit;"
        "raise_soft_limit(); reading, writing = os.pipe();"
        "program = 'import os, sys; os.write(int(sys.argv[1]), repr(sys.argv[2:]).encode()); sys.exit(7)';"
        "command = [sys.executable, '-c', program, str(writing), 'a b', '$HOME', '', '-n'];"
        "done = subprocess.run(with_original_limit(command), pass_fds=(writing,));"
        "print(done.returncode, os.read(reading, 100).decode())"
    )
    assert with_limits(100, 400, code) == "7 ['a b', '$HOME', '', '-n']\n"


def test_a_program_that_is_not_there_is_an_error_as_before() -> None:
    code = (
        "import subprocess; from lamella.host.open_files import raise_soft_limit, with_original_limit;"
        "raise_soft_limit();\n"
        "try: subprocess.run(with_original_limit(['/nowhere/program']))\n"
        "except FileNotFoundError as error: print(error.filename)"
    )
    assert with_limits(100, 400, code) == "/nowhere/program\n"


def test_the_command_line_raises_its_limit_and_not_that_of_a_credential_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-limits"
    helper.write_text(f'#!/bin/sh\nulimit -S -n >"{tmp_path}/limit"\necho credentials not found\nexit 1\n')
    helper.chmod(0o755)
    (tmp_path / "auth.json").write_text('{"credsStore": "limits"}')
    code = (
        "import resource, sys; from lamella.cli.main import main;"
        "sys.argv[0] = 'lamella'; code = main(); print(code, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    shown = with_limits(100, 400, code, "logout", "localhost:1", "--authfile", tmp_path / "auth.json", "--quiet")
    assert shown.split()[1] == "400"
    assert (tmp_path / "limit").read_text() == "100\n"


def test_this_process_is_left_alone() -> None:
    """The twin: a library does not change the limits of the process that imports it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = f"import lamella.store.store, lamella.operations.unpack, lamella.cli.main; {SHOW}"
    assert with_limits(100, before[1], code) == f"100 {before[1]}\n"
