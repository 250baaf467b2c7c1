# SPDX-License-Identifier: Apache-2.0
"""The runtime configuration that an image config gives."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lamella.changes.contracts import Tree
from lamella.changes.tree import fold
from lamella.errors import NotFound
from lamella.oci.config import ContainerConfig, ImageConfig, RootFs
from lamella.operations.runtime.bundle import IdRange, Rootless, runtime_config, write_runtime_config
from lamella.testing.builders import file

TREE: Tree = fold(
    [
        file("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:7:8::/srv:/bin/sh\n"),
        file("etc/group", b"audio:x:29:app\n"),
    ]
)


def config(**fields: Any) -> ImageConfig:
    outer = {name: fields.pop(name) for name in ("author", "created", "variant") if name in fields}
    return ImageConfig(
        architecture="amd64", os="linux", rootfs=RootFs(diff_ids=[]), config=ContainerConfig(**fields), **outer
    )


def process(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = runtime_config(config(**fields), TREE)["process"]
    return found


def test_the_process_is_entrypoint_and_cmd() -> None:
    assert process(entrypoint=["/app", "-v"], cmd=["serve"])["args"] == ["/app", "-v", "serve"]
    assert process(cmd=["sleep", "1"])["args"] == ["sleep", "1"]
    assert process()["args"] == ["sh"]
    assert process()["terminal"] is False


def test_the_user_is_looked_up_in_the_image() -> None:
    assert process(user="app")["user"] == {"uid": 7, "gid": 8, "additionalGids": [29]}
    assert process(user="app:5")["user"] == {"uid": 7, "gid": 5}
    assert process()["user"] == {"uid": 0, "gid": 0}
    with pytest.raises(NotFound):
        process(user="nobody")


def test_the_environment_has_a_path_and_a_home() -> None:
    assert process(env=["A=1"], user="app")["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "A=1",
        "HOME=/srv",
    ]
    assert process(env=["PATH=/x", "HOME=/y"])["env"] == ["PATH=/x", "HOME=/y"]


@pytest.mark.parametrize(("stated", "expected"), [("", "/"), ("/srv", "/srv"), ("srv/app", "/srv/app")])
def test_the_working_directory_is_absolute(stated: str, expected: str) -> None:
    assert process(working_dir=stated)["cwd"] == expected


def test_annotations_describe_the_image_and_its_labels_take_precedence() -> None:
    spec = runtime_config(
        config(
            author="me",
            created="2024-01-01T00:00:00Z",
            stop_signal="SIGINT",
            exposed_ports={"80/tcp": {}, "443/tcp": {}},
            labels={"org.opencontainers.image.author": "you", "x": "y"},
        ),
        TREE,
    )
    assert spec["annotations"] == {
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.image.architecture": "amd64",
        "org.opencontainers.image.author": "you",
        "org.opencontainers.image.created": "2024-01-01T00:00:00Z",
        "org.opencontainers.image.stopSignal": "SIGINT",
        "org.opencontainers.image.exposedPorts": "443/tcp,80/tcp",
        "x": "y",
    }


def test_an_unprivileged_container_has_a_user_namespace_and_no_network_namespace() -> None:
    rootless = Rootless((IdRange(0, 1000, 1), IdRange(1, 100000, 65536)), (IdRange(0, 1000, 1),))
    spec = runtime_config(config(), TREE, rootless=rootless)
    kinds = [one["type"] for one in spec["linux"]["namespaces"]]
    assert "user" in kinds
    assert "network" not in kinds
    assert spec["linux"]["uidMappings"] == [
        {"containerID": 0, "hostID": 1000, "size": 1},
        {"containerID": 1, "hostID": 100000, "size": 65536},
    ]
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert mounts["/sys"]["options"][0] == "rbind"
    assert "gid=5" not in mounts["/dev/pts"]["options"]
    assert "resources" not in spec["linux"]


def test_a_privileged_container_has_all_namespaces_but_a_user_one() -> None:
    spec = runtime_config(config(), TREE)
    kinds = [one["type"] for one in spec["linux"]["namespaces"]]
    assert kinds == ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    assert spec["root"] == {"path": "rootfs", "readonly": False}


def test_an_unprivileged_container_maps_this_user_to_root() -> None:
    ids = Rootless.of_this_user()
    assert ids.uids[0] == IdRange(0, os.geteuid(), 1)
    assert ids.gids[0] == IdRange(0, os.getegid(), 1)


def test_the_runtime_configuration_is_json_beside_the_root_file_system(tmp_path: Path) -> None:
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/passwd").write_text("app:x:7:8::/srv:/bin/sh\n")
    written = write_runtime_config(tmp_path, config(user="app"))
    assert written == tmp_path / "config.json"
    assert json.loads(written.read_bytes())["process"]["user"] == {"uid": 7, "gid": 8}


def test_a_passwd_link_is_resolved_inside_the_image(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("app:x:1:1::/:/bin/sh\n")
    (tmp_path / "bundle/rootfs/etc").mkdir(parents=True)
    (tmp_path / "bundle/rootfs/etc/passwd").symlink_to(tmp_path / "outside")
    with pytest.raises(NotFound, match="no user 'app'"):
        write_runtime_config(tmp_path / "bundle", config(user="app"))
