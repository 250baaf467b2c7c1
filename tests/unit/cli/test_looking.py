# SPDX-License-Identifier: Apache-2.0
"""ls, tree, cat and find."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.formats.tar.archives import END, file
from tests.unit.layers.windows.windows_tars import microsoft_update

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Return the name of a directory with a bit of everything in it."""
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/os-release").write_text("ID=test\n")
    (root / "lib").symlink_to("usr/lib")
    (root / "etc").mkdir()
    (root / "etc/os-release").symlink_to("/usr/lib/os-release")
    (root / "etc/big").write_bytes(bytes(3000))
    (root / "etc/big").chmod(0o4750)
    (root / "etc/nowhere").symlink_to("gone")
    os.mkfifo(root / "pipe", 0o600)
    (root / "pipe").chmod(0o600)
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(1_700_000_000_250_000_000,) * 2, follow_symlinks=False)
    return f"dir:{root}"


# ls --------------------------------------------------------------------------------------------------------------


def test_ls_lists_names_by_their_bytes(lamella: Run, place: str) -> None:
    assert lamella("ls", place).stdout == "etc\nlib\npipe\nusr\n"
    assert lamella("ls", f"{place}::usr").stdout == "lib\n"
    assert lamella("ls", f"{place}::/lib/").stdout == "os-release\n"


def test_ls_of_a_file_names_the_file(lamella: Run, place: str) -> None:
    assert lamella("ls", f"{place}::etc/os-release").stdout == "/usr/lib/os-release\n"
    assert lamella("ls", "-d", f"{place}::etc/os-release").stdout == "/etc/os-release\n"
    assert lamella("ls", "-d", place).stdout == "/\n"


def test_ls_recursive_lists_subdirectories(lamella: Run, place: str) -> None:
    assert lamella("ls", "-R", f"{place}::usr").stdout == "/usr/lib\n/usr/lib/os-release\n"


def test_ls_long_shows_mode_owner_size_and_time(lamella: Run, place: str) -> None:
    lines = lamella("ls", "-l", f"{place}::etc").stdout.splitlines()
    # Files of the ordinary user who looks count as root's.
    assert lines[0].split() == ["-rwsr-x---", "0", "0", "3000", "2023-11-14", "22:13:20", "big"]
    assert lines[1].endswith("nowhere -> gone")
    assert lines[2].endswith("os-release -> /usr/lib/os-release")


def test_ls_as_json_has_all_that_is_known(lamella: Run, place: str) -> None:
    entries = json.loads(lamella("ls", "--json", f"{place}::etc").stdout)
    assert [entry["path"] for entry in entries] == ["/etc/big", "/etc/nowhere", "/etc/os-release"]
    assert entries[0] == {
        "path": "/etc/big",
        "kind": "file",
        "size": 3000,
        "mode": "4750",
        "uid": 0,
        "gid": 0,
        "mtime": "1700000000.25",
    }
    assert entries[1]["target"] == "gone"


def test_a_missing_path_is_named(lamella: Run, place: str) -> None:
    for path in ("gone", "etc/nowhere", "etc/big/deeper"):
        done = lamella("ls", f"{place}::{path}")
        assert (done.returncode, done.stdout) == (4, "")
        assert "does not exist" in done.stderr


def test_names_may_have_colons_of_their_own(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "File::Spec.3pm").write_text("perl")
    assert lamella("cat", f"dir:{tmp_path}::File::Spec.3pm").stdout == "perl"


def test_undecodable_names_are_printed_as_their_bytes(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "a\udcffb\x1b").touch()
    for verb in ("ls", "find"):
        assert lamella(verb, f"dir:{tmp_path}").stdout.endswith("a\udcffb\x1b\n")


def test_a_terminal_is_not_trusted_with_names(tmp_path: Path, program: str) -> None:
    """What a layer calls its files must not move the cursor."""
    import pty

    (tmp_path / "in").mkdir()
    (tmp_path / "in/a\x1b]0;x\x07").symlink_to("\x1b[2J")
    ours, theirs = pty.openpty()
    for verb in ("ls", "tree", "find"):
        done = subprocess.run([program, verb, f"dir:{tmp_path}/in"], stdout=theirs, stderr=subprocess.PIPE)
        assert done.returncode == 0
        shown = os.read(ours, 10000)
        assert b"a\\x1b]0;x\\x07" in shown
        assert b"\x1b" not in shown
    os.close(ours)
    os.close(theirs)


# tree ------------------------------------------------------------------------------------------------------------


def test_tree_draws_branches(lamella: Run, place: str) -> None:
    assert lamella("tree", place).stdout == (
        "/\n"
        "├── etc\n"
        "│   ├── big\n"
        "│   ├── nowhere -> gone\n"
        "│   └── os-release -> /usr/lib/os-release\n"
        "├── lib -> usr/lib\n"
        "├── pipe\n"
        "└── usr\n"
        "    └── lib\n"
        "        └── os-release\n"
        "\n"
        "3 directories, 6 files\n"
    )


def test_tree_stops_at_the_given_depth(lamella: Run, place: str) -> None:
    assert lamella("tree", "-q", "-L", "1", place).stdout == "/\n├── etc\n├── lib -> usr/lib\n├── pipe\n└── usr\n"
    assert lamella("tree", "-d", place).stdout == "/\n├── etc\n└── usr\n    └── lib\n\n3 directories\n"


def test_tree_as_json_is_nested(lamella: Run, place: str) -> None:
    document = json.loads(lamella("tree", "--json", f"{place}::/usr").stdout)
    assert document["path"] == "/usr"
    assert document["entries"][0]["path"] == "/usr/lib"
    assert document["entries"][0]["entries"][0]["size"] == 8


# cat -------------------------------------------------------------------------------------------------------------


def test_cat_follows_links_inside(lamella: Run, place: str) -> None:
    assert lamella("cat", f"{place}::/etc/os-release").stdout == "ID=test\n"
    assert lamella("cat", f"{place}::lib/os-release", "etc/os-release").stdout == "ID=test\n" * 2


def test_cat_gives_bytes_as_they_are(lamella: Run, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20
    (tmp_path / "all").write_bytes(data)
    assert lamella("cat", f"dir:{tmp_path}::all").stdout.encode("utf-8", "surrogateescape") == data
    document = json.loads(lamella("cat", "--json", f"dir:{tmp_path}::all").stdout)
    assert base64.b64decode(document[0]["base64"]) == data


@pytest.mark.parametrize(("path", "code"), [("etc", 3), ("pipe", 3), ("gone", 4), ("etc/nowhere", 4)])
def test_cat_prints_regular_files_only(lamella: Run, place: str, path: str, code: int) -> None:
    done = lamella("cat", f"{place}::lib/os-release", path)
    assert (done.returncode, done.stdout) == (code, "")


def test_cat_needs_a_path(lamella: Run, place: str) -> None:
    done = lamella("cat", place)
    assert done.returncode == 2
    assert "IMAGE::PATH" in done.stderr


# find ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--name", "os-*"], ["/etc/os-release", "/usr/lib/os-release"]),
        (["--name", "OS-*", "-i", "--type", "f"], ["/usr/lib/os-release"]),
        (["--path", "/etc/*", "--type", "l"], ["/etc/nowhere", "/etc/os-release"]),
        (["--type", "p", "--type", "d"], ["/", "/etc", "/pipe", "/usr", "/usr/lib"]),
        (["--size", "+1k"], ["/etc/big"]),
        (["--size", "-8", "--size", "+8"], ["/usr/lib/os-release"]),
        (["--newer", "2023-11-14T22:13:20", "--type", "f"], ["/etc/big", "/usr/lib/os-release"]),
        (["--newer", "2023-11-14T22:13:21", "--type", "f"], []),
        (["--newer", "2023-11-14T22:13:20+01:00", "--name", "big"], ["/etc/big"]),
        (["--newer", "/etc/big", "--type", "f"], []),
    ],
)
def test_find_takes_wishes(lamella: Run, place: str, options: list[str], expected: list[str]) -> None:
    done = lamella("find", place, *options)
    assert done.returncode == 0
    assert done.stdout.splitlines() == expected


def test_find_begins_at_the_given_path(lamella: Run, place: str) -> None:
    assert lamella("find", f"{place}::lib").stdout == "/usr/lib\n/usr/lib/os-release\n"


def test_find_ends_names_with_nul(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "a\nb").touch()
    assert lamella("find", "-0", "--type", "f", f"dir:{tmp_path}").stdout == "/a\nb\0"


def test_find_has_the_long_form_and_json(lamella: Run, place: str) -> None:
    assert lamella("find", "-l", "--type", "p", place).stdout.split()[0] == "prw-------"
    document = json.loads(lamella("find", "--json", "--type", "p", place).stdout)
    assert [entry["kind"] for entry in document] == ["fifo"]


@pytest.mark.parametrize(
    ("options", "code"), [(["--size", "big"], 3), (["--newer", "some day"], 4), (["--type", "x"], 2)]
)
def test_find_refuses_malformed_conditions(lamella: Run, place: str, options: list[str], code: int) -> None:
    assert lamella("find", place, *options).returncode == code


class TestALayerWithHardLinksToLayersBelow:
    """Its view stands alone: what is not in it is told, and does not keep the rest from being seen."""

    @pytest.fixture
    def blob(self, tmp_path: Path) -> str:
        (tmp_path / "update.tar").write_bytes(microsoft_update())
        return f"blob:{tmp_path}/update.tar"

    def test_lists_them_with_what_they_lead_to(self, lamella: Run, blob: str) -> None:
        folder = f"{blob}::Files/Windows/System32"
        assert lamella("ls", folder).stdout == "advapi.dll\nntdll.dll\n"
        first, _ = lamella("ls", "-l", folder).stdout.splitlines()
        assert first.split() == [*"???0?", "advapi.dll", "=>", "/Files/Windows/System32/advapi32.dll"]
        assert "advapi.dll => /Files/Windows/System32/advapi32.dll" in lamella("tree", blob).stdout
        (found,) = json.loads(lamella("find", blob, "--name", "advapi*", "--json").stdout)
        assert found == {
            "path": "/Files/Windows/System32/advapi.dll",
            "kind": "file",
            "size": 0,
            "link": "/Files/Windows/System32/advapi32.dll",
        }

    def test_prints_the_files_that_it_has_and_says_of_others_where_they_are(self, lamella: Run, blob: str) -> None:
        system = f"{blob}::Files/Windows/System32"
        assert len(lamella("cat", f"{system}/ntdll.dll").stdout) == 4000
        done = lamella("cat", f"{system}/advapi.dll")
        assert (done.returncode, done.stdout) == (4, "")
        assert "hard link to '/Files/Windows/System32/advapi32.dll', which is not in this layer" in done.stderr

    def test_dumps_them_as_links(self, lamella: Run, blob: str) -> None:
        done = lamella("dump", blob)
        assert done.returncode == 0, done.stderr
        link = "link Files/Windows/System32/advapi.dll target=Files/Windows/System32/advapi32.dll"
        assert link in done.stdout.splitlines()

    def test_may_be_one_of_linux_too(self, lamella: Run, tmp_path: Path) -> None:
        """Further names of one link, and a link through a directory's own link, are told as well."""
        members = (
            file(b"usr/bin/", flag=b"5", mode=0o755),
            file(b"usr/bin/a", b"data"),
            file(b"bin", flag=b"2", linkname=b"usr/bin"),
            file(b"b", flag=b"1", linkname=b"bin/a"),
            file(b"c", flag=b"1", linkname=b"lib/below"),
            file(b"d", flag=b"1", linkname=b"c"),
        )
        (tmp_path / "layer.tar").write_bytes(b"".join(members) + END)
        blob = f"blob:{tmp_path}/layer.tar"
        assert lamella("cat", f"{blob}::b").stdout == "data"
        rows = [line.split()[-3:] for line in lamella("ls", "-l", blob).stdout.splitlines()]
        assert [row for row in rows if row[1] == "=>"] == [["c", "=>", "/lib/below"], ["d", "=>", "/lib/below"]]

    def test_is_still_refused_where_a_link_could_lead_out(self, lamella: Run, tmp_path: Path) -> None:
        (tmp_path / "bad.tar").write_bytes(file(b"a", flag=b"1", linkname=b"../../etc/passwd") + END)
        done = lamella("ls", f"blob:{tmp_path}/bad.tar")
        assert done.returncode == 3
        assert "unsafe path" in done.stderr
