# SPDX-License-Identifier: Apache-2.0
"""The kind ``windows`` uses the calls of Windows on Windows, and a plain folder elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from tests.native.stub import SECURITY, Stub
from tests.native.test_check_windows import SCRIPT, checks
from tests.native.test_windows_native_layers import (
    ABOVE,
    ABOVE_CHANGES,
    BASE,
    BASE_CHANGES,
    CONFIG,
    SMALL_ABOVE,
    SMALL_BASE,
    folder,
    lines_of,
    names,
    read_back,
    service_calls,
    tar_of,
)
from tests.unit.layers.windows.test_tar import file_at, write

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.losses import Losses
from lamella.errors import Conflict, InvalidInput, LamellaError
from lamella.host.windows import system as host
from lamella.host.windows.system import WindowsSystem
from lamella.layers import kinds
from lamella.layers.windows.backend import WindowsLayerTree
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.names import AS_WINDOWS
from lamella.layers.windows.native.reader import NativeChanges
from lamella.operations.layers.apply import ApplyOptions, apply_blob
from lamella.operations.layers.diff import DiffOptions, diff
from lamella.operations.layers.write import LayerOptions, Written, write_layer
from lamella.paths import LayerPath
from lamella.service.differs.contract import Lookup
from lamella.service.differs.windows import WindowsDiffer
from lamella.store.contract import WindowsLayerMount
from lamella.streams.blob_reader import BlobReader

__all__ = ["checks"]


AWKWARD = write([folder("Files"), *CONFIG, file_at("Files/aux.js")], rules=AS_WINDOWS)[0]


class Kept:
    """What a differ has written (`WriteLayer`)."""

    def __init__(self) -> None:
        self.tar = b""

    def __call__(self, changes: Source, lookup: Lookup | None, *, windows: bool = False) -> Written:
        output = BytesIO()
        written = write_layer(changes, output, LayerOptions("none", windows=windows), lookup=lookup)
        self.tar = output.getvalue()
        return written


def unpacked(differ: WindowsDiffer, tar: bytes, mount: WindowsLayerMount) -> None:
    """Apply a layer as the Diff service does."""
    with BlobReader(BytesIO(tar)) as reader, differ.open_target((mount,), Losses()) as target:
        apply(target.changes(reader), target.sink)


class TestTheDiffer:
    @pytest.fixture
    def differ(self, system: WindowsSystem) -> WindowsDiffer:
        return WindowsDiffer(system)

    def test_applies_layers_by_the_compute_service_and_exports_them_against_their_parents(
        self, differ: WindowsDiffer, stub: Stub, system: WindowsSystem
    ) -> None:
        base, above = tar_of(BASE_CHANGES), tar_of(ABOVE_CHANGES)
        unpacked(differ, base, WindowsLayerMount(BASE))
        unpacked(differ, above, WindowsLayerMount(ABOVE, (BASE,)))
        assert names(system, "C:\\layers") == ["above", "base"]
        assert [name for name in stub.calls if name.startswith(("Process", "Import"))] == [
            "ProcessBaseImage",
            "ImportLayer",
        ]
        stub.clear()
        kept = Kept()
        differ.plan_diff((), (WindowsLayerMount(BASE),))(kept)
        assert lines_of(base) == lines_of(kept.tar)
        assert service_calls(stub) == []
        left = WindowsLayerMount(Path("C:\\dummy"), (BASE,), readonly=True)
        differ.plan_diff((left,), (WindowsLayerMount(ABOVE, (BASE,)),))(kept)
        assert lines_of(above) == lines_of(kept.tar)
        assert [call.split(" ")[0] for call in service_calls(stub)] == [
            "ActivateLayer",
            "PrepareLayer",
            "UnprepareLayer",
            "ExportLayer",
            "DeactivateLayer",
        ]
        assert stub.leaks() == {}

    def test_accepts_only_the_folder_of_a_new_snapshot(self, differ: WindowsDiffer, system: WindowsSystem) -> None:
        tar = tar_of(BASE_CHANGES)
        for place in ("C:\\layers\\base", "C:\\layers\\base\\Files"):
            system.files.make_directory(place)
        unpacked(differ, tar, WindowsLayerMount(BASE))
        assert lines_of(tar) == lines_of(read_back(system, BASE))
        for place in ("C:\\layers\\used", "C:\\layers\\used\\Files", "C:\\layers\\used\\Files\\mine"):
            system.files.make_directory(place)
        with pytest.raises(Conflict):
            unpacked(differ, tar, WindowsLayerMount(Path("C:\\layers\\used")))
        assert names(system, "C:\\layers\\used\\Files") == ["mine"]

    def test_accepts_names_that_windows_accepts(self, differ: WindowsDiffer, system: WindowsSystem) -> None:
        unpacked(differ, AWKWARD, WindowsLayerMount(BASE))
        assert names(system, "C:\\layers\\base\\Files") == ["Windows", "aux.js"]

    def test_releases_privileges_after_any_failure(
        self, differ: WindowsDiffer, stub: Stub, system: WindowsSystem
    ) -> None:
        unpacked(differ, tar_of(SMALL_BASE), WindowsLayerMount(BASE))
        assert stub.leaks() == {}
        for call in ("ImportLayer", "NtCreateFile", "ImpersonateSelf"):
            stub.clear()
            stub.fail(call)
            with pytest.raises(LamellaError):
                unpacked(differ, tar_of(SMALL_ABOVE), WindowsLayerMount(ABOVE, (BASE,)))
            stub.never_fail()
            assert stub.leaks() == {}, call
            assert names(system, "C:\\layers") == ["base"], call


class TestTheTableOfKinds:
    def test_has_the_sink_and_the_source_of_the_system_that_is_given(self, stub: Stub, system: WindowsSystem) -> None:
        data = tar_of(BASE_CHANGES)
        with BlobReader(BytesIO(data)) as reader:
            sink = kinds.sink("windows", BASE, options=kinds.SinkOptions(system=system))
            apply(kinds.tar_changes("windows", reader, sink), sink)
        with kinds.source("windows", BASE, kinds.SourceOptions(system=system)) as (changes, lookup):
            assert isinstance(changes, NativeChanges)
            kept = Kept()
            kept(changes, lookup, windows=True)
        assert lines_of(data) == lines_of(kept.tar)
        assert stub.leaks() == {}

    def test_has_a_tree_of_a_base_layer_on_ntfs(self, stub: Stub, system: WindowsSystem) -> None:
        apply_blob(BytesIO(tar_of(BASE_CHANGES)), BASE, ApplyOptions(kind="windows", system=system))
        with WindowsLayerTree(WindowsLayer(BASE), system) as tree:
            content = tree.open(LayerPath("files/APP/a.txt"))
            assert b"".join(map(bytes, content.chunks())) == b"hello"
            assert list(tree.streams(LayerPath("Files/App/a.txt"))) == ["ads"]
        assert stub.leaks() == {}

    def test_uses_the_current_host_by_default(
        self, stub: Stub, system: WindowsSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tar = tmp_path / "layer.tar"
        tar.write_bytes(tar_of(BASE_CHANGES))
        assert host.this_system() is None
        apply_blob(tar, tmp_path / "folder", ApplyOptions(kind="windows"))
        assert (tmp_path / "folder" / "lamella.index").is_file()
        assert stub.calls == []
        monkeypatch.setattr("lamella.layers.windows.backend.this_system", lambda: system)
        monkeypatch.chdir(tmp_path)  # where its folder would be, were it no path of Windows
        apply_blob(tar, BASE, ApplyOptions(kind="windows"))
        assert "lamella.index" not in names(system, "C:\\layers\\base")
        with kinds.source("windows", BASE) as (changes, _):
            assert isinstance(changes, NativeChanges)

    def test_gives_the_verbs_what_windows_has(self, stub: Stub, system: WindowsSystem) -> None:
        base, above = tar_of(BASE_CHANGES), tar_of(ABOVE_CHANGES)
        assert apply_blob(BytesIO(base), BASE, ApplyOptions(kind="windows", system=system)).size is not None
        apply_blob(BytesIO(above), ABOVE, ApplyOptions(kind="windows", parents=[BASE], system=system))
        output = BytesIO()
        diff(None, ABOVE, output, DiffOptions(kind="windows", parents=[BASE], compression="none", system=system))
        assert lines_of(above) == lines_of(output.getvalue())
        assert stub.leaks() == {}

    def test_refuses_awkward_names_by_default(self, system: WindowsSystem) -> None:
        with pytest.raises(InvalidInput, match="reserves it for a device") as caught:
            apply_blob(BytesIO(AWKWARD), BASE, ApplyOptions(kind="windows", system=system))
        assert "--awkward-names" in str(caught.value.hint)
        assert names(system, "C:\\layers") == []
        apply_blob(BytesIO(AWKWARD), BASE, ApplyOptions(kind="windows", rules=AS_WINDOWS, system=system))
        assert names(system, "C:\\layers\\base\\Files") == ["Windows", "aux.js"]


@pytest.mark.parametrize("above", [None, SMALL_ABOVE])
def test_the_script_for_a_real_windows_applies_and_reads_layers(
    stub: Stub,
    system: WindowsSystem,
    tmp_path: Path,
    checks: object,
    capsys: pytest.CaptureFixture[str],
    above: object,
) -> None:
    assert SCRIPT.is_file()
    base, upper = tmp_path / "base.tar", tmp_path / "above.tar"
    base.write_bytes(tar_of(BASE_CHANGES))
    upper.write_bytes(tar_of(ABOVE_CHANGES))
    stub.account(7, SECURITY)
    work: Callable[..., None] = checks.layers  # type: ignore[attr-defined]
    work(system, "C:\\layers", [("base", base)] if above is None else [("base", base), ("above", upper)])
    output = capsys.readouterr().out
    assert "lost" not in output
    count = len(lines_of(base.read_bytes()))
    assert f"base: {count} of {count} entries came back alike" in output
    assert ("above: " in output) is (above is not None)


def test_the_script_applies_a_base_layer_made_by_pack(
    stub: Stub, system: WindowsSystem, tmp_path: Path, checks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    checks.layers(system, "C:\\layers", [("own", checks.own_base(tmp_path))])
    output = capsys.readouterr().out
    assert "lost" not in output
    assert "own: 11 of 11 entries came back alike" in output
    assert "ProcessBaseImage" in stub.calls
