# SPDX-License-Identifier: Apache-2.0
"""What an image names and labels cannot reach the terminal as control characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Run

from lamella.changes.apply import apply
from lamella.changes.model import Change
from lamella.layers.tar.sink import TarSink
from lamella.testing.builders import directory, file, link, symlink

HOSTILE = "a\x1b[2J\r\x07\x9b31m\u202eb\u2066\u200b\udcff"
ENCODABLE = HOSTILE.rstrip("\udcff")


@pytest.fixture
def image(tmp_path: Path, lamella: Run) -> str:
    """An image whose names, targets, labels, environment and history have control characters."""
    name = f"oci:{tmp_path}/layout:1"
    (tmp_path / "empty").mkdir()
    layer: list[Change] = [
        *(directory(HOSTILE), file(f"{HOSTILE}/{HOSTILE}", b"text"), symlink("l", HOSTILE)),
        link("h", f"{HOSTILE}/{HOSTILE}"),
    ]
    with (tmp_path / "layer.tar").open("wb") as out:
        apply(layer, TarSink(out.write))
    assert lamella("pack", tmp_path / "empty", name).returncode == 0
    assert lamella("append", name, tmp_path / "layer.tar", name, "--created-by", ENCODABLE).returncode == 0
    options = [
        *("--label", f"{ENCODABLE}={ENCODABLE}", "--env", f"{ENCODABLE}={ENCODABLE}"),
        *("--annotation", f"{ENCODABLE}={ENCODABLE}", "--author", ENCODABLE, "--workdir", ENCODABLE),
    ]
    mutated = lamella("mutate", name, name, *options)
    assert mutated.returncode == 0, mutated.stderr
    return name


VERBS = {
    "ls": ["ls", "IMAGE"],
    "ls -l": ["ls", "-l", "IMAGE"],
    "find": ["find", "IMAGE"],
    "find -l": ["find", "-l", "IMAGE"],
    "tree": ["tree", "IMAGE"],
    "inspect": ["inspect", "IMAGE"],
    "compare": ["compare", "EMPTY", "IMAGE"],
    "compare of files": ["compare", "dir:EMPTYDIR", "IMAGE"],
    "diff": ["diff", "EMPTYDIR", "FULL"],
    "dump": ["dump", "FULL"],
    "store images": ["--root", "STORE", "store", "images"],
    "store images label": ["--root", "STORE", "store", "images", "label", "it", "b=c"],
    "ls --json": ["ls", "IMAGE", "--json"],
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_a_terminal_gets_no_control_characters_of_an_image(
    lamella: Run, tmp_path: Path, image: str, verb: list[str]
) -> None:
    assert lamella("pack", tmp_path / "empty", f"oci:{tmp_path}/layout:empty").returncode == 0
    assert lamella("unpack", image, tmp_path / "full").returncode == 0
    words = {
        "IMAGE": image,
        "EMPTY": f"oci:{tmp_path}/layout:empty",
        "EMPTYDIR": f"{tmp_path}/empty",
        "dir:EMPTYDIR": f"dir:{tmp_path}/empty",
        "FULL": f"{tmp_path}/full",
        "STORE": f"{tmp_path}/store",
    }
    root = ["--root", words["STORE"], "store"]
    assert lamella(*root, "import", image, "--name", "it").returncode == 0
    assert lamella(*root, "images", "label", "it", f"a={ENCODABLE}").returncode == 0

    done = lamella(*(words.get(word, word) for word in verb), terminal=True)

    assert done.stderr == ""
    assert done.stdout
    assert [line for line in done.stdout.split("\n") if not line.isprintable()] == []


def test_names_are_exact_in_a_pipe_and_other_texts_are_not(lamella: Run, image: str) -> None:
    assert HOSTILE in lamella("ls", image).stdout.split("\n")
    shown = lamella("inspect", image).stdout
    assert [line for line in shown.split("\n") if not line.isprintable()] == []


def test_compare_escapes_the_keys_of_the_environment_and_of_labels_in_a_pipe(
    lamella: Run, tmp_path: Path, image: str
) -> None:
    other = f"oci:{tmp_path}/layout:empty"
    assert lamella("pack", tmp_path / "empty", other).returncode == 0
    lines = lamella("compare", other, image).stdout.split("\n")
    config = lines[: lines.index("layers")]
    assert [line for line in config if not line.isprintable()] == []
    fields = [one["field"] for one in json.loads(lamella("compare", other, image, "--json").stdout)["config"]]
    assert sum(ENCODABLE in field for field in fields) == 3
