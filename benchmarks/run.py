# SPDX-License-Identifier: Apache-2.0
"""Runs the comparison: `python -m benchmarks.run [--quick|--full] [WORK ...]`."""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import lamella
from benchmarks import growth, report, stores, workloads
from benchmarks.containerd import Containerd
from benchmarks.corpus.__main__ import default_place, ensure
from benchmarks.measure import take_turns
from benchmarks.workloads import Bar, Bench, Workload

# The work by name, and how much of each peer's time Lamella may take.
UNPACK: dict[str, tuple[str, str, tuple[Bar, ...]]] = {
    "large-gzip": ("large", "gzip", (Bar("bsdtar", 0.52), Bar("containerd", 0.33))),
    "large-zstd": ("large", "zstd", (Bar("containerd", 0.40),)),
    "few-big": ("few-big", "gzip", (Bar("containerd", 0.62),)),
    "many-small": ("many-small", "gzip", (Bar("containerd", 0.30),)),
    "debian": ("debian", "gzip", (Bar("containerd", 0.42),)),
}
STORE_UNPACK = ("debian", "large")
SIDE_BY_SIDE = ("debian", "many-small", "few-big")
NAMES = (*UNPACK, "pack", "diff", "start", "growth", "store-import", "store-unpack", "side-by-side", "store-listing")
QUICK = ("large-gzip", "few-big", "debian", "start")
VERSIONS = {
    "bsdtar": ("bsdtar", "--version"),
    "containerd": ("containerd", "--version"),
    "GNU tar": ("tar", "--version"),
    "umoci": ("umoci", "--version"),
}


def say(line: str) -> None:
    """Tell how far the work is, to whom watches it."""
    end = "\n"
    if sys.stderr.isatty():
        line, end = f"\r\033[K{line}", ""
    print(line, end=end, file=sys.stderr, flush=True)


def compile_package() -> None:
    """Compile Lamella to bytecode, as pip does when it installs a package; with a changed checkout nobody else does."""
    compileall.compile_dir(Path(lamella.__file__ or "").parent, quiet=1)


def versions() -> dict[str, str]:
    """Return the first line of what each peer says of its version."""
    found = {}
    for name, command in VERSIONS.items():
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found[name] = done.stdout.partition("\n")[0]
    return found


@contextlib.contextmanager
def on_tmpfs(layout: Path, work: Path) -> Iterator[Path]:
    """Give a layout on the measured file system: itself, or a copy as long as the block lasts."""
    if layout.stat().st_dev == work.stat().st_dev:
        yield layout
        return
    copy = work / layout.name
    shutil.copytree(layout, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def chosen(bench: Bench, corpus: Path, names: Sequence[str]) -> Iterator[Workload]:
    """Yield the work asked for, each piece prepared when its turn comes."""
    for name in names:
        if name in UNPACK:
            image, tag, bars = UNPACK[name]
            with on_tmpfs(ensure(image, corpus), bench.work) as layout:
                # The native snapshotter copies the layers below each layer, which is only fair where there are none.
                yield workloads.unpack(bench, layout, tag, bars, native=image == "debian")
    if "store-import" in names:
        with (
            on_tmpfs(ensure("few-big", corpus), bench.work) as layout,
            stores.archive_of(bench, layout, "gzip") as archive,
        ):
            yield stores.store_import(bench, archive)
    for name in STORE_UNPACK if "store-unpack" in names else ():
        with on_tmpfs(ensure(name, corpus), bench.work) as layout:
            yield stores.store_unpack(bench, layout, "gzip")
    for name in SIDE_BY_SIDE if "side-by-side" in names else ():
        yield stores.can_rebase(bench, ensure(name, corpus), "gzip")
    if "store-listing" in names:
        yield stores.listing(bench)
    if "pack" in names or "diff" in names:
        yield from _trees(bench, corpus, names)
    if "start" in names:
        yield workloads.start(bench)


def _trees(bench: Bench, corpus: Path, names: Sequence[str]) -> Iterator[Workload]:
    say("laying out the trees")
    fill = workloads.fill_from(ensure("large", corpus), "gzip")
    places = {}
    for name in ("lower", "upper") if "diff" in names else ("lower",):

        def lay_out(place: Path, name: str = name) -> None:
            fill(place)
            if name == "upper":
                workloads.change(place)

        if bench.containerd is not None:
            places[name] = bench.containerd.commit_tree(name, lay_out)
        else:
            places[name] = bench.fresh()
            places[name].mkdir()
            lay_out(places[name])
    if "diff" in names:
        yield workloads.diff(bench, places["lower"], places["upper"])
    if "pack" in names:
        yield from workloads.pack(bench, places["lower"], "lower")


def main() -> int:
    """Measure Lamella and its peers side by side."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="WORK", help=", ".join(NAMES))
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}, three rounds (the default)")
    depth.add_argument("--full", action="store_true", help="all work, five rounds, images of up to a million entries")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--corpus", type=Path, default=default_place(), help="where the images are, or are to be built")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"), help="a folder of the file system to measure on")
    parser.add_argument("--without", action="append", default=[], metavar="PEER", help="leave a contender out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the JSON to a file too")
    options = parser.parse_args()
    names = options.names or (NAMES if options.full else QUICK)
    if unknown := set(names) - set(NAMES):
        parser.error(f"no work is named {', '.join(sorted(unknown))}")
    rounds = options.rounds or (5 if options.full else 3)
    options.corpus.mkdir(parents=True, exist_ok=True)
    compile_package()
    if os.getloadavg()[0] > 0.5:
        say(f"something else is at work here (load {os.getloadavg()[0]:.1f}); the ratios will be rough")

    done: list[Workload] = []
    grown: list[tuple[Workload, int]] = []

    def measure(workload: Workload) -> None:
        workload.contenders = [one for one in workload.contenders if one.name not in options.without]
        say(workload.name)
        take_turns(workload.contenders, options.rounds or workload.rounds or rounds, say)
        done.append(workload)

    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=options.work)))
        daemon = None
        if "containerd" in options.without:
            pass
        elif shutil.which("containerd") is None or shutil.which("ctr") is None or os.geteuid() != 0:
            say("containerd is left out: it has to be installed, and it needs root")
        else:
            daemon = stack.enter_context(Containerd(work / "containerd"))
        bench = Bench(work, daemon)
        for workload in chosen(bench, options.corpus.resolve(), names):
            measure(workload)
        if "growth" in names:
            for workload, entries in growth.workloads(bench, 1_000_000 if options.full else 100_000):
                measure(workload)
                grown.append((workload, entries))
    say("")

    document = report.as_json(done, rounds, versions())
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document))
    else:
        print(report.results(done))
        if grown:
            print("", report.growth_table(grown), sep="\n")
        if any(workload.bars for workload in done):
            print("", report.bars_table(done), sep="\n")
    for line in report.failures(done):
        print(line, file=sys.stderr)
    return 1 if report.failures(done) else 0


if __name__ == "__main__":
    sys.exit(main())
