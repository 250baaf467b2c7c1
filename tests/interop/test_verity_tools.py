# SPDX-License-Identifier: Apache-2.0
"""Trees of hashes are those that veritysetup writes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.formats.test_verity import SIZES, data_of, tree_of

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("blocks", SIZES)
def test_the_tree_is_the_one_that_veritysetup_writes(blocks: int, tmp_path: Path, needs: Callable[..., str]) -> None:
    data = data_of(blocks)
    image, hashes, said = tmp_path / "image", tmp_path / "hashes", tmp_path / "root"
    image.write_bytes(data)
    options = ["--salt=-", "--uuid=00000000-0000-0000-0000-000000000000", f"--root-hash-file={said}"]
    subprocess.run([needs("veritysetup"), "format", *options, image, hashes], check=True, capture_output=True)
    assert (hashes.read_bytes(), said.read_text()) == tree_of(data)
