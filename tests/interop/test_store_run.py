# SPDX-License-Identifier: Apache-2.0
"""lamella mount, umount and run with real mounts and real runtimes: what they show, and that they leave nothing."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamella.host.mounting import mount_points, unmount

pytestmark = [pytest.mark.interop, pytest.mark.root]

Needs = Callable[..., str]

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <unistd.h>
static void end(int number) { _exit(number == SIGTERM ? 42 : 43); }
int main(int count, char **words) {
    char text[64] = "-", where[64] = "";
    if (count > 1 && !strcmp(words[1], "wait")) {
        signal(SIGTERM, end);
        puts("waiting");
        fflush(stdout);
        for (;;) pause();
    }
    FILE *lower = fopen("/data/lower", "r");
    if (lower) { fgets(text, sizeof text, lower); fclose(lower); }
    FILE *made = fopen("/data/made", "w");
    printf("%s %d %s %s %s %d %s\n", text, access("/data/gone", F_OK), made ? "writes" : "reads",
           getenv("WHO") ? getenv("WHO") : "-", getcwd(where, sizeof where), isatty(0), count > 1 ? words[1] : "-");
    return 7;
}
"""
SOMEBODY = ["unshare", "--user", "--map-user=1234", "--map-group=1234"]


@pytest.fixture(autouse=True)
def nothing_stays_mounted(tmp_path: Path) -> Iterator[None]:
    yield
    for point in reversed(mount_points(str(tmp_path))):
        unmount(point, lazy=True)


@pytest.fixture(scope="session")
def image(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of an image of two layers, whose command tells what it sees."""
    folder = tmp_path_factory.mktemp("image")
    lower, upper = folder / "lower", folder / "upper"
    (lower / "bin").mkdir(parents=True)
    (lower / "data").mkdir()
    (lower / "data/gone").touch()
    (folder / "program.c").write_text(PROGRAM)
    subprocess.run([needs("gcc"), "-static", "-o", lower / "bin/it", folder / "program.c"], check=True)
    subprocess.run(["cp", "-a", lower, upper], check=True)
    (upper / "data/gone").unlink()
    (upper / "data/lower").write_text("lower")
    program = Path(sys.executable).with_name("lamella")
    base, name, layer = f"oci:{folder}/image:base", f"oci:{folder}/image:it", folder / "layer.tar"
    pack: list[str | Path] = [
        program,
        "pack",
        "-q",
        lower,
        base,
        "--cmd",
        "/bin/it",
        "--env",
        "WHO=image",
        "--workdir",
        "/data",
    ]
    subprocess.run(pack, check=True)
    subprocess.run([program, "diff", "-q", lower, upper, "-o", layer], check=True)
    subprocess.run([program, "append", "-q", base, layer, name], check=True)
    return name


class Lamella:
    """The program, with a store of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.command = [str(Path(sys.executable).with_name("lamella")), "--root", str(root)]

    def __call__(self, *words: str | Path, code: int = 0, before: list[str] | None = None) -> str:
        done = subprocess.run(
            [*(before or []), *self.command, *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def nothing_is_left(self) -> None:
        """See to it that no lease, no snapshot of ours and no bundle outlives its use."""
        assert json.loads(self("store", "leases", "--json")) == []
        kinds = {one["kind"] for one in json.loads(self("store", "snapshots", "--json"))}
        assert kinds <= {"committed"}
        assert self.bundles() == []

    def bundles(self) -> list[Path]:
        return [one for one in Path(os.environ["TMPDIR"]).iterdir() if one.name.startswith("lamella-")]


@pytest.fixture
def lamella(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> Lamella:
    """Return the program, whose store has the image."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    made = Lamella(tmp_path / "store")
    made("store", "import", image, "--name", "it")
    return made


@pytest.fixture
def runtime(request: pytest.FixtureRequest, needs: Needs) -> str:
    """Return the name of a runtime that is there."""
    name: str = request.param
    needs(name)
    return name


def alone(runtime: str) -> list[str]:
    """Return what crun needs before it on a host with both versions of cgroups, which it refuses."""
    if runtime != "crun" or not os.path.ismount("/sys/fs/cgroup/unified"):
        return []
    script = 'mount --make-rprivate / && umount /sys/fs/cgroup/unified && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


# mount -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["overlay", "directory", "erofs"])
def test_a_mount_shows_the_image_and_umount_leaves_nothing(kind: str, lamella: Lamella, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    lamella("mount", "store:it", place, "--snapshotter", kind)
    assert sorted(os.listdir(place / "data")) == ["lower"]
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").touch()
    lamella("mount", "store:it", place, code=6)
    lamella("umount", place)
    assert os.listdir(place) == []
    lamella("umount", place, code=4)
    lamella.nothing_is_left()
    lamella("store", "check", "--rediff")
    lamella("store", "images", "rm", "it")
    assert mount_points(str(tmp_path)) == []


@pytest.mark.parametrize("kind", ["overlay", "directory", "erofs"])
def test_what_is_changed_in_a_mount_lasts_until_umount_even_if_the_mount_is_lost(
    kind: str, lamella: Lamella, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    lamella("mount", "store:it", place, "--rw", "--snapshotter", kind)
    (place / "data/changed").write_text("changed")
    unmount(str(place))  # as when the machine is started anew
    lamella("store", "gc")
    lamella("mount", "store:it", place, "--snapshotter", kind, code=6)  # which would hide the changes
    lamella("mount", "store:it", place, "--rw", "--snapshotter", kind)
    assert (place / "data/changed").read_text() == "changed"
    lamella("umount", place)
    lamella.nothing_is_left()
    lamella("mount", "store:it", place, "--rw", "--snapshotter", kind)
    assert sorted(os.listdir(place / "data")) == ["lower"]
    lamella("umount", place)


def test_a_mount_in_use_is_undone_lazily_alone(lamella: Lamella, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    lamella("mount", "store:it", place)
    with open(place / "data/lower") as file:
        lamella("umount", place, code=6)
        lamella("umount", "--lazy", place)
        assert file.read() == "lower"
    lamella.nothing_is_left()


def test_a_mount_outlives_the_name_of_its_image(lamella: Lamella, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    lamella("mount", "store:it", place)
    lamella("store", "images", "rm", "it")
    assert (place / "data/lower").read_text() == "lower"
    lamella("umount", place)
    lamella("store", "gc")
    assert json.loads(lamella("store", "snapshots", "--json")) == []


def test_what_others_have_mounted_is_left_alone(lamella: Lamella, tmp_path: Path, needs: Needs) -> None:
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run([needs("mount"), "-t", "tmpfs", "tmpfs", place], check=True)
    lamella("umount", place, code=4)
    assert os.path.ismount(place)


def test_somebody_without_rights_is_told_what_a_mount_takes(lamella: Lamella, image: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    theirs = Lamella(tmp_path / "theirs")
    theirs("store", "import", image, "--name", "it", before=SOMEBODY)
    words = [*SOMEBODY, *theirs.command, "mount", "store:it", str(place), "--snapshotter", "directory"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 9
    assert "hint: run as root" in done.stderr
    assert json.loads(theirs("store", "leases", "--json", before=SOMEBODY)) == []


# run ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "kind"),
    [("crun", "overlay"), ("crun", "directory"), ("crun", "erofs"), ("runc", "overlay")],
    indirect=["runtime"],
)
def test_a_container_runs_from_each_snapshotter_and_leaves_nothing(
    runtime: str, kind: str, lamella: Lamella, tmp_path: Path
) -> None:
    words = ("run", "store:it", "--runtime", runtime, "--snapshotter", kind)
    before = alone(runtime)
    assert lamella(*words, "--", "/bin/it", "given", code=7, before=before) == "lower -1 writes image /data 0 given\n"
    readonly = lamella(*words, "--read-only", "--env", "WHO=me", "--workdir", "/bin", code=7, before=before)
    assert readonly == "lower -1 reads me /bin 0 -\n"
    lamella.nothing_is_left()
    lamella("store", "check", "--rediff")
    lamella("store", "images", "rm", "it")
    assert mount_points(str(tmp_path)) == []


@pytest.mark.parametrize("runtime", ["runc"], indirect=True)
def test_somebody_without_rights_runs_a_container(runtime: str, lamella: Lamella, image: str, tmp_path: Path) -> None:
    theirs = Lamella(tmp_path / "theirs")
    theirs("store", "import", image, "--name", "it", before=SOMEBODY)
    words = ("run", "store:it", "--runtime", runtime)
    assert theirs(*words, code=7, before=SOMEBODY) == "lower -1 writes image /data 0 -\n"
    assert json.loads(theirs("store", "leases", "--json", before=SOMEBODY)) == []
    assert theirs.bundles() == []


def started(lamella: Lamella, runtime: str) -> subprocess.Popen[bytes]:
    words = [*alone(runtime), *lamella.command, "run", "store:it", "--runtime", runtime, "--", "/bin/it", "wait"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    return process


def test_a_signal_reaches_the_container_whose_end_is_the_result(lamella: Lamella, needs: Needs) -> None:
    needs("runc")
    with started(lamella, "runc") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 42
    lamella.nothing_is_left()


def test_what_a_killed_run_has_left_goes_with_the_next_one(lamella: Lamella, needs: Needs) -> None:
    needs("runc")
    with started(lamella, "runc") as process:
        process.kill()
        process.wait(60)
    assert len(lamella.bundles()) == 1
    lamella("run", "store:it", "--runtime", "runc", code=7)
    lamella("store", "gc")
    (bundle,) = lamella.bundles()  # its container still runs
    state: dict[str, Any] = json.loads(next((bundle / "state").glob("*/state.json")).read_text())
    os.kill(state["init_process_pid"], signal.SIGKILL)
    for _ in range(100):
        lamella("store", "gc")
        if not lamella.bundles():
            break
        time.sleep(0.05)
    lamella.nothing_is_left()


def test_what_a_container_changed_can_be_kept(lamella: Lamella, needs: Needs) -> None:
    needs("runc")
    lamella("run", "store:it", "--no-rm", "--runtime", "runc", code=7)
    lamella("store", "gc")
    (lease,) = json.loads(lamella("store", "leases", "--json"))
    (resource,) = lease["resources"]
    assert lease["id"].startswith("kept:lamella-")
    there = [one["name"] for one in json.loads(lamella("store", "snapshots", "--json")) if one["kind"] == "active"]
    assert there == [resource["id"]]
    lamella("store", "leases", "rm", lease["id"])
    lamella("store", "gc")
    lamella.nothing_is_left()


def test_a_terminal_is_passed_through(lamella: Lamella, needs: Needs) -> None:
    needs("runc")
    child, terminal = pty.fork()
    if not child:
        os.execv(lamella.command[0], [*lamella.command, "run", "store:it", "--runtime", "runc"])
    text = b""
    while True:
        try:
            piece = os.read(terminal, 1000)
        except OSError:
            break
        if not piece:
            break
        text += piece
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert text.endswith(b"lower -1 writes image /data 1 -\r\n")
