# SPDX-License-Identifier: Apache-2.0
"""Layer folders: their files, reading them back, and refusals."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.unit.formats.tar.archives import END, buffers
from tests.unit.layers.windows.test_tar import (
    EAS,
    INPUTS,
    SD,
    VECTORS,
    T,
    all_times,
    file_at,
    lines,
    link_at,
    windows,
    with_stream,
    write,
)

from lamella.changes.apply import apply
from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Entry, Inline, Kind, Link, Opaque, Put, Stream, Whiteout
from lamella.errors import Conflict, FormatError, InvalidInput, MissingFacet, NotFound, UnsafePath, Unsupported
from lamella.formats import backup
from lamella.formats.ntfs import reparse
from lamella.formats.regf import Hive, MemoryKey, encode_hive
from lamella.layers.stack import LayerStack
from lamella.layers.windows.folder.reader import FolderChanges
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.names import NameRules
from lamella.layers.windows.sink import WindowsSink
from lamella.layers.windows.tar_source import EMPTY_DATA, windows_tar_changes
from lamella.operations.layers.apply import ApplyOptions, apply_blob
from lamella.paths import LayerPath
from lamella.testing.builders import file as posix_file
from lamella.testing.builders import sparse


def folder(path: str, **fields: object) -> Put:
    return Put(Entry(LayerPath(path), Kind.DIRECTORY, None, 0, "", windows(0x10, **fields)), None)


TOP: list[Change] = [folder("Files"), folder("Files/Windows")]
NON_BASE: list[Change] = [folder("Files"), folder("Files/Windows"), folder("Hives")]


def stack(*nearest: Path) -> LayerStack[WindowsLayer] | None:
    return LayerStack.from_nearest(map(WindowsLayer, nearest)) if nearest else None


def made(place: Path, changes: Iterable[Change], *parents: Path, rules: NameRules | None = None) -> Path:
    apply(changes, WindowsSink(WindowsLayer(place), parents=stack(*parents), rules=rules))
    return place


def stated(place: Path) -> list[str]:
    with FolderChanges(WindowsLayer(place)) as changes:
        return lines(changes)


def tar_of(place: Path) -> bytes:
    with FolderChanges(WindowsLayer(place)) as changes:
        data, losses = write(changes, lookup=changes.lookup)
        assert list(losses) == []
        return data


def from_tar(place: Path, data: bytes, *parents: Path) -> Path:
    sink = WindowsSink(WindowsLayer(place), parents=stack(*parents))
    apply(windows_tar_changes(buffers(data, 512), linked=sink.link_facet), sink)
    return place


def link(path: str, target: str) -> Link:
    return Link(LayerPath(path), LayerPath(target))


def whiteout(path: str) -> Whiteout:
    return Whiteout(LayerPath(path))


def all_inputs() -> list[Change]:
    """One of each member that go-winio's vectors have, in one layer; directories before what is in them."""
    changes: list[Change] = list(TOP)
    long_directory = "Files/" + "d" * 120
    for name, part in sorted(INPUTS.items()):
        if name in ("dir", "whiteout", "whiteout_nonascii"):
            continue
        if name == "long":
            changes.append(folder(long_directory))
        changes += part
    return [*changes, file_at("Files/a"), link("Files/b", "Files/a"), link("Files/c", "Files/b")]


class TestBaseLayer:
    def test_a_layer_comes_back_as_it_was_byte_for_byte(self, tmp_path: Path) -> None:
        data, _ = write(all_inputs())
        place = from_tar(tmp_path / "base", data)
        assert data == tar_of(place)

    def test_members_that_go_winio_wrote_come_back_byte_for_byte(self, tmp_path: Path) -> None:
        parts = [name for name in INPUTS if name not in ("long", "whiteout", "whiteout_nonascii", "dir")]
        data, _ = write([folder("Files")])
        whole = data[:-1024] + b"".join((VECTORS / f"{name}.bin").read_bytes() for name in ("dir", *parts)) + END
        assert whole == tar_of(from_tar(tmp_path / "base", whole))

    def test_files_lie_in_the_folder_as_themselves(self, tmp_path: Path) -> None:
        place = made(tmp_path / "base", all_inputs())
        assert (place / "Files/Windows/a.txt").read_bytes() == b"hello"
        assert (place / "Files/sp").read_bytes() == b"aaaa" + bytes(16) + b"bb" + bytes(8)
        assert (place / "Files/a").stat().st_ino == (place / "Files/c").stat().st_ino
        assert (place / "Files/Windows/a.txt").stat().st_mtime_ns // 10**9 == T // 10**9 + 2

    def test_no_link_is_ever_made_in_the_folder(self, tmp_path: Path) -> None:
        place = made(tmp_path / "base", all_inputs())
        assert [path for path in place.rglob("*") if path.is_symlink()] == []
        assert (place / "Files/ln").is_file()
        assert (place / "Files/dln").is_dir()

    def test_an_empty_file_may_have_a_data_stream(self, tmp_path: Path) -> None:
        changes = [*TOP, Put(file_at("Files/e", b"").entry, EMPTY_DATA), file_at("Files/f", b"")]
        data, _ = write(changes)
        assert data.count(b"0100000\0") == 1
        assert data == tar_of(from_tar(tmp_path / "base", data))
        (tmp_path / "parent").mkdir()
        assert data == tar_of(from_tar(tmp_path / "other", data, tmp_path / "base"))

    def test_boot_files_have_unchanged_copies(self, tmp_path: Path) -> None:
        boot = "UtilityVM/Files/EFI/Microsoft/Boot"
        parents = ["UtilityVM", "UtilityVM/Files", "UtilityVM/Files/EFI", "UtilityVM/Files/EFI/Microsoft", boot]
        changes = [*TOP, *map(folder, parents), file_at(f"{boot}/BCD", b"store"), file_at(f"{boot}/BCD.LOG1", b"")]
        place = made(tmp_path / "base", changes)
        assert (place / "bcd.bak").read_bytes() == b"store"
        assert (place / "bcd.log1.bak").read_bytes() == b""
        assert not (place / "bcd.log.bak").exists()
        assert (place / "bcd.bak").stat().st_nlink == 1

    def test_base_hives_are_linked_for_the_layers_above(self, tmp_path: Path) -> None:
        config = "Files/Windows/System32/config"
        changes = [*TOP, folder("Files/Windows/System32"), folder(config)]
        changes += [file_at(f"{config}/SYSTEM", b"one"), file_at(f"{config}/DEFAULT", b"two")]
        place = made(tmp_path / "base", changes)
        assert sorted(os.listdir(place / "Hives")) == ["DefaultUser_Base", "System_Base"]
        assert (place / "Hives/System_Base").samefile(place / config / "SYSTEM")
        assert lines(changes) == stated(place)

    def test_implied_directories_are_created_and_have_no_entry(self, tmp_path: Path) -> None:
        changes = [file_at("Files/x/y/z")]
        place = made(tmp_path / "base", changes)
        assert (place / "Files/x/y/z").read_bytes() == b"hello"
        assert lines(changes) == stated(place)

    def test_a_whiteout_is_refused_with_a_hint(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="base layer") as caught:
            made(tmp_path / "base", [*TOP, whiteout("Files/gone")])
        assert "--parent" in (caught.value.hint or "")
        assert os.listdir(tmp_path) == []

    def test_the_files_are_counted_as_hcsshim_counts_them(self, tmp_path: Path) -> None:
        sink = WindowsSink(WindowsLayer(tmp_path / "base"))
        apply([*TOP, *with_stream("Files/a"), file_at("Files/b", b"123"), link("Files/c", "Files/b")], sink)
        assert sink.size == 8

    def test_holes_stay_holes(self, tmp_path: Path) -> None:
        big = sparse(64 << 20, [(1 << 20, b"x" * 4096)])
        changes = [*TOP, Put(Entry(LayerPath("Files/s"), Kind.FILE, None, 64 << 20, "", windows(0x220)), big)]
        for place in (made(tmp_path / "base", changes), made(tmp_path / "above", changes, tmp_path / "base")):
            assert (place / "Files/s").stat().st_blocks < 4096
            assert lines(changes) == stated(place)


class TestLayerWithParents:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        boot = "UtilityVM/Files/EFI/Microsoft/Boot"
        utility = ["UtilityVM", "UtilityVM/Files", "UtilityVM/Files/EFI", "UtilityVM/Files/EFI/Microsoft", boot]
        changes = [*TOP, file_at("Files/Windows/Old.dll", b"old"), *map(folder, utility)]
        changes += [file_at(f"{boot}/BCD", b"boot"), file_at("UtilityVM/Files/vm.sys", b"system")]
        return made(tmp_path / "base", changes)

    def test_the_tar_is_restored_byte_for_byte(self, tmp_path: Path, base: Path) -> None:
        changes = [*all_inputs(), folder("Hives"), file_at("Hives/System_Delta", b""), whiteout("Files/Windows/gone")]
        data, _ = write(changes)
        assert data == tar_of(from_tar(tmp_path / "above", data, base))

    def test_files_are_attributes_and_backup_streams(self, tmp_path: Path, base: Path) -> None:
        put = file_at("Files/f", b"hello", extended_attributes=EAS)
        place = made(tmp_path / "above", [*NON_BASE, put, Stream(LayerPath("Files/f"), "ads", Inline(b"more"))], base)
        raw = (place / "Files/f").read_bytes()
        assert raw[:4] == b"\x20\0\0\0"
        position = 0

        def read(count: int) -> bytes:
            nonlocal position
            part = raw[4 + position : 4 + position + count]
            position += len(part)
            return part

        found = backup.survey(backup.BackupReader(read))
        assert found.security_descriptor == SD
        assert [(name, size) for name, size, _ in found.alternates] == [("ads", 4)]
        assert found.size == 5

    def test_directories_have_their_metadata_beside_them(self, tmp_path: Path, base: Path) -> None:
        place = made(tmp_path / "above", NON_BASE, base)
        for name in ("Files", "Hives", "Files/Windows"):
            assert (place / f"{name}.$wcidirs$").read_bytes()[:4] == b"\x10\0\0\0"

    def test_hives_are_plain_files(self, tmp_path: Path, base: Path) -> None:
        place = made(tmp_path / "above", [*NON_BASE, file_at("Hives/Other", b"content")], base)
        assert (place / "Hives/Other").read_bytes() == b"content"

    def test_whiteouts_are_tombstones(self, tmp_path: Path, base: Path) -> None:
        gone = [whiteout("Files/Windows/Old.dll"), whiteout("Files/gön"), whiteout("Files/back")]
        place = made(tmp_path / "above", [*NON_BASE, *gone, file_at("Files/back")], base)
        expected = "\ufeffVersion 1.0\r\n\\Windows\\Old.dll\r\n\\gön\r\n"
        assert (place / "tombstones.txt").read_bytes() == expected.encode()

    @pytest.mark.parametrize("path", ["Hives/x", "Files", "Hives", "UtilityVM", "UtilityVM/Files"])
    def test_whiteouts_outside_of_files_are_refused(self, path: str, tmp_path: Path, base: Path) -> None:
        with pytest.raises(InvalidInput, match="whiteout of"):
            made(tmp_path / "above", [*NON_BASE, whiteout(path)], base)

    def test_a_link_may_lead_to_a_file_below(self, tmp_path: Path, base: Path) -> None:
        changes = [*NON_BASE, link("Files/new", "Files/Windows/Old.dll")]
        place = made(tmp_path / "above", changes, base)
        assert lines(changes) == stated(place)
        data = tar_of(place)
        assert b"fileattr=32\n" in data
        above = made(tmp_path / "top", [*NON_BASE, link("Files/newer", "Files/NEW")], place, base)
        assert len(tar_of(above)) == len(write(NON_BASE)[0]) + 1536

    def test_a_link_keeps_the_metadata_of_its_own_tar_header(self, tmp_path: Path, base: Path) -> None:
        first = file_at("Files/Windows/Old.dll", b"", **all_times(5 * 10**9))
        whole, _ = write([*NON_BASE, first, link("Files/new", "Files/Windows/Old.dll")])
        put_size = len(write([first])[0]) - 1024
        start = len(write(NON_BASE)[0]) - 1024
        data = whole[:start] + whole[start + put_size :]
        assert data == tar_of(from_tar(tmp_path / "above", data, base))

    def test_a_hard_link_to_a_hidden_or_missing_file_is_refused(self, tmp_path: Path, base: Path) -> None:
        hiding = made(tmp_path / "hiding", [*NON_BASE, whiteout("Files/windows")], base)
        for target, *parents in (("Files/Windows/Old.dll", hiding, base), ("Files/none", base)):
            with pytest.raises(NotFound, match="does not exist"):
                made(tmp_path / "above", [*NON_BASE, link("Files/new", str(target))], *map(Path, parents))

    @pytest.mark.parametrize(("path", "target"), [("Hives/a", "Files/Windows/Old.dll"), ("Files/a", "Hives/b")])
    def test_links_in_hives_are_refused(self, path: str, target: str, tmp_path: Path, base: Path) -> None:
        with pytest.raises(InvalidInput, match="not in Files or UtilityVM/Files"):
            made(tmp_path / "above", [*NON_BASE, link(path, target)], base)

    def test_the_utility_vm_starts_as_a_copy_of_the_parents(self, tmp_path: Path, base: Path) -> None:
        changes = [*NON_BASE, folder("UtilityVM"), folder("UtilityVM/Files"), file_at("utilityvm/files/VM.sys", b"new")]
        changes[-1] = file_at("UtilityVM/Files/VM.sys", b"new")
        place = made(tmp_path / "above", changes, base)
        boot = "UtilityVM/Files/EFI/Microsoft/Boot/BCD"
        assert (place / boot).read_bytes() == b"boot"
        assert not (place / boot).samefile(base / boot)
        assert sorted(os.listdir(place / "UtilityVM/Files")) == ["EFI", "VM.sys"]
        assert (place / "UtilityVM/Files/VM.sys").read_bytes() == b"new"
        assert (base / "UtilityVM/Files/vm.sys").read_bytes() == b"system"
        assert lines(changes) == stated(place)

    def test_a_whiteout_of_a_missing_utility_vm_file_is_refused(self, tmp_path: Path, base: Path) -> None:
        utility = [folder("UtilityVM"), folder("UtilityVM/Files")]
        place = made(tmp_path / "above", [*NON_BASE, *utility, whiteout("UtilityVM/Files/efi")], base)
        assert os.listdir(place / "UtilityVM/Files") == ["vm.sys"]
        with pytest.raises(NotFound, match="which the layers below do not have"):
            made(tmp_path / "other", [*NON_BASE, whiteout("UtilityVM/Files/none")], base)

    def test_hard_links_between_utility_vm_and_container_are_allowed(self, tmp_path: Path, base: Path) -> None:
        utility = [folder("UtilityVM"), folder("UtilityVM/Files"), file_at("UtilityVM/Files/a")]
        changes = [*NON_BASE, *utility, link("Files/a", "UtilityVM/Files/a"), link("UtilityVM/Files/b", "Files/a")]
        changes.append(link("UtilityVM/Files/c", "UtilityVM/Files/vm.sys"))
        place = made(tmp_path / "above", changes, base)
        assert lines(changes) == stated(place)
        assert (place / "UtilityVM/Files/c").read_bytes() == b"system"

    def test_hive_deltas_are_merged_and_other_hives_are_copied(self, tmp_path: Path) -> None:
        config = "Files/Windows/System32/config"

        def hive(**values: str) -> bytes:
            root = MemoryKey("ROOT")
            for name, text in values.items():
                root.put(name, 1, text.encode("utf-16-le"))
            return encode_hive(root)

        changes = [*TOP, folder("Files/Windows/System32"), folder(config)]
        changes += [file_at(f"{config}/SYSTEM", hive(a="1", b="2")), file_at(f"{config}/SAM", hive(c="3"))]
        base = made(tmp_path / "base", changes)
        first = made(tmp_path / "first", [*NON_BASE, file_at("Hives/System_Delta", hive(b="4"))], base)
        second = made(tmp_path / "second", [*NON_BASE, file_at("Hives/SAM_DELTA", hive(d="5"))], first, base)

        def values(place: Path, name: str) -> dict[str, str]:
            found = Hive((place / "Hives" / name).read_bytes()).root_key.values()
            return {one.name: one.data.decode("utf-16-le") for one in found}

        assert values(first, "System_Base") == {"a": "1", "b": "4"}
        assert values(second, "System_Base") == {"a": "1", "b": "4"}
        assert values(second, "Sam_Base") == {"c": "3", "d": "5"}

    def test_a_delta_that_is_no_hive_is_refused_and_nothing_is_left(self, tmp_path: Path) -> None:
        config = "Files/Windows/System32/config"
        changes = [*TOP, folder("Files/Windows/System32"), folder(config), file_at(f"{config}/SYSTEM", b"")]
        base = made(tmp_path / "base", changes)
        with pytest.raises(InvalidInput, match="hive"):
            made(tmp_path / "above", [*NON_BASE, file_at("Hives/System_Delta", b"junk")], base)
        assert os.listdir(tmp_path) == ["base"]

    def test_a_missing_parent_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="parent"):
            made(tmp_path / "above", NON_BASE, tmp_path / "none")


class TestRefusals:
    @pytest.mark.parametrize("second", ["Files/A", "Files/a"])
    def test_a_name_that_occurs_twice_in_any_case_is_refused(self, second: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="twice"):
            made(tmp_path / "base", [*TOP, file_at("Files/a"), file_at(second)])
        assert os.listdir(tmp_path) == []

    def test_names_are_compared_as_ntfs_does(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="twice"):
            made(tmp_path / "base", [*TOP, file_at("Files/é"), file_at("Files/É")])
        made(tmp_path / "other", [*TOP, file_at("Files/ß"), file_at("Files/SS")])

    @pytest.mark.parametrize(
        "path", ["x", "files/x", "Other/x", "lamella.index", "tombstones.txt", "bcd.bak", "Files2"]
    )
    def test_other_top_level_names_are_refused(self, path: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="has only Files, Hives and UtilityVM"):
            made(tmp_path / "base", [file_at(path)])

    def test_nothing_can_be_put_into_a_link(self, tmp_path: Path) -> None:
        base = made(tmp_path / "base", TOP)
        point = reparse.mount_point("C:\\Windows")
        for parents in ((), (base,)):
            with pytest.raises(InvalidInput, match="is not a directory"):
                made(tmp_path / "bad", [*TOP, link_at("Files/j", 0x410, point), file_at("Files/j/x")], *parents)
            with pytest.raises(InvalidInput, match="is not a directory"):
                made(tmp_path / "bad", [*TOP, file_at("Files/f"), file_at("Files/f/x")], *parents)

    @pytest.mark.parametrize("name", ["a:b", "a\\b", "con", "nul.txt", "end.", "end ", "a\x01", "\udc80", "x" * 256])
    def test_names_that_ntfs_cannot_have_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UnsafePath):
            made(tmp_path / "base", [*TOP, file_at(f"Files/{name}")])
        with pytest.raises(UnsafePath):
            made(tmp_path / "base", [*TOP, file_at(f"Files/{name}/inside")])

    def test_awkward_names_are_accepted_on_request(self, tmp_path: Path) -> None:
        changes = [*TOP, file_at("Files/con"), file_at("Files/end.")]
        place = made(tmp_path / "base", changes, rules=NameRules(awkward=True))
        assert lines(changes) == stated(place)

    def test_names_longer_than_linux_allows_are_kept(self, tmp_path: Path) -> None:
        name = "長" * 255
        changes = [*TOP, folder(f"Files/{name}"), file_at(f"Files/{name}/{name}")]
        base = made(tmp_path / "base", changes)
        above = made(tmp_path / "above", changes, base)
        assert lines(changes) == stated(base) == stated(above)

    def test_the_suffix_of_metadata_files_is_reserved_in_transport_folders(self, tmp_path: Path) -> None:
        base = made(tmp_path / "base", TOP)
        with pytest.raises(InvalidInput, match="reserved in transport folders"):
            made(tmp_path / "above", [*TOP, file_at("Files/Windows.$WCIDIRS$")], base)

    def test_an_entry_with_posix_metadata_only_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(MissingFacet):
            made(tmp_path / "base", [*TOP, posix_file("Files/a")])

    def test_an_opaque_marker_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Unsupported):
            made(tmp_path / "base", [*TOP, Opaque(LayerPath("Files"))])

    def test_a_folder_that_is_not_empty_keeps_its_files(self, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()
        (tmp_path / "base/kept").touch()
        with pytest.raises(Conflict):
            made(tmp_path / "base", TOP)
        assert os.listdir(tmp_path / "base") == ["kept"]

    def test_an_empty_folder_can_be_the_target(self, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()
        assert stated(made(tmp_path / "base", TOP)) == lines(TOP)

    def test_a_stream_must_follow_its_file(self, tmp_path: Path) -> None:
        late = Stream(LayerPath("Files/a"), "s", Inline(b""))
        with pytest.raises(InvalidInput, match="does not follow"):
            made(tmp_path / "base", [*TOP, file_at("Files/a"), file_at("Files/b"), late])


class TestReading:
    def test_every_truncation_of_an_index_is_refused(self, tmp_path: Path) -> None:
        place = made(tmp_path / "base", [*TOP, *with_stream("Files/a")])
        index = (place / "lamella.index").read_bytes()
        for kept in range(len(index)):
            (place / "lamella.index").write_bytes(index[:kept])
            with pytest.raises(FormatError):
                stated(place)

    @pytest.mark.parametrize(
        "line",
        [
            b'{"put":"../x","kind":"directory","attributes":16,"times":[null,null,null,null]}',
            b'{"put":"Files/x","kind":"fifo","attributes":16,"times":[null,null,null,null]}',
            b'{"put":"Files/x","kind":"file","attributes":-1,"times":[null,null,null,null],"size":0}',
            b'{"put":"Files/x","kind":"file","attributes":1,"times":[null,null,null,null],"size":1e3}',
            b'{"put":"Files/x","kind":"file","attributes":1,"times":[null],"size":0}',
            b'{"put":"Files/x","kind":"file","attributes":1,"times":[1,1,1,1],"size":9,"extents":[[4,2],[5,1]]}',
            b'{"put":"Files/x","kind":"directory","attributes":16,"times":[1,1,1,1],"security":7}',
            b'{"stream":"Files","name":"a","size":1,"at":-4}',
            b'{"descriptor":"*"}',
            b"[]",
            b"{",
            b'{"end":7}',
        ],
    )
    def test_a_malformed_index_is_refused(self, line: bytes, tmp_path: Path) -> None:
        place = made(tmp_path / "base", TOP)
        head, *_, _ = (place / "lamella.index").read_bytes().splitlines()
        (place / "lamella.index").write_bytes(head + b"\n" + line + b'\n{"end":1}\n')
        with pytest.raises(FormatError):
            stated(place)

    def test_an_index_of_a_later_version_is_unsupported(self, tmp_path: Path) -> None:
        place = made(tmp_path / "base", TOP)
        (place / "lamella.index").write_bytes(b'{"lamella":"windows layer","version":2}\n')
        with pytest.raises(Unsupported, match="version 2"):
            stated(place)

    def test_a_changed_file_is_refused(self, tmp_path: Path) -> None:
        place = made(tmp_path / "base", [*TOP, file_at("Files/a", b"hello")])
        for content in (b"hell", b"hello!", b""):
            (place / "Files/a").write_bytes(content)
            with pytest.raises(Conflict):
                stated(place)

    def test_symbolic_links_in_a_folder_are_not_followed(self, tmp_path: Path) -> None:
        place = made(tmp_path / "base", [*TOP, file_at("Files/Windows/a", b"hello")])
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret/a").write_bytes(b"hello")
        (place / "Files/Windows/a").unlink()
        (place / "Files/Windows/a").symlink_to(tmp_path / "secret/a")
        with pytest.raises((Conflict, NotFound)):
            stated(place)
        (place / "Files/Windows/a").unlink()
        (place / "Files/Windows").rmdir()
        (place / "Files/Windows").symlink_to(tmp_path / "secret")
        with pytest.raises((Conflict, NotFound)):
            stated(place)

    def test_a_base_layer_folder_without_an_index_can_be_read_on_windows_only(self, tmp_path: Path) -> None:
        (tmp_path / "base/Files").mkdir(parents=True)
        with pytest.raises(Unsupported, match="neither"):
            stated(tmp_path / "base")


class TestExported:
    """Transport folders that Windows itself wrote."""

    def exported(self, tmp_path: Path) -> Path:
        base = made(tmp_path / "base", TOP)
        changes = [*NON_BASE, *with_stream("Files/Windows/a.txt"), file_at("Files/Windows/z", b"")]
        changes += [file_at("Hives/System_Delta", b"hive"), link_at("Files/ln", 0x420, reparse.symlink("x"))]
        changes += [whiteout("Files/gone"), whiteout("Files/Windows/Old")]
        changes += [folder("Files/$Recycle.Bin"), file_at("Files/$Recycle.Bin/x")]
        place = made(tmp_path / "exported", changes, base)
        (place / "lamella.index").unlink()
        return place

    def test_it_is_read_in_the_order_that_windows_exports_it(self, tmp_path: Path) -> None:
        place = self.exported(tmp_path)
        with FolderChanges(WindowsLayer(place)) as changes:
            found = [
                ("-" if isinstance(one, Whiteout) else "")
                + (one.entry.path if isinstance(one, Put) else one.path)
                + (f":{one.name}" if isinstance(one, Stream) else "")
                for one in changes
            ]
        assert found == [
            *("Files", "-Files/gone", "Files/Windows", "-Files/Windows/Old"),
            *("Files/Windows/a.txt", "Files/Windows/a.txt:ads", "Files/Windows/z", "Files/ln"),
            *("Hives", "Hives/System_Delta"),
        ]

    def test_metadata_comes_from_the_streams_and_is_masked_otherwise(self, tmp_path: Path) -> None:
        place = self.exported(tmp_path)
        with FolderChanges(WindowsLayer(place)) as changes:
            found = {one.entry.path: one.entry.windows for one in changes if isinstance(one, Put)}
        inner, top = found[LayerPath("Files/Windows/a.txt")], found[LayerPath("Files")]
        assert inner is not None
        assert top is not None
        assert (inner.attributes, inner.security_descriptor) == (0x20, SD)
        assert inner.write_time == T + 2 * 10**9
        assert top.security_descriptor is None
        assert top.creation_time == top.access_time == top.write_time == T + 2 * 10**9

    def test_the_tar_has_the_files_of_the_folder(self, tmp_path: Path) -> None:
        data = tar_of(self.exported(tmp_path))
        assert b"Files/Windows/.wh.Old" in data
        assert b"hello" in data
        again = from_tar(tmp_path / "again", data, tmp_path / "base")
        assert data == tar_of(again)

    @pytest.mark.parametrize(
        "text", [b"", b"Version 2.0\n", b"Version 1.0\nx\n", b"Version 1.0\n\\..\\x\n", b"Version 1.0\n\\\n"]
    )
    def test_malformed_tombstones_are_refused(self, text: bytes, tmp_path: Path) -> None:
        place = self.exported(tmp_path)
        (place / "tombstones.txt").write_bytes(text)
        with pytest.raises(InvalidInput):
            stated(place)

    def test_lines_may_end_in_either_way_and_be_empty(self, tmp_path: Path) -> None:
        place = self.exported(tmp_path)
        (place / "tombstones.txt").write_bytes(b"\xef\xbb\xbfVersion 1.0\n\n\\a\r\n\\windows\\b\n")
        assert [line for line in stated(place) if line.startswith("whiteout")] == [
            "whiteout Files/a",
            "whiteout Files/windows/b",
        ]

    def test_every_truncation_of_a_file_is_refused(self, tmp_path: Path) -> None:
        place = self.exported(tmp_path)
        raw = (place / "Files/Windows/a.txt").read_bytes()
        whole = stated(place)
        for kept in range(len(raw)):
            (place / "Files/Windows/a.txt").write_bytes(raw[:kept])
            try:
                found = stated(place)
            except FormatError:
                continue
            assert len(found) < len(whole) or found != whole

    def test_a_folder_without_system_delta_is_refused(self, tmp_path: Path) -> None:
        place = self.exported(tmp_path)
        (place / "Hives/System_Delta").unlink()
        with pytest.raises(NotFound, match="System_Delta"):
            stated(place)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamella.errors import Exhausted

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    blob = tmp_path / "blob.tar"
    blob.write_bytes(write([*TOP, *with_stream("Files/a")])[0])
    monkeypatch.setattr("lamella.layers.windows.folder.writer.os.write", full)
    with pytest.raises(Exhausted):
        apply_blob(blob, tmp_path / "base", ApplyOptions(kind="windows"), job=Job(losses=Losses()))
    assert os.listdir(tmp_path) == ["blob.tar"]
