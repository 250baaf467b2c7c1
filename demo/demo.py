# SPDX-License-Identifier: Apache-2.0
"""Pack this Python as an image, unpack and change it, add the change as a layer, and unpack the result.

All files are in a temporary directory, which is removed at the end. The exit code is 1 if the tree unpacked from the
three layers differs from the changed tree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import lamella
from lamella.operations.layers.dump import dump_lines

PYTHON: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
STDLIB: Final = f"usr/lib/{PYTHON}"
QUICK: Final = {"json", "email", "unittest", "click", "msgspec"}
"""Packages that --quick includes, besides all modules of a single file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the result is the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="include only a few packages")
    quick = parser.parse_args(arguments).quick
    # It would cap the times of changed files, and the trees are compared to the nanosecond.
    os.environ.pop("SOURCE_DATE_EPOCH", None)
    with tempfile.TemporaryDirectory(prefix="lamella-demo-") as directory:
        return run(Path(directory), quick=quick)


def run(work: Path, *, quick: bool) -> int:
    """Run all steps in the directory ``work``. Return the exit code."""
    steps = Steps()
    image = f"oci:{work / 'images'}:demo"
    base, app, before, after, again = (work / name for name in ("base", "app", "before", "after", "again"))
    app_blob, change_blob = work / "app.tar.gz", work / "change.tar.gz"

    with steps.step("copy this Python's files") as row:
        row.entries = gather_base(base, quick=quick) + gather_app(app, quick=quick)
    with steps.step("pack the standard library as an image") as row:
        packed = lamella.pack(base, image, lamella.Settings(cmd=[f"/usr/bin/{PYTHON}", "/srv/app/hello.py"]))
        row.layer(packed.written)
    with steps.step("write the packages as layer 2, append it") as row:
        row.layer(lamella.diff(None, app, app_blob))
        lamella.append(image, app_blob, image)
    for place in (before, after):
        with steps.step(f"unpack 2 layers into {place.name}/") as row, lamella.open_image(image) as opened:
            row.entries = sum(layer.entries for layer in opened.unpack(place).layers)
    with steps.step("change after/") as row:
        row.entries = change(after)
    with steps.step("write the change as layer 3, append it") as row:
        row.layer(lamella.diff(before, after, change_blob, lamella.DiffOptions(subsecond=True)))
        lamella.append(image, change_blob, image)
    with steps.step("unpack 3 layers into again/") as row, lamella.open_image(image) as opened:
        row.entries = sum(layer.entries for layer in opened.unpack(again).layers)
    with steps.step("compare after/ and again/") as row:
        row.entries, differences = compare(after, again)

    print(steps)
    print("\nWhat changed, as lamella diff lists it:")
    for one in lamella.list_changes(before, after):
        print(f"  {one.sign}  /{one.path}" + (f" => /{one.link}" if one.link is not None else ""))
    with lamella.open_image(image) as opened:
        print(f"\nimage    {opened.descriptor.digest}")
        for layer in opened.layers:
            print(f"layer    {layer.descriptor.digest}")
    if differences:
        print("\nafter/ and again/ differ:", *differences[:20], sep="\n", file=sys.stderr)
        return 1
    print("\nafter/ and again/ are equal: an exact diff is empty, and their canonical dumps are the same.")
    return 0


# The two trees that become layers -----------------------------------------------------------------------------------


def gather_base(place: Path, *, quick: bool) -> int:
    """Copy the interpreter and the standard library. Return the number of files and directories."""
    stdlib = Path(sysconfig.get_path("stdlib"))

    def ignored(directory: str, names: list[str]) -> set[str]:
        unwanted = {"__pycache__", "site-packages", "dist-packages"}
        return unwanted | (packages_beyond_quick(directory, names) if quick and Path(directory) == stdlib else set())

    shutil.copytree(stdlib, place / STDLIB, symlinks=True, ignore=ignored)
    (place / "usr/bin").mkdir()
    shutil.copy2(os.path.realpath(sys.executable), place / "usr/bin" / PYTHON)
    return make_writable(place)


def gather_app(place: Path, *, quick: bool) -> int:
    """Copy the installed packages, and write a program. Return the number of files and directories."""
    packages = Path(sysconfig.get_path("purelib"))

    def ignored(directory: str, names: list[str]) -> set[str]:
        beyond = packages_beyond_quick(directory, names) if quick and Path(directory) == packages else set()
        return {"__pycache__"} | beyond

    shutil.copytree(packages, place / STDLIB / "site-packages", symlinks=True, ignore=ignored)
    (place / "srv/app").mkdir(parents=True)
    (place / "srv/app/hello.py").write_text("print('hello from three layers')\n", encoding="utf-8")
    return make_writable(place)


def packages_beyond_quick(directory: str, names: list[str]) -> set[str]:
    """Return the directories that --quick leaves out."""
    return {name for name in names if name not in QUICK and os.path.isdir(os.path.join(directory, name))}


def make_writable(tree: Path) -> int:
    """Add write permission for the owner, which some systems take from Python. Return the number of entries."""
    count = 0
    for directory, _, files in os.walk(tree):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode) and not mode & stat.S_IWUSR:
                os.chmod(path, stat.S_IMODE(mode) | stat.S_IWUSR)
            count += 1
    return count


# The change and the comparison --------------------------------------------------------------------------------------


def change(tree: Path) -> int:
    """Make a change of each kind that a layer can describe. Return their number."""
    library = tree / STDLIB
    with (library / "os.py").open("a", encoding="utf-8") as file:
        file.write("# another line\n")
    (library / "this.py").chmod(0o600)
    (tree / "etc").mkdir()
    (tree / "etc/motd").write_text("packed with Lamella\n", encoding="utf-8")
    (library / "antigravity.py").unlink()
    shutil.rmtree(library / "unittest")
    os.link(library / "bisect.py", tree / "srv/app/bisect.py")
    os.link(library / "heapq.py", tree / "srv/app/heapq.py")
    (library / "heapq.py").unlink()
    (tree / "usr/lib/python3").symlink_to(PYTHON)
    shutil.rmtree(library / "email")
    (library / "email").write_text("a file that replaces a directory\n", encoding="utf-8")
    (library / "keyword.py").unlink()
    (library / "keyword.py").mkdir()
    (library / "keyword.py/inside").write_text("in a directory that replaces a file\n", encoding="utf-8")
    return 10


def compare(left: Path, right: Path) -> tuple[int, list[str]]:
    """Return the number of entries, and all differences by an exact diff and by the canonical dumps."""
    differences = [f"{one.sign} /{one.path}" for one in lamella.list_changes(left, right, exact=True)]
    count = 0
    for one, other in zip_longest(dump_lines(left), dump_lines(right)):
        count += 1
        if one != other:
            differences += [f"- {one}", f"+ {other}"]
    return count, differences


# The table ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """One step and its measurements."""

    step: str
    entries: int = 0
    blob: int = 0
    tar: int = 0
    digest: str = ""
    seconds: float = 0.0

    def layer(self, written: Any) -> None:
        """Record the entries, sizes and diff id of a written layer."""
        facts = written.facts
        self.entries, self.blob, self.tar, self.digest = written.entries, facts.size, facts.tar_size, str(facts.diff_id)

    def cells(self) -> tuple[str, ...]:
        """Return the columns as text."""
        sizes = [f"{size / 1e6:.2f}" if size else "" for size in (self.tar, self.blob)]
        return (self.step, f"{self.entries:,}", *sizes, f"{self.seconds:.2f}", self.digest[:19])


class Steps:
    """The measured steps, as a table."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Row]:
        """Measure the block as a step, and yield its row."""
        row, start = Row(name), time.perf_counter()
        yield row
        row.seconds = time.perf_counter() - start
        self.rows.append(row)

    def __str__(self) -> str:
        rows = [("step", "entries", "tar MB", "blob MB", "seconds", "diff id"), *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        left = (0, 5)
        return "\n".join(
            "  ".join(
                cell.ljust(widths[at]) if at in left else cell.rjust(widths[at]) for at, cell in enumerate(row)
            ).rstrip()
            for row in rows
        )


if __name__ == "__main__":
    sys.exit(main())
