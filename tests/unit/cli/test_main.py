# SPDX-License-Identifier: Apache-2.0
"""The frame of the command line: verbs, global options, errors and exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from lamella import errors
from lamella.cli.console import Console, columns, human_size, printable
from lamella.cli.main import SECTIONS, cli
from lamella.cli.store import VERBS as STORE_VERBS
from lamella.cli.verb import Verb

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """Return a function that makes `lamella ls` raise an error, or show the switches."""

    def install(error: BaseException | None) -> None:
        @click.command("ls", cls=Verb)
        @click.pass_obj
        def command(console: Console) -> None:
            """Stand in."""
            if error is not None:
                raise error
            console.line(f"{console.json} {console.quiet} {console.debug}")

        monkeypatch.setattr("lamella.cli.files.ls", command)

    import lamella.cli.files  # noqa: F401  # there to be patched

    return install


# Help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", cli.verbs)
def test_the_list_of_verbs_has_the_first_line_of_each_help(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert isinstance(command, Verb)
    assert command.name == verb
    assert (command.help or "").strip().partition("\n")[0] == cli.verbs[verb][0]


@pytest.mark.parametrize("verb", cli.verbs)
def test_each_verb_has_help_and_the_options_of_all(lamella: Run, verb: str) -> None:
    done = lamella(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: lamella {verb} ")
    for option in ("--json", "--quiet", "--debug"):
        assert option in done.stdout


@pytest.mark.parametrize("verb", cli.verbs)
def test_the_help_of_options_is_sentences(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    options = [option for option in command.params if isinstance(option, click.Option)]
    for option in options:
        option.get_help_record(click.Context(command))  # makes the help of options that list kinds
    helps = [option.help or "" for option in options]
    assert [text for text in helps if not text[:1].isupper() or text[-1] not in ".]"] == []


def commands(group: click.Group, path: str = "lamella") -> Iterator[tuple[str, click.Command]]:
    """The verbs of ``group`` that have no subcommands, each with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS: Final = dict(commands(cli))


@pytest.mark.parametrize("path", COMMANDS)
def test_each_verb_has_an_example_that_is_valid_usage(path: str) -> None:
    command = COMMANDS[path]
    assert isinstance(command, Verb)
    assert command.example.startswith(f"{path} ") or command.example == path
    words = shlex.split(command.example.removeprefix(path))
    context = command.make_context(path, words, obj=Console())
    assert command.get_help(context).endswith(f"\n\nExample:\n  {command.example}")


def test_every_command_of_a_module_is_listed() -> None:
    folder = Path(sys.modules["lamella.cli.main"].__file__ or "").parent
    found = set()
    for path in folder.rglob("*.py"):
        module = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        for name in re.findall(
            r"^@click\.(?:command|group)\(.*\n(?:@.*\n|.*\n)*?def (\w+)\(", path.read_text(), re.MULTILINE
        ):
            found.add(module if name == "command" else f"{module}:{name}")
    assert found == {place for _, place in [*cli.verbs.values(), *STORE_VERBS.values()]}


def test_the_help_page_lists_all_verbs_in_their_sections(lamella: Run) -> None:
    done = lamella("--help")
    assert done.returncode == 0
    assert [title for title in SECTIONS if f"\n{title}:\n" not in done.stdout] == []
    assert [verb for verb, (line, _) in cli.verbs.items() if line not in done.stdout] == []


def test_no_arguments_show_the_help_as_wrong_usage(lamella: Run) -> None:
    done = lamella()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: lamella ")


def test_the_version_is_the_projects(lamella: Run) -> None:
    import tomllib

    project = Path(__file__).parents[3] / "pyproject.toml"
    version = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    assert lamella("--version").stdout == f"lamella {version}\n"


# Options before and behind the verb ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ls"], "False False False\n"),
        (["ls", "--json"], "True False False\n"),
        (["--json", "ls"], "True False False\n"),
        (["-q", "ls", "--debug"], "False True True\n"),
        (["--json", "--quiet", "--debug", "ls", "--json"], "True True True\n"),
    ],
)
def test_options_about_results_stand_before_or_behind_the_verb(
    lamella: Run, probe: Callable[[BaseException | None], None], arguments: list[str], expected: str
) -> None:
    probe(None)
    assert lamella(*arguments).stdout == expected


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("category", "code", "status"), errors.EXIT_STATUS)
def test_each_category_has_its_exit_code(
    lamella: Run,
    probe: Callable[[BaseException | None], None],
    category: type[errors.LamellaError],
    code: int,
    status: str,
) -> None:
    assert status.isupper()
    probe(category("went wrong", hint="try again"))
    done = lamella("ls")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "lamella: went wrong\nhint: try again\n"


def test_an_error_of_the_system_gets_its_category(lamella: Run, probe: Callable[[BaseException | None], None]) -> None:
    probe(OSError(errno.ENOSPC, "No space left on device", "/some/file"))
    done = lamella("ls")
    assert done.returncode == 11
    assert done.stderr.startswith("lamella: '/some/file': No space left on device\nhint: ")


def test_notes_of_an_error_are_printed(lamella: Run, probe: Callable[[BaseException | None], None]) -> None:
    error = errors.Integrity("bad bytes")
    error.add_note("half of it is left in 'x'")
    probe(error)
    assert lamella("ls").stderr == "lamella: bad bytes\nnote: half of it is left in 'x'\n"


def test_an_unexpected_error_is_reported_as_a_bug_in_one_line(
    lamella: Run, probe: Callable[[BaseException | None], None]
) -> None:
    probe(KeyError("x"))
    done = lamella("ls")
    assert done.returncode == 1
    assert done.stderr == (
        "lamella: this is a bug: KeyError: 'x'\nhint: run again with --debug to see where, and please report it\n"
    )


def test_debug_shows_where_an_error_came_from(lamella: Run, probe: Callable[[BaseException | None], None]) -> None:
    probe(errors.NotFound("gone"))
    done = lamella("ls", "--debug")
    assert done.returncode == 4
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("\nlamella: gone\n")


def test_out_of_memory_has_the_exit_code_of_an_exhausted_limit(
    lamella: Run, probe: Callable[[BaseException | None], None]
) -> None:
    probe(MemoryError())
    assert lamella("ls").returncode == 11


def test_an_interrupt_has_exit_code_130_and_prints_notes(
    lamella: Run, probe: Callable[[BaseException | None], None]
) -> None:
    error = KeyboardInterrupt()
    error.add_note("nothing is left")
    probe(error)
    done = lamella("ls")
    assert done.returncode == 130
    assert done.stderr == "lamella: interrupted\nnote: nothing is left\n"


def test_a_closed_pipe_is_not_reported_as_an_error(lamella: Run, probe: Callable[[BaseException | None], None]) -> None:
    error = errors.LamellaError("write: Broken pipe")
    error.__cause__ = BrokenPipeError(errno.EPIPE, "Broken pipe")
    probe(error)
    done = lamella("ls")
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unpakc"], "there is no verb 'unpakc'; is it 'unpack'?"),
        (["frobnicate"], "there is no verb 'frobnicate'"),
        (["ls", "--xyzzy"], "no such option '--xyzzy'"),
        (["ls"], "missing argument 'IMAGE[::PATH]'"),
        (["--xyzzy"], "no such option '--xyzzy'"),
    ],
)
def test_wrong_usage_is_two_lines(lamella: Run, arguments: list[str], message: str) -> None:
    done = lamella(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0].removesuffix(".") == f"lamella: {message}"
    assert lines[1].startswith("hint: see 'lamella")
    assert len(lines) == 2


def test_an_error_for_a_name_without_a_form_lists_the_forms(lamella: Run) -> None:
    done = lamella("ls", "debian:12")
    assert done.returncode == 3
    assert "oci:DIR" in done.stderr.partition("hint: ")[2]


# Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ñ 漢", "plain ñ 漢"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("a\u202eb", "a\\u202eb"),
        ("\U000e0001", "\\U000e0001"),
        ("\x7f\x9b", "\\x7f\\x9b"),
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102400, "100 KiB"),
        (1023 * 1024, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 50, "3.0 PiB"),
    ],
)
def test_sizes_for_people(size: int, expected: str) -> None:
    assert human_size(size) == expected


def test_columns_line_up() -> None:
    rows = [["a", "1", "x"], ["bbb", "22", ""]]
    assert list(columns(rows, {1})) == ["a     1  x", "bbb  22"]
    assert list(columns([])) == []


# The program itself ----------------------------------------------------------------------------------------------


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "lamella", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "lamella")


def test_the_program_gives_the_exit_code_to_the_shell(program: str) -> None:
    done = subprocess.run([program, "ls", "oci:/nowhere/at/all"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("lamella: ")


def test_a_closed_pipe_ends_the_program_quietly(program: str, tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number:0100}").touch()
    command = f"'{program}' ls 'dir:{tmp_path}' | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")
    assert done.stdout == "0" * 100 + "\n"


def test_a_full_standard_output_is_reported_once(program: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([program, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 11
    assert "No space left" in done.stderr.splitlines()[0]
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(("arguments", "code"), [("ls oci:/nowhere", 4), ("nothing", 2), ("ls nothing", 3)])
def test_a_full_standard_error_leaves_the_exit_code(program: str, arguments: str, code: int) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([program, *arguments.split()], stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (code, b"")


@pytest.mark.parametrize("verb", ["apply - new", "dump -", "hive ls -", "login localhost:1 -u a --password-stdin"])
def test_a_closed_standard_input_is_reported(program: str, verb: str, tmp_path: Path) -> None:
    line = f"'{program}' {verb} <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "lamella: standard input is closed\n")


def test_closed_streams_are_not_reported_as_a_bug(program: str) -> None:
    for closed, code in ("1>&-", 0), ("2>&-", 0), ("1>&- 2>&-", 0):
        done = subprocess.run(["sh", "-c", f"'{program}' --help {closed}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, "")
    done = subprocess.run(["sh", "-c", f"'{program}' ls oci:/nowhere 2>&-"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")


def test_shell_completion_is_available(program: str) -> None:
    environment = {"_LAMELLA_COMPLETE": "bash_complete", "COMP_WORDS": "lamella un", "COMP_CWORD": "1"}
    done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, **environment})
    assert done.stdout == "plain,unpack\n"


def test_json_without_surrogates_is_plain_ascii(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "n\udcff\n").touch()
    done = lamella("ls", "--json", f"dir:{tmp_path}")
    assert done.stdout.isascii()
    assert [entry["path"] for entry in json.loads(done.stdout)] == ["/n\udcff\n"]
