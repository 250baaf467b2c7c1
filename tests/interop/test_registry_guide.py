# SPDX-License-Identifier: Apache-2.0
"""The examples of the guide to registries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.registry.docker_registry import DockerRegistry, running
from tests.registry.isolation import isolate
from tests.unit.test_docs import ROOT, agree, perform, steps

pytestmark = pytest.mark.interop

SHOWN = "localhost:5000"


def test_the_examples_of_the_guide_to_registries_are_right(
    needs: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path / "home")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    namespace: dict[str, Any] = {}
    count = 0
    with running(DockerRegistry(needs("docker-registry"), tmp_path / "registry")) as registry:
        document = (ROOT / "docs/registries.md").read_text(encoding="utf-8").replace(SHOWN, registry.host)
        for step in steps(document):
            printed = perform(step, namespace)
            assert agree(step[3], printed), f"{step[0]}: {step[2]}\nshown:\n{step[3]}\nprinted:\n{printed}"
            count += 1
    assert count >= 20
