# SPDX-License-Identifier: Apache-2.0
"""Surgery by the command line keeps the content of images and gives reproducible digests, in any order."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.changes.model import Change
from lamella.cli.main import run
from lamella.operations.layers.write import LayerOptions, write_layer
from lamella.testing.strategies import stacks

COMPRESSIONS = st.sampled_from(["gzip", "zstd", "none"])
STEPS = st.lists(
    st.one_of(
        st.builds(lambda how: ["convert", "--compress", how], COMPRESSIONS),
        st.builds(lambda how: ["convert", "--again", "--compress", how], COMPRESSIONS),
        st.builds(lambda first: ["flatten", "--layers", str(first)], st.integers(0, 3)),
        st.sampled_from([["convert", "--format", "oci", "--compress", "gzip", "--level", "1"], ["copy"], ["mutate"]]),
    ),
    min_size=1,
    max_size=4,
)


def lamella(*arguments: str, status: int = 0) -> dict[str, Any]:
    """Run a command line and return its output."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert run([*arguments, "--json"]) == status
    found: dict[str, Any] = json.loads(told.getvalue() or "{}")
    return found


def digest(image: str) -> str:
    return str(lamella("inspect", image)["manifest"]["digest"])


def base_of(directory: str, stack: list[list[Change]]) -> str:
    """Write an image of ``layers``, as `lamella diff` writes layers."""
    blobs = []
    for number, layer in enumerate(stack):
        blobs.append(f"{directory}/{number}.tar.gz")
        with open(blobs[-1], "wb") as output:
            write_layer(layer, output, LayerOptions(subsecond=True))
    Path(directory, "empty").mkdir()
    lamella("pack", f"{directory}/empty", f"oci:{directory}/image:scratch", "--platform", "linux/amd64")
    image = f"oci:{directory}/image:base"
    lamella("append", f"oci:{directory}/image:scratch", *blobs, image)
    return image


def changed(source: str, step: list[str], tag: str) -> str:
    """Run one step; its result is written beside the source."""
    verb, *options = step
    target = f"{source.rpartition(':')[0]}:{tag}"
    if verb == "flatten":
        count = len(lamella("inspect", source)["layers"])
        options = ["--layers", f"{min(int(options[1]), count - 1)}.."]
    lamella(verb, source, target, *options, "--platform", "linux/amd64")
    return target


@settings(max_examples=25)
@given(stacks(symlinks=True), STEPS)
def test_content_stays_and_the_same_steps_give_the_same_digest(
    stack: list[list[Change]], steps: list[list[str]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = base_of(directory, stack)
        image, found = base, []
        for turn in ("once", "again"):
            image = base
            for number, step in enumerate(steps):
                image = changed(image, step, f"{turn}{number}")
            lamella("verify", image)
            found.append(digest(image))
        assert found[0] == found[1]
        assert lamella("compare", base, image, "--ignore", "history,created")["equal"]


@settings(max_examples=10)
@given(stacks(symlinks=True), COMPRESSIONS, st.data())
def test_a_rebase_can_be_reverted(stack: list[list[Change]], how: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = base_of(directory, stack)
        name = base.rpartition(":")[0]
        lamella("convert", base, f"{name}:other", "--compress", how, "--again")
        lamella("append", base, f"{directory}/{data.draw(st.integers(0, len(stack) - 1))}.tar.gz", f"{name}:app")
        before = digest(f"{name}:app")
        bases = [base, f"{name}:other"]
        for old, new in (bases, bases[::-1]):
            lamella("rebase", f"{name}:app", f"{name}:app", "--old-base", old, "--new-base", new)
        assert digest(f"{name}:app") == before
