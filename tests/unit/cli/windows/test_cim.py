# SPDX-License-Identifier: Apache-2.0
"""Composite images on the command line."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.unit.cli.conftest import Run
from tests.unit.cli.processes import children, only_child, wait_for, where_forked
from tests.unit.layers.cim.test_layer import directory, file, link, stream, tar_of, tree, whiteout, windows_base, write
from tests.windows.stubs import StubCimfs, StubLoader, check_compiler

from lamella.changes.model import Change, Put
from lamella.formats.ntfs.basic_information import NORMAL
from lamella.formats.regf import MemoryKey, encode_hive
from lamella.host.windows.cimfs import WindowsBuild
from lamella.host.windows.system import WindowsSystem
from lamella.images.resolve import open_platform_image
from lamella.layers.cim import block as place
from lamella.layers.cim.image import CimLayer
from lamella.operations.layers.apply import ApplyOptions, apply_blob
from lamella.operations.unpack import UnpackOptions, unpack
from lamella.testing.images import image_of_tars, tagged, write_layout


@pytest.fixture
def images(tmp_path: Path) -> tuple[CimLayer, CimLayer]:
    """A base and a layer over it."""
    base = write(tmp_path / "base.cim", tree(file("Files/Windows/a.txt", b"hello\n"), file("Files/old", b"1")))
    changes: list[Change] = [
        file("Files/Windows/b.txt", b"new\n"),
        stream("Files/Windows/b.txt", "ads", b"s"),
        link("Files/c", "Files/Windows/b.txt"),
        whiteout("Files/old"),
        directory("Files/d"),
    ]
    return base, write(tmp_path / "child.cim", changes, base)


def test_info_shows_regions_and_parents(lamella: Run, images: tuple[CimLayer, CimLayer]) -> None:
    said = json.loads(lamella("cim", "info", str(images[1].path), "--json").stdout)
    base = json.loads(lamella("cim", "info", str(images[0].path), "--json").stdout)
    assert said["parents"] == [{"guid": base["guid"], "regions": 3}]
    assert base["guid"] in lamella("cim", "info", str(images[1].path)).stdout


def test_the_usual_verbs_take_an_image_as_a_tree(lamella: Run, images: tuple[CimLayer, CimLayer]) -> None:
    place = f"cim:{images[1].path}"
    assert lamella("ls", f"{place}::files/WINDOWS").stdout.split() == ["a.txt", "b.txt"]
    assert lamella("cat", f"{place}::Files/Windows/A.TXT").stdout == "hello\n"
    assert "/Files/c" in lamella("find", place).stdout
    assert lamella("find", place, "--name", "A.TXT").stdout.split() == ["/Files/Windows/a.txt"]


def test_the_cim_verbs_give_the_same_results(lamella: Run, images: tuple[CimLayer, CimLayer]) -> None:
    image = str(images[1].path)
    assert lamella("cim", "ls", image, "Files\\Windows").stdout.split() == ["a.txt", "b.txt"]
    assert lamella("cim", "cat", image, "Files/Windows/a.txt", "Files/c").stdout == "hello\nnew\n"
    assert "Windows" in lamella("cim", "tree", image).stdout


def test_diff_lists_the_changes_against_the_parent(lamella: Run, images: tuple[CimLayer, CimLayer]) -> None:
    base, child = images
    out = lamella("cim", "diff", str(child.path), "--parent", str(base.path)).stdout
    assert out.splitlines() == [
        "M  /Files",
        "D  /Files/old",
        "M  /Files/Windows",
        "A  /Files/Windows/b.txt",
        "A  /Files/Windows/b.txt:ads",
        "A  /Files/c",
        "A  /Files/d",
    ]


def test_diff_finds_the_parent_beside_the_image(lamella: Run, images: tuple[CimLayer, CimLayer]) -> None:
    base, child = images
    given = lamella("cim", "diff", str(child.path), "--parent", str(base.path)).stdout
    assert given == lamella("cim", "diff", str(child.path)).stdout
    listed = lamella("diff", child.path, "--as", "cim").stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["M", "D", "M", "A", "A", "A"]
    base.path.unlink()
    done = lamella("diff", child.path, "--as", "cim")
    assert (done.returncode, "parent" in done.stderr) == (4, True)


def test_diff_against_an_unrelated_image_is_refused(lamella: Run, images: tuple[CimLayer, CimLayer]) -> None:
    other = write(images[0].directory / "other.cim", tree(file("Files/x", b"x")))
    done = lamella("diff", other.path, images[1].path, "--as", "cim")
    assert (done.returncode, "is not forked from" in done.stderr) == (3, True)


def test_diff_against_a_grandparent_lists_the_changes_of_both_layers(
    lamella: Run, images: tuple[CimLayer, CimLayer]
) -> None:
    base, child = images
    third = write(base.directory / "third.cim", [file("Files/third", b"3")], child)
    listed = lamella("diff", base.path, third.path, "--as", "cim").stdout
    assert "/Files/third" in listed
    assert "/Files/Windows/b.txt" in listed


def test_dump_and_find_take_an_image_as_a_tree(lamella: Run, images: tuple[CimLayer, CimLayer]) -> None:
    place = f"cim:{images[1].path}"
    assert "Files/Windows/b.txt" in lamella("dump", place).stdout
    assert lamella("find", place, "--name", "b.*").stdout == "/Files/Windows/b.txt\n"
    assert lamella("tree", place).returncode == 0


def image_of(tmp_path: Path, *layers: list[Change], system: str = "windows") -> str:
    small = image_of_tars([tar_of(layer) for layer in layers], f"{system}/amd64")
    write_layout(str(tmp_path / "images"), [tagged(small.descriptor, "v")], small.blobs)
    return f"oci:{tmp_path}/images:v"


LAYERS: tuple[list[Change], ...] = (
    windows_base(file("Files/Windows/a.txt", b"a"), link("Files/b", "Files/Windows/a.txt")),
    [
        directory("Files"),
        whiteout("Files/b"),
        directory("Files/Windows"),
        whiteout("Files/Windows/a.txt"),
        file("Files/Windows/c.txt", b"c"),
        stream("Files/Windows/c.txt", "zone", b"z"),
        directory("Hives"),
        file("Hives/System_Delta", encode_hive(MemoryKey("d"))),
    ],
    [directory("Files"), file("Files/d", b"d")],
)


def test_an_image_becomes_composite_images_and_comes_back_as_it_was(lamella: Run, tmp_path: Path) -> None:
    name = image_of(tmp_path, *LAYERS)
    platform = ("--platform", "windows/amd64")
    for verb in (("unpack", name, tmp_path / "a", "--as"), ("convert", name, tmp_path / "b", "--to")):
        assert lamella(*verb, "cim", *platform).stderr.count("lamella:") == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert {"0.cim", "1.cim", "2.cim", "manifest.json", "config.json"} <= set(names)
    assert lamella("cat", f"cim:{tmp_path}/a/2.cim::files/windows/C.TXT").stdout == "c"
    back = json.loads(lamella("convert", tmp_path / "a", f"oci:{tmp_path}/back:v", "--to", "tar", "--json").stdout)
    assert back["kept"] == 3
    before, after = (
        json.loads(lamella("inspect", each, *platform, "--json").stdout) for each in (name, f"oci:{tmp_path}/back:v")
    )
    assert before["config"] == after["config"]
    assert lamella("verify", f"oci:{tmp_path}/back:v").returncode == 0
    assert lamella("compare", name, f"oci:{tmp_path}/back:v", *platform).returncode == 0


def test_a_linux_image_does_not_become_composite_images(lamella: Run, tmp_path: Path) -> None:
    name = image_of(tmp_path, system="linux")
    done = lamella("convert", name, tmp_path / "cims", "--to", "cim", "--platform", "linux/amd64")
    assert (done.returncode, "not for Windows" in done.stderr) == (3, True)
    assert not (tmp_path / "cims").exists()


def test_a_single_layer_is_converted_too(lamella: Run, tmp_path: Path) -> None:
    for number, layer in enumerate(LAYERS):
        blob, image = tmp_path / f"{number}.tar", tmp_path / f"cims/{number}.cim"
        blob.write_bytes(tar_of(layer))
        below = ("--parent", tmp_path / f"cims/{number - 1}.cim") if number else ()
        assert lamella("convert", blob, image, "--to", "cim", *below).returncode == 0
        assert lamella("convert", image, tmp_path / "out", "--to", "tar", "--compress", "none").returncode == 0
        assert (tmp_path / "out").read_bytes() == blob.read_bytes()


def test_an_image_cannot_be_converted_as_a_single_layer(lamella: Run, tmp_path: Path) -> None:
    done = lamella("convert", image_of(tmp_path, LAYERS[0]), tmp_path / "one.cim", "--to", "cim")
    assert (done.returncode, "a new directory for those of an image" in done.stderr) == (2, True)


def test_a_composite_image_can_be_appended_as_a_layer(lamella: Run, tmp_path: Path) -> None:
    name = image_of(tmp_path, LAYERS[0])
    platform = ("--platform", "windows/amd64")
    lamella("unpack", name, tmp_path / "cims", "--as", "cim", *platform)
    (tmp_path / "above.tar").write_bytes(tar_of(LAYERS[2]))
    below = ("--parent", tmp_path / "cims/0.cim")
    lamella("apply", tmp_path / "above.tar", tmp_path / "cims/above.cim", "--as", "cim", *below)
    assert lamella("append", name, tmp_path / "cims/above.cim", f"oci:{tmp_path}/new:v", *platform).returncode == 0
    assert lamella("cat", f"oci:{tmp_path}/new:v::Files/d", *platform).stdout == "d"


class TestWhereATreeCanBeGiven:
    @pytest.fixture
    def image(self, tmp_path: Path) -> str:
        return image_of(tmp_path, *LAYERS)

    @pytest.fixture
    def top(self, lamella: Run, tmp_path: Path, image: str) -> str:
        lamella("unpack", image, tmp_path / "cims", "--as", "cim", "--platform", "windows/amd64")
        return f"cim:{tmp_path}/cims/2.cim"

    def test_every_verb_that_looks_into_a_tree_takes_a_composite_image(self, lamella: Run, top: str) -> None:
        assert lamella("ls", f"{top}::Files").stdout.split() == ["Windows", "d"]
        assert lamella("tree", top).stdout.count("c.txt") == 1
        assert lamella("cat", f"{top}::files/D").stdout == "d"
        assert lamella("find", top, "--name", "C.TXT").stdout == "/Files/Windows/c.txt\n"
        assert "Files/Windows/c.txt" in lamella("dump", top).stdout
        config = "Files/Windows/System32/config"
        assert lamella("hive", "ls", f"{top}::{config}/SYSTEM").returncode == 0

    def test_a_composite_image_is_compared_with_another(self, lamella: Run, top: str, tmp_path: Path) -> None:
        base = f"cim:{tmp_path}/cims/0.cim"
        assert (lamella("compare", top, top).returncode, lamella("compare", base, base).returncode) == (0, 0)
        found = lamella("compare", base, top, "--json", "--ignore", "mtime,windows")
        assert found.returncode == 1
        said = json.loads(found.stdout)
        assert said["old"] is None
        assert [f"{one['change']} {one['path']}" for one in said["files"]] == [
            "D /Files/Windows/a.txt",
            "A /Files/Windows/c.txt",
            "D /Files/b",
            "A /Files/d",
            "A /Hives",
            "A /Hives/System_Delta",
        ]

    def test_a_composite_image_is_compared_with_the_image_that_it_was_made_of(
        self, lamella: Run, top: str, image: str
    ) -> None:
        done = lamella("compare", image, top, "--platform", "windows/amd64")
        assert (done.returncode, done.stdout) == (0, "the files are equal\n")

    def test_one_layer_is_the_same_in_whatever_place(self, lamella: Run, tmp_path: Path) -> None:
        (tmp_path / "c" / "App").mkdir(parents=True)
        (tmp_path / "c" / "App" / "x").write_bytes(b"x")
        os.utime(tmp_path / "c" / "App" / "x", ns=(0, 1_700_000_000_123_456_789))  # finer than Windows' times
        image = f"oci:{tmp_path}/made:w"
        lamella("pack", tmp_path / "c", image, "--platform", "windows/amd64")
        places = [image]
        for kind, name in (("windows", "0"), ("cim", "0.cim")):
            lamella("unpack", image, tmp_path / kind, "--as", kind, "--platform", "windows/amd64")
            places.append(f"{kind}:{tmp_path}/{kind}/{name}")
        lamella("diff", tmp_path / "windows" / "0", "--as", "windows", "-o", tmp_path / "layer.tar.gz")
        places.append(f"windows:{tmp_path}/layer.tar.gz")
        for one in places:
            for other in places:
                done = lamella("compare", one, other, "--platform", "windows/amd64")
                assert done.stdout in ("the files are equal\n", "the images are equal\n"), (one, other)

    def test_other_places_are_compared_too(self, lamella: Run, top: str, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "f").write_bytes(name.encode())
        one, other = f"dir:{tmp_path}/a", f"dir:{tmp_path}/b"
        found = json.loads(lamella("compare", one, other, "--ignore", "mtime", "--json").stdout)
        assert [(file["path"], file["what"]) for file in found["files"]] == [("/f", ["content"])]
        done = lamella("compare", one, top)
        assert (done.returncode, "is of Windows and the other is not" in done.stderr) == (3, True)

    def test_diff_takes_one_without_as(self, lamella: Run, top: str) -> None:
        path = top.removeprefix("cim:")
        assert lamella("diff", top).stdout == lamella("diff", path, "--as", "cim").stdout != ""
        assert lamella("diff", top).stdout == lamella("diff", path).stdout
        assert lamella("diff", path.replace("2.cim", "0.cim"), top).stdout.count("\n") > 5
        done = lamella("diff", Path(path).parent, top)
        assert (done.returncode, "not with another place" in done.stderr) == (2, True)

    def test_one_is_appended_as_a_layer(self, lamella: Run, top: str, image: str, tmp_path: Path) -> None:
        new = f"oci:{tmp_path}/new:v"
        platform = ("--platform", "windows/amd64")
        assert lamella("append", image, top, new, *platform).returncode == 0
        layers = json.loads(lamella("inspect", new, *platform, "--json").stdout)["config"]["rootfs"]["diff_ids"]
        assert (len(layers), layers[2]) == (4, layers[3])

    def test_one_is_packed_as_a_base_layer(self, lamella: Run, tmp_path: Path) -> None:
        delta = MemoryKey("d")
        delta.make("Added")
        added: list[Change] = [
            directory("Hives"),
            file("Hives/System_Delta", encode_hive(delta)),
            link("Files/h", "Files/c"),
        ]
        base = write(tmp_path / "base.cim", windows_base(file("Files/c", b"c"), whiteout("Files/x")), windows=True)
        write(tmp_path / "child.cim", [directory("Files"), *added], base, windows=True)
        for number, given in enumerate((f"cim:{tmp_path}/child.cim", tmp_path / "child.cim")):
            new = f"oci:{tmp_path}/{number}:v"
            assert lamella("pack", given, new).returncode == 0
            said = json.loads(lamella("inspect", new, "--platform", "windows", "--json").stdout)
            assert said["config"]["os"] == "windows"
            assert lamella("verify", new).returncode == 0
            view = ("--platform", "windows")
            assert lamella("ls", new, *view).stdout.split() == ["Files"]
            assert lamella("cat", f"{new}::Files/h", *view).stdout == "c"
            hive = f"{new}::Files/Windows/System32/config"
            assert "Added" in lamella("hive", "ls", f"{hive}/SYSTEM", *view).stdout
            assert lamella("hive", "ls", f"{hive}/SAM", *view).stdout == ""

    def test_what_cannot_be_chosen_of_one_that_is_packed_is_refused(
        self, lamella: Run, top: str, tmp_path: Path
    ) -> None:
        for options in (("--platform", "linux/amd64"), ("--owner", "ignore"), ("--attributes", "hidden")):
            assert lamella("pack", top, f"oci:{tmp_path}/new:v", *options).returncode in (2, 3)
        assert not (tmp_path / "new").exists()

    def test_where_an_image_is_wanted_one_is_told_apart(self, lamella: Run, top: str, tmp_path: Path) -> None:
        path = top.removeprefix("cim:")
        assert f"is cim:{path}" in lamella("ls", path).stderr
        done = lamella("flatten", top, f"oci:{tmp_path}/new:v")
        assert (done.returncode, "'lamella pack' makes an image" in done.stderr) == (3, True)


def test_diff_writes_a_layer(lamella: Run, images: tuple[CimLayer, CimLayer], tmp_path: Path) -> None:
    base, child = images
    blob = tmp_path / "layer.tar"
    done = lamella(
        "cim", "diff", str(child.path), "--parent", str(base.path), "-o", str(blob), "--compress", "none", "--json"
    )
    said = json.loads(done.stdout)
    assert said["digest"] == f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}"
    assert b"MSWINDOWS.fileattr" in blob.read_bytes()


def test_extract_gives_plain_files(lamella: Run, images: tuple[CimLayer, CimLayer], tmp_path: Path) -> None:
    lamella("cim", "extract", str(images[1].path), str(tmp_path / "out"), "--only", "Files")
    assert (tmp_path / "out" / "Windows" / "a.txt").read_bytes() == b"hello\n"
    assert (tmp_path / "out" / "c").samefile(tmp_path / "out" / "Windows" / "b.txt")


def test_verify_reads_everything_and_names_the_damaged_structure(
    lamella: Run, images: tuple[CimLayer, CimLayer]
) -> None:
    said = json.loads(lamella("cim", "verify", str(images[1].path), "--json").stdout)
    assert (said["files"], said["streams"]) == (2, 1)
    for region in images[1].directory.glob("region_*_2"):
        region.write_bytes(region.read_bytes()[:41])
    done = lamella("cim", "verify", str(images[1].path))
    assert done.returncode == 3
    assert "CIM data at offset" in done.stderr


def test_verify_lists_all_that_a_file_has(lamella: Run, images: tuple[CimLayer, CimLayer], tmp_path: Path) -> None:
    assert lamella("cim", "verify", images[1].path, "--list", tmp_path / "list").returncode == 0
    found = {one["path"]: one for one in map(json.loads, (tmp_path / "list").read_text().splitlines())}
    assert list(found) == [
        "/",
        "/Files",
        "/Files/Windows",
        *(f"/Files/Windows/{n}.txt" for n in "ab"),
        "/Files/c",
        "/Files/d",
    ]
    assert found["/Files/c"] == {"path": "/Files/c", "kind": "link", "target": "/Files/Windows/b.txt"}
    one = found["/Files/Windows/b.txt"]
    assert one["sha256"] == hashlib.sha256(b"new\n").hexdigest()
    assert one["streams"] == {"ads": hashlib.sha256(b"s").hexdigest()}
    assert base64.b64decode(one["security"]) == b"descriptor of Files/Windows/b.txt"
    assert (one["attributes"], one["creation_time"]) == (0x20, 133278304891234567)


def test_a_long_list_shows_attributes_and_times(lamella: Run, images: tuple[CimLayer, CimLayer]) -> None:
    line = lamella("cim", "ls", images[1].path, "Files/Windows", "-l").stdout.splitlines()[0]
    assert line.split() == ["----a", "-", "-", "6", "2023-05-06", "07:08:09", "a.txt"]


def test_a_file_that_is_not_an_image_is_reported(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "x.cim").write_bytes(b"not an image at all, but long enough for a header")
    done = lamella("cim", "info", str(tmp_path / "x.cim"))
    assert (done.returncode, "magic" in done.stderr) == (3, True)
    assert lamella("cim", "info", str(tmp_path / "none.cim")).returncode == 4


def test_a_layer_survives_conversion_to_an_image_and_back(lamella: Run, tmp_path: Path) -> None:
    """A tar whose entries are in the order of a walk keeps its diff id."""
    base, child = tmp_path / "base.tar", tmp_path / "child.tar"
    base.write_bytes(tar_of(windows_base()))
    child.write_bytes(tar_of([directory("Files"), file("Files/new", b"n"), stream("Files/new", "s", b"1")]))
    assert lamella("apply", base, tmp_path / "l/base.cim", "--as", "cim").returncode == 0
    below = ("--parent", tmp_path / "l/base.cim")
    assert lamella("apply", child, tmp_path / "l/child.cim", "--as", "cim", *below).returncode == 0
    for tar, places in ((base, ["base.cim"]), (child, ["base.cim", "child.cim"])):
        out = tmp_path / "out.tar"
        where = [tmp_path / "l" / place for place in places]
        assert lamella("diff", *where, "--as", "cim", "-o", out, "--compress", "none").returncode == 0
        assert out.read_bytes() == tar.read_bytes()
    listed = lamella("diff", tmp_path / "l/base.cim", tmp_path / "l/child.cim", "--as", "cim").stdout
    assert "/Files/new" in listed


def without_security(change: Put) -> Put:
    """A file as hcsshim exports those that are not below `Files`: without a descriptor, and with fewer times."""
    facet = change.entry.windows
    assert facet is not None
    written = facet.write_time
    facet = replace(facet, security_descriptor=None, creation_time=written, access_time=written)
    return Put(replace(change.entry, windows=facet), change.content)


def with_attributes(change: Put, attributes: int) -> Put:
    facet = change.entry.windows
    assert facet is not None
    return Put(replace(change.entry, windows=replace(facet, attributes=attributes)), change.content)


def test_a_layer_as_hcsshim_exports_it_keeps_its_diff_id(lamella: Run, tmp_path: Path) -> None:
    base, child = tmp_path / "base.tar", tmp_path / "child.tar"
    config = "Files/Windows/System32/config"
    base.write_bytes(tar_of(windows_base(file("Files/Windows/gone"), file("Files/Windows/old", b"1"), file("Files/x"))))
    child.write_bytes(
        tar_of(
            [
                without_security(directory("Files")),
                whiteout("Files/x"),
                directory("Files/Windows"),
                whiteout("Files/Windows/gone"),
                directory("Files/Windows/System32"),
                directory(config),
                with_attributes(file(f"{config}/new", b"normal"), NORMAL),
                with_attributes(file("Files/Windows/old", b"2"), 0x27),
                stream("Files/Windows/old", "Zone.Identifier", b"[ZoneTransfer]"),
                link("Files/Windows/same", "Files/Windows/old"),
                without_security(directory("Hives")),
                *(
                    without_security(file(f"Hives/{name}_Delta", encode_hive(MemoryKey(name))))
                    for name in ("DefaultUser", "Sam", "Security", "Software", "System")
                ),
            ]
        )
    )
    assert b"MSWINDOWS.fileattr=128" in child.read_bytes()
    lamella("apply", base, tmp_path / "l/base.cim", "--as", "cim")
    lamella("apply", child, tmp_path / "l/child.cim", "--as", "cim", "--parent", tmp_path / "l/base.cim")
    for tar in (base, child):
        image = tmp_path / f"l/{tar.stem}.cim"
        assert lamella("diff", image, "--as", "cim", "-o", tmp_path / "out", "--compress", "none").returncode == 0
        assert (tmp_path / "out").read_bytes() == tar.read_bytes()


def test_a_failed_layer_leaves_no_image(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(tree()))
    done = lamella("apply", tmp_path / "x.tar", tmp_path / "l/x.cim", "--as", "cim")
    assert (done.returncode, "config/SYSTEM" in done.stderr) == (3, True)
    assert list((tmp_path / "l").iterdir()) == []


def test_a_block_image_is_refused_elsewhere_than_on_windows(lamella: Run, tmp_path: Path) -> None:
    blob = tmp_path / "layer.tar"
    blob.write_bytes(tar_of(tree(file("Files/f", b"1"))))
    before = sorted(tmp_path.rglob("*"))
    place = tmp_path / "new" / "layer.vhd" / "layer.cim"
    refused = lamella("apply", blob, place, "--as", "blockcim")
    assert refused.returncode == 7
    assert "only Windows can write and read" in refused.stderr
    assert 'hint: use the kind "cim", whose format is known' in refused.stderr
    unnamed = lamella("apply", blob, tmp_path / "x", "--as", "blockcim")
    assert (unnamed.returncode, "DIR/layer.vhd/layer.cim" in unnamed.stderr) == (3, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_becomes_no_block_images_elsewhere_than_on_windows(lamella: Run, tmp_path: Path) -> None:
    name = image_of(tmp_path, *LAYERS)
    before = sorted(tmp_path.rglob("*"))
    for verb, option in (("unpack", "--as"), ("convert", "--to")):
        refused = lamella(verb, name, tmp_path / "new", option, "blockcim", "--platform", "windows/amd64")
        assert refused.returncode == 7
        assert "only Windows can write and read" in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_becomes_block_images_by_windows_calls(
    lamella: Run, tmp_path: Path, needs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_compiler(needs)
    stub = StubCimfs()
    system = WindowsSystem(StubLoader(cimfs=stub.library), WindowsBuild(27766))
    monkeypatch.setattr(place, "this_system", lambda: system)
    name = image_of(tmp_path, windows_base(), [directory("Files"), whiteout("Files/x"), file("Files/d", b"d")])
    for verb, option in (("unpack", "--as"), ("convert", "--to")):
        made = len(stub.calls)
        done = lamella(verb, name, tmp_path / verb, option, "blockcim", "--platform", "windows/amd64")
        assert (done.returncode, done.stderr.count("error")) == (0, 0)
        calls = stub.calls[made:]
        begun = [line for line in calls if line.startswith("CimCreateImage2")]
        assert [Path(line.split()[1]).parts[-2:] for line in begun] == [(n, "layer.vhd") for n in "01"]
        assert calls.count("CimCommitImage") == 2
        assert calls[calls.index(begun[1]) :][1:5] == [
            "CimCreateFile Files 0",
            "CimCloseStream",
            "CimTombstoneFile Files\\x",
            "CimCreateFile Files\\d 1",
        ]
        assert {path.name for path in (tmp_path / verb).iterdir()} == {"0", "1", "manifest.json", "config.json"}
        assert (tmp_path / verb / "0/Hives/SYSTEM_BASE").is_file()


def test_block_images_do_not_become_tars(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "blocks/0/layer.vhd").mkdir(parents=True)
    refused = lamella("convert", tmp_path / "blocks", f"oci:{tmp_path}/new:v", "--to", "tar")
    assert (refused.returncode, "which only Windows can read" in refused.stderr) == (7, True)
    assert not (tmp_path / "new").exists()


# Large layers, which a process of its own reads -------------------------------------------------------------------


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def large() -> list[Change]:
    return windows_base(*(file(f"Files/Windows/f{number}", os.urandom(100_000)) for number in range(150)))


@where_forked
@pytest.mark.parametrize("verb", ["apply", "unpack"])
def test_a_large_layer_is_read_by_a_worker_with_the_same_result(verb: str, program: str, tmp_path: Path) -> None:
    if verb == "apply":
        blob = tmp_path / "blob"
        blob.write_bytes(tar_of(large()))
        command: list[str | Path] = [program, "apply", blob, tmp_path / "out/0.cim", "--as", "cim"]
        apply_blob(blob, tmp_path / "here/0.cim", ApplyOptions(kind="cim"))
    else:
        name = image_of(tmp_path, large(), *LAYERS[1:])
        command = [program, "unpack", name, tmp_path / "out", "--as", "cim", "--platform", "windows/amd64"]
        with open_platform_image(name, "windows/amd64") as image:
            unpack(image, tmp_path / "here", UnpackOptions(kind="cim"))
    with subprocess.Popen(command) as process:
        only_child(process)
    assert process.returncode == 0
    assert files_in(tmp_path / "out") == files_in(tmp_path / "here")


@where_forked
def test_a_large_layer_that_is_stopped_leaves_nothing(program: str, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(tar_of(windows_base(*(file(f"Files/f{n}", os.urandom(150)) for n in range(30_000)))))
    with subprocess.Popen(
        [program, "apply", blob, tmp_path / "out/0.cim", "--as", "cim"], stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: (tmp_path / "out").exists() and any((tmp_path / "out").iterdir()))
        others = children(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert len(others) == 1
    assert not Path(f"/proc/{others[0]}").exists()
    assert (process.returncode, errors.splitlines()[0]) == (130, "lamella: interrupted")
    assert [*(tmp_path / "out").iterdir()] == []


@where_forked
@pytest.mark.parametrize("wrong", ["truncated", "digest", "directory"])
def test_a_large_layer_has_the_errors_that_it_has_when_read_here(wrong: str, program: str, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    option: list[str] = []
    blob.write_bytes(tar_of(large())[: -(6 << 20) if wrong == "truncated" else None])
    if wrong == "digest":
        option = ["--expect", "sha256:" + "0" * 64]
    place = tmp_path / "out/0.cim"
    if wrong == "directory":
        (tmp_path / "out").write_bytes(b"")
    words: list[str | Path] = [place, "--as", "cim", *option]
    apart = subprocess.run([program, "apply", blob, *words], capture_output=True, text=True, check=False)
    with blob.open("rb") as piped:
        here = subprocess.run([program, "apply", "-", *words], stdin=piped, capture_output=True, text=True, check=False)
    assert apart.returncode != 0
    assert (apart.returncode, apart.stderr) == (here.returncode, here.stderr)
    assert wrong == "directory" or [*(tmp_path / "out").iterdir()] == []


@where_forked
def test_the_process_that_reads_a_layer_ends_when_the_command_is_killed(program: str, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(tar_of(windows_base(file("Files/big", os.urandom(1 << 20) * 300))))
    with subprocess.Popen([program, "apply", blob, tmp_path / "out/0.cim", "--as", "cim"]) as process:
        wait_for(lambda: (tmp_path / "out").exists() and any((tmp_path / "out").iterdir()))
        (other,) = children(process)
        process.kill()
    status = Path(f"/proc/{other}/status")
    wait_for(lambda: not status.exists() or "\nState:\tZ" in status.read_text())
    assert not (tmp_path / "out/0.cim").exists()
