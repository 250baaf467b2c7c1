# SPDX-License-Identifier: Apache-2.0
"""Forked images written by the calls of Windows, by the same rules as portable ones."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.layers.cim.test_layer import contents, directory, entry, file, link, stream, tree, whiteout, write
from tests.windows.stubs import StubCimfs, StubLoader, check_compiler

from lamella.changes.apply import apply
from lamella.changes.contracts import Seen
from lamella.changes.model import Change, Kind, Opaque, Put, Whiteout
from lamella.errors import AlreadyExists, Denied, InvalidInput, NotFound, Unsupported
from lamella.formats.ntfs.basic_information import DIRECTORY
from lamella.host.windows.cimfs import Cimfs, WindowsBuild
from lamella.host.windows.system import WindowsSystem
from lamella.layers import kinds
from lamella.layers.cim.block import BlockCimLayer, BlockKind, mounted, mounted_blocks, volume_of
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.import_rules import ForkWriter
from lamella.layers.cim.native import SystemForkWriter
from lamella.layers.cim.sink import CimSink
from lamella.layers.cim.writer import PortableWriter
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath, split

ROOT_HASH = bytes(range(32))


@pytest.fixture(autouse=True)
def compiler(needs: Callable[..., str]) -> None:
    check_compiler(needs)


@pytest.fixture
def stub() -> StubCimfs:
    return StubCimfs()


@pytest.fixture
def calls(stub: StubCimfs) -> Cimfs:
    return Cimfs(StubLoader(cimfs=stub.library), WindowsBuild(27800))


def paths_of(layer: CimLayer) -> list[str]:
    return list(contents(layer))


class TestAForkedLayer:
    @pytest.fixture
    def base(self, tmp_path: Path, stub: StubCimfs) -> CimLayer:
        changes = tree(
            file("Files/a", b"1"), file("Files/gone", b"2"), directory("Files/d"), file("Files/d/x"), file("Files/d/y")
        )
        layer = write(tmp_path / "base.cim", changes)
        for path in paths_of(layer):
            stub.has(path.replace("/", "\\"))
        return layer

    def sink(self, layer: CimLayer, base: CimLayer, calls: Cimfs) -> CimSink:
        writer = SystemForkWriter(calls, layer, base)
        return CimSink(layer, parents=LayerStack([base]), windows=False, writer=writer)

    def test_is_linked_and_deleted_at_once(self, base: CimLayer, calls: Cimfs, stub: StubCimfs) -> None:
        layer = CimLayer(base.path.with_name("child.cim"))
        changes: list[Change] = [
            directory("Files"),
            whiteout("Files/gone"),
            whiteout("Files/never"),
            link("Files/b", "Files/a"),
            file("Files/new/f", b"12"),
            stream("Files/new/f", "s", b"3"),
            link("Files/c", "Files/new/F"),
        ]
        apply(changes, self.sink(layer, base, calls))
        assert stub.calls == [
            f"CimCreateImage {base.directory} base.cim child.cim",
            "CimCreateFile Files 0",
            "CimCloseStream",
            "CimDeletePath Files\\gone",
            "CimDeletePath Files\\never",
            "CimCreateHardLink Files\\b Files\\a",
            "CimCreateFile Files\\new 0",
            "CimCloseStream",
            "CimCreateFile Files\\new\\f 2",
            "CimWriteStream 2 3132",
            "CimCloseStream",
            "CimCreateAlternateStream Files\\new\\f:s:$DATA 1",
            "CimWriteStream 1 33",
            "CimCloseStream",
            "CimCreateHardLink Files\\c Files\\new\\F",
            "CimCommitImage",
            "CimCloseImage",
        ]

    def test_is_the_writer_of_the_layer_kind_on_windows(self, base: CimLayer, stub: StubCimfs) -> None:
        system = WindowsSystem(StubLoader(cimfs=stub.library), WindowsBuild(26100))
        child = base.path.with_name("child.cim")
        apply([directory("Hives")], kinds.sink("cim", child, [base.path], kinds.SinkOptions(system=system)))
        assert stub.calls == [
            f"CimCreateImage {base.directory} base.cim child.cim",
            "CimCreateFile Hives 0",
            "CimCloseStream",
            "CimCommitImage",
            "CimCloseImage",
        ]

    @pytest.mark.parametrize("build", [18363, 26100])
    def test_is_written_portably_if_windows_has_no_calls_for_it(
        self, base: CimLayer, stub: StubCimfs, build: int
    ) -> None:
        loader = StubLoader(cimfs=stub.library) if build == 18363 else StubLoader()
        child = base.path.with_name("child.cim")
        sink = kinds.sink(
            "cim", child, [base.path], kinds.SinkOptions(system=WindowsSystem(loader, WindowsBuild(build)))
        )
        apply([directory("Hives")], sink)
        assert stub.calls == []
        assert set(contents(CimLayer(child))) == {*paths_of(base), "Hives"}

    def test_removes_a_directory_that_something_was_removed_from(
        self, base: CimLayer, calls: Cimfs, stub: StubCimfs
    ) -> None:
        layer = CimLayer(base.path.with_name("child.cim"))
        apply([whiteout("Files/d/x"), whiteout("Files/d")], self.sink(layer, base, calls))
        assert [line for line in stub.calls if line.startswith("CimDelete")] == [
            "CimDeletePath Files\\d\\x",
            "CimDeletePath Files\\d",
        ]

    def test_takes_time_in_proportion_to_what_is_put(self, base: CimLayer) -> None:
        names = ("check_writing", "create", "create_file", "write", "close_stream", "hard_link", "commit", "close")
        calls = cast("Cimfs", SimpleNamespace(**dict.fromkeys(names, lambda *_, **__: 1)))
        taken = []
        for count in (300, 6000):
            changes: list[Change] = [directory("Files"), file("Files/f")]
            changes += [link(f"Files/d{number % 100}/l{number}", "Files/f") for number in range(count)]
            sink = self.sink(CimLayer(base.path.with_name(f"{count}.cim")), base, calls)
            start = time.process_time()
            apply(changes, sink)
            taken.append(time.process_time() - start)
        assert taken[1] < 60 * max(taken[0], 0.02)  # which is about what the clocks of some systems count in

    def test_hides_what_its_parent_has_in_an_opaque_directory(
        self, base: CimLayer, calls: Cimfs, stub: StubCimfs
    ) -> None:
        layer = CimLayer(base.path.with_name("child.cim"))
        changes: list[Change] = [file("Files/d/z"), Opaque(LayerPath("Files/d")), file("Files/d/x", b"1")]
        apply(changes, self.sink(layer, base, calls))
        assert [line for line in stub.calls if line.startswith("CimDelete")] == [
            "CimDeletePath Files\\d\\x",
            "CimDeletePath Files\\d\\y",
        ]

    @pytest.mark.parametrize(
        ("name", "nth"),
        [
            ("CimCreateImage", 1),
            ("CimCreateFile", 2),
            ("CimWriteStream", 1),
            ("CimDeletePath", 1),
            ("CimCreateHardLink", 1),
            ("CimCommitImage", 1),
        ],
    )
    def test_that_fails_is_closed_and_removed(
        self, name: str, nth: int, base: CimLayer, calls: Cimfs, stub: StubCimfs
    ) -> None:
        before = sorted(os.listdir(base.directory))
        stub.fail(name, nth, 5)
        layer = CimLayer(base.path.with_name("child.cim"))
        changes: list[Change] = [
            directory("Files"),
            file("Files/n", b"1"),
            whiteout("Files/a"),
            link("Files/z", "Files/n"),
        ]
        with pytest.raises(Denied):
            apply(changes, self.sink(layer, base, calls))
        assert stub.calls.count("CimCloseImage") == (name != "CimCreateImage")
        assert sorted(os.listdir(base.directory)) == before

    def test_must_be_in_the_directory_of_its_parent_and_new(
        self, tmp_path: Path, base: CimLayer, calls: Cimfs, stub: StubCimfs
    ) -> None:
        with pytest.raises(AlreadyExists):
            SystemForkWriter(calls, base)
        (tmp_path / "other").mkdir()
        with pytest.raises(InvalidInput, match="forked"):
            SystemForkWriter(calls, CimLayer(tmp_path / "other" / "child.cim"), base)
        with pytest.raises(NotFound):
            SystemForkWriter(calls, CimLayer(tmp_path / "child.cim"), CimLayer(tmp_path / "none.cim"))
        old = Cimfs(StubLoader(cimfs=stub.library), WindowsBuild(17763))
        with pytest.raises(Unsupported, match="composite images"):
            SystemForkWriter(old, CimLayer(tmp_path / "child.cim"), base)
        assert stub.calls == []


NAMES = st.sampled_from(["Files", "Files/a", "files/A", "Files/d", "Files/d/x", "Files/d/y", "Files/n", "Files/n/m"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.builds(directory, NAMES),
            st.builds(file, NAMES),
            st.builds(whiteout, NAMES),
            st.builds(lambda path: Put(entry(path, Kind.SYMLINK, attributes=DIRECTORY, target="C:\\x"), None), NAMES),
        ),
        max_size=12,
    )
)
def test_the_recorded_files_of_a_new_image_are_those_in_it(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Change]
) -> None:
    """The portable writer and that of Windows give the same answers after each step."""
    folder = tmp_path_factory.mktemp("images")
    base = write(folder / "base.cim", tree(file("Files/a"), directory("Files/d"), file("Files/d/x"), file("Files/d/y")))
    stub = StubCimfs()
    for path in paths_of(base):
        stub.has(path.replace("/", "\\"))
    calls = Cimfs(StubLoader(cimfs=stub.library), WindowsBuild(27800))
    one = PortableWriter(CimLayer(folder / "one.cim"), base)
    other = SystemForkWriter(calls, CimLayer(folder / "other.cim"), base)
    sinks = [CimSink(CimLayer(folder / "x.cim"), windows=False, writer=writer) for writer in (one, other)]
    looked = ["", "Files", "FILES/A", "Files/d", "files/D/x", "Files/d/y", "Files/n", "Files/n/m"]
    for change in changes:
        assert outcome(sinks[0], change) == outcome(sinks[1], change)
        for path in looked:
            assert one.seen(path) == other.seen(path)
            assert one.is_reparse_point(path) == other.is_reparse_point(path)
            assert one.touched(path) == other.touched(path)
        if one.seen("Files") == Seen(Kind.DIRECTORY):
            assert listed(one) == listed(other)
    for sink in sinks:
        sink.abort()


def outcome(sink: CimSink, change: Change) -> str:
    try:
        match change:
            case Put(entry, content):
                if sink.seen(split(entry.path)[0]) == Seen(Kind.DIRECTORY):
                    sink.put(entry, content)
            case Whiteout(path):
                sink.whiteout(path)
    except InvalidInput:
        return "refused"
    return "done"


def listed(writer: ForkWriter) -> list[tuple[str, bool]]:
    return sorted((name.upper(), is_directory) for name, is_directory in writer.names("Files"))


class TestVolumes:
    def test_are_named_by_the_container(self) -> None:
        assert volume_of("abc") == uuid.uuid5(uuid.UUID("6827367b-c388-4e9b-961c-6d2c936c0000"), "abc")

    def test_show_a_forked_image(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        raw = volume_of("abc").bytes_le.hex()
        with mounted(calls, CimLayer(tmp_path / "x.cim"), "abc") as root:
            assert root == f"\\\\?\\Volume{{{volume_of('abc')}}}\\"
        assert stub.calls == [f"CimMountImage {tmp_path} x.cim 0x0 {raw}", f"CimDismountImage {raw}"]

    def test_show_block_images_and_check_sealed_ones(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        raw = volume_of("c").bytes_le.hex()
        layers = [BlockCimLayer(tmp_path / name / "layer.vhd", "layer.cim") for name in ("1", "2")]
        for layer in layers:
            layer.folder.mkdir()
        merged = BlockCimLayer(tmp_path / "2" / "merged.vhd", "merged.cim")
        device = BlockCimLayer(tmp_path / "d" / "disk", "layer.cim", BlockKind.DEVICE)
        with mounted_blocks(calls, LayerStack(layers[:1]), "c"), pytest.raises(ZeroDivisionError):
            raise ZeroDivisionError
        with mounted_blocks(calls, LayerStack([device]), "c"):
            pass
        (tmp_path / "1" / "integrity_checksum").write_text(ROOT_HASH.hex())
        with mounted_blocks(calls, LayerStack(layers[:1]), "c"):
            pass
        with mounted_blocks(calls, LayerStack(layers), "c", merged=merged):
            pass
        (tmp_path / "2" / "merged_integrity_checksum").write_text(ROOT_HASH.hex())
        with mounted_blocks(calls, LayerStack(layers), "c", merged=merged):
            pass
        images = f"{merged.block}|merged.cim {layers[1].block}|layer.cim {layers[0].block}|layer.cim"
        assert [line for line in stub.calls if not line.startswith("CimDismount")] == [
            f"CimMountImage {layers[0].block} layer.cim 0x20 {raw}",
            f"CimMountImage {device.block} layer.cim 0x10 {raw}",
            f"CimMountVerifiedImage {layers[0].block} layer.cim 0x20 {raw} {ROOT_HASH.hex()}",
            f"CimMergeMountImage {images} 0x20 {raw}",
            f"CimMergeMountVerifiedImage {images} 0x20 {raw} {ROOT_HASH.hex()}",
        ]
        assert stub.calls.count(f"CimDismountImage {raw}") == 5

    def test_are_not_made_where_images_and_their_merging_do_not_fit(self, tmp_path: Path, calls: Cimfs) -> None:
        layers = [BlockCimLayer(tmp_path / "layer.vhd", "layer.cim")] * 2
        with pytest.raises(InvalidInput), mounted_blocks(calls, LayerStack(layers), "c"):
            pass
        with pytest.raises(InvalidInput), mounted_blocks(calls, LayerStack(layers[:1]), "c", merged=layers[0]):
            pass

    def test_are_not_made_where_this_windows_cannot(self, tmp_path: Path, stub: StubCimfs) -> None:
        old = Cimfs(StubLoader(cimfs=stub.library), WindowsBuild(27766))
        layer = BlockCimLayer(tmp_path / "layer.vhd", "layer.cim")
        (tmp_path / "integrity_checksum").write_text(ROOT_HASH.hex())
        with pytest.raises(Unsupported, match="verified"), mounted_blocks(old, LayerStack([layer]), "c"):
            pass
        assert stub.calls == []
