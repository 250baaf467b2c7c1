# SPDX-License-Identifier: Apache-2.0
"""Files that appear when they are complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.errors import AlreadyExists, Conflict, Exhausted, InvalidInput, NotFound
from lamella.operations.atomic_file import refuse_within, replacing


def test_a_file_appears_at_the_end_and_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "out") as file:
        file.write(b"whole")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["out"]


def test_a_failure_keeps_the_previous_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "out") as file:
        file.write(b"new" * (1 // 0))
    assert (tmp_path / "out").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_an_exclusive_file_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(AlreadyExists), replacing(tmp_path / "out", exclusive=True):
        pass


@pytest.mark.parametrize("place", ["in", "in/deeper", "link", "link/.."])
def test_what_is_read_does_not_take_its_own_result(tmp_path: Path, place: str) -> None:
    (tmp_path / "in/deeper").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in/deeper")
    with pytest.raises(InvalidInput, match="would lie in"):
        refuse_within(tmp_path / "in", tmp_path / place / "blob", "it")
    refuse_within(tmp_path / "in", tmp_path / "in-stead", "it")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"


def test_a_device_is_written_as_it_is() -> None:
    with replacing(Path("/dev/null")) as file:
        file.write(b"x")
    assert Path("/dev/null").is_char_device()


def test_a_long_name_has_room_for_the_temporary_one(tmp_path: Path) -> None:
    with replacing(tmp_path / ("é" * 127)):
        pass
    assert (tmp_path / ("é" * 127)).exists()


def test_directories_and_missing_parents_are_errors(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="is a directory"), replacing(tmp_path):
        pass
    with pytest.raises(NotFound, match="write"), replacing(tmp_path / "gone" / "out"):
        pass


def test_a_full_disk_has_its_category(tmp_path: Path) -> None:
    with pytest.raises(Exhausted), replacing(Path("/dev/full")) as file:
        file.write(b"x" * 100)
    with pytest.raises(Exhausted, match="write"), replacing(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []
