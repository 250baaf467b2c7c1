# SPDX-License-Identifier: Apache-2.0
"""Runs the comparison with a registry on loopback: `python -m benchmarks.registry [WORK ...]`.

docker-registry serves the images from the measured file system. Lamella, skopeo and crane all check every digest;
umoci unpacks from the layout that skopeo has written, as it cannot read from registries itself.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import report
from benchmarks.corpus.__main__ import default_place, ensure
from benchmarks.measure import take_turns
from benchmarks.run import say
from benchmarks.workloads import LAMELLA, LAMELLA_COMMAND, Bar, Bench, Workload, present

IMAGES = ("large", "few-big", "many-small", "debian")
SKOPEO = ("skopeo", "--insecure-policy", "copy", "--quiet")
EIGHT = """if True:
    import random, sys
    from lamella.testing.images import small_image, tagged, write_layout
    image = small_image(*({"noise": random.Random(n).randbytes(24 << 20)} for n in range(8)), compress=False)
    write_layout(sys.argv[1], [tagged(image.descriptor, "gzip")], image.blobs)
"""
"""Eight layers of 24 MiB: what several blobs at once cost in memory."""


@contextlib.contextmanager
def registry(where: Path) -> Iterator[str]:
    """Serve a registry from a new folder, and remove it again; the value is its host and port."""
    where.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(where / "data")}},
        "http": {"addr": host},
    }
    (where / "config.yml").write_text(json.dumps(settings))  # which is YAML as well
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    with (where / "log").open("wb") as log:
        command = ["docker-registry", "serve", str(where / "config.yml")]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait_for(host, server)
        yield host
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(where)


def _wait_for(host: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        connection = http.client.HTTPConnection(host, timeout=5)
        try:
            connection.request("GET", "/v2/")
            connection.getresponse().read()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("docker-registry did not start") from None
            time.sleep(0.05)
        finally:
            connection.close()


def unpack(bench: Bench, image: str, name: str) -> Workload:
    """An image in the registry to a root file system."""
    source = f"docker://{image}"

    def peers(to: Path) -> list[list[str]]:
        layout = f"{to}/layout:gzip"
        return [
            [*SKOPEO, "--src-tls-verify=false", source, f"oci:{layout}"],
            ["umoci", "unpack", "--image", layout, f"{to}/bundle"],
        ]

    return Workload(
        f"unpack {name}",
        present(
            bench.process(LAMELLA, lambda to: [[LAMELLA_COMMAND, "unpack", "-q", source, str(to)]], makes_target=True),
            bench.process("skopeo, umoci", peers, makes_target=False) if shutil.which("umoci") else None,
        ),
        (Bar("skopeo, umoci", 0.6),),
    )


def pull(bench: Bench, image: str, name: str) -> Workload:
    """An image in the registry to a layout."""
    source = f"docker://{image}"
    return Workload(
        f"pull {name}",
        present(
            bench.process(
                LAMELLA, lambda to: [[LAMELLA_COMMAND, "pull", "-q", source, f"oci:{to}:gzip"]], makes_target=True
            ),
            bench.process(
                "skopeo",
                lambda to: [[*SKOPEO, "--src-tls-verify=false", source, f"oci:{to}:gzip"]],
                makes_target=True,
            ),
            bench.process(
                "crane",
                lambda to: [["crane", "pull", "--insecure", "--format=oci", image, str(to)]],
                makes_target=True,
            )
            if shutil.which("crane")
            else None,
        ),
        (Bar("skopeo", 1.0), *((Bar("crane", 1.0),) if shutil.which("crane") else ())),
    )


def main() -> int:
    """Measure Lamella and its peers side by side."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="WORK", help=f"{', '.join(IMAGES)}, eight; all where none is named")
    parser.add_argument("--rounds", type=int, metavar="N", default=5)
    parser.add_argument("--corpus", type=Path, default=default_place(), help="where the images are, or are to be built")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"), help="a folder of the file system to measure on")
    options = parser.parse_args()
    names = options.names or (*IMAGES, "eight")
    if unknown := set(names) - {*IMAGES, "eight"}:
        parser.error(f"no work is named {', '.join(sorted(unknown))}")
    done: list[Workload] = []
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=options.work) as folder:
        work = Path(folder)
        # A package that is installed has its bytecode beside it, whatever the settings of a workplace.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(work / "bytecode")
        bench = Bench(work, None)
        for name in names:
            if name == "eight":
                layout = work / name
                subprocess.run([sys.executable, "-c", EIGHT, str(layout)], check=True)
            else:
                layout = ensure(name, options.corpus.resolve())
            with registry(work / "registry") as host:
                image = f"{host}/{name}:gzip"
                subprocess.run([LAMELLA_COMMAND, "push", "-q", f"oci:{layout}:gzip", f"docker://{image}"], check=True)
                for workload in (pull(bench, image, name), unpack(bench, image, name)):
                    if name == "eight" and workload.name.startswith("unpack"):
                        continue
                    take_turns(workload.contenders, options.rounds, say)
                    done.append(workload)
            if name == "eight":
                shutil.rmtree(layout)
    say("")
    print(report.results(done), "", report.bars_table(done), sep="\n")
    for line in report.failures(done):
        print(line, file=sys.stderr)
    return 1 if report.failures(done) else 0


if __name__ == "__main__":
    sys.exit(main())
