# SPDX-License-Identifier: Apache-2.0
"""What an overlay mount shows is what the layers mean: the kernel is asked."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.dump import dump
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Kind, Link, Put
from lamella.changes.tree import merge, walk
from lamella.errors import InvalidInput, NotFound
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.overlay.tree import OverlayChanges, OverlayTree
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.testing.builders import directory, file, link, opaque, symlink, whiteout
from lamella.testing.strategies import paths, stacks

pytestmark = [pytest.mark.interop, pytest.mark.root]

Stack = list[list[Change]]


@contextmanager
def mounted(layers: Sequence[OverlayLayer], where: Path, *, user: bool = False) -> Iterator[Path]:
    """A read-only mount of ``layers``, the base first; the kernel wants two at least."""
    bottom, top = where / "bottom", where / "mount"
    bottom.mkdir()
    top.mkdir()
    # By their names, since an option takes 256 bytes at most.
    lower = ":".join([*[layer.path.name for layer in reversed(layers)], bottom.name])
    options = f"lowerdir={lower},redirect_dir=off,metacopy=off" if not user else f"lowerdir={lower},userxattr"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(top)], cwd=where, check=True, capture_output=True
    )
    try:
        yield top
    finally:
        subprocess.run(["umount", str(top)], check=True)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory, needs: Callable[..., str]) -> Path:
    """A directory in which upper directories can be mounted."""
    needs("mount", "umount")
    where = tmp_path_factory.mktemp("overlay")
    probe = where / "probe"
    (probe / "layer").mkdir(parents=True)
    try:
        with mounted([OverlayLayer(probe / "layer")], probe):
            pass
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this system mounts no overlay: {error.stderr!r}")
    return where


def bare(directory: Path) -> Path:
    """A new directory with the metadata that a root has which no layer states."""
    directory.mkdir(mode=0o755)
    os.utime(directory, ns=(0, 0))
    return directory


def lines(tree: Tree, *, links: bool = True) -> list[str]:
    if links:
        return list(dump(walk(tree), inline=16, extents=False))
    found = []
    todo = [LayerPath("")]
    while todo:
        entry = tree.lookup(todo.pop())
        assert entry is not None
        found.append(entry.path)
        if entry.kind is Kind.DIRECTORY:
            todo += [one.path for one in tree.entries(entry.path)]
    return sorted(found)


def build(stack: Stack, where: Path, losses: Losses, *, user: bool | None = None) -> list[OverlayLayer]:
    layers: list[OverlayLayer] = []
    for number, changes in enumerate(stack):
        layer = OverlayLayer(bare(where / f"layer{number}"), user)
        apply(changes, OverlaySink(layer, parents=LayerStack(layers), losses=losses))
        layers.append(layer)
    return layers


@st.composite
def stacks_with_links_down(draw: st.DrawFn) -> Stack:
    """Stacks in which layers also give further names to files that only lower layers have."""
    stack = draw(stacks(symlinks=True))
    tree = merge(stack[:-1])
    files = [put.entry.path for put in walk(tree) if isinstance(put, Put) and put.entry.kind is not Kind.DIRECTORY]
    further: bool = draw(st.booleans())
    if files and further:
        at = draw(st.integers(0, len(stack[-1])))
        added = Link(draw(paths()), draw(st.sampled_from(files)))
        longer = [*stack[:-1], [*stack[-1][:at], added, *stack[-1][at:]]]
        try:
            merge(longer)
        except (NotFound, InvalidInput):
            return stack
        return longer
    return stack


@settings(max_examples=80)
@given(stacks_with_links_down())
@example([[file("a/b/c"), file("a/x")], [file("a/b/d"), opaque("a")]])
@example([[file("a/b")], [opaque("")]])
@example([[file("a/b"), file("c"), file("d/e")], [file("d/f"), opaque(""), symlink("g", "a")]])
@example([[file("a/b/c")], [whiteout("a/b/c"), whiteout("a/b"), file("a/b/d")]])
@example([[file("a/b/c")], [whiteout("a"), file("a/b/d")]])
@example([[file("a/b/c")], [file("a"), directory("a")]])
@example([[file("a/b")], [symlink("a", "c")], [whiteout("a")], [directory("a")]])
@example([[file("a/b")], [link("a/c", "a/b"), opaque("a")]])
@example([[file("a/b")], [whiteout("a/b"), opaque("a")]])
@example([[file("d/a")], [symlink("l", "d")], [file("l/b"), whiteout("l/a")]])
@example([[directory("a", mode=0o700, xattrs={"user.x": b"1"}), file("a/b")], [file("a/c")]])
@example([[file("a")], [whiteout("a/b"), whiteout("none/b"), whiteout("none")]])
def test_the_kernel_shows_what_the_layers_come_to(overlay: Path, stack: Stack) -> None:
    expected = merge(stack)
    with tempfile.TemporaryDirectory(dir=overlay) as made:
        where = Path(made)
        losses = Losses()
        layers = build(stack, where, losses)
        links = not losses.count
        assert {"hard links to its other names below"} >= {loss.what for loss in losses}
        flat = bare(where / "flat")
        for changes in stack:
            apply(changes, DirectorySink(flat))
        with DirectoryTree(flat) as tree:
            assert lines(expected) == lines(tree)
        with OverlayTree(LayerStack(layers)) as merged:
            assert lines(expected, links=links) == lines(merged, links=links)
        with mounted(layers, where) as top, DirectoryTree(top) as shown:
            assert lines(expected, links=links) == lines(shown, links=links)
        if links:
            with ExitStack() as opened:
                again = merge([opened.enter_context(OverlayChanges(layer)) for layer in layers])
                assert lines(expected) == lines(again)


def test_the_kernel_shows_a_socket_and_nothing_that_is_below(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir=overlay) as made:
        where = Path(made)
        layers = build([[file("a"), directory("b"), file("b/c"), file("d")], []], where, Losses())
        monkeypatch.chdir(layers[1].path)
        for name in ("a", "b", "e"):
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(name)
        os.utime(layers[1].path, ns=(0, 0))
        monkeypatch.chdir("/")
        with mounted(layers, where) as top, DirectoryTree(top) as shown:
            assert [(top / name).is_socket() for name in ("a", "b", "e")] == [True, True, True]
            expected = lines(shown)
        with OverlayTree(LayerStack(layers)) as merged:
            assert expected == lines(merged)
        with ExitStack() as opened:
            stated = merge([opened.enter_context(OverlayChanges(layer)) for layer in layers])
            assert expected == lines(stated)


@settings(max_examples=25)
@given(stacks(symlinks=True))
def test_the_kernel_understands_the_marks_of_the_unprivileged(overlay: Path, stack: Stack) -> None:
    with tempfile.TemporaryDirectory(dir=overlay) as made:
        where = Path(made)
        losses = Losses()
        layers = build(stack, where, losses, user=True)
        links = not losses.count
        with mounted(layers, where, user=True) as top, DirectoryTree(top) as shown:
            assert lines(merge(stack), links=links) == lines(shown, links=links)
