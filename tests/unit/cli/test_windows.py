# SPDX-License-Identifier: Apache-2.0
"""Windows layers on the command line: what lies below is given alike to apply and to diff."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.cli.conftest import Run
from tests.unit.layers.cim.test_cim_layer import windows_base
from tests.unit.layers.test_windows_dialect import file_at, write

from lamella.layers.windows_names import AS_WINDOWS

BASE = [file_at("Files/a")]
ABOVE = [file_at("Files/b"), file_at("Hives/System_Delta", b"")]


@pytest.fixture
def layers(tmp_path: Path, lamella: Run) -> Path:
    for name, changes, parents in (("base", BASE, ()), ("above", ABOVE, ("--parent", tmp_path / "base"))):
        (tmp_path / f"{name}.tar").write_bytes(write(changes)[0])
        done = lamella("apply", tmp_path / f"{name}.tar", tmp_path / name, "--as", "windows", *parents)
        assert done.returncode == 0, done.stderr
    return tmp_path


def test_a_layer_is_read_with_its_parents_named(layers: Path, lamella: Run) -> None:
    where = ("--as", "windows", "--parent", layers / "base")
    done = lamella("diff", layers / "above", "-o", layers / "again.tar", "--compress", "none", *where)
    assert done.returncode == 0, done.stderr
    assert (layers / "above.tar").read_bytes() == (layers / "again.tar").read_bytes()
    assert "/Files/b" in lamella("diff", layers / "above", *where).stdout


def test_a_parent_that_is_not_there_is_told(layers: Path, lamella: Run) -> None:
    done = lamella("diff", layers / "above", "--as", "windows", "--parent", layers / "missing")
    assert (done.returncode, done.stdout) == (4, "")
    assert "parent layer" in done.stderr


@pytest.mark.parametrize("kind", ["directory", "overlay", "cim"])
def test_layers_of_other_kinds_take_no_parents_to_be_read(layers: Path, lamella: Run, kind: str) -> None:
    done = lamella("diff", layers / "above", "--as", kind, "--parent", layers / "base")
    assert done.returncode == 2
    assert "--parent is for the folder of a Windows layer" in done.stderr


class TestAwkwardNames:
    """Names that NTFS has, and that most of Windows' programs cannot open."""

    NAMES = ("Files/a.", "Files/aux.js", "Files/b ")

    @pytest.fixture
    def blob(self, tmp_path: Path) -> Path:
        path = tmp_path / "awkward.tar"
        changes = windows_base(*(file_at(name) for name in self.NAMES))
        path.write_bytes(write(changes, rules=AS_WINDOWS)[0])
        return path

    @pytest.mark.parametrize(("kind", "place"), [("windows", "layer"), ("cim", "layer.cim")])
    def test_are_refused_by_apply_with_a_hint_and_taken_where_asked_for(
        self, blob: Path, tmp_path: Path, lamella: Run, kind: str, place: str
    ) -> None:
        refused = lamella("apply", blob, tmp_path / place, "--as", kind)
        assert refused.returncode == 3, refused.stderr
        assert "'Files/a.'" in refused.stderr
        assert "--awkward-names" in refused.stderr
        assert not (tmp_path / place).exists()
        done = lamella("apply", blob, tmp_path / place, "--as", kind, "--awkward-names")
        assert done.returncode == 0, done.stderr

    def test_come_back_from_a_folder_to_the_byte(self, blob: Path, tmp_path: Path, lamella: Run) -> None:
        folder, again = tmp_path / "layer", tmp_path / "again.tar"
        lamella("apply", blob, folder, "--as", "windows", "--awkward-names")
        where = ("diff", folder, "-o", again, "--as", "windows", "--compress", "none")
        assert lamella(*where, "--strict").returncode == 0
        assert blob.read_bytes() == again.read_bytes()
        (folder / "lamella.framing").unlink()  # so that the tar is made anew
        lost = lamella(*where)
        assert lost.returncode == 0, lost.stderr
        assert "--awkward-names" in lost.stderr
        assert lamella(*where, "--strict").returncode != 0
        assert lamella(*where, "--strict", "--awkward-names").returncode == 0
        assert blob.read_bytes() == again.read_bytes()

    def test_are_refused_in_an_image_by_unpack_and_taken_where_asked_for(
        self, blob: Path, tmp_path: Path, lamella: Run
    ) -> None:
        image, platform = f"oci:{tmp_path}/images:a", ("--platform", "windows/amd64")
        (tmp_path / "empty").mkdir()
        assert lamella("pack", tmp_path / "empty", f"oci:{tmp_path}/images:base", *platform).returncode == 0
        assert lamella("append", f"oci:{tmp_path}/images:base", blob, image, *platform).returncode == 0
        for kind in ("windows", "cim"):
            refused = lamella("unpack", image, tmp_path / kind, "--as", kind, *platform)
            assert refused.returncode == 3, refused.stderr
            assert "--awkward-names" in refused.stderr
            done = lamella("unpack", image, tmp_path / kind, "--as", kind, "--awkward-names", *platform)
            assert done.returncode == 0, done.stderr
        drive = lamella("unpack", image, tmp_path / "drive", "--as", "directory", *platform)
        assert drive.returncode == 0, drive.stderr
        assert {"a.", "aux.js", "b "} <= {one.name for one in (tmp_path / "drive").iterdir()}

    @pytest.mark.parametrize("verb", ["pack", "append"])
    def test_of_a_directory_are_left_out_with_a_hint_unless_asked_for(
        self, tmp_path: Path, lamella: Run, verb: str
    ) -> None:
        platform = ("--platform", "windows/amd64")
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "aux.js").write_text("x")
        base = f"oci:{tmp_path}/images:base"
        (tmp_path / "empty").mkdir()
        lamella("pack", tmp_path / "empty", base, *platform)
        for tag, options, listed in (("without", (), ""), ("with", ("--awkward-names",), "Files/aux.js\n")):
            image = f"oci:{tmp_path}/images:{tag}"
            given = (tmp_path / "site", image) if verb == "pack" else (base, tmp_path / "site", image)
            done = lamella(verb, *given, *options, *platform)
            assert done.returncode == 0, done.stderr
            assert ("--awkward-names" in done.stderr) is not bool(options)
            found = lamella("find", image, "--name", "aux*", *platform).stdout
            assert found.replace("/Files", "Files") == listed

    def test_of_an_image_are_kept_by_what_changes_its_form(self, blob: Path, tmp_path: Path, lamella: Run) -> None:
        images, platform = f"oci:{tmp_path}/images", ("--platform", "windows/amd64")
        (tmp_path / "empty").mkdir()
        lamella("pack", tmp_path / "empty", f"{images}:base", *platform)
        lamella("append", f"{images}:base", blob, f"{images}:a", *platform)
        for done in (
            lamella("flatten", f"{images}:a", f"{images}:flat", "--strict", *platform),
            lamella("convert", f"{images}:a", tmp_path / "cims", "--to", "cim", *platform),
            lamella("convert", tmp_path / "cims", f"{images}:again", "--to", "tar", "--strict"),
        ):
            assert done.returncode == 0, done.stderr
        for tag in ("flat", "again"):
            assert "aux.js" in lamella("find", f"{images}:{tag}", *platform).stdout

    @pytest.mark.parametrize(
        "words", [("apply", "blob", "place"), ("diff", "place"), ("unpack", "oci:images:a", "place")]
    )
    def test_are_for_windows_layers_alone(self, lamella: Run, words: tuple[str, ...], tmp_path: Path) -> None:
        done = lamella(*words, "--as", "directory", "--awkward-names")
        assert done.returncode == 2
        assert "--awkward-names is for" in done.stderr
