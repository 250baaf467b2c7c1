# SPDX-License-Identifier: Apache-2.0
"""The names that ``import lamella`` gives, and the verbs as functions."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import lamella
from lamella.errors import AlreadyExists, Conflict, Integrity, InvalidInput, NotFound
from lamella.oci.config import ContainerConfig
from lamella.testing.builders import directory, file, link, symlink, whiteout

MakeImage = Callable[..., str]

SOURCE = Path(lamella.__file__ or "")


@pytest.fixture
def image(make_image: MakeImage) -> str:
    """Return the name of an image of two layers."""
    base = [directory("etc"), file("etc/motd", b"hi\n", mtime=10**18), link("etc/again", "etc/motd"), file("old")]
    top = [whiteout("old"), symlink("motd", "/etc/motd")]
    return make_image(base, top, config=ContainerConfig(cmd=["/bin/true"]))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory with a few files."""
    root = tmp_path / "tree"
    (root / "a").mkdir(parents=True)
    (root / "a/b").write_text("b")
    (root / "c").symlink_to("a/b")
    return root


# Names -----------------------------------------------------------------------------------------------------------


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in lamella.__all__ if not hasattr(lamella, name)] == []
    assert set(lamella.__all__) <= set(dir(lamella))
    assert lamella.__all__ == sorted(lamella.__all__)
    namespace: dict[str, object] = {}
    exec("from lamella import *", namespace)
    assert set(lamella.__all__) <= namespace.keys()


def test_type_checkers_and_programs_get_the_same_names() -> None:
    """The imports under TYPE_CHECKING match the modules that names are loaded from."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name: (f"{node.module}", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lamella.")
        for alias in node.names
    }
    assert typed.keys() == set(lamella.__all__)
    for name, (module, real) in typed.items():
        __import__(module)
        assert getattr(lamella, name) is getattr(sys.modules[module], real)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unpakc'"):
        _ = lamella.unpakc
    assert not hasattr(lamella, "__wrapped__")


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((SOURCE.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert lamella.__version__ == project["project"]["version"]


def test_names_are_loaded_when_they_are_used() -> None:
    script = (
        "import sys, lamella; print([m for m in sys.modules if m.startswith('lamella.')]); "
        "lamella.Losses; print('lamella.operations.layers.diff' in sys.modules, 'http' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nFalse False\n"


# Images ----------------------------------------------------------------------------------------------------------


def test_an_image_tells_what_it_is_made_of(image: str) -> None:
    with lamella.open_image(image) as opened:
        assert opened.name == image
        assert opened.config.config.cmd == ["/bin/true"]
        assert str(opened.platform) == "linux/amd64"
        assert [layer.descriptor for layer in opened.layers] == opened.manifest.layers
        assert [layer.diff_id for layer in opened.layers] == opened.config.rootfs.diff_ids
        assert opened.describe()["manifest"]["digest"] == opened.descriptor.digest
        assert repr(opened) == f"<Image {image}>"


def test_an_image_unpacks(image: str, tmp_path: Path) -> None:
    with lamella.open_image(image) as opened:
        unpacked = opened.unpack(tmp_path / "out")
        assert [layer.entries for layer in unpacked.layers] == [4, 2]
        with pytest.raises(AlreadyExists):
            opened.unpack(str(tmp_path / "out"))
        opened.unpack(tmp_path / "out", merge=True)
        opened.unpack(tmp_path / "bundle", bundle=True)
        opened.unpack(tmp_path / "out.erofs", kind="erofs")
        with pytest.raises(InvalidInput):
            opened.unpack(tmp_path / "other", kind="erofs", bundle=True)
    assert sorted(os.listdir(tmp_path / "out")) == ["etc", "motd"]
    assert sorted(os.listdir(tmp_path / "bundle")) == ["config.json", "rootfs"]


def test_an_image_is_read_as_a_file_system(image: str) -> None:
    with lamella.open_image(image) as opened:
        files = opened.filesystem()
        assert opened.filesystem() is files
        assert (files / "motd").read_text() == "hi\n"
        assert (files / "etc/again").read_bytes() == b"hi\n"
        assert (files / "etc/again").samefile(files / "motd")
        assert [str(path) for path in files.root.rglob("*")] == ["/etc", "/motd", "/etc/again", "/etc/motd"]
        assert not (files / "old").exists()
        kept = files / "motd"
    with pytest.raises(ValueError, match="closed"):
        kept.read_bytes()


def test_content_can_be_read_repeatedly_in_any_order(make_image: MakeImage) -> None:
    contents = {f"file{number}": os.urandom(10_000) for number in range(20)}
    name = make_image([file(path, data) for path, data in contents.items()])
    with lamella.open_image(name) as opened:
        files = opened.filesystem()
        for path in [*contents, *reversed(contents)]:
            assert (files / path).read_bytes() == contents[path]
        with (files / "file3").open("rb") as first, (files / "file7").open("rb") as second:
            assert (first.read(5000), second.read(), first.read()) == (
                contents["file3"][:5000],
                contents["file7"],
                contents["file3"][5000:],
            )


def test_a_layer_can_be_read_and_applied_alone(image: str, tmp_path: Path) -> None:
    with lamella.open_image(image) as opened, opened.layers[0].open() as blob:
        applied = lamella.apply(blob, tmp_path / "layer", digest=opened.layers[0].descriptor.digest)
    assert applied.facts.diff_id == opened.layers[0].diff_id
    assert sorted(os.listdir(tmp_path / "layer")) == ["etc", "old"]


# Layers ----------------------------------------------------------------------------------------------------------


def test_a_diff_can_be_written_applied_and_listed(tree: Path, tmp_path: Path) -> None:
    written = lamella.diff(None, tree, tmp_path / "blob")
    applied = lamella.apply(tmp_path / "blob", tmp_path / "out")
    assert applied.facts == written.facts
    (tmp_path / "out/a/b").write_text("bb")
    (tmp_path / "out/c").unlink()
    found = [(one.sign, one.path) for one in lamella.list_changes(tree, tmp_path / "out")]
    assert found == [("M", "a/b"), ("D", "c")]


def test_paths_may_be_text(tree: Path, tmp_path: Path) -> None:
    lamella.diff(None, str(tree), str(tmp_path / "blob"))
    lamella.apply(str(tmp_path / "blob"), str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "c"]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_diff_goes_into_any_file(tree: Path, compression: str) -> None:
    buffer = io.BytesIO()
    written = lamella.diff(None, tree, buffer, lamella.DiffOptions(compression=compression))
    assert written.facts.size == len(buffer.getvalue())
    assert written.facts.digest == lamella.Digest.of(buffer.getvalue())


def test_expected_digests_are_checked(tree: Path, tmp_path: Path) -> None:
    written = lamella.diff(None, tree, tmp_path / "blob")
    wrong = lamella.parse_digest("sha256:" + "0" * 64)
    with pytest.raises(Integrity):
        lamella.apply(tmp_path / "blob", tmp_path / "out", digest=wrong)
    with pytest.raises(Integrity):
        lamella.apply(tmp_path / "blob", tmp_path / "out", diff_id=wrong)
    with pytest.raises(Integrity):
        lamella.apply(tmp_path / "blob", tmp_path / "out", size=written.facts.size + 1)


@pytest.mark.parametrize(
    ("lower", "kind", "error"),
    [("gone", "directory", NotFound), ("a/b", "directory", Conflict), (None, "zip", InvalidInput)],
)
def test_a_failed_diff_leaves_no_blob(
    tree: Path, tmp_path: Path, lower: str | None, kind: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        lamella.diff(None if lower is None else tree / lower, tree, tmp_path / "blob", lamella.DiffOptions(kind=kind))
    assert os.listdir(tmp_path) == ["tree"]


def test_a_diff_can_be_cancelled(tree: Path, tmp_path: Path) -> None:
    for number in range(600):
        (tree / f"file{number}").touch()
    cancel = lamella.Cancellation()
    cancel.cancel()
    with pytest.raises(lamella.LamellaError, match="cancelled"):
        lamella.diff(None, tree, tmp_path / "blob", job=lamella.Job(cancel=cancel))
    assert os.listdir(tmp_path) == ["tree"]


# The other verbs -------------------------------------------------------------------------------------------------


def test_pack_append_copy_flatten_and_verify(tree: Path, tmp_path: Path) -> None:
    name = f"oci:{tmp_path}/images:one"
    packed = lamella.pack(
        tree, name, lamella.Settings(cmd=["/a/b"], env={"A": "1"}, labels={"k": "v"}, platform="linux/arm64")
    )
    (tree / "a/new").write_text("new")
    lamella.diff(None, tree, tmp_path / "blob")
    appended = lamella.append(name, tmp_path / "blob", f"oci:{tmp_path}/images:two")
    assert appended.descriptor.digest != packed.descriptor.digest
    copied = lamella.copy(f"oci:{tmp_path}/images:two", f"docker-archive:{tmp_path}/two.tar:two:latest")
    assert copied.blobs > 0
    flat = lamella.flatten(f"oci:{tmp_path}/images:two", f"oci:{tmp_path}/images:flat")
    with lamella.open_image(f"oci:{tmp_path}/images:flat") as opened:
        assert [layer.descriptor.digest for layer in opened.layers] == [flat.layer.digest]
        assert opened.config.config.labels == {"k": "v"}
        assert str(opened.platform) == "linux/arm64"
        assert (opened.filesystem() / "a/new").read_text() == "new"
    found = lamella.verify(f"oci:{tmp_path}/images")
    assert (found.sound, found.images) == (True, 3)


def test_operations_report_progress(image: str, tree: Path, tmp_path: Path) -> None:
    class Notes:
        def __init__(self) -> None:
            self.begun: list[tuple[str, int | None]] = []
            self.done = self.ended = 0

        def start(self, what: str, total: int | None) -> None:
            self.begun.append((what, total))

        def advance(self, amount: int) -> None:
            self.done += amount

        def finish(self) -> None:
            self.ended += 1

    notes = Notes()
    with lamella.open_image(image) as opened:
        size = sum(layer.descriptor.size for layer in opened.layers)
        opened.unpack(tmp_path / "out", job=lamella.Job(progress=notes))
    assert (notes.begun, notes.done, notes.ended) == ([("unpack", size)], size, 1)
    notes = Notes()
    written = lamella.diff(None, tree, tmp_path / "blob", job=lamella.Job(progress=notes))
    assert (notes.begun, notes.done, notes.ended) == ([("write", None)], written.facts.tar_size, 1)
