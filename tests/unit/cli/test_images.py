# SPDX-License-Identifier: Apache-2.0
"""inspect, pack, append, copy, flatten and verify."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.digests import Digest
from lamella.oci.config import ContainerConfig
from lamella.testing.builders import directory, file, link, opaque, symlink, whiteout

Run = Callable[..., subprocess.CompletedProcess[str]]
MakeImage = Callable[..., str]

BASE = [
    directory("", mode=0o755),
    directory("usr"),
    directory("usr/lib"),
    file("usr/lib/os-release", b"ID=test\n"),
    symlink("lib", "usr/lib"),
    directory("etc"),
    directory("etc/conf.d"),
    file("etc/conf.d/old", b"old"),
    file("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:7:8::/srv:/bin/sh\n", uid=3, gid=4),
    link("etc/passwd-", "etc/passwd"),
]
TOP = [
    whiteout("usr/lib/os-release"),
    opaque("etc/conf.d"),
    file("etc/conf.d/new", b"new"),
    file("lib/added", b"through a link"),
]


@pytest.fixture
def image(make_image: MakeImage) -> str:
    """Return the name of an image of two layers with a config."""
    config = ContainerConfig(
        user="app",
        env=["PATH=/bin", "A=1 2"],
        entrypoint=["/bin/sh", "-c"],
        cmd=["echo hi"],
        working_dir="/srv",
        labels={"b": "2", "a": "1"},
        exposed_ports={"80/tcp": {}},
    )
    return make_image(BASE, TOP, config=config)


def layout_of(image: str) -> Path:
    return Path(image.split(":")[1])


def blob_of(image: str, digest: str) -> Path:
    return layout_of(image) / "blobs/sha256" / digest.removeprefix("sha256:")


def rewrite(image: str, change: Callable[[Any, Any], None]) -> Any:
    """Let ``change`` change manifest and config, and return the manifest; every digest is right again."""
    index_file = layout_of(image) / "index.json"
    index = json.loads(index_file.read_text())
    manifest = json.loads(blob_of(image, index["manifests"][0]["digest"]).read_text())
    config = json.loads(blob_of(image, manifest["config"]["digest"]).read_text())
    change(manifest, config)
    for holder, key, value in (manifest, "config", config), (index["manifests"], 0, manifest):
        raw = json.dumps(value).encode()
        holder[key] |= {"digest": str(Digest.of(raw)), "size": len(raw)}
        blob_of(image, Digest.of(raw)).write_bytes(raw)
    index_file.write_text(json.dumps(index))
    return manifest


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the JSON that a verb printed, once it did well and said nothing else."""
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_shows_config_layers_and_history(lamella: Run, image: str) -> None:
    about = document(lamella("inspect", image, "--json"))
    digests = [layer["digest"] for layer in about["layers"]]
    done = lamella("inspect", image)
    assert done.returncode == 0
    facts, layers, history = done.stdout.split("\n\n")
    assert [line.split(None, 1) for line in facts.splitlines()] == [
        ["image", image],
        ["manifest", about["manifest"]["digest"]],
        ["config", json.loads(blob_of(image, about["manifest"]["digest"]).read_text())["config"]["digest"]],
        ["platform", "linux/amd64"],
        ["created", "2024-01-02T03:04:05Z"],
        ["user", "app"],
        ["entrypoint", "/bin/sh -c"],
        ["cmd", "'echo hi'"],
        ["workdir", "/srv"],
        ["env", "PATH=/bin"],
        ["A=1", "2"],
        ["ports", "80/tcp"],
        ["labels", "a=1"],
        ["b=2"],
    ]
    assert layers.splitlines()[0].startswith("2 layers, ")
    assert [line.split()[0::4] for line in layers.splitlines()[1:]] == [["0", digests[0]], ["1", digests[1]]]
    assert [line.split() for line in history.splitlines()[1:]] == [["0", "-", "step", "0"], ["1", "-", "step", "1"]]


def test_inspect_as_json_has_descriptors_and_the_config(lamella: Run, image: str) -> None:
    about = document(lamella("inspect", image, "--json"))
    assert about["name"] == image
    assert about["platform"] == "linux/amd64"
    assert about["config"]["config"]["Env"] == ["PATH=/bin", "A=1 2"]
    assert [layer["diff_id"] for layer in about["layers"]] == about["config"]["rootfs"]["diff_ids"]
    assert about["size"] == sum(layer["size"] for layer in about["layers"])
    for described in (about["manifest"], *about["layers"]):
        assert blob_of(image, described["digest"]).stat().st_size == described["size"]


def test_inspect_shows_the_requested_platform(lamella: Run, make_image: MakeImage, tmp_path: Path) -> None:
    name = make_image([file("a")], architecture="arm64")
    assert document(lamella("inspect", name, "--json"))["platform"] == "linux/arm64"
    done = lamella("inspect", name, "--platform", "linux/s390x")
    assert done.returncode == 4
    assert "linux/arm64" in done.stderr.partition("hint: ")[2]


def test_inspect_of_an_index_lists_all_platforms(lamella: Run, make_image: MakeImage, tmp_path: Path) -> None:
    each = [make_image([file("a")], architecture="arm64"), f"oci:{tmp_path}/other:v"]
    assert lamella("mutate", each[0], each[1], "--set-platform", "linux/riscv64").returncode == 0
    assert lamella("index", *each, f"oci:{tmp_path}/out:both").returncode == 0
    chosen = (f"oci:{tmp_path}/out:both", "--platform", "linux/riscv64")
    assert document(lamella("inspect", *chosen, "--json"))["platforms"] == ["linux/arm64", "linux/riscv64"]
    assert "\nplatform  linux/riscv64\nof        linux/arm64, linux/riscv64\n" in lamella("inspect", *chosen).stdout
    assert "platforms" not in document(lamella("inspect", each[0], "--json"))


def test_an_error_for_a_path_without_a_form_suggests_one(lamella: Run, image: str, tmp_path: Path) -> None:
    layout = image.removeprefix("oci:").removesuffix(":test")
    (tmp_path / "plain").mkdir()
    (tmp_path / "some.tar").write_bytes(b"")
    for path, hint in (
        (layout, f"write oci:{layout} for the images in it"),
        (f"{tmp_path}/plain", f"write dir:{tmp_path}/plain for the directory"),
        (f"{tmp_path}/some.tar", f"write blob:{tmp_path}/some.tar for a layer, "),
        (f"{tmp_path}/nothing", "write oci:DIR[:TAG], "),
    ):
        for arguments in (("ls", path), ("tree", path), ("compare", image, path)):
            done = lamella(*arguments)
            assert (done.returncode, done.stdout) == (3, "")
            assert done.stderr.partition("hint: ")[2].startswith(hint)


def test_diff_of_images_suggests_compare(lamella: Run, image: str, tmp_path: Path) -> None:
    done = lamella("diff", image, tmp_path)
    assert done.returncode == 2
    assert "'lamella compare'" in done.stderr


def test_an_error_for_several_unnamed_images_explains_how_to_choose(lamella: Run, image: str) -> None:
    layout = image.removesuffix(":test")
    assert lamella("mutate", image, layout, "--env", "A=2").returncode == 0
    done = lamella("ls", layout)
    assert done.stderr.endswith("hint: named there: test; @0 is the first one, whatever its name\n")


@pytest.mark.parametrize("verb", ["inspect", "ls", "verify", "dump"])
def test_an_error_for_a_missing_tag_lists_the_tags(lamella: Run, image: str, verb: str) -> None:
    done = lamella(verb, image.replace(":test", ":gone"))
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.endswith("hint: named there: test\n")


# The merged view -------------------------------------------------------------------------------------------------


def test_the_merged_view_is_that_of_all_layers(lamella: Run, image: str) -> None:
    assert lamella("find", image, "--type", "f").stdout.splitlines() == [
        "/etc/conf.d/new",
        "/etc/passwd",
        "/etc/passwd-",
        "/usr/lib/added",
    ]
    assert lamella("cat", f"{image}::lib/added").stdout == "through a link"
    assert lamella("cat", f"{image}::etc/passwd-", "etc/conf.d/new").stdout.endswith("/bin/sh\nnew")
    assert lamella("ls", f"{image}::etc").stdout == "conf.d\npasswd\npasswd-\n"
    assert lamella("cat", f"{image}::usr/lib/os-release").returncode == 4


def test_a_single_layer_can_be_looked_into(lamella: Run, image: str) -> None:
    digest = document(lamella("inspect", image, "--json"))["layers"][1]["digest"]
    assert lamella("find", f"blob:{blob_of(image, digest)}", "--type", "f").stdout.splitlines() == [
        "/etc/conf.d/new",
        "/lib/added",
    ]
    assert lamella("cat", f"blob:{blob_of(image, digest)}::etc/conf.d/new").stdout == "new"
    assert lamella("ls", "blob:").returncode == 3
    assert lamella("ls", "blob:/nowhere").returncode == 4


def test_the_view_of_a_layer_with_another_digest_is_refused(lamella: Run, image: str) -> None:
    layers = document(lamella("inspect", image, "--json"))["layers"]
    first, second = (blob_of(image, layer["digest"]) for layer in layers)
    raw = bytearray(second.read_bytes())
    raw[4] ^= 1  # the time in the header of gzip: the content stays as it was
    second.write_bytes(raw)
    assert first.exists()
    assert lamella("ls", image).returncode == 8


# pack ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory to pack."""
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("app:x:7:8::/srv:/bin/sh\n")
    os.link(root / "etc/passwd", root / "etc/passwd-")
    (root / "lib").symlink_to("usr/lib")
    for path in (root / "etc/passwd", root / "lib", root / "etc", root):
        os.utime(path, ns=(1_700_000_000_000_000_000,) * 2, follow_symlinks=False)
    return root


def test_a_packed_tree_comes_out_again(lamella: Run, tree: Path, tmp_path: Path) -> None:
    packed = document(lamella("pack", tree, f"oci:{tmp_path}/out:v1", "--json"))
    about = document(lamella("inspect", f"oci:{tmp_path}/out:v1", "--json"))
    assert {key: packed[key] for key in ("mediaType", "digest", "size")} == about["manifest"]
    layer = {key: packed["layers"][0][key] for key in ("mediaType", "digest", "size", "diff_id")}
    assert [layer] == about["layers"]
    assert lamella("unpack", f"oci:{tmp_path}/out:v1", tmp_path / "again").returncode == 0
    assert lamella("diff", tree, tmp_path / "again", "--exact").stdout == ""


def test_packing_is_the_same_each_time(lamella: Run, tree: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", tree, tmp_path / "copy"], check=True)
    one = document(lamella("pack", tree, f"oci:{tmp_path}/one:v1", "--json"))
    two = document(lamella("pack", tmp_path / "copy", f"oci-archive:{tmp_path}/two:v1", "--json"))
    assert one["digest"] == two["digest"]
    config = document(lamella("inspect", f"oci:{tmp_path}/one", "--json"))["config"]
    assert config["created"] == "1970-01-01T00:00:00Z"


def test_an_image_is_dated_by_source_date_epoch(
    lamella: Run, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    lamella("pack", tree, f"oci:{tmp_path}/out:v1")
    config = document(lamella("inspect", f"oci:{tmp_path}/out", "--json"))["config"]
    assert config["created"] == "2023-11-14T22:13:20Z"
    assert config["history"] == [{"created": "2023-11-14T22:13:20Z", "created_by": "lamella pack"}]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "999999999999")
    assert lamella("pack", tree, f"oci:{tmp_path}/out:v2").returncode == 3


def test_pack_takes_how_a_container_starts(lamella: Run, tree: Path, tmp_path: Path) -> None:
    done = lamella(
        *("pack", tree, f"oci:{tmp_path}/out:v1", "--entrypoint", '["/bin/sh", "-c"]', "--cmd", "echo 'a b' c"),
        *("--env", "A=1", "--env", "B=x=y", "--env", "A=2", "--label", "k=v", "--user", "app:8", "--workdir", "/srv"),
        *("--platform", "linux/arm64/v8"),
    )
    assert done.returncode == 0
    config = document(lamella("inspect", f"oci:{tmp_path}/out", "--json"))["config"]
    assert config["config"] == {
        "User": "app:8",
        "Env": ["A=2", "B=x=y"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo", "a b", "c"],
        "WorkingDir": "/srv",
        "Labels": {"k": "v"},
    }
    assert (config["os"], config["architecture"], config["variant"]) == ("linux", "arm64", "v8")


def test_pack_takes_over_a_config(lamella: Run, tree: Path, image: str, tmp_path: Path) -> None:
    done = lamella("pack", tree, f"oci:{tmp_path}/out:v1", "--config-from", image, "--env", "PATH=/x", "--cmd", "[]")
    assert done.returncode == 0
    config = document(lamella("inspect", f"oci:{tmp_path}/out", "--json"))["config"]
    assert config["config"]["Env"] == ["PATH=/x", "A=1 2"]
    assert config["config"]["User"] == "app"
    assert "Cmd" not in config["config"]
    assert len(config["rootfs"]["diff_ids"]) == 1
    assert [step["created_by"] for step in config["history"]] == ["lamella pack"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--cmd", "[1]"], 2),
        (["--cmd", "[x"], 2),
        (["--cmd", "it's"], 2),
        (["--label", "x"], 2),
        (["--env", "x"], 3),
        (["--env", "=x"], 3),
        (["--platform", "a/b/c/d"], 3),
        (["--level", "99"], 3),
        (["--config-from", "oci:/nowhere"], 4),
    ],
)
def test_pack_refuses_bad_options_and_leaves_nothing(
    lamella: Run, tree: Path, tmp_path: Path, options: list[str], code: int
) -> None:
    assert lamella("pack", tree, f"oci:{tmp_path}/out:v1", *options).returncode == code
    assert not (tmp_path / "out").exists()


def test_pack_of_a_missing_directory_fails(lamella: Run, tmp_path: Path) -> None:
    assert lamella("pack", tmp_path / "gone", f"oci:{tmp_path}/out:v1").returncode == 4
    assert not (tmp_path / "out").exists()


# append ----------------------------------------------------------------------------------------------------------


def test_a_layer_is_appended_with_its_history(lamella: Run, image: str, tree: Path, tmp_path: Path) -> None:
    lamella("diff", tree, "-o", tmp_path / "blob")
    before = document(lamella("inspect", image, "--json"))
    appended = document(lamella("append", image, tmp_path / "blob", image, "--json"))
    after = document(lamella("inspect", image, "--json"))
    assert after["manifest"]["digest"] == appended["digest"]
    assert after["layers"][:2] == before["layers"]
    assert after["layers"][2]["diff_id"] == appended["layers"][0]["diff_id"]
    assert after["config"]["config"] == before["config"]["config"]
    assert after["config"]["history"][-1]["created_by"] == "lamella append"
    assert lamella("cat", f"{image}::etc/passwd-").stdout.startswith("app:")
    assert lamella("verify", image).returncode == 0


def test_an_oci_image_has_no_layers_of_dockers_types(lamella: Run, image: str, tree: Path, tmp_path: Path) -> None:
    def to_docker(manifest: Any, config: Any) -> None:
        for layer in manifest["layers"]:
            layer["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"

    rewrite(image, to_docker)
    lamella("diff", tree, "-o", tmp_path / "blob")
    assert lamella("append", image, tmp_path / "blob", image).returncode == 0
    types = {layer["mediaType"] for layer in document(lamella("inspect", image, "--json"))["layers"]}
    assert types == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    assert lamella("verify", image).returncode == 0


def test_a_file_that_is_not_a_layer_is_not_appended(lamella: Run, image: str, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"something else " * 100)
    before = document(lamella("inspect", image, "--json"))
    assert lamella("append", image, tmp_path / "blob", image).returncode == 3
    assert lamella("append", image, tmp_path / "gone", image).returncode == 4
    assert document(lamella("inspect", image, "--json")) == before


# copy ------------------------------------------------------------------------------------------------------------


def test_copies_keep_the_digest(lamella: Run, image: str, tmp_path: Path) -> None:
    copied = document(lamella("copy", image, f"oci-archive:{tmp_path}/a.tar:x", "--json"))
    assert copied["digest"] == document(lamella("inspect", image, "--json"))["manifest"]["digest"]
    assert copied["blobs"] == 4
    again = document(lamella("copy", f"oci-archive:{tmp_path}/a.tar:x", f"oci:{tmp_path}/b:y", "--json"))
    assert again["digest"] == copied["digest"]
    assert "4 were there already" in lamella("copy", image, f"oci:{tmp_path}/b:z").stdout


def test_an_archive_is_replaced_only_with_replace(lamella: Run, image: str, tmp_path: Path) -> None:
    target = f"docker-archive:{tmp_path}/a.tar:app:1"
    assert lamella("copy", image, target).returncode == 0
    done = lamella("copy", image, target)
    assert done.returncode == 5
    assert lamella("copy", image, target, "--replace").returncode == 0
    assert lamella("ls", target).stdout == lamella("ls", image).stdout


def test_one_platform_and_all_exclude_each_other(lamella: Run, image: str, tmp_path: Path) -> None:
    assert lamella("copy", image, f"oci:{tmp_path}/b", "--all", "--platform", "linux/amd64").returncode == 3
    assert lamella("copy", "--all", image, f"oci:{tmp_path}/b:t").returncode == 0


# flatten ---------------------------------------------------------------------------------------------------------


def test_a_flattened_image_unpacks_to_the_same_tree(lamella: Run, image: str, tmp_path: Path) -> None:
    flat = f"oci:{tmp_path}/flat:one"
    flattened = document(lamella("flatten", image, flat, "--json"))
    about = document(lamella("inspect", flat, "--json"))
    assert [layer["digest"] for layer in about["layers"]] == [flattened["layers"][0]["digest"]]
    assert about["config"]["config"] == document(lamella("inspect", image, "--json"))["config"]["config"]
    assert about["config"]["created"] == "2024-01-02T03:04:05Z"
    assert about["config"]["history"][0]["comment"] == "2 layers merged"
    for name, place in (image, "whole"), (flat, "flat-tree"):
        assert lamella("unpack", name, tmp_path / place).returncode == 0
    assert lamella("diff", tmp_path / "whole", tmp_path / "flat-tree", "--exact").stdout == ""
    assert lamella("dump", image).stdout == lamella("dump", flat).stdout
    assert lamella("dump", tmp_path / "whole").stdout == lamella("dump", image).stdout


# verify ----------------------------------------------------------------------------------------------------------


def test_verify_reports_an_intact_image(lamella: Run, image: str, tmp_path: Path) -> None:
    done = lamella("verify", image)
    assert done.returncode == 0
    assert done.stdout.startswith("1 image, 4 sound blobs, ")
    assert document(lamella("verify", layout_of(image), "--json"))["sound"] is True
    lamella("copy", image, f"docker-archive:{tmp_path}/a.tar:app:1")
    assert document(lamella("verify", f"docker-archive:{tmp_path}/a.tar", "--json"))["problems"] == []


def spoil(path: Path, at: int = -9) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)


@pytest.mark.parametrize("which", [0, 1])
def test_verify_finds_a_spoiled_layer(lamella: Run, image: str, which: int) -> None:
    digest = document(lamella("inspect", image, "--json"))["layers"][which]["digest"]
    spoil(blob_of(image, digest))
    done = lamella("verify", image)
    assert done.returncode == 8
    assert done.stdout.splitlines()[0].startswith(f"{digest}: its bytes: expected digest {digest}, got sha256:")
    assert done.stderr.endswith(": 1 problem\n")


def test_verify_continues_after_a_problem(lamella: Run, image: str) -> None:
    about = document(lamella("inspect", image, "--json"))
    for layer in about["layers"]:
        spoil(blob_of(image, layer["digest"]))
    blob_of(image, about["layers"][0]["digest"]).unlink()
    done = lamella("verify", image, "--json")
    assert done.returncode == 8
    found = json.loads(done.stdout)
    assert [problem["blob"] for problem in found["problems"]] == [layer["digest"] for layer in about["layers"]]
    assert found["sound"] is False
    assert found["blobs"] == 2


def test_verify_finds_a_diff_id_that_is_another(lamella: Run, image: str) -> None:
    """The config promises a tar that the layer is not, though each blob is what its name says."""

    def swap(manifest: Any, config: Any) -> None:
        config["rootfs"]["diff_ids"].reverse()

    layers = rewrite(image, swap)["layers"]
    done = lamella("verify", image)
    assert done.returncode == 8
    assert [line.split()[0] for line in done.stdout.splitlines()[:2]] == [f"{layer['digest']}:" for layer in layers]
    assert lamella("unpack", image, layout_of(image).with_name("out")).returncode == 8


def test_verify_finds_a_layer_that_cannot_be_applied(lamella: Run, image: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "blob.tar", "w") as archive:
        member = tarfile.TarInfo("further")
        member.type, member.linkname = tarfile.LNKTYPE, "gone"
        archive.addfile(member)
    assert lamella("append", image, tmp_path / "blob.tar", image).returncode == 0
    done = lamella("verify", image)
    assert done.returncode == 8
    assert "its target 'gone' does not exist" in done.stdout


def test_verify_of_a_layout_reads_unreferenced_blobs(lamella: Run, image: str) -> None:
    stray = blob_of(image, "0" * 64)
    stray.write_bytes(b"not zero")
    assert lamella("verify", image).returncode == 0
    done = lamella("verify", layout_of(image))
    assert done.returncode == 8
    assert done.stdout.startswith(f"sha256:{'0' * 64}: ")


def test_verify_reads_spoiled_documents(lamella: Run, image: str) -> None:
    manifest = document(lamella("inspect", image, "--json"))["manifest"]["digest"]
    spoil(blob_of(image, manifest), 5)
    done = lamella("verify", image)
    assert done.returncode == 8
    assert done.stdout.startswith(f"{manifest}: ")
    assert lamella("verify", "oci:/nowhere").returncode == 4
