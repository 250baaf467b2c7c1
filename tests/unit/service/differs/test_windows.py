# SPDX-License-Identifier: Apache-2.0
"""The Diff service over mounts of Windows layers: in folders, in composite images, and for whom it says no."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.unit.layers.cim.test_layer import directory, file, link, stream, tar_of, whiteout, windows_base
from tests.unit.service.services.test_diff import put
from tests.unit.service.services.test_snapshots import Snapshots
from tests.unit.service.serving import Client, Served, Stub, code_of, within

from lamella.changes.apply import apply as apply_changes
from lamella.changes.losses import Losses
from lamella.changes.model import Change
from lamella.digests import Digest
from lamella.errors import InvalidInput, Unsupported
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.tree import CimTree
from lamella.layers.windows.folder.reader import FolderChanges
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.names import AS_WINDOWS
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.oci.mediatypes import OCI_LAYER
from lamella.paths import LayerPath
from lamella.protocol.mounts import sent
from lamella.protocol.proto import diff_pb2 as pb
from lamella.protocol.proto.types_pb2 import Mount as Sent
from lamella.service.differs import table
from lamella.service.differs.contract import MakeLayer, Mounts, Target
from lamella.service.differs.table import open_target, plan_diff
from lamella.store.contract import BindMount, BlockCimMount, CimMount, Mount, WindowsLayerMount

BASE: Final = windows_base(file("Files/kept", b"kept"), file("Files/gone", b"gone"))
TOP: Final[list[Change]] = [
    directory("Files"),
    whiteout("Files/gone"),
    directory("Files/Windows"),
    file("Files/Windows/new", b"new"),
    stream("Files/Windows/new", "ads", b"stream"),
    link("Files/again", "Files/Windows/new"),
]


def awkward_tar_of(changes: Sequence[Change]) -> bytes:
    written = bytearray()
    apply_changes(changes, WindowsTarSink(written.extend, rules=AS_WINDOWS))
    return bytes(written)


@pytest.fixture
def stub(client: Client) -> Stub:
    return Stub(client.channel, pb.DESCRIPTOR)


def stored(served: Served, changes: Sequence[Change]) -> Any:
    return put(served, tar_of(changes), OCI_LAYER)


def apply(stub: Stub, served: Served, changes: Sequence[Change], *mounts: Mount, sync: bool = False) -> None:
    layer = stored(served, changes)
    request = pb.ApplyRequest(diff=layer, mounts=sent(mounts), sync_fs=sync)
    applied = stub.Apply(request, metadata=within()).applied
    assert (applied.media_type, applied.digest, applied.size) == (OCI_LAYER, layer.digest, layer.size)


def diff(stub: Stub, left: Sequence[Mount], right: Sequence[Mount], **further: Any) -> str:
    request = pb.DiffRequest(left=sent(left), right=sent(right), media_type=OCI_LAYER, **further)
    return str(stub.Diff(request, metadata=within()).diff.digest)


def refusal(call: Callable[..., object], request: object) -> str:
    return code_of(lambda: call(request, metadata=within())).name


class TestFolders:
    @pytest.fixture
    def folders(self, tmp_path: Path, stub: Stub, served: Served) -> tuple[Path, Path]:
        """Two layers, as a client unpacks them."""
        base, top = tmp_path / "1", tmp_path / "2"
        for folder, parents, changes in ((base, (), BASE), (top, (base,), TOP)):
            apply(stub, served, changes, WindowsLayerMount(folder, parents), sync=True)
        return base, top

    def test_take_layers_and_give_them_back(self, folders: tuple[Path, Path], stub: Stub) -> None:
        base, top = folders
        with FolderChanges(WindowsLayer(top)) as changes:
            assert len(TOP) == len(list(changes))
        view_of_base = WindowsLayerMount(Path("/dummy"), (base,), readonly=True)
        writable = WindowsLayerMount(top, (base,))
        view_of_top = WindowsLayerMount(Path("/dummy"), (top, base), readonly=True)
        assert digest(TOP) == diff(stub, [view_of_base], [writable])
        assert digest(TOP) == diff(stub, [view_of_base], [view_of_top])
        nothing = WindowsLayerMount(Path("/dummy"), readonly=True)
        for left in ([nothing], []):
            assert digest(BASE) == diff(stub, left, [WindowsLayerMount(base)])

    def test_may_have_the_empty_directory_of_a_new_snapshot(self, tmp_path: Path, stub: Stub, served: Served) -> None:
        (tmp_path / "new" / "Files").mkdir(parents=True)
        apply(stub, served, BASE, WindowsLayerMount(tmp_path / "new"))
        (tmp_path / "used" / "Files").mkdir(parents=True)
        (tmp_path / "used" / "Files" / "f").touch()
        used = pb.ApplyRequest(diff=stored(served, BASE), mounts=sent([WindowsLayerMount(tmp_path / "used")]))
        assert refusal(stub.Apply, used) == "FAILED_PRECONDITION"
        assert os.listdir(tmp_path / "used" / "Files") == ["f"]

    def test_are_compared_with_their_parents_alone(self, folders: tuple[Path, Path], stub: Stub) -> None:
        base, top = folders
        view = WindowsLayerMount(Path("/dummy"), (base,), readonly=True)
        writable = WindowsLayerMount(top, (base,))
        wrong: list[tuple[list[Mount], list[Mount]]] = [
            ([], [writable]),
            ([WindowsLayerMount(top)], [writable]),
            ([WindowsLayerMount(base, (top,))], [writable]),
            ([view], [WindowsLayerMount(base)]),
            ([BindMount(base)], [writable]),
            ([view, view], [writable]),
            ([view], [writable, writable]),
            ([view], [WindowsLayerMount(Path("/dummy"), readonly=True)]),
        ]
        for left, right in wrong:
            request = pb.DiffRequest(left=sent(left), right=sent(right))
            assert refusal(stub.Diff, request) == "INVALID_ARGUMENT"

    def test_have_names_that_windows_has(self, tmp_path: Path, stub: Stub, served: Served) -> None:
        """Nobody can be asked, and an image of Windows must come in; a composite image takes them as well."""
        changes = windows_base(*(file(f"Files/{name}", b"x") for name in ("a.", "aux.js", "b ")))
        data = awkward_tar_of(changes)
        layer = put(served, data, OCI_LAYER)
        folder, image = tmp_path / "1", tmp_path / "2"
        image.mkdir()
        for mount in (WindowsLayerMount(folder), CimMount(image, tmp_path / "2.cim")):
            request = pb.ApplyRequest(diff=layer, mounts=sent([mount]))
            assert stub.Apply(request, metadata=within()).applied.digest == layer.digest
            assert diff(stub, [], [mount]) == layer.digest

    def test_that_are_only_looked_at_take_no_layer(self, tmp_path: Path, stub: Stub, served: Served) -> None:
        mounts = [WindowsLayerMount(tmp_path / "new", readonly=True)]
        request = pb.ApplyRequest(diff=stored(served, BASE), mounts=sent(mounts))
        assert refusal(stub.Apply, request) == "INVALID_ARGUMENT"
        assert not (tmp_path / "new").exists()


class TestImages:
    def test_of_snapshots_take_layers_and_give_them_back(self, stub: Stub, served: Served) -> None:
        snapshots = served.store.namespace("default").snapshots("cimfs")
        apply(stub, served, BASE, *snapshots.prepare("extract-1"), sync=True)
        snapshots.commit("base", "extract-1")
        mounts = snapshots.prepare("extract-2", "base")
        assert diff(stub, snapshots.view("before", "base"), mounts) == digest([])
        apply(stub, served, TOP, *mounts)
        assert diff(stub, snapshots.mounts("before"), mounts) == digest(TOP)
        snapshots.commit("top", "extract-2")
        assert diff(stub, snapshots.mounts("before"), snapshots.view("after", "top")) == digest(TOP)
        # What an import adds is left out of what comes back, so that it can be imported again.
        again = diff(stub, [], snapshots.mounts("before"))
        layer = pb.ApplyRequest(mounts=sent(snapshots.prepare("extract-3")))
        layer.diff.CopyFrom(_descriptor(served, again))
        assert stub.Apply(layer, metadata=within()).applied.digest == again
        with snapshots.tree("extract-3") as one, snapshots.tree("base") as other:
            files = LayerPath("Files")
            assert [entry.path for entry in one.entries(files)] == [entry.path for entry in other.entries(files)]

    def test_lie_where_a_mount_says(self, tmp_path: Path, stub: Stub, served: Served) -> None:
        images = tmp_path / "images"
        images.mkdir()
        places = [tmp_path / name for name in ("1", "2")]
        for place in places:
            place.mkdir()
        base, top = images / "1.cim", images / "2.cim"
        apply(stub, served, BASE, CimMount(places[0], base))
        apply(stub, served, TOP, CimMount(places[1], top, (places[0],), (base,)))
        with CimTree(CimLayer(top)) as image:
            assert [entry.path for entry in image.entries(LayerPath("Files"))] == [
                "Files/Windows",
                "Files/again",
                "Files/kept",
            ]
        assert (places[1] / "Hives" / "SYSTEM_BASE").samefile(places[0] / "Hives" / "SYSTEM_BASE")
        late = pb.DiffRequest(
            left=sent([CimMount(places[0], base)]),
            right=sent([CimMount(places[1], top, (places[0],), (base,))]),
            media_type=OCI_LAYER,
            source_date_epoch=Timestamp(seconds=5),
        )
        assert stub.Diff(late, metadata=within()).diff.digest != digest(TOP)

    def test_are_refused_where_a_mount_says_too_little(self, tmp_path: Path, stub: Stub, served: Served) -> None:
        place, image = tmp_path / "1", tmp_path / "1.cim"
        place.mkdir()
        mounts: list[tuple[list[Mount], str]] = [
            ([CimMount(place)], "INVALID_ARGUMENT"),
            ([CimMount(place, image, readonly=True)], "INVALID_ARGUMENT"),
            ([CimMount(place, image, (place,))], "INVALID_ARGUMENT"),
            ([CimMount(place, image), CimMount(place, image)], "INVALID_ARGUMENT"),
            ([CimMount(place, image, (place,), (tmp_path / "0.cim",))], "NOT_FOUND"),
        ]
        layer = stored(served, BASE)
        for each, code in mounts:
            request = pb.ApplyRequest(diff=layer, mounts=sent(each))
            assert refusal(stub.Apply, request) == code
        assert os.listdir(place) == []
        apply(stub, served, BASE, CimMount(place, image))
        twice = pb.ApplyRequest(diff=layer, mounts=sent([CimMount(tmp_path / "2", image)]))
        assert refusal(stub.Apply, twice) == "ALREADY_EXISTS"

    def test_are_compared_with_their_parents_alone(self, tmp_path: Path, stub: Stub, served: Served) -> None:
        place, image = tmp_path / "1", tmp_path / "1.cim"
        place.mkdir()
        apply(stub, served, BASE, CimMount(place, image))
        own = CimMount(place, image)
        wrong: list[tuple[list[Mount], list[Mount]]] = [
            ([CimMount(place)], [CimMount(place)]),
            ([CimMount(place, images=(tmp_path / "0.cim",))], [own]),
            ([BindMount(place)], [own]),
        ]
        for left, right in wrong:
            request = pb.DiffRequest(left=sent(left), right=sent(right))
            assert refusal(stub.Diff, request) == "INVALID_ARGUMENT"


class TestOthers:
    @pytest.mark.parametrize(
        "mount",
        [
            BlockCimMount(Path("/1/layer.vhd/layer.cim")),
            BlockCimMount(Path("/1/layer.vhd/layer.cim"), kind="device"),
            Sent(type="BlockCIM", source="C:\\1\\layer.vhd\\layer.cim", options=["parentCimPaths=[]"]),
            Sent(type="CimFS", source="C:\\1", options=["rw", "cimpath=C:\\1.cim"]),
            Sent(type="windows-layer", source="C:\\1", options=["rw"]),
            Sent(type="lcow-layer", source="/1", options=["rw", "parentLayerPaths=[]"]),
        ],
        ids=lambda mount: type(mount).__name__ if isinstance(mount, BlockCimMount) else mount.type,
    )
    def test_are_left_to_the_next_differ(self, mount: BlockCimMount | Sent, stub: Stub, served: Served) -> None:
        mounts = [mount] if isinstance(mount, Sent) else sent([mount])
        request = pb.ApplyRequest(diff=stored(served, BASE), mounts=mounts)
        assert refusal(stub.Apply, request) == "UNIMPLEMENTED"
        compared = pb.DiffRequest(right=mounts)
        assert refusal(stub.Diff, compared) == "UNIMPLEMENTED"
        assert not list(served.store.namespace("default").content.statuses())

    def test_that_no_differ_supports_together_are_refused(self) -> None:
        mounts = (BindMount(Path("/a")), CimMount(Path("/b")))
        with pytest.raises(InvalidInput, match="2 mounts"), open_target(mounts, Losses()):
            pass

    def test_go_from_differ_to_differ_only_while_they_are_unsupported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        class Fake:
            def __init__(self, name: str, problem: Exception | None, *, supports: bool = True) -> None:
                self.name = name
                self._problem = problem
                self._supports = supports

            def supports(self, mounts: Mounts) -> bool:
                return self._supports

            def open_target(self, mounts: Mounts, losses: Losses) -> AbstractContextManager[Target]:
                return self._open_target(mounts, losses)

            @contextmanager
            def _open_target(self, mounts: Mounts, losses: Losses) -> Iterator[Target]:
                self._ask()
                yield Target(None, Path("/"), lambda _: ())  # type: ignore[arg-type]

            def plan_diff(self, left: Mounts, right: Mounts) -> MakeLayer:
                self._ask()
                return lambda write: write((), None)

            def _ask(self) -> None:
                asked.append(self.name)
                if self._problem is not None:
                    raise self._problem

        def use(*fakes: Fake) -> None:
            monkeypatch.setattr(table, "DIFFERS", {fake.name: partial(copy, fake) for fake in fakes})
            asked.clear()

        mounts = (BindMount(Path("/a")),)
        first, second = Fake("first", Unsupported("not here")), Fake("second", None)
        use(Fake("stranger", None, supports=False), first, second)
        with open_target(mounts, Losses()):
            assert asked == ["first", "second"]
        plan_diff((), mounts)
        assert asked == ["first", "second"] * 2
        use(Fake("broken", InvalidInput("bad")), second)
        with pytest.raises(InvalidInput), open_target(mounts, Losses()):
            pass
        assert asked == ["broken"]
        use(first, Fake("last", Unsupported("nor there")))
        with pytest.raises(Unsupported, match="nor there"):
            plan_diff((), mounts)


def digest(changes: Sequence[Change]) -> str:
    return str(Digest.of(tar_of(changes)))


def _descriptor(served: Served, of: str) -> Any:
    with served.store.namespace("default").content.open(Digest(of)) as blob:
        return put(served, blob.read(), OCI_LAYER)


class TestSnapshots:
    def test_of_windows_layers_are_mounted_in_containerds_words(self, client: Client, served: Served) -> None:
        snapshots = Snapshots(client.channel, "cimfs")
        (mount,) = snapshots.prepare("extract-1 base")
        kept = served.store.namespace("default").snapshots("cimfs")
        home = kept.directory("extract-1 base")
        assert (mount.type, mount.source, mount.options[0]) == ("CimFS", str(home), "rw")
        (image,) = [word.removeprefix("cimpath=") for word in mount.options[1:]]
        assert (Path(image).parent, Path(image).suffix) == (home.parent / "cim-layers", ".cim")
        snapshots.commit("base", "extract-1 base")
        (view,) = snapshots.view("look", "base")
        (named,) = [word for word in view.options if word.startswith("cimpath=")]
        assert not Path(named.removeprefix("cimpath=")).exists()
        assert list(view.options) == ["ro", named, f'parentLayerPaths=["{home}"]', f'parentCimPaths=["{image}"]']
        assert snapshots.mounts("look") == [view]
        snapshots.remove("look")
        snapshots.remove("base")
        assert not Path(image).exists()

    def test_in_block_images_are_for_windows(self, client: Client) -> None:
        snapshots = Snapshots(client.channel, "blockcim")
        assert code_of(lambda: snapshots.prepare("extract-1")).name == "UNIMPLEMENTED"
        assert snapshots.list() == []
