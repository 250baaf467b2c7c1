# SPDX-License-Identifier: Apache-2.0
"""An image gets another base without a look into its layers, where it was built on the old one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lamella
from lamella.errors import Conflict, InvalidInput, NotFound
from lamella.images.resolve import open_platform_image
from lamella.oci.config import ContainerConfig, History
from lamella.operations.surgery.rebase import BASE_DIGEST, BASE_NAME, replace_base
from lamella.testing.builders import directory, file

MakeImage = Callable[..., str]
Rewrite = Callable[[str, Callable[[Any, Any], None]], None]

OLD = [[directory("etc"), file("etc/version", b"1")], [file("etc/fix", b"1")]]
NEW = [[directory("etc"), file("etc/version", b"2")]]
OWN = [file("app", b"app")]


@pytest.fixture
def images(make_image: MakeImage, tmp_path: Path) -> tuple[str, str, str]:
    """Return the names of an image, of the base that it was built on, and of another base."""
    base = make_image(*OLD, name=f"oci:{tmp_path}/old:it", config=ContainerConfig(env=["PATH=/old"]))
    new = make_image(*NEW, name=f"oci:{tmp_path}/new:it", config=ContainerConfig(env=["PATH=/new"], user="nobody"))
    config = ContainerConfig(env=["PATH=/old", "APP=1"], cmd=["/app"])
    return make_image(*OLD, OWN, name=f"oci:{tmp_path}/app:it", config=config), base, new


def test_the_layers_of_the_base_change_and_the_rest_stays(images: tuple[str, str, str], tmp_path: Path) -> None:
    app, old, new = images
    target = f"oci:{tmp_path}/out:it"
    finished = lamella.rebase(app, target, old_base=old, new_base=new)
    with open_platform_image(app) as one, open_platform_image(new) as base, open_platform_image(target) as image:
        assert [layer.diff_id for layer in image.layers] == [base.layers[0].diff_id, one.layers[2].diff_id]
        assert image.descriptor.digest == finished.descriptor.digest
        assert image.config.config == one.config.config
        assert [step.created_by for step in image.config.history] == ["step 0", "step 2"]
        assert image.config.created == one.config.created
    with lamella.open_image(target) as image:
        assert [str(path) for path in image.filesystem().root.rglob("*")] == ["/app", "/etc", "/etc/version"]
    assert lamella.rebase(app, target, old_base=old, new_base=old).descriptor.digest == one.descriptor.digest


def test_no_layer_is_read_where_the_target_has_them(
    images: tuple[str, str, str], spoil_layers: Callable[[str], None]
) -> None:
    app, old, new = images
    lamella.copy(new, app.replace(":it", ":new"))
    for name in images:
        spoil_layers(name)
    lamella.rebase(f"{app}", app, old_base=old, new_base=new)


def test_an_image_that_was_built_on_something_else_is_refused(images: tuple[str, str, str]) -> None:
    app, old, new = images
    with pytest.raises(Conflict, match="layer 0 is sha256:"):
        lamella.rebase(app, app, old_base=new, new_base=old)
    with pytest.raises(Conflict, match="fewer than the 3"):
        lamella.rebase(old, old, old_base=app, new_base=new)


def test_the_platform_must_be_the_images(images: tuple[str, str, str], make_image: MakeImage, tmp_path: Path) -> None:
    app, old, _ = images
    other = make_image(*NEW, name=f"oci:{tmp_path}/arm:it", architecture="arm64")
    with pytest.raises(NotFound, match="no image named 'it' for linux/amd64"):
        lamella.rebase(app, app, old_base=old, new_base=other)
    with (
        open_platform_image(app) as image,
        open_platform_image(old) as below,
        open_platform_image(other) as base,
        pytest.raises(Conflict, match=r"is for linux/amd64, and .* for linux/arm64"),
    ):
        replace_base(image, below, base)


def test_the_steps_behind_the_old_base_are_kept(images: tuple[str, str, str], rewrite: Rewrite) -> None:
    app, old, new = images

    def steps(manifest: Any, config: Any) -> None:
        config["history"] = [
            {"created_by": "a"},
            {"created_by": "ENV", "empty_layer": True},
            {"created_by": "b"},
            {"created_by": "CMD", "empty_layer": True},
            {"created_by": "c"},
        ]

    def below(manifest: Any, config: Any) -> None:
        steps(manifest, config)
        config["history"].pop()

    rewrite(app, steps)
    rewrite(old, below)

    def names() -> list[History]:
        with open_platform_image(app) as image, open_platform_image(old) as base, open_platform_image(new) as other:
            return replace_base(image, base, other).config.history

    assert [step.created_by for step in names()] == ["step 0", "c"]

    def otherwise(manifest: Any, config: Any) -> None:
        config["history"] = [{"created_by": "x"}, {"created_by": "y"}]

    rewrite(old, otherwise)
    assert [step.created_by for step in names()] == ["step 0", "CMD", "c"]

    def none(manifest: Any, config: Any) -> None:
        del config["history"]

    rewrite(new, none)
    assert names() == []


def test_the_base_is_found_by_annotations(images: tuple[str, str, str], rewrite: Rewrite) -> None:
    app, old, new = images
    with pytest.raises(InvalidInput, match="does not record its base image"):
        lamella.rebase(app, app, new_base=new)
    with pytest.raises(InvalidInput, match="does not record its base image"):
        lamella.rebase(app, app, old_base=old)

    def noted(manifest: Any, config: Any) -> None:
        manifest["annotations"] = {BASE_NAME: "no.registry.invalid/base:1", BASE_DIGEST: "sha256:" + "0" * 64, "k": "v"}

    rewrite(app, noted)
    with pytest.raises(lamella.LamellaError, match=r"no\.registry\.invalid"):
        lamella.rebase(app, app, new_base=new)
    finished = lamella.rebase(app, app, old_base=old, new_base=new)
    assert finished.manifest.annotations == {"k": "v"}


def test_the_version_of_windows_is_the_new_bases(images: tuple[str, str, str], rewrite: Rewrite) -> None:
    app, old, new = images

    def windows(version: str) -> Callable[[Any, Any], None]:
        def change(manifest: Any, config: Any) -> None:
            config |= {"os": "windows", "os.version": version}

        return change

    for name, version in ((app, "10.0.20348.1"), (old, "10.0.20348.1"), (new, "10.0.20348.9")):
        rewrite(name, windows(version))
    assert lamella.rebase(app, app, old_base=old, new_base=new).config.os_version == "10.0.20348.9"
