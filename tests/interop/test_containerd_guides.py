# SPDX-License-Identifier: Apache-2.0
"""What the guides about containerd show is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.interop.daemons import FIRST, Release, containerd_running, folder, lamella_serving
from tests.unit.test_docs import ROOT, agree, perform, steps

from lamella.host.mounting import mount_points, unmount

pytestmark = [pytest.mark.interop, pytest.mark.root]
ONLY_FIRST = pytest.mark.parametrize("release", [FIRST], indirect=True, ids=str)


def follow(guide: str, places: dict[str, Path], least: int) -> None:
    """Do what a guide says, which names ``places`` otherwise."""
    namespace: dict[str, Any] = {}
    count = 0
    document = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    for shown, place in places.items():
        document = document.replace(shown, str(place))
    for step in steps(document):
        printed = perform(step, namespace)
        assert agree(step[3], printed), f"{guide}:{step[0]}: {step[2]}\nshown:\n{step[3]}\nprinted:\n{printed}"
        count += 1
    assert count >= least


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be in an empty directory, in which nothing stays mounted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    yield
    for point in reversed(mount_points(str(tmp_path))):
        unmount(point, lazy=True)


@ONLY_FIRST
def test_the_guide_to_the_service(release: Release, work: None) -> None:
    with folder() as where, lamella_serving(where, "--address", where / "d.sock"):
        places = {"/run/lamella/lamella.sock": where / "d.sock", "/var/lib/lamella": where / "store"}
        follow("serve.md", places, least=10)


@ONLY_FIRST
def test_the_guide_to_images_of_a_containerd(release: Release, work: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder() as where, containerd_running(where / "containerd", release=release) as ctr:
        monkeypatch.setenv("CONTAINERD_ADDRESS", str(ctr.address))
        follow("containerd-images.md", {}, least=10)


def test_the_guide_to_the_plugin(release: Release, work: None, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs/containerd.md").read_text(encoding="utf-8")
    started = re.search(r"^lamella --root (\S+) serve --plugin (\S+)$", guide, re.MULTILINE)
    printing = re.findall(r"^lamella (.*--print-containerd-config(?: .*)?)$", guide, re.MULTILINE)
    assert started is not None
    with folder() as where:
        places = {started[1]: where / "store", started[2]: where / "p.sock"}
        configs = {}
        for line in printing:
            words = [str(places.get(word, word)) for word in line.partition("#")[0].split()]
            told = subprocess.run([sys.executable, "-m", "lamella", *words], capture_output=True, text=True, check=True)
            configs[words[-1] if words[-1] == "1.7" else "2"] = told.stdout.split("\n", 1)[1]
        with (
            lamella_serving(where, "--plugin", where / "p.sock", "--containerd", where / "containerd/socket"),
            containerd_running(where / "containerd", configs[release.name], release=release) as ctr,
        ):
            monkeypatch.setenv("CONTAINERD_ADDRESS", str(ctr.address))
            monkeypatch.setenv("PATH", release.environment()["PATH"])
            follow("containerd.md", {}, least=12)
