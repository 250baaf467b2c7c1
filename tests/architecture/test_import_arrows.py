# SPDX-License-Identifier: Apache-2.0
"""The direction of imports, and what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamella

PACKAGE = Path(lamella.__file__ or "").parent

# Each part and the parts that it may import besides itself: basics <- formats, changes <- layers <- oci, images <-
# operations <- cli. A part that is new here must be given its place.
BASICS = {"digests", "errors", "paths", "progress", "streams", "times"}
LAYERS = BASICS | {"changes", "formats", "host", "layers"}
IMAGES = LAYERS | {"oci", "images"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(BASICS, BASICS),
    "host": {"errors"},
    "formats": BASICS,
    "changes": BASICS,
    "layers": LAYERS,
    "oci": BASICS,
    "images": IMAGES,
    "operations": IMAGES,
    "cli": IMAGES | {"operations"},
    "testing": IMAGES | {"operations"},
}
# The front door hands out the names of every part; it imports none of them until a name is asked for.
FRONT_DOOR = "lamella"

# What a start must not pay for: libraries that are loaded by the operations that use them.
HEAVY = (
    *("asyncio", "backports.zstd", "click", "email", "grpc", "http", "importlib.metadata", "isal", "json", "logging"),
    *("msgspec", "multiprocessing", "rich", "sqlite3", "ssl", "tarfile", "urllib3", "zlib_ng"),
)


def part_of(module: str) -> str:
    """Return the part of the package that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FRONT_DOOR


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of each import of this package, late ones and those for types included."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(level=0):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            case ast.ImportFrom():
                base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{base}.{node.module}" if node.module else base
                names = [f"{base}.{alias.name}" for alias in node.names]
            case _:
                continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == FRONT_DOOR)


def test_every_part_has_a_place_among_the_arrows() -> None:
    assert {part_of(module) for module, _ in modules()} - {FRONT_DOOR} <= MAY_IMPORT.keys()


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for module, path in modules():
        part = part_of(module)
        if part == FRONT_DOOR:
            continue
        allowed = MAY_IMPORT.get(part, set()) | {part}
        for line, name in imported(module, path):
            if part_of(name) not in allowed:
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {part} imports {name}")
    assert wrong == []


def test_the_arrows_have_no_circle() -> None:
    above = {part: below - {part} - (BASICS if part in BASICS else set()) for part, below in MAY_IMPORT.items()}
    placed: set[str] = set()
    while above:
        ready = {part for part, below in above.items() if below <= placed | (BASICS if part in BASICS else set())}
        assert ready, f"these parts import each other in a circle: {sorted(above)}"
        placed |= ready
        above = {part: below for part, below in above.items() if part not in ready}


def test_a_wrong_arrow_would_be_seen(tmp_path: Path) -> None:
    """The check reads late, relative and plain imports alike."""
    source = tmp_path / "reader.py"
    source.write_text("import lamella.cli\ndef f():\n    from ..changes import model\n    from lamella import layers\n")
    assert list(imported("lamella.formats.reader", source)) == [
        (1, "lamella.cli"),
        (3, "lamella.changes.model"),
        (4, "lamella.layers"),
    ]


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a bare interpreter has after a statement, less those it starts with."""
    script = f"import sys; before = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before), sep='\\n')"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_lamella_loads_no_heavy_library() -> None:
    loaded = loaded_by("import lamella")
    assert sorted(name for name in HEAVY if name in loaded) == []


def best_of(rounds: int, command: list[str]) -> float:
    """Return the shortest time that a command took, in milliseconds: noise only ever adds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        best = min(best, (time.perf_counter() - start) * 1000)
    return best


def test_importing_lamella_takes_less_than_50_ms() -> None:
    bare = best_of(7, [sys.executable, "-I", "-c", "pass"])
    assert best_of(7, [sys.executable, "-I", "-c", "import lamella"]) - bare < 50


def test_the_command_line_shows_its_help_in_less_than_150_ms() -> None:
    command = Path(sys.executable).with_name("lamella")
    if not (PACKAGE / "cli" / "main.py").exists():
        pytest.skip("there is no command line yet")
    assert best_of(7, [str(command), "--help"]) < 150
