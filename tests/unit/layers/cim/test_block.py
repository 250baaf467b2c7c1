# SPDX-License-Identifier: Apache-2.0
"""Block images: the calls of an import, in order, and the files that a failure leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from tests.unit.layers.cim.test_layer import directory, entry, file, link, stream, whiteout
from tests.windows.stubs import StubCimfs, StubLoader, check_compiler

from lamella.changes.apply import apply
from lamella.changes.limits import Limits
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Inline, Kind, Opaque, Posix, Put, Sparse
from lamella.errors import (
    AlreadyExists,
    Denied,
    Exhausted,
    InvalidInput,
    MissingFacet,
    SizeMismatch,
    Unsupported,
)
from lamella.formats.ntfs import reparse
from lamella.formats.ntfs.basic_information import DIRECTORY
from lamella.formats.regf.keys import MemoryKey
from lamella.formats.regf.reader import Hive
from lamella.formats.regf.writer import encode_hive
from lamella.formats.vhd import VhdFooter
from lamella.host.windows.cimfs import Cimfs, WindowsBuild
from lamella.layers import kinds
from lamella.layers.cim import host_files
from lamella.layers.cim.block import BlockCimLayer, BlockCimSink, BlockKind, BlockOptions, merge
from lamella.layers.cim.import_rules import NO_DESCRIPTOR
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath

CONFIG = "Files/Windows/System32/config"
HIVES = ("SYSTEM", "SOFTWARE", "SAM", "SECURITY", "DEFAULT")
SEALED = bytes(range(32))


@pytest.fixture(autouse=True)
def compiler(needs: Callable[..., str]) -> None:
    check_compiler(needs)


@pytest.fixture
def stub() -> StubCimfs:
    return StubCimfs()


@pytest.fixture
def calls(stub: StubCimfs) -> Cimfs:
    return Cimfs(StubLoader(cimfs=stub.library), WindowsBuild(27800))


def layer_at(folder: Path, kind: BlockKind = BlockKind.FILE) -> BlockCimLayer:
    folder.mkdir(exist_ok=True)
    return BlockCimLayer(folder / "layer.vhd", "layer.cim", kind)


def base(*rest: Change) -> list[Change]:
    """A base layer with its hives in another order than the rules have them."""
    parts = CONFIG.split("/")
    ways = [directory("/".join(parts[: end + 1])) for end in range(len(parts))]
    hives = [file(f"{CONFIG}/{name}", encode_hive(MemoryKey(name))) for name in sorted(HIVES)]
    return [*ways, *hives, *rest]


def windows(path: str) -> str:
    return path.replace("/", "\\")


def shortened(stub: StubCimfs) -> list[str]:
    """The calls, without what is written to files and without what every file has."""
    return [line for line in stub.calls if not line.startswith(("CimWriteStream", "CimCloseStream"))]


def written(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


class TestABaseLayer:
    def test_makes_the_calls_in_the_order_of_the_rules(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        layer = layer_at(tmp_path / "base")
        changes = base(
            file("Files/b", b"hello"),
            stream("Files/b", "ads", b"data"),
            stream("Files/b", "none", b""),
            link("Files/early", "Files/late"),
            file("Files/late", b""),
            link("Files/again", "Files/early"),
            link("Files/hive", f"{CONFIG}/SAM"),
        )
        apply(changes, BlockCimSink(layer, calls=calls))
        size = len(encode_hive(MemoryKey("SAM")))
        expected = [f"CimCreateImage2 {layer.block} 0x18 - layer.cim"]
        for path in ("Files", "Files/Windows", "Files/Windows/System32", CONFIG):
            expected += [f"CimCreateFile {windows(path)} 0", "CimCloseStream"]
        expected += ["CimCreateFile Files\\b 5", "CimWriteStream 5 68656c6c6f", "CimCloseStream"]
        expected += ["CimCreateAlternateStream Files\\b:ads:$DATA 4", "CimWriteStream 4 64617461", "CimCloseStream"]
        expected += ["CimCreateAlternateStream Files\\b:none:$DATA 0", "CimCloseStream"]
        expected += ["CimCreateFile Files\\late 0", "CimCloseStream"]
        # The end: what waited, in the layer's order, and then what a base layer gets.
        for name in sorted(HIVES):
            expected += [
                f"CimCreateFile {windows(CONFIG)}\\{name} {size}",
                f"CimWriteStream {size}",
                "CimCloseStream",
            ]
        expected += [
            "CimCreateHardLink Files\\early Files\\late",
            "CimCreateHardLink Files\\again Files\\early",
            f"CimCreateHardLink Files\\hive {windows(CONFIG)}\\SAM",
            "CimCreateFile Hives 0",
            "CimCloseStream",
        ]
        stems = [*HIVES[:4], "DEFAULTUSER"]
        for name, stem in zip(HIVES, stems, strict=True):
            expected.append(f"CimCreateHardLink Hives\\{stem}_BASE {windows(CONFIG)}\\{name}")
        expected += [
            "CimCreateFile layout 15",
            f"CimWriteStream 15 {host_files.LAYOUT.hex()}",
            "CimCloseStream",
            "CimCommitImage",
            "CimCloseImage",
        ]
        assert stub.calls == expected
        assert stub.details.startswith("80 0 0 0 0 sd:" + NO_DESCRIPTOR.hex())
        assert (layer.folder / "layout").read_bytes() == b"vhd-with-hives\n"
        for name, stem in zip(HIVES, stems, strict=True):
            assert (layer.folder / "Hives" / f"{stem}_BASE").samefile(layer.folder / CONFIG / name)

    def test_gives_each_file_what_it_has(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        sink = BlockCimSink(layer_at(tmp_path), windows=False, calls=calls)
        sink.put(entry("f", size=0, attributes=0x26), None)
        ticks = [133278304891234567 + more for more in (0, 2, 3, 1)]
        times = " ".join(map(str, ticks))
        assert stub.details == f"26 {times} sd:{b'descriptor of f'.hex()} reparse: ea:"
        point = reparse.encode(reparse.symlink("..\\x"))
        sink.put(entry("l", Kind.SYMLINK, target="..\\x", attributes=DIRECTORY), None)
        assert stub.details == f"410 {times} sd:{b'descriptor of l'.hex()} reparse:{point.hex()} ea:"
        # The attribute alone makes no reparse point.
        sink.put(entry("n", attributes=0x420), None)
        assert stub.details.startswith("20 ")
        sink.abort()

    def test_is_refused_if_a_link_has_no_target(self, tmp_path: Path, calls: Cimfs) -> None:
        with pytest.raises(InvalidInput, match="does not exist"):
            apply([link("a", "b")], BlockCimSink(layer_at(tmp_path), windows=False, calls=calls))
        assert written(tmp_path) == {}

    def test_writes_no_zeros_of_a_hole(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        sparse = Put(entry("s", size=1 << 40), Sparse(1 << 40, (), b""))
        apply([sparse], BlockCimSink(layer_at(tmp_path), windows=False, calls=calls))
        assert stub.calls[1:3] == [f"CimCreateFile s {1 << 40}", "CimCloseStream"]

    def test_refuses_content_of_another_size(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        for size in (4, 6):
            with pytest.raises(SizeMismatch):
                apply(
                    [Put(entry("f", size=size), Inline(b"hello"))],
                    BlockCimSink(layer_at(tmp_path), windows=False, calls=calls),
                )
            assert stub.calls[-2:] == ["CimCloseStream", "CimCloseImage"]
        assert written(tmp_path) == {}

    def test_refuses_posix_entries(self, tmp_path: Path, calls: Cimfs) -> None:
        posix = Put(entry("f"), Inline(b""))
        posix.entry.windows, posix.entry.posix = None, Posix(0o644, 0, 0, 0)
        with pytest.raises(MissingFacet):
            apply([posix], BlockCimSink(layer_at(tmp_path), windows=False, calls=calls))


class TestALayerOverOthers:
    @pytest.fixture
    def parent(self, tmp_path: Path, calls: Cimfs) -> LayerStack[BlockCimLayer]:
        layer = layer_at(tmp_path / "parent")
        apply(base(), BlockCimSink(layer, calls=calls))
        return LayerStack([layer])

    def test_hides_and_links_across_images(
        self, tmp_path: Path, parent: LayerStack[BlockCimLayer], calls: Cimfs, stub: StubCimfs
    ) -> None:
        layer = layer_at(tmp_path / "child")
        before = len(stub.calls)
        stub.library["stub_reset"]()
        changes: list[Change] = [
            directory("Files"),
            whiteout("Files/gone"),
            whiteout("Files/.wh..opq"),
            link("Files/x", "Files/below"),
            link("Files/y", "Files/x"),
            link("Files/z", "FILES/F"),
            file("Files/f", b"1"),
            whiteout("Files/f"),
            directory("Hives"),
        ]
        apply(changes, BlockCimSink(layer, parents=parent, calls=calls))
        assert before
        assert stub.calls == [
            f"CimCreateImage2 {layer.block} 0x18 - layer.cim",
            "CimCreateFile Files 0",
            "CimCloseStream",
            "CimTombstoneFile Files\\gone",
            "CimTombstoneFile Files\\.wh..opq",
            "CimCreateFile Files\\f 1",
            "CimWriteStream 1 31",
            "CimCloseStream",
            "CimCreateFile Hives 0",
            "CimCloseStream",
            "CimCreateMergeLink Files\\x Files\\below",
            "CimCreateHardLink Files\\y Files\\x",
            "CimCreateHardLink Files\\z FILES\\F",
            "CimCommitImage",
            "CimCloseImage",
        ]

    def test_gets_the_merged_hives(
        self, tmp_path: Path, parent: LayerStack[BlockCimLayer], calls: Cimfs, stub: StubCimfs
    ) -> None:
        layer = layer_at(tmp_path / "child")
        delta = MemoryKey("SAM")
        delta.make("new")
        stub.library["stub_reset"]()
        changes = [directory("Hives"), file("Hives/Sam_Delta", encode_hive(delta))]
        apply(changes, BlockCimSink(layer, parents=parent, calls=calls))
        size = (layer.folder / "Hives" / "SAM_BASE").stat().st_size
        assert [line for line in stub.calls if line.startswith("CimCreateFile")] == [
            "CimCreateFile Hives 0",
            f"CimCreateFile Hives\\Sam_Delta {len(encode_hive(delta))}",
            f"CimCreateFile Hives\\SAM_BASE {size}",
        ]
        merged = Hive((layer.folder / "Hives" / "SAM_BASE").read_bytes())
        assert [key.name for key in merged.root_key.subkeys()] == ["new"]
        # A layer over this one finds the other hives here too.
        assert (layer.folder / "Hives" / "SYSTEM_BASE").samefile(
            parent.nearest_first()[0].folder / "Hives" / "SYSTEM_BASE"
        )

    def test_must_be_of_their_kind(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        device = LayerStack([layer_at(tmp_path / "parent", BlockKind.DEVICE)])
        with pytest.raises(InvalidInput, match="is a device, but the layer a file"):
            BlockCimSink(layer_at(tmp_path / "child"), parents=device, calls=calls)
        with pytest.raises(Unsupported, match="device"):
            BlockCimSink(layer_at(tmp_path / "child", BlockKind.DEVICE), calls=calls)
        assert stub.calls == []

    def test_cannot_hide_all_that_lies_in_a_directory(
        self, tmp_path: Path, parent: LayerStack[BlockCimLayer], calls: Cimfs
    ) -> None:
        opaque: Sequence[list[Change]] = (
            [whiteout("d"), directory("D")],
            [directory("d"), whiteout("D")],
            [directory("d"), Opaque(LayerPath("d"))],
        )
        for number, changes in enumerate(opaque):
            layer = layer_at(tmp_path / str(number))
            with pytest.raises(Unsupported, match="cannot hide the files of parents") as refusal:
                apply(changes, BlockCimSink(layer, parents=parent, calls=calls))
            assert "flatten" in (refusal.value.hint or "")
            assert written(layer.folder) == {}

    def test_may_put_a_file_at_the_path_of_a_whiteout(
        self, tmp_path: Path, parent: LayerStack[BlockCimLayer], calls: Cimfs, stub: StubCimfs
    ) -> None:
        stub.library["stub_reset"]()
        layer = layer_at(tmp_path / "child")
        apply([whiteout("f"), file("f")], BlockCimSink(layer, parents=parent, calls=calls))
        assert shortened(stub)[1:3] == ["CimTombstoneFile f", "CimCreateFile f 0"]

    def test_reports_the_implied_directories(
        self, tmp_path: Path, parent: LayerStack[BlockCimLayer], calls: Cimfs, stub: StubCimfs
    ) -> None:
        stub.library["stub_reset"]()
        losses = Losses()
        layer = layer_at(tmp_path / "child")
        apply([file("UtilityVM/a/f")], BlockCimSink(layer, parents=parent, calls=calls, losses=losses))
        assert shortened(stub)[1:4] == [
            "CimCreateFile UtilityVM 0",
            "CimCreateFile UtilityVM\\a 0",
            "CimCreateFile UtilityVM\\a\\f 0",
        ]
        assert [(loss.path, loss.what) for loss in losses.kept] == [
            ("UtilityVM/a", "metadata of the directory below"),
            ("UtilityVM", "metadata of the directory below"),
            ("UtilityVM", "utility VM of the layers below"),
        ]

    def test_has_each_name_once(self, tmp_path: Path, parent: LayerStack[BlockCimLayer], calls: Cimfs) -> None:
        twice: Sequence[list[Change]] = (
            [file("a"), link("A", "b")],
            [directory("a"), file("A")],
            [file("a"), directory("A")],
            [link("d", "E"), directory("e")],
        )
        for number, changes in enumerate(twice):
            with pytest.raises(InvalidInput):
                apply(changes, BlockCimSink(layer_at(tmp_path / str(number)), parents=parent, calls=calls))


class TestASealedLayer:
    def test_is_sealed_then_gets_its_footer_and_its_checksum(
        self, tmp_path: Path, calls: Cimfs, stub: StubCimfs
    ) -> None:
        layer = layer_at(tmp_path)
        options = BlockOptions(integrity=True, footer=True)
        apply([file("f")], BlockCimSink(layer, options=options, windows=False, calls=calls))
        assert stub.calls[0] == f"CimCreateImage2 {layer.block} 0x58 - layer.cim"
        assert stub.calls[-3:] == ["CimCommitImage", "CimCloseImage", f"CimSealImage {layer.block}"]
        assert (tmp_path / "integrity_checksum").read_bytes() == SEALED.hex().encode()
        assert layer.root_hash() == SEALED
        assert VhdFooter.decode(layer.block.read_bytes()).current_size == 0

    def test_keeps_no_hash_otherwise(self, tmp_path: Path, calls: Cimfs) -> None:
        layer = layer_at(tmp_path)
        apply([file("f")], BlockCimSink(layer, windows=False, calls=calls))
        assert layer.root_hash() is None
        assert written(tmp_path) == {"layer.vhd": 0}

    def test_a_malformed_checksum_file_is_refused(self, tmp_path: Path) -> None:
        layer = layer_at(tmp_path)
        for text in ("", "0" * 63, "0" * 65, "G" * 64, "A" * 64):
            (tmp_path / "integrity_checksum").write_text(text)
            with pytest.raises(InvalidInput, match="64 hexadecimal"):
                layer.root_hash()


FAILING: tuple[tuple[str, int], ...] = (
    ("CimCreateImage2", 1),
    ("CimCreateFile", 1),
    ("CimCreateFile", 6),
    ("CimWriteStream", 1),
    ("CimWriteStream", 3),
    ("CimCreateAlternateStream", 1),
    ("CimTombstoneFile", 1),
    ("CimCreateHardLink", 1),
    ("CimCreateMergeLink", 1),
    ("CimCommitImage", 1),
    ("CimSealImage", 1),
)


class TestAFailure:
    @pytest.mark.parametrize(("name", "nth"), FAILING)
    def test_of_any_call_closes_the_image_and_leaves_nothing(
        self, name: str, nth: int, tmp_path: Path, calls: Cimfs, stub: StubCimfs
    ) -> None:
        below = layer_at(tmp_path / "below")
        apply(base(), BlockCimSink(below, calls=calls))
        stub.library["stub_reset"]()
        stub.fail(name, nth, 5)
        layer = layer_at(tmp_path / "layer")
        (layer.folder / "sandbox.vhdx").write_text("somebody's")
        changes: list[Change] = [
            directory("Files"),
            file("Files/f", b"12"),
            stream("Files/f", "s", b"3"),
            whiteout("Files/g"),
            link("Files/h", "Files/f"),
            link("Files/m", "Files/other"),
            directory("Hives"),
            file("Hives/SAM_DELTA", encode_hive(MemoryKey("SAM"))),
            *(file(f"Files/{number}", b"4") for number in range(3)),
        ]
        options = BlockOptions(integrity=True, footer=True)

        def run() -> None:
            apply(changes, BlockCimSink(layer, parents=LayerStack([below]), options=options, calls=calls))

        with pytest.raises(Denied):
            run()
        at = next(at for at, line in enumerate(stub.calls) if line.startswith(name) and tally(stub, name, at) == nth)
        open_stream = name == "CimWriteStream"
        expected = ["CimCloseStream"] * open_stream + ["CimCloseImage"]
        if name in ("CimCreateImage2", "CimSealImage"):
            expected = []  # there is no image yet, or it is closed
        assert stub.calls[at + 1 :] == expected
        assert written(layer.folder) == {"sandbox.vhdx": 10}
        # And it can be tried again.
        run()
        assert set(written(layer.folder)) >= {"layer.vhd", "integrity_checksum"}

    def test_of_the_source_closes_the_image_and_leaves_nothing(
        self, tmp_path: Path, calls: Cimfs, stub: StubCimfs
    ) -> None:
        def broken() -> Iterable[Change]:
            yield from base()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            apply(broken(), BlockCimSink(layer_at(tmp_path), calls=calls))
        assert stub.calls[-1] == "CimCloseImage"
        assert "CimCommitImage" not in stub.calls
        assert list(tmp_path.iterdir()) == []

    def test_of_the_rules_at_the_end_leaves_nothing(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        with pytest.raises(InvalidInput, match="config/SYSTEM"):
            apply([directory("Files")], BlockCimSink(layer_at(tmp_path), calls=calls))
        assert stub.calls[-1] == "CimCloseImage"
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_file_is_reported_before_any_call(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        layer = layer_at(tmp_path)
        layer.block.write_text("an image")
        with pytest.raises(AlreadyExists):
            BlockCimSink(layer, calls=calls)
        assert (stub.calls, layer.block.read_text()) == ([], "an image")


def tally(stub: StubCimfs, name: str, end: int) -> int:
    return sum(line.split(" ")[0] == name for line in stub.calls[: end + 1])


class TestMergedLayers:
    @pytest.fixture
    def stack(self, tmp_path: Path) -> LayerStack[BlockCimLayer]:
        return LayerStack([layer_at(tmp_path / name) for name in ("1", "2", "3")])

    def target(self, tmp_path: Path) -> BlockCimLayer:
        return BlockCimLayer(tmp_path / "3" / "merged.vhd", "merged.cim")

    def test_are_added_from_the_topmost_on(
        self, tmp_path: Path, stack: LayerStack[BlockCimLayer], calls: Cimfs, stub: StubCimfs
    ) -> None:
        target = self.target(tmp_path)
        merge(stack, target, BlockOptions(integrity=True, footer=True), calls=calls)
        assert stub.calls == [
            f"CimCreateImage2 {target.block} 0x58 - merged.cim",
            *(f"CimAddFsToMergedImage2 {layer.block}\\layer.cim 0x5" for layer in stack.nearest_first()),
            "CimCommitImage",
            "CimCloseImage",
            f"CimSealImage {target.block}",
        ]
        assert target.root_hash(merged=True) == SEALED
        assert written(target.folder) == {"merged.vhd": 512, "merged_integrity_checksum": 64}

    def test_are_two_or_more_of_one_kind(
        self, tmp_path: Path, stack: LayerStack[BlockCimLayer], calls: Cimfs, stub: StubCimfs
    ) -> None:
        target = self.target(tmp_path)
        with pytest.raises(InvalidInput, match="1 block images"):
            merge(LayerStack(stack.base_first()[:1]), target, BlockOptions(), calls=calls)
        with pytest.raises(InvalidInput, match="device"):
            merge(stack.with_top(layer_at(tmp_path / "4", BlockKind.DEVICE)), target, BlockOptions(), calls=calls)
        assert stub.calls == []

    @pytest.mark.parametrize(
        ("name", "nth"),
        [("CimCreateImage2", 1), ("CimAddFsToMergedImage2", 2), ("CimCommitImage", 1), ("CimSealImage", 1)],
    )
    def test_leave_no_file_where_a_call_fails(
        self, name: str, nth: int, tmp_path: Path, stack: LayerStack[BlockCimLayer], calls: Cimfs, stub: StubCimfs
    ) -> None:
        stub.fail(name, nth, 5)
        with pytest.raises(Denied):
            merge(stack, self.target(tmp_path), BlockOptions(integrity=True), calls=calls)
        assert stub.calls.count("CimCloseImage") == (name != "CimCreateImage2")
        assert written(tmp_path) == {}

    def test_are_not_written_over_others(
        self, tmp_path: Path, stack: LayerStack[BlockCimLayer], calls: Cimfs, stub: StubCimfs
    ) -> None:
        target = self.target(tmp_path)
        target.block.write_text("merged")
        with pytest.raises(AlreadyExists):
            merge(stack, target, BlockOptions(), calls=calls)
        assert target.block.read_text() == "merged"


@pytest.mark.skipif(sys.platform == "win32", reason="tests hosts other than Windows")
class TestAnotherHost:
    def test_the_error_gives_reason_and_alternative(self, tmp_path: Path) -> None:
        makes: Sequence[Callable[[], object]] = (
            lambda: BlockCimSink(layer_at(tmp_path)),
            lambda: kinds.sink("blockcim", tmp_path / "layer.vhd" / "layer.cim"),
        )
        for make in makes:
            with pytest.raises(Unsupported, match="only Windows can write and read") as refusal:
                make()
            assert '"cim"' in (refusal.value.hint or "")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["layer.cim", "a/layer.vhd", "a/.cim", ""])
def test_a_path_names_a_block_and_an_image(place: str) -> None:
    with pytest.raises(InvalidInput):
        BlockCimLayer.parse(Path(place))


def test_a_block_image_path_is_parsed(tmp_path: Path) -> None:
    layer = BlockCimLayer.parse(tmp_path / "layer.vhd" / "layer.cim")
    assert layer == BlockCimLayer(tmp_path / "layer.vhd", "layer.cim")
    assert layer.folder == tmp_path


class TestDirectoriesThatAreNotStated:
    def test_may_be_a_thousand_deep(self, tmp_path: Path, calls: Cimfs, stub: StubCimfs) -> None:
        sink = BlockCimSink(layer_at(tmp_path / "base"), calls=calls)
        try:
            sink.link(LayerPath(f"{'d/' * 1000}f"), LayerPath("g"))
        finally:
            sink.abort()
        assert sum(line.startswith("CimCreateFile ") for line in stub.calls) == 1000

    def test_are_bounded(self, tmp_path: Path, calls: Cimfs) -> None:
        sink = BlockCimSink(layer_at(tmp_path / "base"), calls=calls)
        sink._implied.sum = Limits().implied - 1000  # many others have gone by
        with pytest.raises(Exhausted, match="directories that it does not state, such as 'a/b/c'"):
            apply([link("a/b/c/d", "g")], sink)
