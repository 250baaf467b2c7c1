# SPDX-License-Identifier: Apache-2.0
"""lamella hive."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.formats.regf.hives import changed, small
from tests.unit.layers.windows.windows_tars import microsoft_base, microsoft_update

from lamella.formats.regf import Hive, Layering, MemoryKey, encode_hive
from lamella.formats.regf.keys import REG_SZ
from lamella.testing.images import small_image, tagged, write_layout

Run = Callable[..., subprocess.CompletedProcess[str]]


def delta() -> MemoryKey:
    root = MemoryKey("D")
    root.make("Control").hide("start")
    root.make("services").layering = Layering.TOMBSTONE
    root.make("new").put("v", REG_SZ, "n\0".encode("utf-16-le"))
    return root


@pytest.fixture
def hive(tmp_path: Path) -> Path:
    """Return the path of a small hive."""
    path = tmp_path / "SYSTEM"
    path.write_bytes(encode_hive(small()))
    return path


# ls ----------------------------------------------------------------------------------------------------------------


def test_ls_lists_subkeys_then_values(lamella: Run, hive: Path) -> None:
    assert lamella("hive", "ls", hive).stdout == "Control\\\nservices\\\n日本\\\n@\n"
    assert lamella("hive", "ls", f"{hive}::CONTROL").stdout == "Start\nEmpty\nGröße\n大きさ\nBlob\n"


def test_ls_long_shows_types_sizes_and_times(lamella: Run, hive: Path) -> None:
    assert lamella("hive", "ls", "-l", hive).stdout.splitlines()[0] == "key      -  2024-01-17T21:20:00Z  Control\\"
    lines = lamella("hive", "ls", "-l", f"{hive}::Control").stdout.splitlines()
    assert lines[0].split() == ["REG_DWORD", "4", "-", "Start"]


def test_ls_of_a_missing_key_fails(lamella: Run, hive: Path) -> None:
    done = lamella("hive", "ls", f"{hive}::Control/Nothing")
    assert (done.returncode, done.stderr) == (4, "lamella: there is no key 'Nothing' in '\\\\Control'\n")


def test_ls_in_json_has_values_by_their_types(lamella: Run, hive: Path) -> None:
    document = json.loads(lamella("hive", "ls", "--json", f"{hive}::Control").stdout)
    assert document["subkeys"] == []
    assert document["values"][:2] == [
        {"name": "Start", "type": "REG_DWORD", "value": 3},
        {"name": "Empty", "type": "REG_BINARY", "base64": ""},
    ]


# get ---------------------------------------------------------------------------------------------------------------


def test_get_prints_a_value_by_its_type(lamella: Run, hive: Path) -> None:
    assert lamella("hive", "get", hive, "@").stdout == "default\n"
    assert lamella("hive", "get", f"{hive}::control", "START").stdout == "3\n"
    assert lamella("hive", "get", f"{hive}::control", "大きさ").stdout == "a\nb\n"
    assert lamella("hive", "get", f"{hive}::control", "größe").stdout == bytes(range(40)).hex() + "\n"


def test_get_raw_writes_the_bytes(program: str, hive: Path) -> None:
    done = subprocess.run([program, "hive", "get", "--raw", f"{hive}::control", "blob"], capture_output=True)
    assert done.stdout == bytes(range(256)) * 150


def test_get_without_a_value_prints_all_of_the_key(lamella: Run, hive: Path) -> None:
    assert lamella("hive", "get", f"{hive}::services\\s2").stdout == '"N"=REG_DWORD:0x00000002\n'


def test_get_of_a_missing_or_hidden_value_fails(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(encode_hive(delta()))
    done = lamella("hive", "get", f"{tmp_path / 'delta'}::Control", "x")
    assert (done.returncode, done.stderr) == (4, "lamella: there is no value 'x' in '\\\\Control'\n")
    done = lamella("hive", "get", f"{tmp_path / 'delta'}::Control", "start")
    assert (done.returncode, "is a tombstone" in done.stderr) == (4, True)


def test_get_raw_needs_a_value(lamella: Run, hive: Path) -> None:
    assert lamella("hive", "get", "--raw", hive).returncode == 2


# dump --------------------------------------------------------------------------------------------------------------


def test_dump_prints_keys_and_marks(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(encode_hive(delta()))
    lines = lamella("hive", "dump", tmp_path / "delta").stdout.splitlines()
    assert [line.partition(" time")[0] for line in lines if line] == [
        "[\\]",
        "[\\Control]",
        '"start"=-',
        "[\\new]",
        '"v"=REG_SZ:"n"',
        "[\\services]",
    ]
    assert lines[-1].endswith(" layer=tombstone")


def test_dump_of_a_key_gives_whole_paths(lamella: Run, hive: Path) -> None:
    lines = lamella("hive", "dump", f"{hive}::services").stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines if line.startswith("[")] == [
        "[\\services]",
        "[\\services\\s0]",
        "[\\services\\s1]",
        "[\\services\\s2]",
    ]


def test_dump_in_json_has_all_that_keys_have(lamella: Run, hive: Path, tmp_path: Path) -> None:
    document = json.loads(lamella("hive", "--json", "dump", hive).stdout)
    assert document["layered"] is False
    paths = [key["path"] for key in document["keys"]]
    assert paths[:4] == ["\\", "\\Control", "\\services", "\\services\\s0"]
    control = document["keys"][1]
    assert (control["class"], control["control"], control["time"]) == ("a class", 0x12, "2024-01-17T21:20:00Z")
    (tmp_path / "delta").write_bytes(encode_hive(delta()))
    document = json.loads(lamella("hive", "dump", "--json", tmp_path / "delta").stdout)
    assert document["keys"][1]["values"] == [{"name": "start", "tombstone": True}]
    assert document["keys"][3]["layer"] == "tombstone"


# merge -------------------------------------------------------------------------------------------------------------


def test_merge_gives_standard_output_to_the_hive_or_to_the_document(lamella: Run, hive: Path) -> None:
    done = lamella("hive", "merge", hive, "-o", "-", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "both write to standard output" in done.stderr


def test_merge_lays_a_delta_over_a_hive(lamella: Run, hive: Path, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(encode_hive(delta()))
    output = tmp_path / "merged"
    done = lamella("hive", "merge", hive, tmp_path / "delta", "-o", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{output}: ")
    merge = Hive(output.read_bytes())
    assert [key.name for key in merge.root_key.subkeys()] == ["Control", "new", "日本"]
    assert merge.key("control").value("start") is None
    assert merge.key("control").value("größe") is not None


def test_merge_takes_several_deltas_and_standard_input(program: str, hive: Path, tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(encode_hive(delta()))
    second = MemoryKey("E")
    second.make("NEW").layering = Layering.TOMBSTONE
    (tmp_path / "2").write_bytes(encode_hive(second))
    command = [program, "hive", "merge", "-", str(tmp_path / "1"), str(tmp_path / "2"), "-o", "-"]
    done = subprocess.run(command, input=hive.read_bytes(), capture_output=True, check=True)
    assert [key.name for key in Hive(done.stdout).root_key.subkeys()] == ["Control", "日本"]


def test_merge_takes_marks_for_marks_whatever_the_base_block_of_the_delta_says(
    lamella: Run, hive: Path, tmp_path: Path
) -> None:
    (tmp_path / "delta").write_bytes(changed(encode_hive(delta()), 144, bytes(4)))
    lamella("hive", "merge", hive, tmp_path / "delta", "-o", tmp_path / "out")
    assert [key.name for key in Hive((tmp_path / "out").read_bytes()).root_key.subkeys()] == ["Control", "new", "日本"]


def test_merge_over_a_delta_gives_a_hive_without_marks(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(encode_hive(delta()))
    (tmp_path / "empty").write_bytes(encode_hive(MemoryKey("E")))
    lamella("hive", "merge", tmp_path / "delta", tmp_path / "empty", "-o", tmp_path / "out")
    merge = Hive((tmp_path / "out").read_bytes())
    assert not merge.layered
    assert [key.name for key in merge.root_key.subkeys()] == ["Control", "new"]
    assert merge.key("control").values() == []


def test_a_merge_that_fails_leaves_no_output(lamella: Run, hive: Path, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(encode_hive(delta())[:-4096])
    done = lamella("hive", "merge", hive, tmp_path / "delta", "-o", tmp_path / "out")
    assert done.returncode == 3
    assert done.stderr.startswith("lamella: regf at offset 40: bins of ")
    assert f"note: read from {str(tmp_path / 'delta')!r}" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["SYSTEM", "delta"]


def test_merge_reads_standard_input_once(lamella: Run) -> None:
    assert lamella("hive", "merge", "-", "-", "-o", "x").returncode == 2


# Where hives are ---------------------------------------------------------------------------------------------------


def test_dirty_reads_a_hive_with_pending_changes(lamella: Run, hive: Path) -> None:
    hive.write_bytes(changed(hive.read_bytes(), 4, b"\x09"))
    done = lamella("hive", "ls", hive)
    assert (done.returncode, "hint: use dirty=True, or --dirty on the command line" in done.stderr) == (7, True)
    assert lamella("hive", "ls", "--dirty", hive).stdout == "Control\\\nservices\\\n日本\\\n@\n"


def test_a_hive_in_an_image_or_a_directory_is_named_by_its_path(lamella: Run, hive: Path, tmp_path: Path) -> None:
    image = small_image({"Files/Windows/System32/config/SYSTEM": hive.read_bytes()})
    write_layout(str(tmp_path / "layout"), [tagged(image.descriptor, "v1")], image.blobs)
    name = f"oci:{tmp_path / 'layout'}:v1::Files/Windows/System32/config/SYSTEM"
    assert lamella("hive", "get", f"{name}::Control", "Start").stdout == "3\n"
    assert lamella("hive", "ls", f"dir:{tmp_path}::SYSTEM::services").stdout == "s0\\\ns1\\\ns2\\\n"


def test_a_delta_in_a_layer_is_read_whatever_else_the_layer_says_of_those_below(
    lamella: Run, hive: Path, tmp_path: Path
) -> None:
    """The layer has hard links to files that only its parents have, as Microsoft's have."""
    for name, data in (("base", microsoft_base()), ("update", microsoft_update())):
        (tmp_path / name).write_bytes(data)
    done = lamella("hive", "dump", f"blob:{tmp_path / 'update'}::hives/SYSTEM_delta")
    assert (done.returncode, done.stdout.startswith("[\\]")) == (0, True)
    output = tmp_path / "merged"
    delta_in_layer = f"blob:{tmp_path / 'update'}::Hives/System_Delta"
    assert lamella("hive", "merge", hive, delta_in_layer, "-o", output).returncode == 0
    assert [key.name for key in Hive(output.read_bytes()).root_key.subkeys()] == ["Control", "services", "日本"]
    assert lamella("hive", "ls", f"blob:{tmp_path / 'base'}::Hives/System_Delta").returncode == 4


def test_keys_with_two_colons_in_their_names_are_found(lamella: Run, tmp_path: Path) -> None:
    root = MemoryKey("")
    root.make("a").make("::{20D0}").put("v", REG_SZ, "x\0".encode("utf-16-le"))
    (tmp_path / "hive").write_bytes(encode_hive(root))
    assert lamella("hive", "ls", f"{tmp_path / 'hive'}::a\\::{{20d0}}").stdout == "v\n"
    assert lamella("hive", "ls", f"dir:{tmp_path}::hive::a\\::{{20d0}}").stdout == "v\n"


def test_a_missing_or_malformed_hive_is_reported(lamella: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no hive")
    done = lamella("hive", "ls", tmp_path / "text")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        3,
        "lamella: regf at offset 0: 7 bytes, shorter than the base block of 4096",
    )
    assert lamella("hive", "ls", tmp_path / "nowhere").returncode == 4
    done = lamella("hive", "ls", f"oci:{tmp_path}")
    assert (done.returncode, "hint: write it as IMAGE::PATH" in done.stderr) == (3, True)


def test_names_cannot_move_a_terminals_cursor_in_a_dump(lamella: Run, tmp_path: Path) -> None:
    root = MemoryKey("")
    root.make("\x1b[2J\n").put("\ud800", REG_SZ, b"\x1b\0")
    (tmp_path / "hive").write_bytes(encode_hive(root))
    text = lamella("hive", "dump", tmp_path / "hive").stdout
    assert "[\\\\u001b[2J\\n]" in text
    assert '"\\ud800"=REG_SZ:1b00' in text
    assert lamella("hive", "ls", f"{tmp_path / 'hive'}::\x1b[2J\n").stdout == "\ufffd\n"


def test_help_lists_the_verbs(lamella: Run) -> None:
    text = lamella("hive", "--help").stdout
    assert [verb for verb in ("ls", "get", "merge", "dump") if f"\n  {verb} " not in text] == []
    assert "..." not in text.partition("Commands:")[2]
