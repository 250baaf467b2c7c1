# SPDX-License-Identifier: Apache-2.0
"""A separate package adds a kind of layer, a compression, a snapshotter and an image transport."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import textwrap
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tests.unit.service.serving import Client, Stub, within

from lamella.errors import Conflict, InvalidInput, Unsupported
from lamella.extensions import Table
from lamella.protocol.proto import diff_pb2, introspection_pb2, snapshots_pb2
from lamella.protocol.proto.types_pb2 import Descriptor, Mount

EXAMPLE = Path(__file__).parents[1] / "example_package"
OCI_LAYER_XZ = "application/vnd.oci.image.layer.v1.tar+xz"

Run = Callable[..., str]


# The table ---------------------------------------------------------------------------------------------------------


class FakeEntryPoints(Table[int]):
    """Return a table of numbers with the given entry points."""

    def __init__(self, **added: object) -> None:
        super().__init__("number", "lamella.numbers", int, {"one": 1})
        self._found = {name: list(found) for name, found in added.items()}  # type: ignore[call-overload]


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "lamella.numbers")


def test_built_in_rows_take_precedence_over_those_of_packages() -> None:
    table = FakeEntryPoints(flags=[entry("flags", "re:ASCII.value")])
    assert table["one"] == 1
    assert table["flags"] == 256
    assert table.names() == ("one", "flags")
    assert table.select(lambda row: row > 1) == ("flags",)


def test_an_unknown_name_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="unknown number 'two'; choose from one, flags"):
        FakeEntryPoints(flags=[entry("flags", "re:ASCII.value")])["two"]


@pytest.mark.parametrize(
    ("value", "reason"), [("no_such_module:ROW", "No module named"), ("re:compile", "expected a int, got a function")]
)
def test_a_row_that_fails_to_load_is_refused_by_name_and_omitted_from_lists(value: str, reason: str) -> None:
    table = FakeEntryPoints(broken=[entry("broken", value)])
    with pytest.raises(Unsupported, match=f"cannot load the number 'broken' .*{reason}"):
        table["broken"]
    assert table.rows() == {"one": 1}


def test_a_name_of_several_packages_is_refused() -> None:
    table = FakeEntryPoints(twice=[entry("twice", "re:ASCII.value"), entry("twice", "stat:S_IFREG")])
    with pytest.raises(Conflict, match="several packages: the module re, the module stat"):
        table["twice"]


def test_package_metadata_is_loaded_only_for_names_that_are_not_built_in() -> None:
    script = """
        import sys
        from lamella.images.transports import parse_image_name
        from lamella.layers.kinds import LAYER_KINDS, kind_of_form
        from lamella.oci.mediatypes import OCI_LAYER_GZIP, layer_compression
        from lamella.operations.trees.open import names_a_tree
        from lamella.store.snapshots.kinds import canonical
        from lamella.streams.compressions import identify

        parse_image_name("oci:x"), LAYER_KINDS["erofs"], kind_of_form("dir"), names_a_tree("dir:x")
        layer_compression(OCI_LAYER_GZIP), canonical("overlay"), identify(bytes(512)), identify(b"")
        assert "importlib.metadata" not in sys.modules
        kind_of_form("tarfile")
        assert "importlib.metadata" in sys.modules
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == 0


# The example package -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment that has Lamella and the example package."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False)
    python = root / "bin" / "python"
    ours = [path for path in site.getsitepackages() if os.path.isdir(path)]
    (packages,) = (root / "lib").glob("python*/site-packages")
    (packages / "ours.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in ours))
    install = ["-m", "pip", "--python", str(python), "install", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([sys.executable, *install, str(EXAMPLE)], check=True)
    return python


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "SHELF": str(tmp_path), "LAMELLA_ROOT": str(tmp_path / "store")}


@pytest.fixture
def run(python: Path, environment: dict[str, str], tmp_path: Path) -> Run:
    """Return a function that runs the command line in that environment and returns its output."""

    def call(*words: str) -> str:
        command = [str(python), "-m", "lamella", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture
def image(run: Run, tmp_path: Path) -> str:
    """Return the name of a shelf image with one layer, compressed with xz."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "hello").write_text("hello\n")
    run("pack", "files", "shelf:one:v1", "--compress", "xz")
    return "shelf:one:v1"


def test_the_command_line_offers_added_kinds(run: Run) -> None:
    assert "tarfile: a tar file" in " ".join(run("unpack", "--help").split())
    assert "[gzip|zstd|none|xz]" in run("pack", "--help")
    assert "xz 0 to 9" in " ".join(run("pack", "--help").split())
    assert "copies (directory)" in " ".join(run("store", "import", "--help").split())


def test_the_command_line_uses_added_kinds(run: Run, image: str, tmp_path: Path) -> None:
    assert json.loads(run("inspect", "--json", image))["layers"][0]["mediaType"] == OCI_LAYER_XZ
    run("unpack", image, "layers", "--as", "tarfile")
    assert sorted(path.name for path in (tmp_path / "layers").iterdir()) == ["0.tar"]
    assert run("cat", "tarfile:layers/0.tar::hello") == "hello\n"
    run("diff", "--as", "tarfile", "layers/0.tar", "-o", "blob", "--compress", "xz")
    assert (tmp_path / "blob").read_bytes().startswith(b"\xfd7zXZ\0")
    run("apply", "blob", "again.tar", "--as", "tarfile")
    assert run("cat", "tarfile:again.tar::hello") == "hello\n"
    run("store", "import", image, "--name", "localhost/one:v1", "--unpack", "--snapshotter", "copies")
    assert [one["snapshotter"] for one in json.loads(run("store", "snapshots", "ls", "--json"))] == ["copies"]


def test_the_library_uses_added_kinds(python: Path, environment: dict[str, str], image: str, tmp_path: Path) -> None:
    script = f"""
        import lamella
        from lamella.operations.store.transfer import ImportOptions, import_image
        from lamella.store.store import Store

        with lamella.open_image({image!r}) as image:
            assert image.layers[0].compression == "xz"
            assert (image.filesystem() / "hello").read_text() == "hello\\n"
            image.unpack("layers", kind="tarfile")
            image.convert("gzip").convert("xz", level=0).write("shelf:two:v1")
        lamella.verify("shelf:two:v1")
        with Store.open("other") as store:
            namespace = store.namespace("default")
            options = ImportOptions(name="localhost/two:v1", unpack=True, snapshotter="copies")
            import_image(namespace, "shelf:two:v1", options)
            assert len(namespace.snapshots("copies").list()) == 1
    """
    subprocess.run([python, "-c", textwrap.dedent(script)], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "layers" / "0.tar").is_file()


@contextmanager
def served(python: Path, environment: dict[str, str], address: Path) -> Iterator[Client]:
    """Run `lamella serve` in that environment."""
    command = [str(python), "-m", "lamella", "serve", "--address", str(address)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "serving at" in said, said + process.stderr.read()
        client = Client(address)
        yield client
        client.close()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_daemon_uses_added_kinds(
    python: Path, environment: dict[str, str], run: Run, image: str, tmp_path: Path
) -> None:
    run("store", "import", image, "--name", "localhost/one:v1", "--unpack", "--snapshotter", "copies")
    layer = json.loads(run("inspect", "--json", image))["layers"][0]
    blob = Descriptor(media_type=layer["mediaType"], digest=layer["digest"], size=layer["size"])
    place = Mount(type="tarfile", source=str(tmp_path / "applied.tar"), options=["rw"])
    with served(python, environment, tmp_path / "socket") as client:
        plugins = client.introspection.Plugins(introspection_pb2.PluginsRequest()).plugins
        assert {"copies", "tarfile"} <= {plugin.id for plugin in plugins}
        diff = Stub(client.channel, diff_pb2.DESCRIPTOR)
        applied = diff.Apply(diff_pb2.ApplyRequest(diff=blob, mounts=[place]), metadata=within()).applied
        request = diff_pb2.DiffRequest(right=[place], media_type=OCI_LAYER_XZ)
        made = diff.Diff(request, metadata=within()).diff
        assert made.media_type == OCI_LAYER_XZ
        again = Mount(type="tarfile", source=str(tmp_path / "again.tar"), options=["rw"])
        assert diff.Apply(diff_pb2.ApplyRequest(diff=made, mounts=[again]), metadata=within()).applied == applied
        snapshots = Stub(client.channel, snapshots_pb2.DESCRIPTOR)
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="copies", key="key", parent=applied.digest)
        (mount,) = snapshots.Prepare(prepare, metadata=within()).mounts
        assert (Path(mount.source) / "hello").read_text() == "hello\n"
    assert run("cat", "tarfile:applied.tar::hello") == "hello\n"
