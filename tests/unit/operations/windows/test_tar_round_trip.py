# SPDX-License-Identifier: Apache-2.0
"""Layers of other tools are applied to a folder, which gives the same tar back."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from tests.unit.layers.windows.windows_tars import BASES, LAYERS, microsoft_base

from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.cli.main import run as main
from lamella.errors import Conflict, FormatError, LossRefused, Unsupported
from lamella.layers.windows.layout import FRAMING
from lamella.operations.layers.apply import ApplyOptions, apply_blob
from lamella.operations.layers.diff import DiffOptions, diff


def lamella(*arguments: str | Path) -> None:
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        assert main(list(map(str, arguments))) == 0


def there_and_back(place: Path, data: bytes, *parents: Path) -> bytes:
    """What a layer comes back as by the command line; its folder is called ``layer``."""
    (place / "blob.tar").write_bytes(data)
    below = [part for one in parents for part in ("--parent", str(one))]
    lamella("apply", place / "blob.tar", place / "layer", "--as", "windows", *below)
    lamella("diff", place / "layer", "-o", place / "again.tar", "--as", "windows", "--compress", "none")
    return (place / "again.tar").read_bytes()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.tar").write_bytes(microsoft_base())
    apply_blob(tmp_path / "base.tar", tmp_path / "base", ApplyOptions(kind="windows"))
    return tmp_path / "base"


@pytest.mark.parametrize("producer", BASES)
def test_a_base_layer_keeps_its_bytes(producer: str, tmp_path: Path) -> None:
    data = BASES[producer]()
    assert data == there_and_back(tmp_path, data)


@pytest.mark.parametrize("kind", ["directory", "overlay", "erofs"])
def test_a_windows_layer_applied_as_a_linux_layer_is_warned_about_once(kind: str, tmp_path: Path) -> None:
    (tmp_path / "blob.tar").write_bytes(microsoft_base())
    losses = apply_blob(tmp_path / "blob.tar", tmp_path / "plain", ApplyOptions(kind=kind)).losses
    assert [loss.what for loss in losses].count("Windows metadata of files") == 1
    job = Job(losses=Losses(refuse=True))
    with pytest.raises(LossRefused, match="--as windows"):
        apply_blob(tmp_path / "blob.tar", tmp_path / "other", ApplyOptions(kind=kind), job=job)


@pytest.mark.parametrize("producer", LAYERS)
def test_a_layer_with_parents_keeps_its_bytes(producer: str, base: Path, tmp_path: Path) -> None:
    data = LAYERS[producer]()
    assert data == there_and_back(tmp_path, data, base)


@pytest.mark.parametrize("producer", LAYERS)
def test_a_folder_without_framing_gives_an_equivalent_tar(producer: str, base: Path, tmp_path: Path) -> None:
    data = LAYERS[producer]()
    there_and_back(tmp_path, data, base)
    (tmp_path / "layer" / FRAMING).unlink()
    lamella("diff", tmp_path / "layer", "-o", tmp_path / "ours.tar", "--as", "windows", "--compress", "none")
    ours = (tmp_path / "ours.tar").read_bytes()
    assert ours != data
    (tmp_path / "second").mkdir()
    assert ours == there_and_back(tmp_path / "second", ours, base)
    assert tree_of(tmp_path / "layer") == tree_of(tmp_path / "second/layer")


def tree_of(folder: Path) -> dict[str, bytes]:
    """The files of a layer's folder but the framing, by their path; the index without what framing is for."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(FRAMING, None)
    return found


def test_a_compressed_blob_comes_back_as_its_tar(tmp_path: Path) -> None:
    data = microsoft_base()
    (tmp_path / "blob.tar").write_bytes(data)
    apply_blob(tmp_path / "blob.tar", tmp_path / "first", ApplyOptions(kind="windows"))
    diff(None, tmp_path / "first", tmp_path / "blob.zst", DiffOptions(kind="windows", compression="zstd"))
    apply_blob(tmp_path / "blob.zst", tmp_path / "second", ApplyOptions(kind="windows"))
    diff(None, tmp_path / "second", tmp_path / "again.tar", DiffOptions(kind="windows", compression="none"))
    assert data == (tmp_path / "again.tar").read_bytes()


class TestFraming:
    @pytest.fixture
    def layer(self, tmp_path: Path) -> Path:
        (tmp_path / "blob.tar").write_bytes(microsoft_base())
        apply_blob(tmp_path / "blob.tar", tmp_path / "layer", ApplyOptions(kind="windows"))
        return tmp_path / "layer"

    def back(self, layer: Path) -> bytes:
        diff(None, layer, layer.parent / "again.tar", DiffOptions(kind="windows", compression="none"))
        return (layer.parent / "again.tar").read_bytes()

    def test_changed_content_is_a_conflict_and_nothing_is_written(self, layer: Path) -> None:
        file = layer / "Files/Windows/System32/Ntdll.dll"
        file.write_bytes(b"\x00" * 5000)
        with pytest.raises(Conflict, match="has changed since") as caught:
            self.back(layer)
        assert FRAMING in (caught.value.hint or "")
        assert sorted(os.listdir(layer.parent)) == ["blob.tar", "layer"]

    def test_every_truncation_of_the_framing_is_refused(self, layer: Path) -> None:
        whole = (layer / FRAMING).read_bytes()
        for kept in range(len(whole)):
            (layer / FRAMING).write_bytes(whole[:kept])
            with pytest.raises(FormatError):
                self.back(layer)

    def test_every_changed_byte_is_refused(self, layer: Path) -> None:
        whole = (layer / FRAMING).read_bytes()
        for at in range(len(whole)):
            data = bytearray(whole)
            data[at] ^= 0x41
            (layer / FRAMING).write_bytes(data)
            with pytest.raises((FormatError, Unsupported, Conflict)):
                self.back(layer)

    def test_the_framing_of_another_layer_is_refused(self, layer: Path, tmp_path: Path) -> None:
        (tmp_path / "other.tar").write_bytes(BASES["buildpacks"]())
        apply_blob(tmp_path / "other.tar", tmp_path / "other", ApplyOptions(kind="windows"))
        for one, other in ((layer, tmp_path / "other"), (tmp_path / "other", layer)):
            kept = (one / FRAMING).read_bytes()
            (one / FRAMING).write_bytes((other / FRAMING).read_bytes())
            with pytest.raises((FormatError, Conflict)):
                self.back(one)
            (one / FRAMING).write_bytes(kept)

    def test_one_that_is_a_link_is_not_followed(self, layer: Path, tmp_path: Path) -> None:
        (layer / FRAMING).rename(tmp_path / "elsewhere")
        (layer / FRAMING).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Conflict):
            self.back(layer)

    def test_a_later_version_of_the_framing_is_unsupported(self, layer: Path) -> None:
        data = bytearray((layer / FRAMING).read_bytes())
        data[7] = 2
        (layer / FRAMING).write_bytes(data)
        with pytest.raises(Unsupported, match="version 2"):
            self.back(layer)
