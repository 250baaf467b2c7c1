# SPDX-License-Identifier: Apache-2.0
"""Pulls and pushes survive a registry that is killed and restarted."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.registry.docker_registry import DockerRegistry, running
from tests.registry.isolation import isolate

from lamella.changes.job import Job
from lamella.digests import Digest
from lamella.errors import Unavailable
from lamella.images.contract import ImageReader, ImageWriter
from lamella.images.graph import ImageGraph
from lamella.images.options import RegistryOptions
from lamella.images.resolve import choose_image
from lamella.images.transports import open_reader, open_writer, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.manifest import decode_manifest
from lamella.operations.copy import Copied, copy, copy_image
from lamella.progress import NoProgress, Progress
from lamella.testing.images import SmallImage, small_image, tagged, write_layout

Needs = Callable[..., str]

pytestmark = pytest.mark.interop

MIB = 1 << 20
SIZE = 40 * MIB
OPTIONS = RegistryOptions(tries=8, retry_wait=30)


@pytest.fixture(scope="module")
def image() -> SmallImage:
    return small_image({"noise": random.Random(3).randbytes(SIZE)}, {"etc/name": b"lamella"}, compress=False)


@pytest.fixture(scope="module")
def layout(image: SmallImage, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("source") / "layout"
    return f"oci:{write_layout(str(directory), [tagged(image.descriptor, 'v1')], image.blobs)}:v1"


def copy_tagged(reader: ImageReader, writer: ImageWriter, progress: Progress | None = None) -> Copied:
    """Copy the image v1 from one place to the other."""
    graph = ImageGraph(reader)
    return copy_image(graph, writer, choose_image(graph, "v1"), "v1", Job(progress=progress))


@pytest.fixture
def registry(needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerRegistry]:
    isolate(monkeypatch, tmp_path)
    with running(DockerRegistry(needs("docker-registry"), tmp_path / "registry")) as server:
        yield server


class Killer(NoProgress):
    """Kills the registry after so many bytes, and may restart it a little later."""

    def __init__(self, registry: DockerRegistry, *moments: int, back: bool = True) -> None:
        self._registry = registry
        self._moments = list(moments)
        self._back = back
        self._passed = 0
        self._lock = threading.Lock()
        self._starting: list[threading.Thread] = []
        self.killed = 0

    def advance(self, amount: int) -> None:
        with self._lock:
            self._passed += amount
            if not self._moments or self._passed < self._moments[0]:
                return
            self._moments.pop(0)
            self.wait()
            self._registry.kill()
            self.killed += 1
            if self._back:
                thread = threading.Thread(target=self._start)
                self._starting.append(thread)
                thread.start()

    def _start(self) -> None:
        time.sleep(0.4)
        self._registry.start()

    def wait(self) -> None:
        """Wait until it is running again."""
        for thread in self._starting:
            thread.join()
        self._starting.clear()


def layer(image: SmallImage) -> Descriptor:
    return decode_manifest(image.blobs[image.descriptor["digest"]], image.descriptor["mediaType"], "x").layers[0]


@pytest.mark.parametrize("streams", [1, 3])
def test_a_pull_continues_when_the_registry_is_back(
    registry: DockerRegistry, image: SmallImage, layout: str, tmp_path: Path, streams: int
) -> None:
    name = parse_image_name(f"docker://{registry.host}/team/app:v1")
    copy(layout, name)
    killer = Killer(registry, 5 * MIB, 20 * MIB)
    options = RegistryOptions(tries=8, retry_wait=30, streams=streams)
    with (
        open_reader(name, registry=options) as reader,
        open_writer(parse_image_name(f"oci:{tmp_path}/out:v1")) as writer,
    ):
        copied = copy_tagged(reader, writer, killer)
    killer.wait()
    assert killer.killed == 2
    assert image.descriptor["digest"] == copied.entry.digest
    assert image.layers[0] == (tmp_path / "out/blobs" / layer(image).digest.replace(":", "/")).read_bytes()


def test_a_push_continues_when_the_registry_is_back(
    registry: DockerRegistry, image: SmallImage, layout: str, tmp_path: Path
) -> None:
    name = parse_image_name(f"docker://{registry.host}/team/app:v1")
    source = parse_image_name(layout)
    killer = Killer(registry, 9 * MIB, 30 * MIB)
    with open_reader(source) as reader, open_writer(name, registry=OPTIONS) as writer:
        copied = copy_tagged(reader, writer, killer)
    killer.wait()
    assert killer.killed == 2
    assert image.descriptor["digest"] == copied.entry.digest
    assert image.descriptor["digest"] == copy(name, f"oci:{tmp_path}/back:v1").entry.digest


def test_a_push_continues_after_a_kill_within_a_piece(
    registry: DockerRegistry, image: SmallImage, layout: str, tmp_path: Path
) -> None:
    name = parse_image_name(f"docker://{registry.host}/team/app:v1")
    source = parse_image_name(layout)
    killer = Killer(registry, 1)

    def watch() -> None:
        """Kill it when the first bytes of a piece are on its disk."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                for path in (registry.directory / "data").rglob("_uploads/*/data"):
                    if path.stat().st_size > MIB:
                        killer.advance(1)
                        return
            except FileNotFoundError:
                pass  # the upload has just ended

    watching = threading.Thread(target=watch)
    watching.start()
    with open_reader(source) as reader, open_writer(name, registry=OPTIONS) as writer:
        copied = copy_tagged(reader, writer)
    watching.join()
    killer.wait()
    assert killer.killed == 1
    assert image.descriptor["digest"] == copied.entry.digest
    assert image.descriptor["digest"] == copy(name, f"oci:{tmp_path}/back:v1").entry.digest


def test_a_registry_that_stays_down_fails_a_pull_without_a_partial_image(
    registry: DockerRegistry, layout: str, tmp_path: Path
) -> None:
    name = parse_image_name(f"docker://{registry.host}/team/app:v1")
    copy(layout, name)
    options = RegistryOptions(tries=3, retry_wait=2)
    target = parse_image_name(f"oci:{tmp_path}/out:v1")
    with open_reader(name, registry=options) as reader, open_writer(target) as writer, pytest.raises(Unavailable):
        copy_tagged(reader, writer, Killer(registry, 5 * MIB, back=False))
    assert not (tmp_path / "out/index.json").exists()
    left = [path for path in tmp_path.glob("out/blobs/*/*") if path.is_file()]
    assert [path.name for path in left if Digest.of(path.read_bytes()).hex != path.name] == []


def test_the_next_push_reuses_blobs_of_a_failed_one(
    registry: DockerRegistry, image: SmallImage, layout: str, tmp_path: Path
) -> None:
    name = parse_image_name(f"docker://{registry.host}/team/app:v1")
    source = parse_image_name(layout)
    options = RegistryOptions(tries=2, retry_wait=1)
    with open_reader(source) as reader, open_writer(name, registry=options) as writer, pytest.raises(Unavailable):
        copy_tagged(reader, writer, Killer(registry, 9 * MIB, back=False))
    registry.start()
    copied = copy(layout, name)
    assert image.descriptor["digest"] == copied.entry.digest
    assert image.descriptor["digest"] == copy(name, f"oci:{tmp_path}/back:v1").entry.digest
    assert os.listdir(tmp_path / "back/blobs/sha256") != []
