# SPDX-License-Identifier: Apache-2.0
"""Windows images on any host: read, unpacked, compared, flattened, and extended by layers."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from tests.unit.layers.windows.test_tar import SD, T, file_at, link_at, windows, with_stream, write

import lamella
from lamella.changes.model import Change, Entry, Kind, Link, Put, Whiteout, Windows
from lamella.cli.main import run as main
from lamella.digests import Digest
from lamella.errors import Conflict, Integrity, InvalidInput, Unsupported
from lamella.formats.ntfs import reparse, sddl
from lamella.formats.ntfs.basic_information import DIRECTORY
from lamella.formats.regf import Hive, MemoryKey, encode_hive
from lamella.images.resolve import open_platform_image
from lamella.layers.stack import LayerStack
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.layers.windows.transforms import default_security, parse_template
from lamella.operations.layers.apply import ApplyOptions, apply_blob
from lamella.operations.layers.diff import DiffOptions, diff, list_changes
from lamella.operations.pack import PackOptions, pack
from lamella.operations.surgery.append import AppendOptions, append
from lamella.operations.surgery.flatten import FlattenOptions, flatten
from lamella.operations.surgery.mutate import Settings
from lamella.operations.surgery.new_layers import FileLike, Symlink
from lamella.operations.trees.compare import compare
from lamella.operations.trees.filesystem import Filesystem
from lamella.operations.trees.open import open_tree
from lamella.operations.unpack import UnpackOptions, unpack
from lamella.paths import LayerPath
from lamella.service.differs.windows import WindowsMount, layer_to_diff
from lamella.streams.blob_reader import BlobReader
from lamella.testing.images import image_of_tars, tagged, write_layout

CONFIG = "Files/Windows/System32/config"


def folder(path: str, **fields: object) -> Put:
    return Put(Entry(LayerPath(path), Kind.DIRECTORY, None, 0, "", windows(0x10, **fields)), None)


def hive(**values: str) -> bytes:
    root = MemoryKey("ROOT")
    for name, text in values.items():
        root.put(name, 1, text.encode("utf-16-le"))
    return encode_hive(root)


BASE: list[Change] = [
    *map(folder, ("Files", "Files/ProgramData", "Files/Windows", "Files/Windows/System32", CONFIG)),
    *with_stream("Files/Windows/System32/Cmd.exe"),
    file_at(f"{CONFIG}/SYSTEM", hive(a="1", b="2")),
    file_at("Files/ProgramData/x.txt", b"data"),
    link_at("Files/All Users", 0x2416, reparse.mount_point("C:\\ProgramData")),
    file_at("Files/old", b"old"),
    Link(LayerPath("Files/older"), LayerPath("Files/old")),
]
ABOVE: list[Change] = [
    *map(folder, ("Files", "Files/windows", "Files/windows/SYSTEM32", "Hives")),
    file_at("Files/windows/SYSTEM32/cmd.EXE", b"newer"),
    file_at("Files/windows/new.txt", b"new"),
    file_at("Hives/System_Delta", hive(b="3", c="4")),
    Whiteout(LayerPath("Files/OLD")),
]
TOP: list[Change] = [folder("Files"), folder("Hives"), file_at("Hives/System_Delta", hive(a="5"))]


def image(tmp_path: Path, *layers: Iterable[Change], system: str = "windows") -> str:
    small = image_of_tars([write(layer)[0] for layer in layers], f"{system}/amd64")
    where = tmp_path / f"image{len(list(tmp_path.iterdir()))}"
    write_layout(str(where), [tagged(small.descriptor, "v")], small.blobs)
    return f"oci:{where}:v"


@pytest.fixture
def name(tmp_path: Path) -> str:
    """Return the name of an image of a base layer and one above."""
    return image(tmp_path, BASE, ABOVE)


def code_of(*arguments: str) -> int:
    return main(arguments)


def run(*arguments: str) -> str:
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(printed):
        assert code_of(*arguments) == 0
    printed.flush()
    assert isinstance(printed.buffer, io.BytesIO)
    return printed.buffer.getvalue().decode()


class TestView:
    def test_paths_ignore_case(self, name: str) -> None:
        with open_tree(name, platform="windows/amd64") as tree:
            files = Filesystem(tree)
            assert (files / "files/WINDOWS/system32/CMD.exe").read_bytes() == b"newer"
            assert (files / "Files/Windows/New.TXT").read_bytes() == b"new"
            assert not (files / "Files/old").exists()
            assert (files / "Files/Older").read_bytes() == b"old"
            assert [one.name for one in (files / "FILES/windows").iterdir()] == ["System32", "new.txt"]

    def test_links_lead_to_the_same_files_as_in_a_container(self, name: str) -> None:
        with open_tree(name, platform="windows/amd64") as tree:
            assert (Filesystem(tree) / "Files/all users/X.txt").read_bytes() == b"data"

    def test_the_verbs_show_it(self, name: str) -> None:
        platform = ("--platform", "windows/amd64")
        assert run("cat", f"{name}::files/windows/NEW.txt", *platform) == "new"
        assert "Cmd.exe" in run("ls", f"{name}::FILES/Windows/system32", *platform)
        assert "new.txt" in run("tree", name, *platform)
        assert "/Files/Windows/new.txt" in run("find", name, "--name", "new*", *platform)
        assert "/Files/Windows/new.txt" in run("find", name, "--name", "NEW.*", *platform)
        assert "/Files/Windows/new.txt" in run("find", name, "--path", "/files/windows/*", *platform)
        assert "b" in run("hive", "ls", f"{name}::files/windows/system32/config/system", *platform)

    def test_verify_tries_each_layer_as_one_of_windows(self, tmp_path: Path) -> None:
        """Names are one in whatever case, and what Windows does not take is no sound layer."""
        streams = with_stream("Files/Windows/System32/Again.exe")
        assert lamella.verify(image(tmp_path, BASE, [*ABOVE, *streams], TOP)).problems == []
        bad = image(tmp_path, BASE, [folder("Files"), folder("Hives"), file_at("Files/all users/x")])
        (problem,) = lamella.verify(bad).problems
        assert "is a link" in problem.why
        with lamella.open_image(bad, "windows/amd64") as opened:
            assert problem.blob == opened.layers[1].descriptor.digest

    def test_verify_finds_a_linux_layer_in_a_windows_image_that_no_drive_can_hold(self, tmp_path: Path) -> None:
        (tmp_path / "linux").mkdir()
        (tmp_path / "linux" / "a:b").write_text("x")
        diff(None, tmp_path / "linux", tmp_path / "linux.tar", DiffOptions(compression="none"))
        append(
            image(tmp_path, BASE),
            [tmp_path / "linux.tar"],
            f"oci:{tmp_path}/mixed:v",
            AppendOptions(platform="windows/amd64"),
        )
        (problem,) = lamella.verify(f"oci:{tmp_path}/mixed:v").problems
        assert "'a:b'" in problem.why

    def test_a_file_below_a_link_is_refused(self, tmp_path: Path) -> None:
        bad = image(tmp_path, BASE, [folder("Files"), folder("Hives"), file_at("Files/all users/x")])
        with pytest.raises(InvalidInput, match="is a link"), open_tree(bad, platform="windows/amd64"):
            pass


class TestUnpack:
    def test_files_give_a_plain_tree_of_drive_c(self, name: str, tmp_path: Path) -> None:
        with open_platform_image(name, "windows/amd64") as opened:
            unpacked = unpack(opened, tmp_path / "out", UnpackOptions(kind="directory"))
        out = tmp_path / "out"
        assert sorted(os.listdir(out)) == ["All Users", "ProgramData", "Windows", "older"]
        assert (out / "Windows/System32/Cmd.exe").read_bytes() == b"newer"
        assert os.readlink(out / "All Users") == "/ProgramData"
        assert [loss.what for loss in unpacked.losses] == ["alternate data stream 'ads'"]

    def test_layers_give_their_folders(self, name: str, tmp_path: Path) -> None:
        with open_platform_image(name, "windows/amd64") as opened:
            unpack(opened, tmp_path / "out", UnpackOptions(kind="windows"))
            ids = [str(layer.diff_id) for layer in opened.layers]
        found = []
        for number in ("0", "1"):
            written = diff(
                None, tmp_path / "out" / number, tmp_path / "blob", DiffOptions(kind="windows", compression="none")
            )
            found.append(str(written.facts.diff_id))
        assert ids == found
        assert (tmp_path / "out/1/tombstones.txt").exists()
        values = Hive((tmp_path / "out/1/Hives/System_Base").read_bytes()).root_key.values()
        assert {one.name: one.data.decode("utf-16-le") for one in values} == {"a": "1", "b": "3", "c": "4"}

    def test_the_form_must_be_chosen(self, name: str, tmp_path: Path) -> None:
        with open_platform_image(name, "windows/amd64") as opened, pytest.raises(InvalidInput) as caught:
            unpack(opened, tmp_path / "out")
        assert "--as directory" in (caught.value.hint or "")
        posix = image(tmp_path, [], system="linux")
        with open_platform_image(posix, "linux/amd64") as opened, pytest.raises(InvalidInput, match="for linux"):
            unpack(opened, tmp_path / "out", UnpackOptions(kind="windows"))

    def test_a_bundle_of_a_windows_image_is_refused(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = tmp_path / "bundle"
        assert code_of("unpack", name, str(place), "--platform", "windows/amd64", "--bundle") == 3
        assert "a bundle for crun or runc" in capsys.readouterr().err
        assert not place.exists()

    def test_the_command_line_does_it(self, name: str, tmp_path: Path) -> None:
        run("unpack", name, str(tmp_path / "out"), "--platform", "windows/amd64", "--as", "directory")
        assert (tmp_path / "out/Windows/new.txt").read_bytes() == b"new"


class TestFlatten:
    def test_all_layers_become_a_base_layer_with_one_registry(self, tmp_path: Path) -> None:
        name = image(tmp_path, BASE, ABOVE, TOP)
        flatten(name, f"oci:{tmp_path}/flat:v", options=FlattenOptions(platform="windows/amd64"))
        with open_tree(f"oci:{tmp_path}/flat:v", platform="windows/amd64") as tree:
            files = Filesystem(tree)
            assert [one.name for one in files.root.iterdir()] == ["Files"]
            values = Hive((files / CONFIG / "SYSTEM").read_bytes()).root_key.values()
            assert {one.name: one.data.decode("utf-16-le") for one in values} == {"a": "5", "b": "3", "c": "4"}
            entry = (files / "Files/Windows/new.txt").entry()
            assert entry.windows is not None
            assert (entry.windows.security_descriptor, entry.windows.creation_time) == (SD, T)
            assert not (files / "Files/old").exists()
            link = (files / "Files/All Users").entry()
            assert link.windows is not None
            assert link.windows.reparse == reparse.encode(reparse.mount_point("C:\\ProgramData"))

    def test_deltas_of_two_layers_without_the_hive_below_are_refused(self, tmp_path: Path) -> None:
        name = image(tmp_path, BASE, ABOVE, TOP)
        with pytest.raises(Unsupported, match="hive SYSTEM"):
            flatten(name, f"oci:{tmp_path}/flat:v", "1..2", FlattenOptions(platform="windows/amd64"))

    def test_layers_above_the_base_become_one(self, tmp_path: Path) -> None:
        more = [folder("Files"), folder("Hives"), *with_stream("Files/more")]
        name = image(tmp_path, BASE, ABOVE, more)
        flatten(name, f"oci:{tmp_path}/flat:v", "1..", FlattenOptions(platform="windows/amd64"))
        assert compare(name, f"oci:{tmp_path}/flat:v", platform="windows/amd64").files == ()


class TestCompare:
    def test_names_that_differ_in_case_only_are_equal(self, tmp_path: Path) -> None:
        one = image(tmp_path, [folder("Files"), file_at("Files/A")])
        other = image(tmp_path, [folder("Files"), file_at("Files/a")])
        assert compare(one, other, platform="windows/amd64").files == ()

    def test_windows_metadata_is_compared(self, tmp_path: Path) -> None:
        plain, odd = file_at("Files/a"), file_at("Files/a", security_descriptor=None)
        one = image(tmp_path, [folder("Files"), plain, *with_stream("Files/b")])
        other = image(tmp_path, [folder("Files"), odd, file_at("Files/b")])
        found = compare(one, other, platform="windows/amd64").files
        assert [(str(one.path), one.what) for one in found] == [("Files/a", ("windows",)), ("Files/b", ("windows",))]


class TestAppend:
    def test_a_directory_becomes_a_windows_layer(self, name: str, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "App/data").mkdir(parents=True)
        (source / "App/run.exe").write_bytes(b"program")
        (source / "App/link").symlink_to("data")
        (source / "App/file").symlink_to("run.exe")
        run("append", name, str(source), f"oci:{tmp_path}/new:v", "--platform", "windows/amd64", "--windows")
        with open_platform_image(f"oci:{tmp_path}/new:v", "windows/amd64") as opened:
            layer = opened.layers[-1]
            with layer.open() as blob, BlobReader(blob) as reader:
                found = {
                    one.entry.path: one.entry for one in windows_tar_changes(reader.next_buffer) if isinstance(one, Put)
                }
        assert sorted(found) == [
            *("Files", "Files/App", "Files/App/data", "Files/App/file", "Files/App/link", "Files/App/run.exe", "Hives")
        ]
        program, link, file = (found[LayerPath(f"Files/App/{one}")].windows for one in ("run.exe", "link", "file"))
        assert program is not None
        assert link is not None
        assert file is not None
        assert (program.attributes, program.security_descriptor) == (0x20, default_security().file)
        assert link.attributes & DIRECTORY
        assert not file.attributes & DIRECTORY
        with open_tree(f"oci:{tmp_path}/new:v", platform="windows/amd64") as tree:
            assert (Filesystem(tree) / "files/app/RUN.EXE").read_bytes() == b"program"

    def facets(self, place: str) -> dict[str, Windows]:
        """What the topmost layer says of each file."""
        with (
            open_platform_image(place, "windows/amd64") as opened,
            opened.layers[-1].open() as blob,
            BlobReader(blob) as reader,
        ):
            changes = list(windows_tar_changes(reader.next_buffer))
        entries = [one.entry for one in changes if isinstance(one, Put)]
        return {str(one.path): one.windows for one in entries if one.windows is not None}

    @pytest.mark.parametrize("verb", ["append", "pack"])
    def test_security_descriptors_and_attributes_can_be_chosen(self, verb: str, name: str, tmp_path: Path) -> None:
        (tmp_path / "source/App").mkdir(parents=True)
        for file in ("App/Run.exe", "App/app.ini", "notes.txt"):
            (tmp_path / "source" / file).write_text("text")
        options = ["--file-security", "O:BAG:SYD:(A;;FA;;;WD)", "--directory-security", "none"]
        options += ["--attributes", "app/*.INI=hidden,readonly", "--attributes", "*=not-content-indexed"]
        images = (name, tmp_path / "source") if verb == "append" else (tmp_path / "source",)
        new = f"oci:{tmp_path}/new:v"
        run(verb, *map(str, images), new, "--platform", "windows/amd64", *options)
        found = self.facets(new)
        everybody = sddl.parse("O:BAG:SYD:(A;;FA;;;WD)").encode()
        found = {path: one for path, one in found.items() if not path.startswith(("Files/Windows", "Hives"))}
        assert {path: one.security_descriptor for path, one in found.items()} == {
            **dict.fromkeys(("Files", "Files/App"), None),
            **dict.fromkeys(("Files/App/Run.exe", "Files/App/app.ini", "Files/notes.txt"), everybody),
        }
        assert {path: one.attributes for path, one in found.items()} == {
            "Files": 0x10,
            "Files/App": 0x2010,
            "Files/App/Run.exe": 0x2020,
            "Files/App/app.ini": 0x2023,
            "Files/notes.txt": 0x2020,
        }

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            (["--file-security", "nonsense"], 3),
            (["--file-security", "O:DAG:DU"], 7),
            (["--attributes", "hidden"], 3),
            (["--attributes", "*=directory"], 3),
            (["--attributes", "=hidden"], 3),
        ],
    )
    def test_a_malformed_template_is_refused(self, options: list[str], code: int, name: str, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        new = f"oci:{tmp_path}/new:v"
        assert code == code_of("append", name, str(tmp_path / "source"), new, "--platform", "windows/amd64", *options)
        assert not (tmp_path / "new").exists()

    def test_a_template_is_for_windows(self, tmp_path: Path) -> None:
        posix = image(tmp_path, [], system="linux")
        template = parse_template("none")
        with pytest.raises(InvalidInput, match="for linux"):
            append(posix, {"a": ""}, f"oci:{tmp_path}/new:v", AppendOptions(platform="linux/amd64", template=template))
        with pytest.raises(InvalidInput, match="for linux"):
            pack(tmp_path, "oci:/nowhere/new:v", Settings(platform="linux/amd64"), PackOptions(template=template))

    def test_files_by_path_get_entries_for_their_directories(self, name: str, tmp_path: Path) -> None:
        files: dict[str, FileLike] = {"App/bin/a.txt": "text", "App/b": Symlink("bin/a.txt"), "Windows/new.txt": None}
        append(name, files, f"oci:{tmp_path}/new:v", AppendOptions(platform="windows/amd64"))
        with open_tree(f"oci:{tmp_path}/new:v", platform="windows/amd64") as tree:
            assert (Filesystem(tree) / "Files/App/b").read_text() == "text"
            assert not (Filesystem(tree) / "Files/Windows/new.txt").exists()

    def test_the_new_layer_can_be_applied(self, name: str, tmp_path: Path) -> None:
        append(name, {"App/a": "text"}, f"oci:{tmp_path}/new:v", AppendOptions(platform="windows/amd64"))
        with open_platform_image(f"oci:{tmp_path}/new:v", "windows/amd64") as opened:
            unpack(opened, tmp_path / "out", UnpackOptions(kind="windows"))
        assert (tmp_path / "out/2/Files/App/a").exists()

    def test_pack_makes_a_windows_layer_for_windows(self, tmp_path: Path) -> None:
        (tmp_path / "source/App").mkdir(parents=True)
        (tmp_path / "source/App/a").write_text("text")
        pack(tmp_path / "source", f"oci:{tmp_path}/new:v", Settings(platform="windows/amd64"))
        with open_tree(f"oci:{tmp_path}/new:v", platform="windows/amd64") as tree:
            assert (Filesystem(tree) / "files/app/A").read_text() == "text"
            entry = (Filesystem(tree) / "Files/App/a").entry()
            assert entry.windows is not None
            assert entry.windows.security_descriptor == default_security().file

    def stated(self, place: str) -> list[str]:
        """The paths of the lowest layer, in their order."""
        with (
            open_platform_image(place, "windows/amd64") as opened,
            opened.layers[0].open() as blob,
            BlobReader(blob) as reader,
        ):
            return [str(one.entry.path) for one in windows_tar_changes(reader.next_buffer) if isinstance(one, Put)]

    def test_pack_makes_a_base_layer_with_empty_hives_in_the_order_of_a_walk(self, tmp_path: Path) -> None:
        (tmp_path / "source/Zoo").mkdir(parents=True)
        (tmp_path / "source/App.txt").write_text("text")
        place = f"oci:{tmp_path}/new:v"
        packed = pack(tmp_path / "source", place, Settings(platform="windows/amd64"))
        config = "Files/Windows/System32/config"
        hives = [f"{config}/{name}" for name in ("DEFAULT", "SAM", "SECURITY", "SOFTWARE", "SYSTEM")]
        above = ["Files", "Files/App.txt", "Files/Windows", "Files/Windows/System32", config]
        assert [*above, *hives, "Files/Zoo"] == self.stated(place)
        with open_tree(place, platform="windows/amd64") as tree:
            for hive in hives:
                root = Hive((Filesystem(tree) / hive).read_bytes()).root_key
                assert (root.subkeys(), root.values()) == ([], [])
        with open_platform_image(place, "windows/amd64") as opened:
            for kind in ("windows", "cim"):
                unpack(opened, tmp_path / kind, UnpackOptions(kind=kind))
        assert len(os.listdir(tmp_path / "windows/0/Hives")) == 5
        again = pack(tmp_path / "source", f"oci:{tmp_path}/again:v", Settings(platform="windows/amd64"))
        assert packed.layer.digest == again.layer.digest

    def test_pack_keeps_existing_hives_and_their_spelling(self, tmp_path: Path) -> None:
        config = tmp_path / "source/windows/system32/Config"
        config.mkdir(parents=True)
        for name in ("system", "Sam"):
            (config / name).write_bytes(b"mine")
        place = f"oci:{tmp_path}/new:v"
        pack(tmp_path / "source", place, Settings(platform="windows/amd64"))
        stated = [path.rpartition("/")[2] for path in self.stated(place)]
        assert stated[:4] == ["Files", "windows", "system32", "Config"]
        assert sorted(stated[4:]) == ["DEFAULT", "SECURITY", "SOFTWARE", "Sam", "system"]

    def test_the_first_layer_of_an_image_without_any_is_a_base_layer(self, tmp_path: Path) -> None:
        place = f"oci:{tmp_path}/new:v"
        files: dict[str, FileLike] = {"windows/System32/config/SAM": b"mine", "App/a": "text"}
        lamella.Image.scratch("windows/amd64").append(files, {"App/b": "text"}).write(place)
        stated = self.stated(place)
        assert "Hives" not in stated
        assert "Files/windows/System32/config/SYSTEM" in stated
        assert stated.count("Files/windows/System32/config/SAM") == 1
        with open_platform_image(place, "windows/amd64") as opened:
            unpack(opened, tmp_path / "out", UnpackOptions(kind="windows"))
        assert (tmp_path / "out/1/Files/App/b").exists()

    def test_an_image_passed_as_a_value_is_opened_too(self, name: str) -> None:
        with lamella.open_image(name, platform="windows/amd64") as opened:
            made = opened.append({"App/a": "text"})
            assert (made.filesystem() / "files/app/A").read_text() == "text"

    def test_an_image_for_another_system_is_refused(self, tmp_path: Path) -> None:
        posix = image(tmp_path, [], system="linux")
        with pytest.raises(InvalidInput, match="for linux"):
            append(posix, {"a": ""}, f"oci:{tmp_path}/new:v", AppendOptions(platform="linux/amd64", windows=True))


class TestApplyAndDiff:
    def test_the_command_line_keeps_the_diff_id(self, tmp_path: Path) -> None:
        blob, again = tmp_path / "blob.tar", tmp_path / "again.tar"
        for number, layer in enumerate((BASE, ABOVE)):
            blob.write_bytes(write(layer)[0])
            below = [part for one in range(number) for part in ("--parent", str(tmp_path / str(one)))]
            run("apply", str(blob), str(tmp_path / str(number)), "--as", "windows", *below)
            run("diff", str(tmp_path / str(number)), "-o", str(again), "--as", "windows", "--compress", "none")
            assert blob.read_bytes() == again.read_bytes()

    def test_source_date_epoch_does_not_change_a_layer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
        (tmp_path / "blob.tar").write_bytes(write(BASE)[0])
        apply_blob(tmp_path / "blob.tar", tmp_path / "base", ApplyOptions(kind="windows"))
        diff(None, tmp_path / "base", tmp_path / "again", DiffOptions(kind="windows", compression="none"))
        assert (tmp_path / "blob.tar").read_bytes() == (tmp_path / "again").read_bytes()

    def test_a_wrong_digest_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "blob.tar").write_bytes(write(BASE)[0])
        with pytest.raises(Integrity):
            apply_blob(tmp_path / "blob.tar", tmp_path / "base", ApplyOptions(kind="windows"), diff_id=Digest.of(b""))
        assert os.listdir(tmp_path) == ["blob.tar"]

    def test_changes_are_listed(self, tmp_path: Path) -> None:
        (tmp_path / "blob.tar").write_bytes(write(BASE)[0])
        apply_blob(tmp_path / "blob.tar", tmp_path / "base", ApplyOptions(kind="windows"))
        (tmp_path / "blob.tar").write_bytes(write(ABOVE)[0])
        apply_blob(tmp_path / "blob.tar", tmp_path / "above", ApplyOptions(kind="windows", parents=[tmp_path / "base"]))
        found = {str(one.path): one.sign for one in list_changes(None, tmp_path / "above", kind="windows")}
        assert found["Files/OLD"] == "D"
        assert found["Hives/System_Delta"] == "A"
        assert "D" in run("diff", str(tmp_path / "above"), "--as", "windows")
        assert json.loads(run("--json", "dump", str(tmp_path / "above"), "--as", "windows"))["changes"]

    def test_options_without_effect_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "blob.tar").write_bytes(write(BASE)[0])
        for option in (["--owner", "keep"], ["--devices", "skip"]):
            assert code_of("apply", str(tmp_path / "blob.tar"), str(tmp_path / "b"), "--as", "windows", *option) == 2
        assert code_of("diff", str(tmp_path), str(tmp_path), "--as", "windows") == 2

    def test_the_size_is_counted_as_hcsshim_does(self, tmp_path: Path) -> None:
        (tmp_path / "blob.tar").write_bytes(write([folder("Files"), *with_stream("Files/a")])[0])
        assert apply_blob(tmp_path / "blob.tar", tmp_path / "base", ApplyOptions(kind="windows")).size == 5

    def test_an_existing_folder_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "blob.tar").write_bytes(write(BASE)[0])
        apply_blob(tmp_path / "blob.tar", tmp_path / "base", ApplyOptions(kind="windows"))
        with pytest.raises(Conflict):
            apply_blob(tmp_path / "blob.tar", tmp_path / "base", ApplyOptions(kind="windows"))


class TestPairs:
    """Which mounts can be compared, as containerd's differ for Windows has it."""

    layers = tuple(WindowsLayer(Path(f"/{number}")) for number in range(4))

    def mount(self, top: int, *parents: int, read_only: bool = False) -> WindowsMount:
        stack = LayerStack.from_nearest(self.layers[one] for one in parents)
        return WindowsMount.of(self.layers[top], stack, read_only=read_only)

    def test_a_layer_is_compared_with_its_parent(self) -> None:
        layer, parents = layer_to_diff(self.mount(1, 0), self.mount(2, 1, 0))
        assert layer == self.layers[2]
        assert parents.nearest_first() == (self.layers[1], self.layers[0])

    def test_a_view_shows_its_parents(self) -> None:
        view = self.mount(3, 1, 0, read_only=True)
        assert layer_to_diff(view, self.mount(2, 1, 0))[0] == self.layers[2]
        assert self.mount(3, read_only=True).layer is None

    def test_a_base_layer_is_compared_with_nothing(self) -> None:
        nothing = self.mount(3, read_only=True)
        assert layer_to_diff(nothing, self.mount(0))[0] == self.layers[0]

    @pytest.mark.parametrize(
        ("lower", "upper"),
        [(None, (1, 0)), ((0,), (1,)), ((0,), (2, 1, 0)), ((1,), (2, 1, 0)), ((1, 0), (2, 1))],
    )
    def test_other_pairs_are_refused(self, lower: tuple[int, ...] | None, upper: tuple[int, ...]) -> None:
        below = self.mount(3, read_only=True) if lower is None else self.mount(*lower)
        with pytest.raises(InvalidInput):
            layer_to_diff(below, self.mount(*upper))
