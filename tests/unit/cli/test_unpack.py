# SPDX-License-Identifier: Apache-2.0
"""unpack: whole or not at all, whatever comes in between."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.processes import FORKS, children, only_child, wait_for, where_forked

from lamella.changes.diff import diff
from lamella.images.resolve import open_platform_image
from lamella.layers.directory.tree import DirectoryTree
from lamella.oci.config import ContainerConfig
from lamella.operations.unpack import UnpackOptions, unpack
from lamella.testing.builders import device, directory, file, link, symlink, whiteout

Run = Callable[..., subprocess.CompletedProcess[str]]
MakeImage = Callable[..., str]

LAYERS = (
    [
        directory("", mode=0o755),
        directory("etc"),
        file("etc/passwd", b"app:x:7:8::/srv:/bin/sh\n", mode=0o640, uid=5, gid=6),
        file("old", b"old"),
        symlink("link", "etc/passwd"),
    ],
    [whiteout("old"), file("new", b"new", mode=0o4755)],
)


@pytest.fixture
def image(make_image: MakeImage) -> str:
    """Return the name of a small image of two layers."""
    return make_image(*LAYERS, config=ContainerConfig(user="app", cmd=["/bin/true"]))


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_an_image_becomes_a_directory(lamella: Run, image: str, tmp_path: Path) -> None:
    done = lamella("unpack", image, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path}/out: 7 entries of 2 layers, ")
    assert sorted(os.listdir(tmp_path / "out")) == ["etc", "link", "new"]
    assert (tmp_path / "out/new").stat().st_mode & 0o7777 == 0o4755
    assert sorted(os.listdir(tmp_path)) == ["image", "out"]


def test_the_json_has_the_descriptors(lamella: Run, image: str, tmp_path: Path) -> None:
    unpacked = document(lamella("unpack", image, tmp_path / "out", "--json"))
    about = document(lamella("inspect", image, "--json"))
    assert unpacked["directory"] == str(tmp_path / "out")
    assert unpacked["manifest"] == about["manifest"]
    layers = [{key: layer[key] for key in about["layers"][0]} for layer in unpacked["layers"]]
    assert layers == about["layers"]
    assert [layer["entries"] for layer in unpacked["layers"]] == [5, 2]


def test_quiet_is_silent(lamella: Run, image: str, tmp_path: Path) -> None:
    done = lamella("unpack", "-q", image, tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_existing_directory_is_left_alone(lamella: Run, image: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = lamella("unpack", image, tmp_path / "out")
    assert done.returncode == 5
    assert "--merge" in done.stderr.partition("hint: ")[2]
    assert os.listdir(tmp_path / "out") == []
    done = lamella("unpack", image, tmp_path / "out", "--as", "erofs")
    assert (done.returncode, done.stderr.partition("hint: ")[2]) == (5, "choose another name\n")


def test_merge_unpacks_over_existing_files(lamella: Run, image: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    (tmp_path / "out/old").write_text("gone by the whiteout")
    assert lamella("unpack", image, tmp_path / "out", "--merge").returncode == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["etc", "link", "mine", "new"]


@pytest.mark.root
def test_owners_are_kept_ignored_or_recorded(lamella: Run, image: str, tmp_path: Path) -> None:
    found = {}
    for owner in ("keep", "ignore", "record"):
        assert lamella("unpack", image, tmp_path / owner, "--owner", owner).returncode == 0
        path = tmp_path / owner / "etc/passwd"
        found[owner] = (path.stat().st_uid, "user.rootlesscontainers" in os.listxattr(path))
    assert found == {"keep": (5, False), "ignore": (0, False), "record": (0, True)}
    # What was recorded is honoured when packing: the same image comes out.
    digests = [
        document(lamella("pack", tmp_path / owner, f"oci:{tmp_path}/packed:{owner}", "--owner", owner, "--json"))
        for owner in ("keep", "record")
    ]
    assert digests[0]["digest"] == digests[1]["digest"]


def test_devices_are_skipped_with_a_warning(lamella: Run, make_image: MakeImage, tmp_path: Path) -> None:
    name = make_image([device("null", 1, 3)])
    done = lamella("unpack", name, tmp_path / "out", "--devices", "skip")
    assert done.returncode == 0
    assert done.stderr.startswith("lamella: warning: null: ")
    assert os.listdir(tmp_path / "out") == []
    assert lamella("unpack", name, tmp_path / "strict", "--devices", "skip", "--strict").returncode == 7
    assert not (tmp_path / "strict").exists()


# Bundles ---------------------------------------------------------------------------------------------------------


def test_a_bundle_has_a_root_and_a_config_for_this_user_alone(lamella: Run, image: str, tmp_path: Path) -> None:
    assert lamella("unpack", image, tmp_path / "bundle", "--bundle").returncode == 0
    assert sorted(os.listdir(tmp_path / "bundle")) == ["config.json", "rootfs"]
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o700
    process = json.loads((tmp_path / "bundle/config.json").read_text())["process"]
    assert process["args"] == ["/bin/true"]
    assert process["user"] == {"uid": 7, "gid": 8}
    assert lamella("unpack", image, tmp_path / "bundle", "--bundle").returncode == 5
    assert lamella("unpack", image, tmp_path / "bundle", "--bundle", "--merge").returncode == 0


def test_a_bundle_with_an_unknown_user_is_not_created(lamella: Run, make_image: MakeImage, tmp_path: Path) -> None:
    name = make_image(*LAYERS, config=ContainerConfig(user="somebody"))
    done = lamella("unpack", name, tmp_path / "bundle", "--bundle")
    assert done.returncode == 4
    assert "somebody" in done.stderr
    assert not (tmp_path / "bundle").exists()


# Failures --------------------------------------------------------------------------------------------------------


def last_layer(lamella: Run, image: str) -> Path:
    digest: str = document(lamella("inspect", image, "--json"))["layers"][-1]["digest"]
    return Path(image.split(":")[1]) / "blobs/sha256" / digest.removeprefix("sha256:")


def test_a_truncated_layer_leaves_nothing(lamella: Run, image: str, tmp_path: Path) -> None:
    blob = last_layer(lamella, image)
    blob.write_bytes(blob.read_bytes()[:-20])
    done = lamella("unpack", image, tmp_path / "out")
    assert (done.returncode, done.stdout) == (8, "")
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == ["image"]


def test_a_layer_that_is_another_leaves_nothing(lamella: Run, image: str, tmp_path: Path) -> None:
    blob = last_layer(lamella, image)
    raw = bytearray(blob.read_bytes())
    raw[4] ^= 1
    blob.write_bytes(raw)
    done = lamella("unpack", image, tmp_path / "out")
    assert done.returncode == 8
    assert "expected digest" in done.stderr
    assert os.listdir(tmp_path) == ["image"]


def test_a_failed_merge_reports_the_files_that_remain(lamella: Run, image: str, tmp_path: Path) -> None:
    blob = last_layer(lamella, image)
    blob.write_bytes(blob.read_bytes()[:-20])
    done = lamella("unpack", image, tmp_path / "out", "--merge")
    assert done.returncode == 8
    assert f"is left in '{tmp_path}/out'" in done.stderr


def test_a_missing_parent_is_reported(lamella: Run, image: str, tmp_path: Path) -> None:
    assert lamella("unpack", image, tmp_path / "gone/out").returncode == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.root
@pytest.mark.parametrize("options", [[], ["--bundle"]])
@pytest.mark.parametrize("random", [False, True], ids=["read here", "read by a worker"])
def test_a_full_disk_leaves_nothing(
    lamella: Run, make_image: MakeImage, small_disk: Path, options: list[str], random: bool
) -> None:
    data = os.urandom if random else bytes
    name = make_image([file(f"file{number}", data(100_000)) for number in range(60)])
    done = lamella("unpack", name, small_disk / "out", *options)
    assert done.returncode == 11
    assert "No space left on device" in done.stderr
    assert "hint: free some space" in done.stderr
    assert os.listdir(small_disk) == []
    assert shutil.disk_usage(small_disk).free > 900_000


@pytest.mark.root
def test_a_blob_or_an_image_that_does_not_fit_leaves_nothing(lamella: Run, small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/random").write_bytes(os.urandom(2 << 20))
    assert lamella("diff", tmp_path / "in", "-o", small_disk / "blob").returncode == 11
    assert lamella("pack", tmp_path / "in", f"oci:{small_disk}/image:t").returncode == 11
    assert lamella("pack", tmp_path / "in", f"oci-archive:{small_disk}/image.tar:t").returncode == 11
    assert os.listdir(small_disk) == []


def test_an_erofs_image_is_complete_although_its_hidden_name_cannot_be_removed(
    lamella: Run, make_image: MakeImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str | os.PathLike[str], *rest: object, **named: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    name = make_image([file("a", b"1")])
    monkeypatch.setattr(os, "unlink", fail)
    done = lamella("unpack", name, tmp_path / "out", "--as", "erofs")
    assert done.returncode == 0
    assert (tmp_path / "out").is_file()


# Being stopped ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["read here", "read by a worker"])
def slow_image(make_image: MakeImage, request: pytest.FixtureRequest) -> str:
    """Return the name of an image that takes a while to unpack, and is small or large as a blob."""
    data = bytes if request.param == "read here" else os.urandom
    return make_image([file(f"d{number % 100}/f{number}", data(150)) for number in range(30_000)])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_an_unpack_that_is_stopped_leaves_nothing(
    program: str, slow_image: str, tmp_path: Path, number: int, code: int, request: pytest.FixtureRequest
) -> None:
    with subprocess.Popen(
        [program, "unpack", slow_image, tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: any(path.name.startswith(".out") and any(path.glob("root/*")) for path in tmp_path.iterdir()))
        others = children(process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert len(others) == (FORKS and request.node.callspec.params["slow_image"] == "read by a worker")
    assert not any(Path(f"/proc/{other}").exists() for other in others)
    assert (process.returncode, output) == (code, "")
    assert errors.splitlines()[0] == "lamella: interrupted"
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["image"]


def test_the_next_unpack_removes_what_a_killed_one_left_and_no_other(
    program: str, slow_image: str, lamella: Run, make_image: MakeImage, tmp_path: Path
) -> None:
    with subprocess.Popen([program, "unpack", slow_image, tmp_path / "out"]) as running:
        wait_for(lambda: any(path.name.startswith(".out") and any(path.glob("root/*")) for path in tmp_path.iterdir()))
        running.send_signal(signal.SIGSTOP)
        with subprocess.Popen([program, "unpack", slow_image, tmp_path / "other"]) as killed:
            wait_for(lambda: any(path.name.startswith(".other.unfinished-") for path in tmp_path.iterdir()))
            readers = children(killed)
            killed.kill()
        wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in readers))
        assert any(path.name.startswith(".other.unfinished-") for path in tmp_path.iterdir())
        small = make_image([file("a", b"1")])
        for name in ("other", "out"):
            assert lamella("unpack", small, tmp_path / name).returncode == 0
        assert not any(path.name.startswith(".other.unfinished-") for path in tmp_path.iterdir())
        running.send_signal(signal.SIGCONT)
        assert running.wait(timeout=60) == 5
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name or "other" in path.name} == {"out", "other"}


def test_an_interrupted_merge_reports_the_files_that_remain(program: str, slow_image: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [program, "unpack", slow_image, tmp_path / "out", "--merge"], stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for((tmp_path / "out/d5").exists)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == [
        "lamella: interrupted",
        f"note: what was unpacked so far is left in '{tmp_path}/out'",
    ]


@where_forked
@pytest.mark.parametrize("options", [[], ["--merge"], ["--bundle"]])
def test_a_large_image_is_read_by_a_worker_with_the_same_result(
    program: str, make_image: MakeImage, tmp_path: Path, options: list[str]
) -> None:
    name = make_image(
        [directory("d", mtime=5), *(file(f"d/f{number}", os.urandom(100_000), mtime=number) for number in range(150))],
        [whiteout("d/f7"), symlink("e", "d"), file("e/f8", b"new"), link("e/f9", "e/f8"), *LAYERS[0]],
    )
    with subprocess.Popen(
        [program, "unpack", "--json", name, tmp_path / "out", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        only_child(process)
        output, _ = process.communicate(timeout=60)
    with open_platform_image(name) as image:
        unpacked = unpack(image, tmp_path / "here")
    tree = tmp_path / "out/rootfs" if "--bundle" in options else tmp_path / "out"
    with DirectoryTree(tmp_path / "here") as expected, DirectoryTree(tree) as actual:
        assert list(diff(expected, actual, exact=True)) == []
    diff_ids = [layer["diff_id"] for layer in json.loads(output)["layers"]]
    assert diff_ids == [layer.facts.diff_id for layer in unpacked.layers]


def test_nothing_is_forked_beside_another_thread(
    make_image: MakeImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", fork)
    name = make_image([file("random", os.urandom(5 << 20))])
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with open_platform_image(name) as image:
            unpack(image, tmp_path / "out", UnpackOptions(reader_process=True))
    finally:
        done.set()
        thread.join()
    assert (tmp_path / "out/random").stat().st_size == 5 << 20


def test_without_a_worker_the_image_is_read_in_this_process(
    make_image: MakeImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fork() -> int:
        tried.append(True)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr("lamella.layers.process_reader.can_start", lambda: True)
    with open_platform_image(make_image([file("random", os.urandom(5 << 20))])) as image:
        unpack(image, tmp_path / "out", UnpackOptions(reader_process=True))
    assert tried == [True]
    assert (tmp_path / "out/random").stat().st_size == 5 << 20


# The bar ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "drawn"), [([], True), (["-q"], False), (["--json"], False)])
def test_a_bar_is_drawn_on_a_terminal_for_work_that_takes_a_while(
    program: str, tmp_path: Path, options: list[str], drawn: bool
) -> None:
    import pty

    (tmp_path / "in").mkdir()
    (tmp_path / "in/random").write_bytes(os.urandom(1 << 20))
    subprocess.run([program, "diff", tmp_path / "in", "-o", tmp_path / "blob"], check=True, stdout=subprocess.DEVNULL)
    blob = (tmp_path / "blob").read_bytes()
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [program, "apply", "-", tmp_path / "out", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(blob[:300_000])
        process.stdin.flush()
        wait_for((tmp_path / "out").exists)
        time.sleep(0.5)
        process.stdin.write(blob[300_000:])
        process.stdin.close()
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # what a terminal gives when its last writer is gone
            pass
        os.close(ours)
    assert process.returncode == 0
    assert (b"apply" in shown) == drawn
