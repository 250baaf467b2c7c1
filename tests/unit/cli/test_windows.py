# SPDX-License-Identifier: Apache-2.0
"""Windows layers on the command line: what lies below is given alike to apply and to diff."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Run
from tests.unit.layers.cim.test_layer import windows_base
from tests.unit.layers.windows.test_tar import SD, file_at, link_at, with_stream, write
from tests.unit.layers.windows.windows_tars import microsoft_base, microsoft_update

from lamella.formats.ntfs import reparse
from lamella.layers.kinds import LAYER_KINDS
from lamella.layers.windows.names import AS_WINDOWS

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


def test_an_error_names_a_missing_parent(layers: Path, lamella: Run) -> None:
    done = lamella("diff", layers / "above", "--as", "windows", "--parent", layers / "missing")
    assert (done.returncode, done.stdout) == (4, "")
    assert "parent layer" in done.stderr


@pytest.mark.parametrize("kind", ["directory", "overlay", "cim"])
def test_layers_of_other_kinds_take_no_parents_to_be_read(layers: Path, lamella: Run, kind: str) -> None:
    done = lamella("diff", layers / "above", "--as", kind, "--parent", layers / "base")
    assert done.returncode == 2
    assert f"--parent is not for {LAYER_KINDS[kind].summary}" in done.stderr


class TestALayersFolderIsLookedInto:
    """As a tree, by its own name: what the layer states, and nothing of how the folder keeps it."""

    @pytest.fixture
    def folders(self, tmp_path: Path, lamella: Run) -> Path:
        for name, data, parents in (("base", microsoft_base(), ()), ("above", microsoft_update(), ("base",))):
            (tmp_path / f"{name}.tar").write_bytes(data)
            below = [word for parent in parents for word in ("--parent", tmp_path / parent)]
            done = lamella("apply", tmp_path / f"{name}.tar", tmp_path / name, "--as", "windows", *below)
            assert done.returncode == 0, done.stderr
        return tmp_path

    def test_files_are_listed_and_read_in_whatever_case(self, folders: Path, lamella: Run) -> None:
        name = f"windows:{folders}/above"
        assert lamella("ls", name).stdout == "Files\nHives\n"
        assert lamella("cat", f"{name}::files/windows/SYSTEM32/NTDLL.dll").stdout.encode(
            "utf-8", "surrogateescape"
        ) == (b"\x92" * 4000)
        assert lamella("hive", "ls", f"{name}::Hives/System_Delta").returncode == 0
        found = lamella("find", f"windows:{folders}/base", "--type", "l").stdout
        assert "/Files/Documents and Settings\n" in found

    def test_hard_links_to_the_layers_below_are_shown(self, folders: Path, lamella: Run) -> None:
        done = lamella("ls", "-l", f"windows:{folders}/above::Files/Windows/System32")
        assert "advapi.dll => /Files/Windows/System32/advapi32.dll" in done.stdout
        done = lamella("cat", f"windows:{folders}/above::Files/Windows/System32/advapi.dll")
        assert (done.returncode, "which is not in this layer but in a lower one" in done.stderr) == (4, True)

    def test_its_blob_can_be_named_as_well(self, folders: Path, lamella: Run) -> None:
        for name in ("base", "above"):
            folder, blob = (lamella("ls", "-lR", f"windows:{folders}/{name}{end}") for end in ("", ".tar"))
            assert blob.returncode == 0, blob.stderr
            assert folder.stdout == blob.stdout
        blob = lamella("cat", f"windows:{folders}/above.tar::files/windows/SYSTEM32/NTDLL.dll")
        assert blob.returncode == 0, blob.stderr
        assert lamella("hive", "ls", f"windows:{folders}/above.tar::hives/SYSTEM_DELTA").returncode == 0

    def test_streams_and_descriptors_are_in_its_dump(self, tmp_path: Path, lamella: Run) -> None:
        (tmp_path / "layer.tar").write_bytes(write(windows_base(*with_stream("Files/a")))[0])
        assert lamella("apply", tmp_path / "layer.tar", tmp_path / "layer", "--as", "windows").returncode == 0
        lines = lamella("dump", f"windows:{tmp_path}/layer").stdout.splitlines()
        assert lamella("dump", f"windows:{tmp_path}/layer.tar").stdout.splitlines() == lines
        assert any(line.startswith("stream Files/a name=ads size=6 ") for line in lines)
        assert any(line.startswith("put file") and " Files/a attributes=0x20 " in line for line in lines)

    def test_what_windows_keeps_of_a_file_is_there_for_machines(self, tmp_path: Path, lamella: Run) -> None:
        changes = windows_base(
            file_at("Files/a", extended_attributes={"FOO": b"bar"}),
            link_at("Files/l", 0x410, reparse.symlink("C:\\x")),
        )
        (tmp_path / "layer.tar").write_bytes(write(changes)[0])
        assert lamella("apply", tmp_path / "layer.tar", tmp_path / "layer", "--as", "windows").returncode == 0
        _, file, link = json.loads(lamella("ls", "--json", f"windows:{tmp_path}/layer::Files").stdout)
        assert file["windows"] == {
            "attributes": 0x20,
            "created": "1683356889.1234567",
            "accessed": "1683356890.1234567",
            "written": "1683356891.1234567",
            "changed": "1683356892.1234567",
            "security_descriptor": base64.b64encode(SD).decode(),
            "extended_attributes": {"FOO": "YmFy"},
        }
        assert (link["windows"]["attributes"], link["target"]) == (0x410, "/x")
        assert base64.b64decode(link["windows"]["reparse"]) == reparse.encode(reparse.symlink("C:\\x"))

    def test_what_is_no_layer_is_said(self, tmp_path: Path, lamella: Run) -> None:
        assert lamella("ls", f"windows:{tmp_path}/nothing").returncode == 4
        done = lamella("ls", f"windows:{tmp_path}")
        assert done.returncode == 7
        assert "lamella.index" in done.stderr


def test_an_error_for_a_layer_without_its_parents_explains_how_to_name_them(tmp_path: Path, lamella: Run) -> None:
    (tmp_path / "layer.tar").write_bytes(microsoft_update())
    done = lamella("apply", tmp_path / "layer.tar", tmp_path / "layer", "--as", "windows")
    assert done.returncode == 4
    assert "hint: give the layers below with --parent" in done.stderr


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


@pytest.mark.parametrize("verb", ["pack", "append"])
def test_options_for_windows_are_refused_for_another_system(tmp_path: Path, lamella: Run, verb: str) -> None:
    base, platform = f"oci:{tmp_path}/images:base", ("--platform", "linux/amd64")
    (tmp_path / "site").mkdir()
    assert lamella("pack", tmp_path / "site", base, *platform).returncode == 0
    given = (tmp_path / "site", base) if verb == "pack" else (base, tmp_path / "site", base)
    for options in (("--awkward-names",), ("--file-security", "none")):
        done = lamella(verb, *given, *options, *platform)
        assert (done.returncode, "for linux" in done.stderr) == (3, True)


class TestInAStore:
    PLATFORM = ("--platform", "windows/amd64")

    @pytest.fixture
    def image(self, tmp_path: Path, lamella: Run, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "root"))
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "aux.js").write_text("x")
        name = f"oci:{tmp_path}/images:v"
        assert lamella("pack", tmp_path / "site", name, "--awkward-names", *self.PLATFORM).returncode == 0
        return name

    def test_an_image_is_unpacked_by_a_snapshotter_for_windows(self, image: str, lamella: Run) -> None:
        words = ("store", "import", image, "--name", "example.org/a:1", "--unpack", *self.PLATFORM)
        done = lamella(*words)
        assert done.returncode == 0, done.stderr
        assert "1 of 1 layers unpacked into cimfs" in done.stdout + done.stderr
        assert lamella("cat", "store:example.org/a:1::Files/aux.js", *self.PLATFORM).stdout == "x"

    def test_a_snapshotter_for_another_system_is_refused(self, image: str, tmp_path: Path, lamella: Run) -> None:
        words = ("store", "import", image, "--name", "example.org/a:1", "--unpack", *self.PLATFORM)
        done = lamella(*words, "--snapshotter", "overlay")
        assert done.returncode == 3
        assert "keeps layers of Linux" in done.stderr
        assert "hint: the snapshotter 'cimfs' is one for it" in done.stderr
        name = f"oci:{tmp_path}/images:linux"
        assert lamella("pack", tmp_path / "site", name, "--platform", "linux/amd64").returncode == 0
        words = ("store", "import", name, "--name", "example.org/b:1", "--unpack", "--platform", "linux/amd64")
        done = lamella(*words, "--snapshotter", "cimfs")
        assert (done.returncode, "keeps layers of Windows" in done.stderr) == (3, True)
