# SPDX-License-Identifier: Apache-2.0
"""A tree of thousands of levels, and one of thousands of directories, in a process that may open 128 files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.security.test_removal import dig

from lamella.store.snapshots.copy_tree import copy_tree

DEPTH, WIDTH = 3000, 1000

LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); place = sys.argv[1]; "


def run(*words: str | Path) -> bytes:
    """Return the output of the command line in such a process."""
    code = f"{LIMITED}from lamella.cli.main import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-P", "-c", code, *words], capture_output=True, check=False)
    assert (done.returncode, done.stderr[-2000:]) == (0, b"")
    return done.stdout


def call(statement: str, place: Path) -> None:
    """Run a statement about ``place`` in such a process."""
    done = subprocess.run([sys.executable, "-P", "-c", LIMITED + statement, place], capture_output=True, check=False)
    assert (done.returncode, done.stderr[-2000:]) == (0, b"")


def entries(output: bytes) -> int:
    return output.count(b"\n")


@pytest.fixture
def tree(memory: Path) -> Path:
    """A directory that holds both trees."""
    dig(memory / "tree", DEPTH)
    for number in range(WIDTH):
        (memory / "tree" / f"w{number}").mkdir()
        (memory / "tree" / f"w{number}" / "file").touch()
    return memory / "tree"


def test_a_tree_is_removed(tree: Path) -> None:
    call("from lamella.layers.directory.dirfd_cache import remove_path; remove_path(place + '/tree')", tree.parent)
    assert os.listdir(tree.parent) == []


def test_all_files_are_listed(tree: Path) -> None:
    assert entries(run("find", f"dir:{tree}", "--type", "f")) == DEPTH + WIDTH


def test_two_directories_are_compared(tree: Path, memory: Path) -> None:
    copy_tree(tree, memory / "copy")  # deeper than cp(1) supports
    (memory / "copy" / "w7" / "new").touch()
    assert run("diff", tree, memory / "copy", "--exact").splitlines()[-1].endswith(b"w7/new")


@pytest.mark.parametrize("form", [(), ("--as", "overlay"), ("--as", "erofs")], ids=["directory", "overlay", "erofs"])
def test_a_layer_is_written_and_applied(form: tuple[str, ...], tree: Path, memory: Path) -> None:
    run("diff", tree, "-o", memory / "blob", "--owner", "ignore")
    if form != ("--as", "erofs"):
        (memory / "out").mkdir()
    run("apply", memory / "blob", memory / "out", *form)
    out = f"erofs:{memory / 'out'}" if form == ("--as", "erofs") else f"dir:{memory / 'out'}"
    assert entries(run("find", out, "--type", "f")) == DEPTH + WIDTH


def test_an_image_is_packed_unpacked_and_unpacked_in_a_store(tree: Path, memory: Path) -> None:
    run("pack", tree, f"oci:{memory}/image:deep", "--quiet")
    run("unpack", f"oci:{memory}/image:deep", memory / "out", "--quiet")
    assert entries(run("find", f"dir:{memory}/out", "--type", "f")) == DEPTH + WIDTH
    for kind in ("directory", "overlay", "erofs"):
        run(
            "--root",
            memory / kind,
            "store",
            "import",
            f"oci:{memory}/image:deep",
            "--name",
            "deep",
            "--unpack",
            "--snapshotter",
            kind,
            "--quiet",
        )


def test_a_directory_is_copied_and_packed(tree: Path) -> None:
    call(
        "from pathlib import Path; from lamella.store.snapshots.copy_tree import copy_tree, measure;"
        "from lamella.layers.erofs.from_directory import write_image; place = Path(place);"
        "copy_tree(place / 'tree', place / 'copy'); write_image(place / 'copy', place / 'image');"
        f"assert measure(place / 'copy').usage.inodes == {1 + 2 * DEPTH + 2 * WIDTH}",
        tree.parent,
    )


def test_a_staging_directory_filled_by_another_process_is_removed(memory: Path) -> None:
    dig(memory / ".lamella-abandoned", DEPTH)
    call("from lamella.images.staging import Staging; Staging(place).remove()", memory)
    assert os.listdir(memory) == []
