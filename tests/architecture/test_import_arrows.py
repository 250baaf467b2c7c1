# SPDX-License-Identifier: Apache-2.0
"""The direction of imports, and what an import may cost."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lamella

PACKAGE = Path(lamella.__file__ or "").parent

# Each part and the parts that it may import besides itself: basics <- formats, changes <- layers <- oci, images <-
# store, registry <- operations <- cli. A new part needs an entry here.
BASICS = {"digests", "errors", "extensions", "parallel", "paths", "progress", "streams", "times"}
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
    "store": IMAGES,
    "registry": IMAGES,
    "operations": IMAGES | {"store", "registry"},
    "protocol": IMAGES | {"store"},
    "client": IMAGES | {"store", "protocol"},
    "service": IMAGES | {"store", "registry", "operations", "protocol", "client", "lamella"},
    "cli": IMAGES | {"store", "registry", "operations", "client", "service", "lamella"},
    "__main__": {"cli"},
    "testing": IMAGES | {"store", "registry", "operations"},
}
# The top-level package exports names of every part, and imports a part only when one of its names is used.
FRONT_DOOR = "lamella"

# Libraries that must not be loaded at start; the operations that use them load them.
HEAVY = (
    *("asyncio", "backports.zstd", "click", "email", "grpc", "http", "importlib.metadata", "isal", "json", "logging"),
    *("msgspec", "multiprocessing", "rich", "sqlite3", "ssl", "tarfile", "zlib_ng"),
)


def part_of(module: str) -> str:
    """Return the part of the package that a name belongs to; a name of the package itself is the front door's."""
    part = module.split(".")[1:2]
    return part[0] if part and any((PACKAGE / path).exists() for path in (part[0], f"{part[0]}.py")) else FRONT_DOOR


def modules(package: Path = PACKAGE) -> Iterator[tuple[str, Path]]:
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
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


def test_every_part_has_an_entry_in_the_table() -> None:
    assert {part_of(module) for module, _ in modules()} - {FRONT_DOOR} <= MAY_IMPORT.keys()


def test_imports_follow_the_table() -> None:
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


def test_the_http2_server_does_not_import_the_services() -> None:
    """It is generic: it takes a table of methods."""
    allowed = BASICS | {"protocol", FRONT_DOOR}
    wrong = []
    for module, path in modules():
        if module.startswith("lamella.service.grpc."):
            for line, name in imported(module, path):
                if part_of(name) not in allowed and not name.startswith("lamella.service.grpc."):
                    wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {name}")
    assert wrong == []


def test_no_two_parts_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in modules():
        part = part_of(module)
        graph.setdefault(part, set()).update(part_of(name) for _, name in imported(module, path))
    edges = {part: below - {part, FRONT_DOOR} for part, below in graph.items() if part != FRONT_DOOR}
    order = list(TopologicalSorter(edges).static_order())
    assert order.index("errors") < order.index("changes") < order.index("cli")


def module_graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return each module of a package with those it imports, late imports and those for types included."""
    names = {name for name, _ in modules(package)}
    graph: dict[str, set[str]] = {}
    for module, path in modules(package):
        found = {name if name in names else name.rpartition(".")[0] for _, name in imported(module, path)}
        graph[module] = (found & names) - {module, FRONT_DOOR}
    return graph


def test_no_module_imports_itself_through_others() -> None:
    order = list(TopologicalSorter(module_graph()).static_order())
    assert order.index("lamella.errors") < order.index("lamella.changes.apply") < order.index("lamella.cli.main")


def test_a_circle_of_modules_would_be_seen(tmp_path: Path) -> None:
    package = tmp_path / FRONT_DOOR
    package.mkdir()
    package.joinpath("a.py").write_text("def f():\n    from lamella.b import g\n")
    package.joinpath("b.py").write_text("if TYPE_CHECKING:\n    from lamella import a\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(module_graph(package)).static_order())


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    """The check sees late, relative and plain imports."""
    source = tmp_path / "reader.py"
    source.write_text("import lamella.cli\ndef f():\n    from ..changes import model\n    from lamella import layers\n")
    assert list(imported("lamella.formats.reader", source)) == [
        (1, "lamella.cli"),
        (3, "lamella.changes.model"),
        (4, "lamella.layers"),
    ]


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a statement loads into a new interpreter."""
    script = f"import sys; before = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before), sep='\\n')"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_lamella_loads_no_heavy_library() -> None:
    loaded = loaded_by("import lamella")
    assert sorted(name for name in HEAVY if name in loaded) == []


def fastest(command: list[str], enough: float) -> float:
    """Return the minimum processor time of a command, in milliseconds.

    Noise only adds time, so the command runs until it is fast enough, at most thirty times.
    """
    best = float("inf")
    for _ in range(30):
        start = processor_time()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        best = min(best, (processor_time() - start) * 1000)
        if best < enough:
            break
    return best


def processor_time() -> float:
    """Return the processor seconds of all child processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_importing_lamella_takes_less_than_50_ms() -> None:
    bare = fastest([sys.executable, "-I", "-c", "pass"], enough=0)
    assert fastest([sys.executable, "-I", "-c", "import lamella"], bare + 50) < bare + 50


def test_the_command_line_shows_its_help_in_less_than_150_ms() -> None:
    command = Path(sys.executable).with_name("lamella")
    assert fastest([str(command), "--help"], 150) < 150


def test_layers_take_flags_that_windows_lacks_from_the_host() -> None:
    """Otherwise a module fails to import there; `make wine` imports them all."""
    lacking = re.compile(r"\bos\.(?:O_(?:CLOEXEC|DIRECTORY|NOCTTY|NOFOLLOW|NONBLOCK|PATH)\b|makedev\(0)")
    assert [str(path) for path in sorted((PACKAGE / "layers").rglob("*.py")) if lacking.search(path.read_text())] == []


# Parts that may use each networking module; `urllib.parse` only handles text.
NETWORK = {"http", "socket", "ssl", "urllib"}
MAY_CONNECT = {
    "lamella.registry.http": NETWORK,
    "lamella.service": {"socket"},
    "lamella.service.metrics": {"http.server"},
    "lamella.cli.store.serve": {"socket"},
}


def test_http_is_only_imported_where_allowed() -> None:
    wrong = []
    for module, path in modules():
        allowed = {"urllib.parse"}.union(*(names for room, names in MAY_CONNECT.items() if _is_in(module, room)))
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            wrong += [
                f"{module} imports {name}"
                for name in names
                if name.partition(".")[0] in NETWORK and not any(_is_in(name, one) for one in allowed)
            ]
    assert wrong == []


def _is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def test_records_are_structs_because_dataclasses_slow_down_the_start() -> None:
    taken = re.compile(r"^\s*(from|import) dataclasses\b", re.MULTILINE)
    assert [name for name, path in modules() if taken.search(path.read_text())] == []


def test_sql_and_the_database_stay_inside_the_store() -> None:
    sql = re.compile(
        r"\b(SELECT\s[^\n]*\bFROM|INSERT\s(OR\s\w+\s)?INTO|UPDATE\s\w+\sSET|DELETE\sFROM)\b|\.database\.|\bsqlite3\b"
    )
    outside = [(name, path) for name, path in modules() if part_of(name) != "store"]
    assert [name for name, path in outside if sql.search(path.read_text())] == []
