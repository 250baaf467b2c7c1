# SPDX-License-Identifier: Apache-2.0
"""Upper directories written and read by an ordinary user."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.people import as_nobody, person

import lamella.layers.overlay.tree  # noqa: F401  # loaded now, since it may be out of reach without rights
from lamella.changes.apply import apply
from lamella.changes.losses import Losses
from lamella.changes.model import Change
from lamella.changes.tree import merge
from lamella.layers.overlay.layer import USER, OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.overlay.tree import OverlayTree
from lamella.layers.stack import LayerStack
from lamella.testing.builders import directory, file, link, opaque, whiteout
from lamella.testing.reading import text

STACK: list[list[Change]] = [
    [
        directory("", mtime=0),
        directory("d", mode=0o750, uid=5, gid=6, mtime=1),
        file("d/old", b"1", uid=7, gid=8, mtime=2),
        file("gone", mtime=3),
        directory("e", mtime=4),
        file("e/old", mtime=5),
    ],
    [whiteout("gone"), opaque("e"), file("d/new", b"2", uid=9, mtime=6), link("d/again", "d/old")],
    [file("d/newer", b"3", mode=0o4755, mtime=7), whiteout("d/new"), whiteout("e"), directory("e", mtime=8)],
]


@pytest.fixture
def own() -> Iterator[Path]:
    """A directory that the unprivileged user owns and can reach."""
    top = Path(tempfile.mkdtemp(prefix="lamella-test-"))
    top.chmod(0o755)
    where = top / "layers"
    where.mkdir(mode=0o755)
    os.chown(where, *person())
    yield where
    shutil.rmtree(top)


def refuse(*arguments: object, **more: object) -> None:
    raise PermissionError(errno.EPERM, "no devices here")


@pytest.mark.parametrize("devices", [True, False], ids=["", "where devices are refused"])
def test_a_stack_without_rights_shows_what_root_would_see(
    devices: bool, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not devices:
        monkeypatch.setattr(os, "mknod", refuse)

    def work() -> tuple[list[str], list[str]]:
        layers: list[OverlayLayer] = []
        losses = Losses()
        for number, changes in enumerate(STACK):
            layer = OverlayLayer(own / str(number))
            layer.path.mkdir()
            apply(changes, OverlaySink(layer, parents=LayerStack(layers), losses=losses))
            layers.append(layer)
        with OverlayTree(LayerStack(layers)) as tree:
            return text(tree), [str(loss) for loss in losses]

    shown, losses = as_nobody(work)
    assert losses == []
    assert text(merge(STACK)) == shown
    gone = own / "1" / "gone"
    assert stat.S_ISCHR(gone.lstat().st_mode) if devices else os.getxattr(gone, USER + "whiteout") == b"y"
    assert os.getxattr(own / "1" / "e", USER + "opaque") == b"y"
    assert (own / "1" / "d" / "old").stat().st_uid == person()[0]
