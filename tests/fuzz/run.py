# SPDX-License-Identifier: Apache-2.0
"""Fuzzes for as long as asked: `python tests/fuzz/run.py --seconds 60 [TARGET ...]`.

A target is a function `fuzz_*` of a module `test_*_fuzz.py` beside this one. It takes bytes, and returns whatever they
are: an error that it does not expect, too long a time or too much memory is a finding. A module may have a function
`seeds` that yields good inputs to start from.

Inputs are mutated by atheris, which follows coverage, where that is installed, else by a plain mutator. An input that
led to a finding is kept, and replayed with `--replay FILE TARGET`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType

HERE = Path(__file__).parent
KEPT = HERE.parents[1] / ".cache/fuzz"
LONGEST = 10  # seconds that one input may take
MEMORY = 2 << 30
INTERESTING = (b"\0", b"\xff", b"\x7f", b"\x80", b" ", b"/", b"../", b".wh.", b"\xff\xff\xff\xff", b"7777777", b"-1")

Target = Callable[[bytes], object]


class TooSlow(Exception):
    """One input took longer than any may."""


def modules() -> Iterator[ModuleType]:
    """Yield the modules that hold targets."""
    sys.path.insert(0, str(HERE.parents[1]))  # they share what other tests have
    for path in sorted(HERE.glob("test_*_fuzz.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        yield module


def targets() -> dict[str, tuple[Target, list[bytes]]]:
    """Return each target by its name, with its seeds."""
    found = {}
    for module in modules():
        seeds = list(module.seeds()) if hasattr(module, "seeds") else [b""]
        found.update({name: (getattr(module, name), seeds) for name in dir(module) if name.startswith("fuzz_")})
    return found


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Return an input near the known ones: bits flipped, pieces cut, repeated, overwritten or taken from another."""
    body = bytearray(rng.choice(corpus))
    for _ in range(1 << rng.randrange(5)):
        at = rng.randrange(len(body) + 1)
        size = min(1 << rng.randrange(12), len(body) - at)
        match rng.randrange(7):
            case 0 if at < len(body):
                body[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(body):
                body[at] = rng.randrange(256)
            case 2:
                del body[at : at + size]
            case 3:
                body[at:at] = body[at : at + size]
            case 4:
                piece = rng.choice(INTERESTING)
                body[at : at + len(piece)] = piece
            case 5:
                other = rng.choice(corpus)
                start = rng.randrange(len(other) + 1)
                body[at : at + size] = other[start : start + 512]
            case _:
                # Tar's records are 512 bytes long; whole ones in another order are the better half of bad archives.
                block, to = at // 512 * 512, rng.randrange(len(body) + 1) // 512 * 512
                body[to:to] = body[block : block + 512]
    return bytes(body[: 1 << 20])


def fuzz_plainly(name: str, target: Target, seeds: list[bytes], seconds: float, seed: int) -> int:
    """Run a target on mutated inputs and return how many findings there were; equal ones count once."""
    rng = random.Random(seed)
    corpus = list(seeds)
    seen: set[str] = set()
    tried = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        body = corpus[tried] if tried < len(seeds) else mutate(rng, corpus)
        tried += 1
        found = _finding(target, body)
        if found is None:
            # Without coverage, a few of the inputs stay to be mutated further.
            if rng.random() < 0.01:
                corpus[len(seeds) + tried % 64 : len(seeds) + tried % 64 + 1] = [body]
        elif found not in seen:
            seen.add(found)
            print(f"{name}: {found}\n  kept as {_keep(name, body)}", flush=True)
    print(f"{name}: {tried:,} inputs, {len(seen)} findings (seed {seed})", flush=True)
    return len(seen)


def _finding(target: Target, body: bytes) -> str | None:
    """Return what an input led to, without the words that differ from input to input; None if all was well."""
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        target(body)
    except Exception as error:  # noqa: BLE001 - whatever a target lets through is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _keep(name: str, body: bytes) -> Path:
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"crash-{hashlib.sha256(body).hexdigest()[:16]}"
    path.write_bytes(body)
    return path


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"one input took more than {LONGEST} s")


def fuzz_with_atheris(name: str, seeds: list[bytes], seconds: int, seed: int) -> int:
    """Run a target under atheris, in a process of its own, since that never returns; return 1 if it found something."""
    folder = KEPT / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for body in seeds:
        (folder / "corpus" / hashlib.sha256(body).hexdigest()[:16]).write_bytes(body)
    options = [
        *(f"-max_total_time={seconds}", f"-timeout={LONGEST}", f"-rss_limit_mb={MEMORY >> 20}", f"-seed={seed}"),
        *(f"-artifact_prefix={folder}/", "-print_final_stats=1", str(folder / "corpus")),
    ]
    done = subprocess.run([sys.executable, __file__, "--under-atheris", name, *options], check=False)
    return int(done.returncode != 0)


def under_atheris(name: str, options: list[str]) -> None:
    """Be the process that atheris takes over."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["lamella"]):
        target, _ = targets()[name]
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


def main() -> int:
    """Fuzz each target for so many seconds."""
    if sys.argv[1:2] == ["--under-atheris"]:
        under_atheris(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="TARGET", help="all, if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--plain", action="store_true", help="leave atheris alone though it is installed")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input, and show where it leads")
    options = parser.parse_args()
    known = targets()
    if unknown := set(options.names) - known.keys():
        parser.error(f"no target is named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = {name: known[name] for name in options.names or known}
    if options.replay:
        for target, _ in chosen.values():
            target(options.replay.read_bytes())
        return 0
    if not chosen:
        parser.error(f"there are no targets in {HERE}")
    if importlib.util.find_spec("atheris") and not options.plain:
        return min(
            1, sum(fuzz_with_atheris(name, one[1], options.seconds, options.seed) for name, one in chosen.items())
        )
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_slow)
    return min(1, sum(fuzz_plainly(name, *one, options.seconds, options.seed) for name, one in chosen.items()))


if __name__ == "__main__":
    sys.exit(main())
