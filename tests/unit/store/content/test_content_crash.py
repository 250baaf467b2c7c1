# SPDX-License-Identifier: Apache-2.0
"""A process that puts and deletes blobs is killed at random moments; what it has reported is so afterwards."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from lamella.digests import Digest
from lamella.store.content.files import SweptFiles
from lamella.store.store import Store

ROUNDS = 8

WORK = """
import random, sys
from lamella.errors import AlreadyExists
from lamella.store.store import Store
dice = random.Random(int(sys.argv[2]))
content = Store.open(sys.argv[1]).namespace("one").content
have = {record.digest for record in content.walk()}
print("ready", flush=True)
while True:
    if have and dice.random() < 0.4:
        digest = dice.choice(sorted(have))
        print("deleting", digest, flush=True)
        content.delete(digest)
        have.discard(digest)
        print("deleted", digest, flush=True)
        continue
    text = b"%d" % dice.randrange(50) * 20_000
    try:
        with content.ingest(f"ref{dice.randrange(5)}") as ingest:
            ingest.truncate()
            ingest.write(text)
            ingest.write(text)
            digest = ingest.digest()
            print("putting", digest, flush=True)
            ingest.commit()
    except AlreadyExists:
        pass
    have.add(digest)
    print("put", digest, flush=True)
"""


def test_results_reported_before_a_kill_survive_it(tmp_path: Path) -> None:
    root = tmp_path / "store"
    dice = random.Random(7)
    known: set[str] = set()
    for round_ in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-c", WORK, root, str(round_)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(dice.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        told, _ = child.communicate()
        maybe = ""
        for line in told.splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # the kill cut it short
            verb, digest = line.split()
            maybe = digest if verb in ("putting", "deleting") else ""
            if verb == "put":
                known.add(digest)
            elif verb == "deleted":
                known.discard(digest)
        with Store.open(root) as store:
            content = store.namespace("one").content
            found = {str(record.digest) for record in content.walk()}
            assert found ^ known <= {maybe}
            known = found
            for digest in found:
                with content.open(Digest(digest)) as file:
                    assert Digest.of(file.read()) == digest
            for status in content.statuses():
                content.abort(status.ref)
            content.sweep()
            assert content.sweep() == SweptFiles(0, 0)
            files = {f"{path.parent.name}:{path.name}" for path in (root / "blobs").glob("*/*")}
            assert files == found
            assert list((root / "ingest").iterdir()) == list((root / "trash").iterdir()) == []
