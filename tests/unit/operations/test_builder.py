# SPDX-License-Identifier: Apache-2.0
"""Images as values: nothing happens before it is needed, and the same steps give the same digest."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import lamella
from lamella.errors import Conflict, InvalidInput, NotFound
from lamella.testing.builders import directory, file

MakeImage = Callable[..., str]


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def base(make_image: MakeImage) -> str:
    """Return the name of an image of one layer."""
    return make_image([directory("etc"), file("etc/motd", b"base\n")])


def test_an_image_from_nothing(tmp_path: Path) -> None:
    image = (
        lamella.Image.scratch("linux/arm64/v8")
        .append({"bin/app": lamella.File(b"#!", mode=0o755)}, {"etc/conf": "a"})
        .with_config(cmd=["/bin/app"], env={"A": "1"})
        .with_annotations({"k": "v"})
    )
    descriptor = image.write(f"oci:{tmp_path}/out:v1")
    with lamella.open_image(f"oci:{tmp_path}/out:v1") as written:
        assert written.descriptor.digest == descriptor.digest == image.descriptor.digest
        assert str(written.platform) == str(image.platform) == "linux/arm64/v8"
        assert (written.config.config.cmd, written.manifest.annotations) == (["/bin/app"], {"k": "v"})
        assert [step.created_by for step in written.config.history] == ["lamella append"] * 2
        assert (written.filesystem() / "bin/app").stat().st_mode & 0o7777 == 0o755
    assert lamella.verify(f"oci:{tmp_path}/out").sound


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    image = lamella.Image.open(f"oci:{tmp_path}/later:it").append(tree).with_config(user="app")
    (tree / "file").write_text("came later")
    with pytest.raises(NotFound):
        image.write(f"oci:{tmp_path}/out:it")
    lamella.Image.scratch().write(f"oci:{tmp_path}/later:it")
    image.write(f"oci:{tmp_path}/out:it")
    with lamella.open_image(f"oci:{tmp_path}/out:it") as written:
        assert (written.filesystem() / "file").read_text() == "came later"


def test_malformed_arguments_are_reported_at_once(base: str) -> None:
    image = lamella.Image.open(base)
    with pytest.raises(InvalidInput):
        image.append({"a/../b": b""})
    with pytest.raises(InvalidInput):
        image.with_config(env={"=": ""})
    with pytest.raises(InvalidInput):
        image.with_annotations({"": ""})
    with pytest.raises(InvalidInput):
        lamella.Image.scratch("a/b/c/d")
    with pytest.raises(InvalidInput):
        lamella.Image.open("no form")


def test_an_image_never_changes(base: str) -> None:
    image = lamella.Image.open(base)
    before = image.descriptor.digest
    files: dict[str, lamella.operations.surgery.new_layers.FileLike] = {"a": b"1"}
    more = image.append(files)
    files["b"] = b"2"
    further = more.with_config(user="x")
    assert image.descriptor.digest == before
    assert len({image.descriptor.digest, more.descriptor.digest, further.descriptor.digest}) == 3
    assert (len(image.layers), len(more.layers), len(further.layers)) == (1, 2, 2)
    assert (more.config.config.user, further.config.config.user) == ("", "x")
    assert not (more.filesystem() / "b").exists()


def test_the_steps_give_what_the_verbs_give(base: str, tmp_path: Path) -> None:
    lamella.append(base, {"a": b"1"}, f"oci:{tmp_path}/verbs:it")
    lamella.mutate(f"oci:{tmp_path}/verbs:it", f"oci:{tmp_path}/verbs:it", lamella.Settings(labels={"k": "v"}))
    flat = lamella.flatten(f"oci:{tmp_path}/verbs:it", f"oci:{tmp_path}/verbs:it")
    zstd = lamella.convert(
        f"oci:{tmp_path}/verbs:it", f"oci:{tmp_path}/verbs:it", lamella.ConvertOptions(compression="zstd")
    )
    image = lamella.Image.open(base).append({"a": b"1"}).with_config(labels={"k": "v"}).flatten()
    assert image.descriptor.digest == flat.descriptor.digest
    assert image.convert("zstd").descriptor.digest == zstd.descriptor.digest


def test_an_image_that_is_not_written_can_be_looked_into_and_unpacked(base: str, tmp_path: Path) -> None:
    with lamella.Image.open(base).append({"etc/motd": "new\n"}) as image:
        assert repr(image) == "<Image (derived)>"
        assert image.name is None
        assert (image.filesystem() / "etc/motd").read_text() == "new\n"
        image.unpack(tmp_path / "rootfs")
        assert len(image.describe()["layers"]) == 2
        assert image.write(f"oci:{tmp_path}/out:x").digest == image.descriptor.digest
        assert len(os.listdir(tmp_path / "temporary")) == 1
    assert os.listdir(tmp_path / "temporary") == []
    assert (tmp_path / "rootfs/etc/motd").read_text() == "new\n"


def test_files_are_closed_with_the_last_image(base: str, tmp_path: Path) -> None:
    image = lamella.Image.open(base).append({"a": b"1"})
    assert len(image.layers) == 2
    assert len(os.listdir(tmp_path / "temporary")) == 1
    del image
    gc.collect()
    assert os.listdir(tmp_path / "temporary") == []


def test_a_closed_image_gives_nothing_more(base: str) -> None:
    image = lamella.Image.open(base)
    more = image.append({"a": b"1"})
    image.close()
    with pytest.raises(Conflict, match="is closed"):
        more.write(base)


def test_an_image_gets_another_base(make_image: MakeImage, tmp_path: Path) -> None:
    old = lamella.Image.open(make_image([file("v", b"1")], name=f"oci:{tmp_path}/old:it"))
    new = lamella.Image.open(make_image([file("v", b"2")], name=f"oci:{tmp_path}/new:it"))
    app = old.append({"app": b""}).rebase(old, new)
    assert (app.filesystem() / "v").read_bytes() == b"2"
    assert app.layers[0].diff_id == new.layers[0].diff_id


def test_push_writes_to_a_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []

    def write(image: lamella.Image, name: str, **_: object) -> None:
        seen.append(name)

    monkeypatch.setattr(lamella.Image, "write", write)
    lamella.Image.scratch().push("registry.example/app:1")
    lamella.Image.scratch().push("docker://registry.example/app:1")
    assert seen == ["docker://registry.example/app:1"] * 2
