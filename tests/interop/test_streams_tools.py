# SPDX-License-Identifier: Apache-2.0
"""gzip, pigz and zstd read our blobs without a word, and we read theirs."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.streams.blobs import tar_like

from lamella.digests import Digest
from lamella.errors import Exhausted
from lamella.streams.blob_reader import BlobReader
from lamella.streams.blob_writer import BlobWriter
from lamella.streams.compressions import COMPRESSIONS
from lamella.streams.limits import BlobLimits

pytestmark = pytest.mark.interop

Needs = Callable[..., str]
SIZES = (0, 1, 1 << 20, 3_300_000)


def run(*command: str | Path, given: bytes = b"") -> bytes:
    """Run a tool that must end well and have nothing to say."""
    done = subprocess.run(command, input=given, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout


def written(path: Path, tar: bytes, compression: str, level: int | None = None) -> Path:
    with path.open("wb") as file, BlobWriter(file, compression=compression, level=level, threads=2) as writer:
        writer.write(tar)
        writer.finish()
    return path


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tool", ["gzip", "pigz"])
def test_gzip_and_pigz_read_our_gzip_at_every_level(needs: Needs, tmp_path: Path, tool: str, size: int) -> None:
    program = needs(tool)
    tar = tar_like(size)
    for level in COMPRESSIONS["gzip"].levels:
        blob = written(tmp_path / "blob.gz", tar, "gzip", level)
        run(program, "-t", blob)
        assert tar == run(program, "-dc", blob)


@pytest.mark.parametrize("size", SIZES)
def test_zstd_reads_our_zstd(needs: Needs, tmp_path: Path, size: int) -> None:
    program = needs("zstd")
    tar = tar_like(size)
    for level in (1, 3, 9, 16):
        blob = written(tmp_path / "blob.zst", tar, "zstd", level)
        run(program, "-q", "-t", blob)
        assert tar == run(program, "-q", "-dc", "--memory=8MB", blob)  # no decoder needs a larger window


@pytest.mark.parametrize(
    "command",
    [
        ("gzip", "-1"),
        ("gzip", "-9", "-n"),
        ("gzip", "--rsyncable"),
        ("pigz", "-p", "4", "-b", "128"),
        ("pigz", "-i"),
        ("pigz", "-0"),
        ("zstd", "-q", "-1"),
        ("zstd", "-q", "-19", "--long=27"),
        ("zstd", "-q", "--no-check", "--single-thread"),
        ("zstd", "-q", "-T2", "--rsyncable"),
        ("zstd", "-q", "--fast=5"),
    ],
    ids=" ".join,
)
def test_what_others_compress_is_read(needs: Needs, tmp_path: Path, command: tuple[str, ...]) -> None:
    needs(command[0])
    path = tmp_path / "blob"
    for size in SIZES:
        tar = tar_like(size)
        blob = run(*command, "-c", given=tar)
        for times in (1, 2):
            path.write_bytes(blob * times)
            with BlobReader(path, compression="zstd" if command[0] == "zstd" else "gzip") as reader:
                facts = reader.finish()
            assert (Digest.of(blob * times), Digest.of(tar * times)) == (facts.digest, facts.diff_id)


def test_a_window_that_only_long_allows_is_refused(needs: Needs, tmp_path: Path) -> None:
    program = needs("zstd")
    tar = tmp_path / "tar"
    with tar.open("wb") as file:
        file.truncate(300 << 20)
    run(program, "-q", "-1", "--long=28", tar)
    with BlobReader(tmp_path / "tar.zst") as reader, pytest.raises(Exhausted, match="window"):
        reader.finish()
    with BlobReader(tmp_path / "tar.zst", limits=BlobLimits(window_log_max=28)) as reader:
        assert reader.finish().tar_size == 300 << 20


def test_bsdtar_lists_our_blobs(needs: Needs, tmp_path: Path) -> None:
    program = needs("bsdtar")
    with tarfile.open(tmp_path / "tar", "w") as archive:
        for number in range(2_000):
            archive.addfile(tarfile.TarInfo(f"file{number}"))
    tar = (tmp_path / "tar").read_bytes()
    for compression in ("gzip", "zstd", "none"):
        blob = written(tmp_path / "blob", tar, compression)
        assert len(run(program, "-tf", blob).splitlines()) == 2_000
