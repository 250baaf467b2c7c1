# SPDX-License-Identifier: Apache-2.0
"""append, mutate, flatten, rebase, convert, subset, index and compare on the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.oci.config import ContainerConfig
from lamella.testing.builders import directory, file, whiteout
from lamella.testing.images import digest, index_of, small_image, tagged, write_layout

Run = Callable[..., subprocess.CompletedProcess[str]]
MakeImage = Callable[..., str]

AMD = small_image({"a": b"amd"})
ARM = small_image({"a": b"arm"}, platform="linux/arm64")


@pytest.fixture
def image(make_image: MakeImage) -> str:
    """Return the name of an image of three layers."""
    layers = [[directory("etc"), file("etc/a", b"1")], [file("b", b"2")], [whiteout("b"), file("c", b"3")]]
    return make_image(*layers, config=ContainerConfig(env=["A=1"], cmd=["sh"]))


@pytest.fixture
def several(tmp_path: Path) -> str:
    """Return the name of an index of two images."""
    entry, raw = index_of(AMD, ARM)
    blobs = {**AMD.blobs, **ARM.blobs, digest(raw): raw}
    return f"oci:{write_layout(str(tmp_path / 'several'), [tagged(entry, 'all')], blobs)}:all"


def document(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def config_of(lamella: Run, image: str) -> Any:
    return document(lamella("inspect", image, "--json"))["config"]


def test_append_takes_directories_and_blobs(lamella: Run, image: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "new").write_text("new")
    lamella("diff", tree, "-o", tmp_path / "blob.tar", "--compress", "none")
    done = document(lamella("append", image, tree, tmp_path / "blob.tar", image, "--created-by", "me", "--json"))
    assert [layer["entries"] for layer in done["layers"]] == [1, 2]
    about = document(lamella("inspect", image, "--json"))
    assert [layer["digest"] for layer in about["layers"][3:]] == [layer["digest"] for layer in done["layers"]]
    assert [step["created_by"] for step in about["config"]["history"][3:]] == ["me", "me"]
    assert lamella("cat", f"{image}::new").stdout == "new"
    assert lamella("append", image, image).returncode == 2


def test_mutate_sets_and_takes_away(lamella: Run, image: str) -> None:
    done = lamella(
        *("mutate", image, image, "--env", "B=x=y", "--unset-env", "A", "--cmd", "", "--entrypoint", '["/x", "y z"]'),
        *("--label", "k=v", "--user", "app", "--workdir", "/w", "--port", "80/tcp", "--volume", "/d", "--author", "me"),
        *("--stop-signal", "INT", "--set-platform", "linux/arm64/v8", "--created", "2020-01-01T00:00:00Z"),
        *("--annotation", "a=b", "--history", "by hand"),
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"{image}: sha256:")
    config = config_of(lamella, image)
    assert config["config"] == {
        "User": "app",
        "ExposedPorts": {"80/tcp": {}},
        "Env": ["B=x=y"],
        "Entrypoint": ["/x", "y z"],
        "Volumes": {"/d": {}},
        "WorkingDir": "/w",
        "Labels": {"k": "v"},
        "StopSignal": "INT",
    }
    assert (config["architecture"], config["variant"], config["author"]) == ("arm64", "v8", "me")
    assert (config["created"], config["history"][-1]["created_by"]) == ("2020-01-01T00:00:00Z", "by hand")
    lamella("mutate", image, image, "--unset-label", "k", "--unset-port", "80/tcp", "--unset-volume", "/d")
    assert set(config_of(lamella, image)["config"]) == {"User", "Env", "Entrypoint", "WorkingDir", "StopSignal"}
    assert document(lamella("inspect", image, "--json"))["annotations"] == {"a": "b"}
    lamella("mutate", image, image, "--unset-annotation", "a")
    assert "annotations" not in document(lamella("inspect", image, "--json"))


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--env", "x"], 2), (["--port", "x"], 3), (["--created", "now"], 3), (["--platform", "linux/s390x"], 4)],
)
def test_mutate_refuses_what_it_cannot_do(lamella: Run, image: str, options: list[str], code: int) -> None:
    before = lamella("inspect", image).stdout
    assert lamella("mutate", image, image, *options).returncode == code
    assert lamella("inspect", image).stdout == before


def test_flatten_merges_the_layers_that_are_named(lamella: Run, image: str) -> None:
    before = lamella("dump", image).stdout
    done = document(lamella("flatten", image, image, "--layers", "1..2", "--json"))
    about = document(lamella("inspect", image, "--json"))
    assert [layer["diff_id"] for layer in about["layers"]][1] == done["layers"][0]["diff_id"]
    assert len(about["layers"]) == 2
    assert lamella("dump", image).stdout == before
    assert lamella("flatten", image, image, "--layers", "1..2").returncode == 3


def test_rebase_puts_an_image_on_another_base(lamella: Run, image: str, make_image: MakeImage, tmp_path: Path) -> None:
    old = make_image([directory("etc"), file("etc/a", b"1")], name=f"oci:{tmp_path}/old:it")
    new = make_image([directory("etc"), file("etc/a", b"new")], name=f"oci:{tmp_path}/new:it")
    done = lamella("rebase", image, image, "--old-base", old, "--new-base", new)
    assert done.returncode == 0
    assert lamella("cat", f"{image}::etc/a").stdout == "new"
    done = lamella("rebase", image, image, "--old-base", old, "--new-base", new)
    assert done.returncode == 6
    assert "was not built on" in done.stderr
    assert lamella("rebase", image, image).returncode == 3


def test_convert_reports_the_layers_that_it_wrote(lamella: Run, image: str, several: str, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/out:x"
    done = document(lamella("convert", image, target, "--compress", "zstd", "--level", "1", "--json"))
    assert (done["images"], len(done["layers"]), done["kept"]) == (1, 3, 0)
    assert {layer["mediaType"].rpartition("+")[2] for layer in done["layers"]} == {"zstd"}
    assert lamella("convert", target, target, "--compress", "zstd").stdout.endswith("\n3 layers kept\n")
    done = document(lamella("convert", "--all", several, target, "--format", "docker", "--json"))
    assert (done["mediaType"].rpartition(".")[2], done["images"]) == ("v2+json", 2)
    assert lamella("convert", image, target).returncode == 2
    assert lamella("convert", image, target, "--compress", "gzip", "--level", "99", "--again").returncode == 3
    assert lamella("convert", image, target, "--format", "docker", "--compress", "zstd").returncode == 3


def test_subset_and_index_are_each_others_reverse(lamella: Run, several: str, tmp_path: Path) -> None:
    for name in ("amd64", "arm64"):
        done = lamella("subset", several, f"oci:{tmp_path}/out:{name}", "--platform", f"linux/{name}")
        assert done.stdout.splitlines()[1] == f"linux/{name}; 1 left out"
    both = [f"oci:{tmp_path}/out:amd64", f"oci:{tmp_path}/out:arm64::linux/arm64"]
    made = document(lamella("index", *both, f"oci:{tmp_path}/out:both", "--json"))
    index = json.loads((tmp_path / "several/index.json").read_text())
    assert made["digest"] == index["manifests"][0]["digest"]
    assert lamella("index", *both, f"oci:{tmp_path}/out:both", "--annotation", "k=v").returncode == 0
    assert lamella("index", both[0], both[0], f"oci:{tmp_path}/out:same").returncode == 0
    assert lamella("subset", several, f"oci:{tmp_path}/out:x", "--platform", "linux/s390x").returncode == 4
    assert lamella("subset", several, f"oci:{tmp_path}/out:x").returncode == 2
    assert lamella("subset", both[0], f"oci:{tmp_path}/o.tar", "--platform", "linux/amd64", "--json").returncode == 0


def test_the_exit_code_of_compare_is_1_for_a_difference(lamella: Run, image: str, tmp_path: Path) -> None:
    other = f"oci:{tmp_path}/other:x"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/c").write_text("longer")
    lamella("mutate", image, other, "--env", "A=2")
    lamella("append", other, tmp_path / "tree", other)
    done = lamella("compare", image, other, "--ignore", "history,mtime", "--ignore", "created")
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:2] == ["config", "  config.Env.A: 1 → 2"]
    assert [line[:3] for line in lines[4:8]] == ["  =", "  =", "  =", "  +"]
    assert lines[10] == "  M  file                  1 B → 6 B  /c  (content)"
    assert lines[-1] == "  1 B → 6 B  +5 B  /"
    found = document(lamella("compare", image, other, "--json"), 1)
    assert (found["equal"], found["files"][0]["path"], found["files"][0]["what"]) == (False, "/c", ["content", "mtime"])
    assert found["sizes"] == [{"path": "/", "old": 1, "new": 6}]
    assert len(found["layers"]["shared"]) == 3
    same = lamella("compare", image, image)
    assert (same.returncode, same.stdout) == (0, "the images are equal\n")
    assert lamella("compare", image, image, "-q").stdout == ""
    assert document(lamella("compare", image, image, "--json"))["equal"] is True
    assert lamella("compare", image, other, "--ignore", "x").returncode == 3
    assert lamella("compare", image, f"oci:{tmp_path}/gone:x").returncode == 4
