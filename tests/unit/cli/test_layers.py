# SPDX-License-Identifier: Apache-2.0
"""apply, diff and dump."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.layers.tar.sink import TarSink
from lamella.testing.builders import device, directory, fifo, file, symlink

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """Return a small tree."""
    root = tmp_path / "lower"
    (root / "etc/old").mkdir(parents=True)
    (root / "etc/passwd").write_text("root\n")
    (root / "etc/old/a").write_text("a")
    (root / "bin").mkdir()
    (root / "bin/sh").write_bytes(bytes(2000))
    (root / "sh").symlink_to("bin/sh")
    settle(root)
    return root


@pytest.fixture
def upper(tmp_path: Path, lower: Path) -> Path:
    """Return the small tree after some changes."""
    root = tmp_path / "upper"
    subprocess.run(["cp", "-a", lower, root], check=True)
    (root / "etc/passwd").write_text("root\nuser\n")
    (root / "etc/new").write_text("new")
    (root / "etc/old/a").unlink()
    (root / "etc/old").rmdir()
    (root / "sh").unlink()
    (root / "bin/sh").chmod(0o755)
    os.link(root / "bin/sh", root / "bin/dash")
    settle(root, 1_700_000_001)
    return root


def settle(root: Path, when: int = 1_700_000_000) -> None:
    """Give all files below, changed or not, a time that tests know; directories keep the earlier one."""
    for path in sorted(root.rglob("*"), reverse=True):
        time = 1_700_000_000 if path.is_dir() or when == 1_700_000_000 or path.name == "sh" else when
        os.utime(path, ns=(time * 10**9,) * 2, follow_symlinks=False)
    os.utime(root, ns=(1_700_000_000 * 10**9,) * 2)


def words(text: str) -> list[str]:
    """Return the lines with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# diff as a list --------------------------------------------------------------------------------------------------


def test_diff_lists_what_changed_for_people(lamella: Run, lower: Path, upper: Path) -> None:
    done = lamella("diff", lower, upper)
    assert done.returncode == 0
    assert words(done.stdout) == [
        "A file 2.0 KiB /bin/dash",
        "M file 2.0 KiB /bin/sh => /bin/dash (mode 0644 → 0755, time)",
        "A file 3 B /etc/new",
        "D dir /etc/old",
        "M file 5 B → 10 B /etc/passwd (time)",
        "D link /sh",
    ]


def test_diff_of_equal_trees_is_empty(lamella: Run, lower: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", lower, tmp_path / "same"], check=True)
    assert lamella("diff", lower, tmp_path / "same", "--exact").stdout == ""


def test_diff_finds_other_content_behind_the_same_time(lamella: Run, lower: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", lower, tmp_path / "same"], check=True)
    (tmp_path / "same/etc/old/a").write_text("b")
    settle(tmp_path / "same")
    assert lamella("diff", lower, tmp_path / "same").stdout.split() == [
        "M",
        "file",
        "1",
        "B",
        "/etc/old/a",
        "(content)",
    ]


def test_diff_of_one_directory_lists_it_all(lamella: Run, lower: Path) -> None:
    lines = lamella("diff", lower).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["A"] * 8
    assert lines[-1].endswith("/sh -> bin/sh")


def test_diff_as_json_has_old_and_new(lamella: Run, lower: Path, upper: Path) -> None:
    document = json.loads(lamella("--json", "diff", lower, upper).stdout)
    assert [(one["change"], one["path"]) for one in document] == [
        ("A", "/bin/dash"),
        ("M", "/bin/sh"),
        ("A", "/etc/new"),
        ("D", "/etc/old"),
        ("M", "/etc/passwd"),
        ("D", "/sh"),
    ]
    assert document[1]["link"] == "/bin/dash"
    assert (document[4]["old"]["size"], document[4]["new"]["size"]) == (5, 10)
    assert document[5]["old"]["target"] == "bin/sh"


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["a", "b", "--as", "overlay"]])
def test_diff_takes_one_directory_or_two(lamella: Run, arguments: list[str]) -> None:
    assert lamella("diff", *arguments).returncode == 2


def test_diff_of_a_missing_directory_fails(lamella: Run, lower: Path) -> None:
    done = lamella("diff", lower, "/nowhere")
    assert (done.returncode, done.stdout) == (4, "")


# diff as a blob --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_diff_that_is_applied_gives_the_upper_tree(
    lamella: Run, lower: Path, upper: Path, tmp_path: Path, compression: str
) -> None:
    written = json.loads(
        lamella("diff", lower, upper, "-o", tmp_path / "blob", "--compress", compression, "--json").stdout
    )
    blob = (tmp_path / "blob").read_bytes()
    assert written["digest"] == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert written["size"] == len(blob)
    suffix = "" if compression == "none" else f"+{compression}"
    assert written["mediaType"] == f"application/vnd.oci.image.layer.v1.tar{suffix}"
    applied = json.loads(lamella("apply", tmp_path / "blob", lower, "--json").stdout)
    assert applied == {key: value for key, value in written.items() if key != "mediaType"}
    assert lamella("diff", lower, upper, "--exact").stdout == ""


def test_the_same_trees_give_the_same_bytes(lamella: Run, lower: Path, upper: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert lamella("diff", lower, upper, "-o", tmp_path / name).returncode == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_diff_can_be_written_to_standard_output(lamella: Run, lower: Path, upper: Path, tmp_path: Path) -> None:
    lamella("diff", lower, upper, "-o", tmp_path / "blob", "-q")
    done = lamella("diff", lower, upper, "-o", "-")
    assert done.returncode == 0
    assert done.stdout.encode("utf-8", "surrogateescape") == (tmp_path / "blob").read_bytes()
    assert lamella("diff", lower, upper, "-o", "-", "--json").returncode == 2


def test_a_blob_is_not_written_to_a_terminal(lower: Path, program: str) -> None:
    import pty

    ours, theirs = pty.openpty()
    done = subprocess.run([program, "diff", lower, "-o", "-"], stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 3
    assert "terminal" in done.stderr


def test_a_blob_is_not_written_into_its_source_directory(lamella: Run, lower: Path) -> None:
    done = lamella("diff", lower, "-o", lower / "etc/blob")
    assert done.returncode == 3
    assert lamella("pack", lower, f"oci:{lower}/image:t").returncode == 3
    assert sorted(os.listdir(lower)) == ["bin", "etc", "sh"]


def test_a_diff_that_fails_leaves_no_blob(lamella: Run, lower: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("before")
    assert lamella("diff", lower, "/nowhere", "-o", tmp_path / "blob").returncode == 4
    assert (tmp_path / "blob").read_text() == "before"
    assert lamella("diff", lower, "-o", "/dev/full").returncode == 11


def test_subsecond_keeps_fractions_of_seconds(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").touch()
    os.utime(tmp_path / "in/file", ns=(0, 1_700_000_000_123_456_789))
    for options, expected in ([], "1700000000"), (["--subsecond"], "1700000000.123456789"):
        lamella("diff", tmp_path / "in", "-o", tmp_path / "blob", *options)
        assert lamella("dump", tmp_path / "blob").stdout.splitlines()[-1].split()[4] == expected


def test_no_time_is_later_than_source_date_epoch(
    lamella: Run, lower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    lamella("diff", lower, "-o", tmp_path / "blob")
    assert {line.split()[4] for line in lamella("dump", tmp_path / "blob").stdout.splitlines()} == {"1000"}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert lamella("diff", lower, "-o", tmp_path / "blob").returncode == 3


def test_owner_ignore_writes_no_owners(lamella: Run, lower: Path, tmp_path: Path) -> None:
    os.link(lower / "bin/sh", lower / "bin/zsh")
    if os.geteuid() == 0:
        os.chown(lower / "bin/sh", 5, 6)
    lamella("diff", lower, "-o", tmp_path / "blob", "--owner", "ignore")
    owners = {line.split()[3] for line in lamella("dump", tmp_path / "blob").stdout.splitlines() if "put" in line}
    assert owners == {"0:0"}


@pytest.mark.root
def test_an_upper_directory_survives_diff_and_apply(lamella: Run, lower: Path, upper: Path, tmp_path: Path) -> None:
    lamella("diff", lower, upper, "-o", tmp_path / "blob")
    done = lamella("apply", tmp_path / "blob", tmp_path / "over", "--as", "overlay", "--parent", lower)
    assert done.returncode == 0
    status = (tmp_path / "over/sh").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    assert lamella("diff", tmp_path / "over", "--as", "overlay", "-o", tmp_path / "again").stderr == ""
    subprocess.run(["cp", "-a", lower, tmp_path / "target"], check=True)
    assert lamella("apply", tmp_path / "again", tmp_path / "target").returncode == 0
    assert lamella("diff", tmp_path / "target", upper, "--exact").stdout == ""
    listed = lamella("diff", tmp_path / "over", "--as", "overlay").stdout
    assert "D /sh" in words(listed)


# apply -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def blob(lamella: Run, upper: Path, tmp_path: Path) -> Path:
    """Return a layer with all of the upper tree."""
    assert lamella("diff", upper, "-o", tmp_path / "blob").returncode == 0
    return tmp_path / "blob"


def test_apply_creates_the_directory_and_prints_the_digests(lamella: Run, blob: Path, tmp_path: Path) -> None:
    done = lamella("apply", blob, tmp_path / "made")
    assert done.returncode == 0
    assert (tmp_path / "made/etc/new").read_text() == "new"
    assert mode(tmp_path / "made/bin/dash") == 0o755
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    diff_id = hashlib.sha256(gzip.decompress(blob.read_bytes())).hexdigest()
    assert done.stdout.splitlines()[1:] == [f"digest   sha256:{digest}", f"diff id  sha256:{diff_id}"]
    assert lamella("-q", "apply", blob, tmp_path / "made").stdout == ""


def test_apply_reads_standard_input(lamella: Run, blob: Path, tmp_path: Path) -> None:
    assert lamella("apply", "-", tmp_path / "made", stdin=blob.read_bytes()).returncode == 0
    assert (tmp_path / "made/etc/new").read_text() == "new"


def test_apply_checks_the_expected_digests(lamella: Run, blob: Path, tmp_path: Path) -> None:
    digest = f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}"
    diff_id = f"sha256:{hashlib.sha256(gzip.decompress(blob.read_bytes())).hexdigest()}"
    assert lamella("apply", blob, tmp_path / "made", "--digest", digest, "--expect", diff_id).returncode == 0
    done = lamella("apply", blob, tmp_path / "other", "--expect", digest)
    assert (done.returncode, done.stdout) == (8, "")
    assert digest in done.stderr
    assert diff_id in done.stderr
    assert lamella("apply", blob, tmp_path / "other", "--digest", "sha256:12").returncode == 3


def test_apply_of_half_a_blob_is_an_error(lamella: Run, blob: Path, tmp_path: Path) -> None:
    raw = blob.read_bytes()
    for cut in (raw[: len(raw) // 2], raw[:-4]):
        done = lamella("apply", "-", tmp_path / "made", stdin=cut)
        assert done.returncode in (3, 8)
        assert len(done.stderr.splitlines()) <= 2
    assert lamella("apply", "-", tmp_path / "made", stdin=b"no layer at all" * 100).returncode == 3
    assert lamella("apply", tmp_path / "gone", tmp_path / "made").returncode == 4


def test_parents_are_for_overlays(lamella: Run, blob: Path, tmp_path: Path) -> None:
    done = lamella("apply", blob, tmp_path / "made", "--parent", tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "made").exists()


def test_losses_are_warnings_and_in_the_json_and_errors_when_strict(lamella: Run, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(7):
        (root / f"file{number}").touch()
        os.setxattr(root / f"file{number}", "user.overlay.opaque", b"y")
    blob = tmp_path / "blob"
    subprocess.run(["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "-C", root, "-cf", blob, "."], check=True)
    done = lamella("apply", blob, tmp_path / "made")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    for line in lines[:5]:
        assert line.startswith("lamella: warning: file")
        assert ": extended attribute user.overlay.opaque not kept: " in line
    assert lines[5] == "lamella: warning: 7 things were not kept in all; --json lists them"
    assert len(lamella("-q", "apply", blob, tmp_path / "made").stderr.splitlines()) == 1
    document = json.loads(lamella("apply", blob, tmp_path / "made", "--json").stdout)
    assert document["losses_count"] == 7
    assert {loss["path"] for loss in document["losses"]} == {f"file{number}" for number in range(7)}
    assert lamella("apply", blob, tmp_path / "strict", "--strict").returncode == 7


# dump ------------------------------------------------------------------------------------------------------------


def test_dumps_of_a_tree_and_of_its_layer_agree(lamella: Run, upper: Path, blob: Path) -> None:
    tree = lamella("dump", upper, "--inline", "100").stdout.splitlines()
    assert sorted(lamella("dump", blob, "--inline", "100").stdout.splitlines()) == sorted(tree)
    assert "put file 0644 0:0 1700000001 etc/new size=3 text=new" in [
        line.replace(f"{os.getuid()}:{os.getgid()}", "0:0") for line in tree
    ]
    assert lamella("dump", f"dir:{upper}", "--inline", "100").stdout.splitlines() == tree
    assert lamella("dump", "-", stdin=blob.read_bytes()).stdout == lamella("dump", blob).stdout
    assert json.loads(lamella("dump", upper, "--json", "--inline", "100").stdout) == {"changes": tree}


def test_dump_holes_shows_holes(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in/holes", "wb") as file:
        file.truncate(1 << 20)
    assert "data=" in lamella("dump", tmp_path / "in", "--holes").stdout
    assert "data=" not in lamella("dump", tmp_path / "in").stdout


# Being stopped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_apply_from_a_silent_pipe_can_be_stopped(program: str, tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [program, "apply", "-", tmp_path / "made"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for((tmp_path / "made").exists)
        process.send_signal(number)
        assert process.wait(20) == (130 if number == signal.SIGINT else 143)
        assert process.stderr is not None
        assert process.stderr.read().startswith("lamella: interrupted\n")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


@pytest.fixture
def with_socket(lower: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small tree with a socket in it, whose path is short to whoever is in its directory."""
    with monkeypatch.context() as there, socket.socket(socket.AF_UNIX) as bound:
        there.chdir(lower / "etc")
        bound.bind("sock")
    return lower


TOLD = "lamella: warning: etc/sock: socket not kept: no layer can hold one"


def test_a_socket_is_reported_as_a_loss(lamella: Run, with_socket: Path, tmp_path: Path) -> None:
    image, blob = f"oci:{tmp_path}/images:v", tmp_path / "blob"
    assert lamella("pack", with_socket, image).stderr.splitlines() == [TOLD]
    assert lamella("append", image, with_socket, f"oci:{tmp_path}/images:w").stderr.splitlines() == [TOLD]
    assert lamella("diff", with_socket, "-o", blob).stderr.splitlines() == [TOLD]
    assert lamella("diff", with_socket, "--as", "overlay", "-o", blob).stderr.splitlines() == [TOLD]
    assert lamella("diff", tmp_path / "images", with_socket, "-o", blob).stderr.splitlines() == [TOLD]
    document = json.loads(lamella("pack", with_socket, f"oci:{tmp_path}/images:x", "--json").stdout)
    assert document["losses"] == [{"path": "etc/sock", "what": "socket", "why": "no layer can hold one"}]


@pytest.mark.root
def test_fifos_and_devices_need_no_proc(lamella: Run, program: str, tmp_path: Path) -> None:
    stated = [fifo("p", mode=0o622), fifo("q", mode=0o640, uid=4), device("c", 1, 3, mode=0o666), symlink("l", "p")]
    with (tmp_path / "blob").open("wb") as out:
        apply(stated, TarSink(out.write))

    done = without_proc([program, "apply", "blob", "out"], tmp_path)

    assert done.returncode == 0, done.stderr
    lines = [sorted(lamella("dump", tmp_path / name).stdout.splitlines()) for name in ("out", "blob")]
    assert [line for line in lines[0] if not line.endswith(" .")] == lines[1]


@pytest.mark.root
def test_a_device_whose_attributes_need_proc_is_unsupported_and_not_left_behind(program: str, tmp_path: Path) -> None:
    null = device("c", 1, 3)
    assert null.entry.posix is not None
    null.entry.posix.xattrs = {"system.posix_acl_access": bytes.fromhex("02000000")}
    with (tmp_path / "blob").open("wb") as out:
        apply([null], TarSink(out.write))

    done = without_proc([program, "apply", "blob", "out"], tmp_path)

    assert (done.returncode, done.stderr.splitlines()[0]) == (
        7,
        "lamella: make character device 'c': /proc is not mounted",
    )
    assert os.listdir(tmp_path / "out") == []


def without_proc(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``directory``, and where /proc is an empty directory."""
    script = 'mount -t tmpfs none /proc && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_time_that_the_file_system_cannot_hold_is_a_loss(lamella: Run, tmp_path: Path) -> None:
    when = 16_725_225_600 * 10**9
    stated = [
        *(directory("", mtime=when), directory("d", mtime=when), file("d/f", b"text", mtime=when)),
        *(symlink("l", "d", mtime=when), fifo("p", mtime=when)),
    ]
    with (tmp_path / "blob").open("wb") as out:
        apply(stated, TarSink(out.write, root=True))

    done = lamella("apply", tmp_path / "blob", tmp_path / "out", "--json")
    strict = lamella("apply", tmp_path / "blob", tmp_path / "strict", "--strict")

    changed = {put.entry.path for put in stated if os.lstat(tmp_path / "out" / put.entry.path).st_mtime_ns != when}
    losses = json.loads(done.stdout)["losses"]
    assert {(loss["path"], loss["what"]) for loss in losses} == {
        (path, "modification time 2500-01-01T00:00:00Z") for path in changed
    }
    assert strict.returncode == (7 if changed else 0)


def test_strict_refuses_a_socket_and_leaves_nothing(lamella: Run, with_socket: Path, tmp_path: Path) -> None:
    for verb in ("pack", with_socket, f"oci:{tmp_path}/images:v"), ("diff", with_socket, "-o", tmp_path / "blob"):
        done = lamella(*verb, "--strict")
        assert done.returncode == 7
        assert "etc/sock: socket not kept" in done.stderr
    assert lamella("ls", f"oci:{tmp_path}/images:v").returncode != 0
    assert not (tmp_path / "blob").exists()


def test_an_unchanged_socket_is_not_a_loss_of_a_diff(
    lamella: Run, with_socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper = tmp_path / "above"
    subprocess.run(["cp", "-a", with_socket, upper], check=True)
    assert (upper / "etc/sock").is_socket()
    (upper / "new").touch()
    done = lamella("diff", with_socket, upper, "-o", tmp_path / "blob", "--strict")
    assert (done.returncode, done.stderr) == (0, "")
    with monkeypatch.context() as there, socket.socket(socket.AF_UNIX) as bound:
        there.chdir(upper / "bin")
        bound.bind("other")
    done = lamella("diff", with_socket, upper, "-o", tmp_path / "blob")
    assert done.stderr.splitlines() == ["lamella: warning: bin/other: socket not kept: no layer can hold one"]
