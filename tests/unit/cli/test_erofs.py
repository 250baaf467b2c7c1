# SPDX-License-Identifier: Apache-2.0
"""EROFS images on the command line: made of layers, looked into, turned into layers again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Run

from lamella.changes.apply import apply
from lamella.changes.model import Buffer, Change
from lamella.layers.tar.sink import TarSink
from lamella.testing.builders import directory, file, link, symlink, whiteout

BASE: list[Change] = [directory("etc"), file("etc/f", b"text\n"), symlink("l", "etc")]
ABOVE: list[Change] = [directory("etc"), whiteout("etc/f"), file("etc/g", b"more\n")]


def blob(path: Path, changes: list[Change]) -> Path:
    def write(piece: Buffer) -> None:
        out.write(piece)

    with path.open("wb") as out:
        apply(changes, TarSink(write))
    return path


@pytest.fixture
def base(tmp_path: Path, lamella: Run) -> Path:
    """The image of a base layer; the layer is ``base.tar`` beside it."""
    image = tmp_path / "base.erofs"
    done = lamella("apply", blob(tmp_path / "base.tar", BASE), image, "--as", "erofs", "--json")
    assert json.loads(done.stdout)["entries"] == len(BASE)
    return image


@pytest.fixture
def above(tmp_path: Path, lamella: Run, base: Path) -> Path:
    """The image of a layer over ``base``; the layer is ``above.tar``."""
    image = tmp_path / "above.erofs"
    layer = blob(tmp_path / "above.tar", ABOVE)
    assert lamella("apply", layer, image, "--as", "erofs", "--parent", base).returncode == 0
    return image


@pytest.mark.parametrize("name", ["base", "above"])
def test_an_image_gives_the_layer_back(lamella: Run, tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    image = request.getfixturevalue(name)
    lamella("diff", image, "-o", tmp_path / "again.tar", "--as", "erofs", "--compress", "none")
    lines = [lamella("dump", tmp_path / tar).stdout.splitlines() for tar in (f"{name}.tar", "again.tar")]
    assert lines[0] == [line for line in lines[1] if not line.startswith("put directory 0755 0:0 0 .")]


def test_an_image_is_a_tree_for_every_verb_that_looks(lamella: Run, base: Path) -> None:
    place = f"erofs:{base}"
    assert lamella("ls", place).stdout.split() == ["etc", "l"]
    assert lamella("cat", f"{place}::/l/f").stdout == "text\n"
    assert "/etc/f" in lamella("find", place, "--name", "f").stdout
    assert "└── l -> etc" in lamella("tree", place).stdout


def test_the_changes_of_an_image_are_listed(lamella: Run, above: Path) -> None:
    shown = lamella("diff", above, "--as", "erofs").stdout.splitlines()
    assert [(line[0], line.split()[-1]) for line in shown] == [
        ("A", "/"),
        ("A", "/etc"),
        ("D", "/etc/f"),
        ("A", "/etc/g"),
    ]


def test_an_existing_image_is_not_overwritten(lamella: Run, tmp_path: Path, base: Path) -> None:
    before = base.read_bytes()
    assert lamella("apply", tmp_path / "base.tar", base, "--as", "erofs").returncode == 5
    assert before == base.read_bytes()


def test_a_bad_blob_leaves_no_image(lamella: Run, tmp_path: Path, base: Path) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tmp_path / "base.tar").read_bytes()[:1000])
    done = lamella("apply", cut, tmp_path / "cut.erofs", "--as", "erofs")
    assert done.returncode == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.erofs", "base.tar", "cut.tar"]


def test_a_malformed_image_is_reported_with_the_offset(lamella: Run, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(8192))
    done = lamella("ls", f"erofs:{file}")
    assert done.returncode == 3
    assert "EROFS superblock at offset 1024" in done.stderr


def test_owners_are_not_chosen_for_an_image(lamella: Run, tmp_path: Path, base: Path) -> None:
    done = lamella("apply", tmp_path / "base.tar", tmp_path / "x.erofs", "--as", "erofs", "--owner", "ignore")
    assert done.returncode == 2


@pytest.fixture
def two_layers(tmp_path: Path, lamella: Run) -> str:
    """The name of an image of ``BASE`` and ``ABOVE``."""
    name = f"oci:{tmp_path / 'oci'}:a"
    lower, upper = blob(tmp_path / "lower.tar", BASE), blob(tmp_path / "upper.tar", ABOVE)
    (tmp_path / "none").mkdir()
    assert lamella("pack", tmp_path / "none", name).returncode == 0
    assert lamella("append", name, lower, upper, name).returncode == 0
    return name


def test_an_image_of_containers_becomes_one_file(lamella: Run, tmp_path: Path, two_layers: str) -> None:
    done = lamella("unpack", two_layers, tmp_path / "root.erofs", "--as", "erofs", "--json")
    assert [layer["entries"] for layer in json.loads(done.stdout)["layers"]][1:] == [len(BASE), len(ABOVE)]
    shown = lamella("find", f"erofs:{tmp_path / 'root.erofs'}", "-l").stdout
    assert lamella("find", two_layers, "-l").stdout == shown
    assert "/etc/g" in shown


def test_a_layer_that_is_broken_leaves_no_file(lamella: Run, tmp_path: Path, two_layers: str) -> None:
    for path in (tmp_path / "oci" / "blobs" / "sha256").iterdir():
        if path.read_bytes() == (tmp_path / "upper.tar").read_bytes():
            path.write_bytes(path.read_bytes().replace(b"more", b"less"))
    before = sorted(tmp_path.iterdir())
    assert lamella("unpack", two_layers, tmp_path / "root.erofs", "--as", "erofs").returncode == 8
    assert before == sorted(tmp_path.iterdir())


TOO_LARGE: dict[str, list[Change]] = {
    "name": [file("n" * 256)],
    "name of a link": [file("a"), link("n" * 256, "a")],
    "name of an implied directory": [file(f"{'n' * 256}/a")],
    "target": [symlink("a", "t" * 5000)],
    "owner": [file("a", uid=1 << 32)],
    "group": [directory("a", gid=0xFFFFFFFF)],
}


@pytest.mark.parametrize("layer", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_an_unsupported_file_is_refused_and_leaves_no_image(lamella: Run, tmp_path: Path, layer: list[Change]) -> None:
    tar = blob(tmp_path / "layer.tar", [file("before"), *layer])
    layout = f"oci:{tmp_path}/layout:1"
    (tmp_path / "empty").mkdir()
    assert lamella("pack", tmp_path / "empty", layout).returncode == 0
    assert lamella("append", layout, tar, layout).returncode == 0
    (tmp_path / "out").mkdir()

    done = lamella("apply", tar, tmp_path / "out/a.erofs", "--as", "erofs")
    unpacked = lamella("unpack", layout, tmp_path / "out/b.erofs", "--as", "erofs")
    imported = lamella(
        *("--root", tmp_path / "store", "store", "import", layout),
        *("--name", "it", "--unpack", "--snapshotter", "erofs"),
    )

    assert [done.returncode, unpacked.returncode, imported.returncode] == [3, 3, 3]
    assert list((tmp_path / "out").iterdir()) == []
