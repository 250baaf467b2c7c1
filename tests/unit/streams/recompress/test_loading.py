# SPDX-License-Identifier: Apache-2.0
"""Recompression is loaded by the verbs for recipes alone."""

from __future__ import annotations

import subprocess
import sys


def loaded_by(*modules: str) -> set[str]:
    script = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


def test_the_verbs_that_write_and_read_layers_do_not_load_it() -> None:
    loaded = loaded_by("lamella.operations.layers.diff", "lamella.operations.unpack", "lamella.operations.layers.apply")
    assert [name for name in loaded if name.startswith("lamella.streams.recompress")] == []
    assert loaded & {"backports.zstd", "compression.zstd", "pickle"} == set()


def test_the_verbs_for_recipes_load_it() -> None:
    assert "lamella.streams.recompress.compressors" in loaded_by("lamella.operations.layers.recipes")
