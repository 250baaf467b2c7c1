# SPDX-License-Identifier: Apache-2.0
"""A bundle that somebody without rights unpacks, started by a runtime without rights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.interop, pytest.mark.root]

Needs = Callable[..., str]

PROGRAM = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("%d %d\n", getuid(), getgid()); return 7; }
"""
# Another id, and no rights beyond those of the one who maps it.
SOMEBODY = ["unshare", "--user", "--map-user=1234", "--map-group=1234"]


def test_somebody_without_rights_unpacks_and_starts_a_bundle(needs: Needs, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("lamella")
    (tmp_path / "root/bin").mkdir(parents=True)
    (tmp_path / "program.c").write_text(PROGRAM)
    subprocess.run([needs("gcc"), "-static", "-o", tmp_path / "root/bin/it", tmp_path / "program.c"], check=True)
    name = f"oci:{tmp_path}/image:it"
    subprocess.run([program, "pack", "-q", tmp_path / "root", name, "--cmd", "/bin/it"], check=True)
    subprocess.run([*SOMEBODY, program, "unpack", "-q", "--bundle", name, tmp_path / "bundle"], check=True)
    config = json.loads((tmp_path / "bundle/config.json").read_text())
    assert config["linux"]["uidMappings"][0] == {"containerID": 0, "hostID": 1234, "size": 1}
    done = subprocess.run(
        [*SOMEBODY, needs("runc"), "--root", tmp_path / "state", "run", "-b", tmp_path / "bundle", f"it-{os.getpid()}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (7, "0 0\n"), done.stderr
