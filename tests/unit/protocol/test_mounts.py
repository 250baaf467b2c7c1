# SPDX-License-Identifier: Apache-2.0
"""Mounts in containerd's words mean what they say, and come back as they went."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamella.errors import InvalidInput, Unsupported
from lamella.protocol.mounts import sent, typed
from lamella.protocol.proto.types_pb2 import Mount as Sent
from lamella.store.contract import (
    BindMount,
    BlockCimMount,
    CimMount,
    ErofsMount,
    Mount,
    OverlayMount,
    WindowsLayerMount,
)

NAMES = st.text(
    st.one_of(st.sampled_from("\\:,=ab \n"), st.characters(exclude_characters="/\0", exclude_categories=["Cs"])),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: Path("/", *names))
OPTIONS = st.lists(
    st.sampled_from(["index=off", "userxattr", "redirect_dir=off", "metacopy=off", "volatile", "x-of-tomorrow=1"]),
    max_size=3,
    unique=True,
).map(tuple)


@st.composite
def overlays(draw: st.DrawFn) -> OverlayMount:
    upper = draw(st.none() | PATHS)
    work = None if upper is None else draw(st.none() | PATHS)
    lower = draw(st.lists(PATHS, min_size=1 if upper is None else 0, max_size=5).map(tuple))
    return OverlayMount(lower, upper, work, draw(OPTIONS))


WINDOWS_PATHS = PATHS.filter(lambda path: not path.name.endswith("\\") and not str(path).startswith("//"))
WINDOWS_LISTS = st.lists(WINDOWS_PATHS, max_size=4).map(tuple)


@st.composite
def windows_mounts(draw: st.DrawFn) -> Mount:
    match draw(st.integers(0, 2)):
        case 0:
            return WindowsLayerMount(draw(WINDOWS_PATHS), draw(WINDOWS_LISTS), draw(st.booleans()))
        case 1:
            image = draw(st.none() | WINDOWS_PATHS)
            parents, images = draw(WINDOWS_LISTS), draw(WINDOWS_LISTS)
            return CimMount(draw(WINDOWS_PATHS), image, parents, images, draw(st.booleans()))
        case _:
            kind, merged = draw(st.sampled_from(["file", "device"])), draw(st.none() | WINDOWS_PATHS)
            source, images = draw(WINDOWS_PATHS), draw(WINDOWS_LISTS)
            return BlockCimMount(source, images, kind, merged, draw(st.booleans()), draw(st.booleans()))


MOUNTS = st.one_of(
    windows_mounts(),
    st.builds(BindMount, PATHS, st.booleans()),
    overlays(),
    st.builds(ErofsMount, PATHS, st.lists(st.sampled_from(["dax=never", "noacl"]), unique=True).map(tuple)),
)


@example((CimMount(Path("/\\0/0")),))
@given(st.lists(MOUNTS, max_size=4).map(tuple))
def test_what_was_sent_comes_back_the_same(mounts: tuple[Mount, ...]) -> None:
    over_the_wire = [Sent.FromString(mount.SerializeToString()) for mount in sent(mounts)]
    assert mounts == typed(over_the_wire)


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (BindMount(Path("/a")), ("bind", "/a", ["rw", "rbind"])),
        (BindMount(Path("/a"), readonly=True), ("bind", "/a", ["ro", "rbind"])),
        (
            OverlayMount((Path("/l,2"), Path("/l:1")), Path("/u:,"), Path("/w\\"), ("index=off",)),
            (
                "overlay",
                "overlay",
                ["workdir=/w\\\\", "upperdir=/u:\\,", "lowerdir=/l\\,2:/l\\:1", "index=off"],
            ),
        ),
        (OverlayMount((Path("/b"), Path("/a"))), ("overlay", "overlay", ["lowerdir=/b:/a"])),
        (ErofsMount(Path("/i")), ("erofs", "/i", ["ro", "loop"])),
        (WindowsLayerMount(Path("/3")), ("windows-layer", "/3", ["rw"])),
        (
            WindowsLayerMount(Path("/3"), (Path("/2"), Path("/1 é")), readonly=True),
            ("windows-layer", "/3", ["ro", 'parentLayerPaths=["/2","/1 é"]']),
        ),
        (
            CimMount(Path("/3"), Path("/cims/3.cim"), (Path("/2"),), (Path("/cims/2.cim"),)),
            (
                "CimFS",
                "/3",
                ["rw", "cimpath=/cims/3.cim", 'parentLayerPaths=["/2"]', 'parentCimPaths=["/cims/2.cim"]'],
            ),
        ),
        (CimMount(Path("/3"), Path("/cims/3.cim")), ("CimFS", "/3", ["rw", "cimpath=/cims/3.cim"])),
        (
            BlockCimMount(Path("/3/layer.vhd/layer.cim"), integrity=True, footer=True),
            (
                "BlockCIM",
                "/3/layer.vhd/layer.cim",
                ["parentCimPaths=[]", "blockCIMType=file", "enable_layer_integrity", "append_vhd_footer"],
            ),
        ),
        (
            BlockCimMount(Path("/3"), (Path("/2/b/c"), Path("/1/b/c")), merged=Path("/2/merged.vhd/merged.cim")),
            (
                "BlockCIM",
                "/3",
                [
                    'parentCimPaths=["/2/b/c","/1/b/c"]',
                    "blockCIMType=file",
                    "mergedCIMPath=/2/merged.vhd/merged.cim",
                ],
            ),
        ),
    ],
)
def test_mounts_are_sent_in_the_words_that_clients_know(mount: Mount, words: tuple[str, str, list[str]]) -> None:
    (found,) = sent([mount])
    assert (*words, "") == (found.type, found.source, list(found.options), found.target)


@pytest.mark.parametrize(
    ("words", "mount"),
    [
        (Sent(type="bind", source="/a", options=["rbind"]), BindMount(Path("/a"))),
        (Sent(type="bind", source="/a", options=["ro", "rbind", "rw"]), BindMount(Path("/a"))),
        (Sent(type="", source="/a", options=["bind", "ro", "nosuid", "rprivate"]), BindMount(Path("/a"), True)),
        (
            Sent(type="overlay", source="anything", options=["index=off", "lowerdir=/b:/a", "x"]),
            OverlayMount((Path("/b"), Path("/a")), options=("index=off", "x")),
        ),
        (Sent(type="overlay", options=["upperdir=/u", "workdir=/w"]), OverlayMount((), Path("/u"), Path("/w"))),
        (
            Sent(type="overlay", options=["ro", "upperdir=/u", "workdir=/w", "lowerdir=/l"]),
            OverlayMount((Path("/u"), Path("/l"))),
        ),
        (Sent(type="erofs", source="/i", options=["loop", "noacl"]), ErofsMount(Path("/i"), ("noacl",))),
        (
            Sent(type="windows-layer", source="/3\\", options=['parentLayerPaths=["/\\u0032\\\\"]']),
            WindowsLayerMount(Path("/3"), (Path("/2"),)),
        ),
        (Sent(type="CimFS", source="/3", options=["parentCimPaths=null", "ro"]), CimMount(Path("/3"), readonly=True)),
        (
            Sent(type="BlockCIM", source="/3/b/c\\", options=["blockCIMType=device"]),
            BlockCimMount(Path("/3/b/c"), kind="device"),
        ),
    ],
)
def test_other_words_for_the_same_are_understood(words: Sent, mount: Mount) -> None:
    assert (mount,) == typed([words])


@pytest.mark.parametrize(
    "words",
    [
        Sent(type="windows-layer", source="C:\\layer", options=["rw", 'parentLayerPaths=["C:\\\\parent"]']),
        Sent(type="windows-layer", source="/layer", options=['parentLayerPaths=["\\\\\\\\server\\\\share"]']),
        Sent(type="CimFS", source="C:\\layer"),
        Sent(type="CimFS", source="/layer", options=["cimpath=C:\\cims\\1.cim"]),
        Sent(type="BlockCIM", source="C:\\layer"),
        Sent(type="lcow-layer", source="/layer", options=["rw", "parentLayerPaths=[]"]),
        Sent(type="format/overlay", options=["lowerdir={{ mount 0 }}"]),
        Sent(type="tmpfs", source="tmpfs"),
        Sent(type="bind", source="/a", target="sub"),
        Sent(type="bind", source="/a", options=["rbind", "uidmap=0:1000:1"]),
        Sent(type="overlay", options=["lowerdir+=/a", "lowerdir+=/b"]),
    ],
    ids=lambda words: words.type,
)
def test_what_is_not_understood_is_left_to_others(words: Sent) -> None:
    with pytest.raises(Unsupported):
        typed([words])


@pytest.mark.parametrize(
    "words",
    [
        Sent(type="bind", source="relative"),
        Sent(type="bind", source="/a\0b"),
        Sent(type="overlay"),
        Sent(type="overlay", options=["lowerdir=/a::/b"]),
        Sent(type="overlay", options=["lowerdir=/a\\"]),
        Sent(type="overlay", options=["upperdir="]),
        Sent(type="erofs", source="/i", options=["rw"]),
        Sent(type="windows-layer", source="relative"),
        Sent(type="windows-layer", source="/a", options=["parentLayerPaths=[1]"]),
        Sent(type="windows-layer", source="/a", options=["parentLayerPaths=/b"]),
        Sent(type="CimFS", source="/a", options=["parentCimPaths=" + "[" * 100_000]),
        Sent(type="CimFS", source="/a", options=["cimpath="]),
        Sent(type="BlockCIM", source="/a/b/c", options=["blockCIMType=tape"]),
    ],
)
def test_nonsense_is_refused(words: Sent) -> None:
    with pytest.raises(InvalidInput):
        typed([words])


@pytest.mark.parametrize(
    ("words", "mount", "option"),
    [
        (
            Sent(type="windows-layer", source="/layer", options=["ro", "cimpath=/x"]),
            WindowsLayerMount(Path("/layer"), (), readonly=True),
            "cimpath",
        ),
        (Sent(type="CimFS", source="/layer", options=["mergedCIMPath=/x"]), CimMount(Path("/layer")), "mergedCIMPath"),
        (
            Sent(type="BlockCIM", source="/a/b/c", options=["append_vhd_footer=1", "enable_layer_integrity"]),
            BlockCimMount(Path("/a/b/c"), integrity=True),
            "append_vhd_footer",
        ),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
def test_unknown_options_of_windows_mounts_are_ignored_and_logged(
    words: Sent, mount: Mount, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="lamella.service"):
        assert typed([words]) == (mount,)
    (record,) = caplog.records
    assert record.getMessage() == f"ignored the unknown option {option!r} of a mount of type {words.type!r}"


def test_a_path_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(Unsupported):
        sent([BindMount(Path("/a\udcff"))])
