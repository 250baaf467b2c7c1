# SPDX-License-Identifier: Apache-2.0
"""How fast the service is: `python -m benchmarks.service [read|import|unpack|clients ...]`.

`read` reads a blob by one call after the other, from a client that costs next to nothing. `import` and `unpack` are
ctr's, with a containerd that takes turns. `clients` has many clients at work at once, and watches the server's memory.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import report, stores
from benchmarks.containerd import Containerd, manifest_digest
from benchmarks.corpus.__main__ import default_place, ensure
from benchmarks.measure import Contender, take_turns, timed
from benchmarks.run import on_tmpfs, say
from benchmarks.workloads import LAMELLA, LAMELLA_COMMAND, Bar, Bench, Workload

WORK = ("read", "import", "unpack", "clients")
READS = ((32 << 10, 150e6), (1 << 20, 1e9))
"""Bytes of a call, and how many a second are to come of it."""
SNAPSHOTTER = "lamella"
UNIT = Path(__file__).parents[1] / "systemd/lamella.service"
WARM = 10.0
"""Seconds after which a server's memory is not to grow any more."""


@contextlib.contextmanager
def serving(work: Path, *options: str | Path) -> Iterator[int]:
    """`lamella serve` as systemd starts it, whose store is in ``work``; gives the process's number."""
    command = [LAMELLA_COMMAND, "--root", work / "store", "serve", *options]
    environment = {**os.environ, **dict(re.findall(r"^Environment=(.*?)=(.*)$", UNIT.read_text(), re.MULTILINE))}
    with (work / "lamella.log").open("ab") as log, subprocess.Popen(command, stderr=log, env=environment) as process:
        try:
            end = time.monotonic() + 20
            while b"serving at" not in (work / "lamella.log").read_bytes():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"lamella did not start: {(work / 'lamella.log').read_text()}")
                time.sleep(0.02)
            yield process.pid
        finally:
            process.terminate()
            process.wait(30)


# Reading -----------------------------------------------------------------------------------------------------------

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_KNOWN = b"\x83\x86"
"""``:method: POST`` and ``:scheme: http``, which every table has (RFC 7541, appendix A)."""
_HEADERS = (
    (b":path", b"/containerd.services.content.v1.Content/Read"),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"containerd-namespace", b"bench"),
)


class Reader:
    """A client of Content.Read by the bytes: nothing is decoded but the lengths of frames."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(address))
        # The first call puts the others into the table, and all further ones refer to it, as clients do.
        self._block = _KNOWN + b"".join(b"\x40" + _text(name) + _text(value) for name, value in _HEADERS)
        self._stream = 1
        self._buffer = bytearray(4 << 20)
        most = (1 << 31) - 1
        settings = struct.pack(">HIHI", 4, most, 5, (1 << 24) - 1)
        grow = struct.pack(">I", most - 65535)
        self._socket.sendall(_PREFACE + _frame(4, 0, 0, settings) + _frame(8, 0, 0, grow))

    def read(self, digest: str, offset: int, size: int) -> int:
        """Read a part of a blob by one call; the result is how many bytes have come, frames and all."""
        name = digest.encode()
        message = b"\x0a" + _varint(len(name)) + name + b"\x10" + _varint(offset) + b"\x18" + _varint(size)
        data = b"\0" + struct.pack(">I", len(message)) + message
        self._socket.sendall(_frame(1, 4, self._stream, self._block) + _frame(0, 1, self._stream, data))
        self._stream += 2
        self._block = _KNOWN + bytes(0x80 | 62 + at for at in reversed(range(len(_HEADERS))))
        view = memoryview(self._buffer)
        got = start = total = 0
        while True:
            while got - start < 9:
                if start:
                    view[: got - start] = bytes(view[start:got])
                    start, got = 0, got - start
                got += self._more(view[got:])
            length = int.from_bytes(view[start : start + 3], "big")
            kind, flags = view[start + 3], view[start + 4]
            start += 9 + length
            total += length
            while start > got:  # what is in the frame is nobody's concern
                if got == len(view) or start > len(view):
                    start -= got
                    got = 0
                got += self._more(view[got:])
            if kind == 1 and flags & 1:
                if start != got:
                    raise RuntimeError("something came after the end of the call")
                return total
            if start == got:
                start = got = 0

    def acknowledge(self, digest: str) -> None:
        """Go through the settings of the server, which come with the first answer."""
        self.read(digest, 0, 1)

    def _more(self, view: memoryview) -> int:
        count = self._socket.recv_into(view)
        if not count:
            raise RuntimeError("the server has closed the connection")
        return count

    def close(self) -> None:
        """Go."""
        self._socket.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def put(address: Path, size: int) -> str:
    """Put a blob of that size into a server; its digest."""
    from lamella.client.remote import RemoteStore

    with RemoteStore(address) as store, store.namespace("bench").content.ingest("blob") as ingest:
        piece = os.urandom(1 << 20)
        for _ in range(size >> 20):
            ingest.write(piece)
        return str(ingest.commit(labels={"containerd.io/gc.root": "now"}).digest)


def read(work: Path, size: int) -> bool:
    """Tell how fast a blob is read, and whether that is fast enough."""
    good = True
    with serving(work, "--address", work / "socket"):
        digest = put(work / "socket", size)
        for piece, bar in READS:
            reader = Reader(work / "socket")
            reader.acknowledge(digest)
            rates = []
            for _ in range(5):
                began = time.perf_counter()
                total = sum(reader.read(digest, at, piece) for at in range(0, size, piece))
                rates.append(size / (time.perf_counter() - began))
                if total < size:
                    raise RuntimeError(f"{total} bytes of {size} have come")
            reader.close()
            rate = sorted(rates)[2]
            good = good and rate >= bar
            print(f"read by {piece >> 10} KiB: {rate / 1e6:.0f} MB/s (bar {bar / 1e6:.0f})")
    return good


# With ctr ----------------------------------------------------------------------------------------------------------


def importing(bench: Bench, corpus: Path, image: str) -> Iterator[Workload]:
    """`ctr images import` of an archive, nothing unpacked."""
    address = bench.work / "socket"
    ctr = ["ctr", "--address", str(address), "--namespace", "bench"]
    with (
        on_tmpfs(ensure(image, corpus), bench.work) as layout,
        stores.archive_of(bench, layout, "gzip") as archive,
        Containerd(bench.work / "containerd") as daemon,
        serving(bench.work, "--address", address),
    ):
        log = bench.work / "ctr.log"
        words = ["images", "import", "--local", "--no-unpack", "--all-platforms", str(archive)]

        def forget() -> None:
            subprocess.run([*ctr, "images", "rm", "--sync", stores.NAME], check=True, capture_output=True)

        ours = Contender(LAMELLA, work=lambda: timed([[*ctr, *words]], log), after=forget)
        theirs = Contender(
            "containerd", work=lambda: daemon.take_archive(archive), after=lambda: daemon.forget(stores.NAME)
        )
        yield Workload(f"import {image}", [ours, theirs], (Bar("containerd", 1.3),))


def unpacking(bench: Bench, corpus: Path, image: str) -> Iterator[Workload]:
    """`ctr snapshots unpack` with a containerd whose snapshotter and differ Lamella is, and with one by itself."""
    plugin = bench.work / "plugin.sock"
    root = ("--root", bench.work / "store")
    where = bench.work / "with-lamella"
    command = (LAMELLA_COMMAND, *root, "serve", "--plugin", plugin, "--print-containerd-config", "1.7")
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n", 1)[1]
    with (
        on_tmpfs(ensure(image, corpus), bench.work) as layout,
        serving(bench.work, "--plugin", plugin, "--containerd", where / "socket"),
        Containerd(where, printed) as plugged,
        Containerd(bench.work / "containerd") as plain,
    ):
        manifest_digest(layout, "gzip")

        def contender(name: str, daemon: Containerd, snapshotter: str) -> Contender:
            return Contender(
                name,
                work=lambda: daemon.unpack(layout, "gzip", snapshotter),
                before=lambda: daemon.import_layout(layout),
                after=lambda: daemon.remove_snapshots(snapshotter),
            )

        yield Workload(
            f"unpack {image}",
            [contender(LAMELLA, plugged, SNAPSHOTTER), contender("containerd", plain, "overlayfs")],
            (Bar("containerd", 0.7),),
        )


# Many clients ------------------------------------------------------------------------------------------------------


def client(address: str, name: str, until: float, failures: list[str]) -> int:
    """Do what clients do, again and again, until the time has come; how many rounds that were."""
    from lamella.client.remote import RemoteStore
    from lamella.oci.descriptor import Descriptor
    from lamella.store.contract import ImageRecord

    rounds = 0
    try:
        with RemoteStore(address) as store:
            plain = store.namespace(f"of-{name}")
            while time.time() < until:
                lease = plain.leases.create()
                space = plain.under(lease.id)
                with space.content.ingest("ref") as ingest:
                    ingest.write(f"{name} {rounds} ".encode() * 5000)
                    blob = ingest.commit()
                with space.content.open(blob.digest) as file:
                    if len(file.read()) != blob.size:
                        raise RuntimeError("a blob is cut short")
                target = Descriptor(media_type="application/octet-stream", digest=blob.digest, size=blob.size)
                space.images.create(ImageRecord("image", target))
                space.images.list()
                snapshots = space.snapshots("overlayfs")
                snapshots.prepare("key")
                snapshots.mounts("key")
                snapshots.remove("key")
                space.images.delete("image")
                space.content.delete(blob.digest)
                plain.leases.delete(lease.id)
                rounds += 1
    except Exception as problem:  # noqa: BLE001 whatever it is, it is what is looked for
        failures.append(f"{name}: {type(problem).__name__}: {problem}")
    return rounds


def crowd(address: str, count: int, until: float, number: int) -> tuple[int, list[str]]:
    """As many clients at once, in this process."""
    failures: list[str] = []
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda at=at: done.append(client(address, f"{number}-{at}", until, failures)))
        for at in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done), failures


def clients(work: Path, count: int, seconds: float) -> bool:
    """Tell what becomes of a server with many clients, and whether that is well."""
    processes = 4
    with serving(work, "--address", work / "socket") as server:
        began = time.time()
        until = began + seconds
        memory: list[tuple[float, int]] = []
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            shares = [count // processes + (at < count % processes) for at in range(processes)]
            results = [
                pool.apply_async(crowd, (str(work / "socket"), share, until, at)) for at, share in enumerate(shares)
            ]
            while not all(result.ready() for result in results):
                memory.append((time.time() - began, _resident(server)))
                time.sleep(0.25)
            found = [result.get() for result in results]
    rounds = sum(number for number, _ in found)
    failures = [line for _, lines in found for line in lines]
    print(f"{count} clients for {seconds:.0f} s: {rounds} rounds of 14 calls, {len(failures)} failures")
    steady = True
    if seconds >= 3 * WARM:
        early = max(size for at, size in memory if WARM <= at <= 2 * WARM)
        late = max(size for at, size in memory if at >= seconds - WARM)
        steady = late <= early * 1.02
        print(f"memory of the server: {early / 1e6:.1f} MB after {WARM:.0f} s, {late / 1e6:.1f} MB at the end")
    for line in failures[:10]:
        print(line, file=sys.stderr)
    return not failures and steady


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Measure the service."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="WORK", help=", ".join(WORK))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", default="debian", help="which image is imported and unpacked")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the blob that is read")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--corpus", type=Path, default=default_place(), help="where the images are, or are to be built")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"), help="a folder of the file system to measure on")
    options = parser.parse_args()
    names = options.names or WORK
    if unknown := set(names) - set(WORK):
        parser.error(f"no work is named {', '.join(sorted(unknown))}")
    good = True
    done: list[Workload] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="lamella-", dir=options.work) as folder:
            work = Path(folder)
            if name == "read":
                good = read(work, options.size << 20) and good
            elif name == "clients":
                good = clients(work, options.clients, options.seconds) and good
            else:
                prepare = importing if name == "import" else unpacking
                options.corpus.mkdir(parents=True, exist_ok=True)
                for workload in prepare(Bench(work, None), options.corpus.resolve(), options.image):
                    take_turns(workload.contenders, options.rounds, say)
                    done.append(workload)
    if done:
        say("")
        print(report.results(done), report.bars_table(done), sep="\n")
    for line in report.failures(done):
        print(line, file=sys.stderr)
    return 0 if good and not report.failures(done) else 1


if __name__ == "__main__":
    sys.exit(main())
