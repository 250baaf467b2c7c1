# SPDX-License-Identifier: Apache-2.0
"""Surgery on images that stay in their registry: no layer is fetched that is not needed, and none is sent that is
there; what comes out is the same each time, and dated when told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from tests.registry.hostile import Registry

import lamella
from lamella.testing.images import compact, digest, index_of, small_image

NOISE = random.Random(9).randbytes(200_000)
BASE = small_image({"a": NOISE + b"a"}, {"b": NOISE + b"b"})
NEW_BASE = small_image({"a": NOISE + b"A"})
IMAGE = small_image({"a": NOISE + b"a"}, {"b": NOISE + b"b"}, {"c": NOISE + b"c"}, {"d": NOISE + b"d", "e": b"e"})
ARM = small_image({"arm": NOISE}, platform="linux/arm64")
LAYERS = [layer["digest"] for layer in IMAGE.manifest["layers"]]
ENTRY, INDEX = index_of(IMAGE, ARM)
EPOCH = 1_700_000_000


def _append(name: str, to: str) -> None:
    lamella.append(f"{name}:v1", {"new": b"x"}, to)


def _mutate(name: str, to: str) -> None:
    lamella.mutate(f"{name}:v1", to, lamella.Settings(env={"A": "1"}))


def _rebase(name: str, to: str) -> None:
    lamella.rebase(f"{name}:v1", to, old_base=f"{name}:base", new_base=f"{name}:new-base")


def _flatten(name: str, to: str) -> None:
    lamella.flatten(f"{name}:v1", to, layers=range(1, 3))


def _convert(name: str, to: str) -> None:
    lamella.convert(f"{name}:mixed", to, lamella.ConvertOptions(compression="zstd"))


def _index(name: str, to: str) -> None:
    lamella.index([f"{name}:v1", f"{name}:arm"], to)


def _subset(name: str, to: str) -> None:
    lamella.subset(f"{name}:all", to, ["linux/arm64"])


def _builder(name: str, to: str) -> None:
    image = lamella.Image.open(f"{name}:v1").append({"new": b"x"}).with_config(user="1")
    image.push(to.removeprefix("docker://"))


OPERATIONS = [
    (_append, set()),
    (_mutate, set()),
    (_rebase, set()),
    (_flatten, set(LAYERS[:3])),  # what a path means depends on the layers below
    (_convert, set(LAYERS[2:])),
    (_index, set()),
    (_subset, set()),
    (_builder, set()),
]

Operation = Callable[[str, str], None]


@pytest.fixture
def registry() -> Iterator[Registry]:
    """One with images whose lower layers are bases too, and one of whose layers two are compressed already."""
    with Registry() as server:
        for tag, image in (("v1", IMAGE), ("base", BASE), ("new-base", NEW_BASE), ("arm", ARM)):
            server.add("app", tag, image)
        server.add_manifest("app", "all", ENTRY["mediaType"], INDEX)
        yield server


@pytest.fixture
def name(registry: Registry) -> str:
    """The repository of the images."""
    name = f"docker://{registry.host}/app"
    lamella.convert(f"{name}:base", f"{name}:zstd", lamella.ConvertOptions(compression="zstd"))
    lower = lamella.open_image(f"{name}:zstd").manifest.layers
    upper = IMAGE.manifest["layers"][2:]
    mixed = [
        *({"mediaType": one.media_type, "digest": str(one.digest), "size": one.size} for one in lower),
        *upper,
    ]
    registry.add_manifest("app", "mixed", IMAGE.manifest["mediaType"], compact({**IMAGE.manifest, "layers": mixed}))
    registry.requests.clear()
    return name


@pytest.mark.parametrize(("operation", "expected"), OPERATIONS)
@pytest.mark.parametrize("repository", ["app", "other"])
def test_only_layers_that_are_needed_are_fetched_and_only_new_ones_are_sent(
    registry: Registry, name: str, operation: Operation, expected: set[str], repository: str
) -> None:
    before = dict(registry.blobs)
    operation(name, f"docker://{registry.host}/{repository}:it")
    fetched = {one.path.rpartition("/")[2] for one in registry.asked("GET", "/blobs/")}
    assert {one for one in fetched if len(before[one]) > 100_000} == expected
    sent = sum(int(one.headers.get("Content-Length", "0")) for one in registry.asked("PUT|PATCH|POST"))
    new = sum(len(blob) for name, blob in registry.blobs.items() if name not in before)
    assert sent - new < 20_000  # documents, those that were there included


@pytest.mark.parametrize("operation", [operation for operation, _ in OPERATIONS])
def test_the_same_surgery_gives_the_same_digest(
    registry: Registry, name: str, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    for tag in ("one", "two"):
        operation(name, f"docker://{registry.host}/app:{tag}")
    one, two = (registry.manifests["app", tag][1] for tag in ("one", "two"))
    assert digest(one) == digest(two)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH + 1))
    operation(name, f"docker://{registry.host}/app:later")
    dated = operation not in (_convert, _index, _subset)  # these make no new image
    assert (registry.manifests["app", "later"][1] != one) is dated
