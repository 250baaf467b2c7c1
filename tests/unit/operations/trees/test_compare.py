# SPDX-License-Identifier: Apache-2.0
"""Two images are compared by what they are and what they come to, each layer read once at most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lamella
from lamella.changes.model import Content, Inline
from lamella.errors import InvalidInput
from lamella.images.resolve import ImageLayer
from lamella.oci.config import ContainerConfig
from lamella.operations.trees.fingerprints import fingerprint
from lamella.testing.builders import device, directory, file, link, sparse, symlink, whiteout

MakeImage = Callable[..., str]

BASE = [
    directory("etc"),
    file("etc/a", b"1"),
    file("etc/b", b"22"),
    file("etc/c", b"c"),
    symlink("l", "etc"),
    device("null", 1, 3),
    file("usr/bin/tool", b"x" * 3000),
    link("usr/bin/same", "usr/bin/tool"),
    file("hole", sparse(300_000, [(100_000, b"data")])),
]
TOP = [
    file("etc/a", b"2"),
    file("etc/b", b"22", mode=0o600, uid=5, mtime=0, xattrs={"user.x": b"1"}),
    whiteout("etc/c"),
    symlink("l", "usr"),
    device("null", 1, 5),
    whiteout("usr/bin/same"),
    file("usr/bin/same", b"x" * 3000),
    directory("usr/new"),
    file("usr/new/file", b"new"),
    symlink("hole", "etc"),
]


@pytest.fixture
def pair(make_image: MakeImage, tmp_path: Path) -> tuple[str, str]:
    """Return the names of two images, of which the second has a layer more."""
    one = make_image(BASE, name=f"oci:{tmp_path}/one:it", config=ContainerConfig(env=["A=1", "B=2"], cmd=["x"]))
    two = make_image(BASE, TOP, name=f"oci:{tmp_path}/two:it", config=ContainerConfig(env=["A=2", "C=3"], cmd=["x"]))
    return one, two


def test_each_difference_is_reported_with_its_kind(pair: tuple[str, str]) -> None:
    found = lamella.compare(*pair)
    assert [(one.sign, one.path, one.what) for one in found.files] == [
        ("M", "etc/a", ("content",)),
        ("M", "etc/b", ("mode", "owner", "mtime", "xattrs")),
        ("D", "etc/c", ()),
        ("M", "hole", ("kind",)),
        ("M", "l", ("target",)),
        ("M", "null", ("device",)),
        ("M", "usr/bin/same", ("links",)),
        ("M", "usr/bin/tool", ("links",)),
        ("A", "usr/new", ()),
        ("A", "usr/new/file", ()),
    ]
    assert [(one.name, one.old, one.new) for one in found.config if one.name != "history"] == [
        ("config.Env.A", "1", "2"),
        ("config.Env.B", "2", None),
        ("config.Env.C", None, "3"),
    ]
    assert (len(found.shared), len(found.only_old), len(found.only_new)) == (1, 0, 1)
    assert [(one.path, one.old, one.new) for one in found.sizes] == [
        ("", 300_000, 0),
        ("usr", 3000, 6003),
        ("etc", 4, 3),
    ]
    assert not found.equal


def test_ignored_differences_do_not_count(pair: tuple[str, str], make_image: MakeImage, tmp_path: Path) -> None:
    everything = ["content", "mode", "owner", "mtime", "xattrs", "target", "device", "links", "config", "history"]
    found = lamella.compare(*pair, ignore=everything, exclude=["etc/c", "/usr/n*", "hole"])
    assert (found.config, found.files, found.equal) == ((), (), True)
    found = lamella.compare(*pair, exclude=["*"])
    assert found.files == ()
    with pytest.raises(InvalidInput, match="cannot be ignored"):
        lamella.compare(*pair, ignore=["time"])
    with pytest.raises(InvalidInput, match="lists"):
        lamella.compare(*pair, ignore="mtime")


def test_images_with_the_same_layers_are_compared_without_reading_them(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, _ = pair
    lamella.convert(one, f"oci:{tmp_path}/other:it", lamella.ConvertOptions(compression="zstd"))
    monkeypatch.setattr(ImageLayer, "open", lambda self: pytest.fail(f"{self.descriptor.digest} was opened"))
    assert lamella.compare(one, f"oci:{tmp_path}/other:it").equal


def test_a_layer_of_both_is_read_once(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = ImageLayer.open

    def noting(layer: ImageLayer) -> object:
        opened.append(str(layer.diff_id))
        return real(layer)

    monkeypatch.setattr(ImageLayer, "open", noting)
    lamella.compare(*pair)
    assert len(opened) == len(set(opened)) == 2


def test_how_files_are_cut_into_layers_does_not_count(pair: tuple[str, str], tmp_path: Path) -> None:
    _, two = pair
    lamella.flatten(two, f"oci:{tmp_path}/flat:it")
    found = lamella.compare(two, f"oci:{tmp_path}/flat:it", ignore=["history"])
    assert found.equal
    assert (len(found.shared), len(found.only_old), len(found.only_new)) == (0, 2, 1)


def test_annotations_and_dates_are_compared(pair: tuple[str, str], tmp_path: Path) -> None:
    one, _ = pair
    other = f"oci:{tmp_path}/other:it"
    lamella.mutate(one, other, lamella.Settings(created="2000-01-01T00:00:00Z"), annotations={"k": "v"})
    found = lamella.compare(one, other)
    assert [one.name for one in found.config] == ["annotations.k", "created"]
    assert lamella.compare(one, other, ignore=["created", "annotations"]).equal


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5 << 16), st.binary(min_size=1, max_size=9)), max_size=4), st.booleans())
def test_a_fingerprint_knows_no_holes(pieces: list[tuple[int, bytes]], cut: bool) -> None:
    dense = bytearray(6 << 16)
    for at, data in pieces:
        dense[at : at + len(data)] = data
    known: list[tuple[int, bytes]] = []
    end = 0
    for at, data in sorted(pieces):
        if at >= end:
            known.append((at, bytes(dense[at : at + len(data)])))
            end = at + len(data)
    kept = bytearray(6 << 16)
    for at, data in known:
        kept[at : at + len(data)] = data
    content: Content = sparse(6 << 16, known)
    assert fingerprint(content) == fingerprint(Inline(bytes(kept)))
    if known:
        kept[known[-1][0]] ^= 0xFF
        assert fingerprint(content) != fingerprint(Inline(bytes(kept)))
    assert fingerprint(sparse(1 << 50)) != fingerprint(sparse((1 << 50) + cut + 1))
