# SPDX-License-Identifier: Apache-2.0
"""What a file of settings may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.errors import InvalidInput, NotFound
from lamella.service.daemon import MAX_SIZE, read_settings

KNOWN = {"address": None, "log-format": ("text", "json")}


def test_settings_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('address = "/a"\nlog-format = "json"\n')
    assert read_settings(tmp_path / "file", KNOWN) == {"address": "/a", "log-format": "json"}
    (tmp_path / "file").write_text("# nothing\n")
    assert read_settings(tmp_path / "file", KNOWN) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("address = ", "is not TOML"),
        ("adress = '/a'", "unknown setting 'adress'"),
        ("address = 1", "'address' must be text"),
        ("address = ''", "'address' must be text"),
        ("[address]", "'address' must be text"),
        ("log-format = 'xml'", "'log-format' is 'xml', not one of text, json"),
        ("#" * (MAX_SIZE + 1), "is larger than"),
    ],
)
def test_errors_of_settings_name_the_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(InvalidInput, match=said) as raised:
        read_settings(tmp_path / "file", KNOWN)
    assert str(tmp_path / "file") in str(raised.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_settings(tmp_path / "none", KNOWN)
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="is not TOML"):
        read_settings(tmp_path / "file", KNOWN)
