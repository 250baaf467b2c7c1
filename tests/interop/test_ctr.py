# SPDX-License-Identifier: Apache-2.0
"""What ctr does with blobs, images, leases and namespaces, done with a server of Lamella's."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.daemons import Ctr, Release, archive, lamella_serving, runnable

from lamella import __version__

pytestmark = pytest.mark.interop

NAME = "example.org/small:one"
BLOB = os.urandom(3_000_001)
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


@pytest.fixture
def ctr(where: Path, release: Release) -> Iterator[Ctr]:
    address = where / "d.sock"
    with lamella_serving(where, "--address", address):
        yield Ctr(address, release=release)
    log = (where / "lamella.log").read_text()
    assert " error: " not in log
    assert "Traceback" not in log


@pytest.fixture
def imported(ctr: Ctr) -> Ctr:
    """Return ctr, with an image that is there and not unpacked."""
    ctr("images", "import", "--no-unpack", "--base-name", "example.org/small", "-", stdin=archive(runnable(), "one"))
    return ctr


def digests(ctr: Ctr) -> set[str]:
    return set(ctr("content", "ls", "--quiet").split())


def settled(ctr: Ctr) -> set[str]:
    """The blobs that stay when what an import needs no more is collected: the index of the archive is a blob too."""
    wanted = set(runnable().blobs)
    end = time.monotonic() + 20
    while (found := digests(ctr)) != wanted and time.monotonic() < end:
        ctr("leases", "rm", "--sync", ctr("leases", "create").strip())
    return found


def names(ctr: Ctr) -> list[str]:
    return ctr("images", "ls", "--quiet").split()


# The server and its namespaces --------------------------------------------------------------------------------------


def test_the_server_tells_its_version_and_its_parts(ctr: Ctr) -> None:
    assert f"Version:  {__version__}" in ctr("version").partition("Server:")[2]
    assert '"uuid"' in ctr("info")
    parts = {(row[0], row[1], row[3]) for row in ctr.table("plugins", "ls")}
    assert ("io.containerd.snapshotter.v1", "overlayfs", "ok") in parts
    assert ("io.containerd.content.v1", "content", "ok") in parts


def test_namespaces_are_made_labelled_and_removed(ctr: Ctr) -> None:
    ctr("namespaces", "create", "one", "a=b")
    ctr("namespaces", "label", "one", "c=d", "a=")
    ctr("content", "ingest", "r", stdin=BLOB)
    assert ctr.table("namespaces", "ls") == [["one", "c=d"], ["tests"]]
    assert "already" in ctr.refused("namespaces", "create", "one")
    assert "still has blobs" in ctr.refused("namespaces", "rm", "tests")
    ctr("namespaces", "rm", "one")
    assert ctr.table("namespaces", "ls") == [["tests"]]


# Blobs --------------------------------------------------------------------------------------------------------------


def test_a_blob_is_written_read_labelled_and_removed(ctr: Ctr) -> None:
    ctr("content", "ingest", "--expected-digest", DIGEST, "--expected-size", str(len(BLOB)), "r", stdin=BLOB)
    assert digests(ctr) == {DIGEST}
    assert ctr.raw("content", "get", DIGEST) == BLOB
    ctr("content", "label", DIGEST, "a.b/c=d", "x=y")
    assert "a.b/c=d,x=y" in ctr("content", "ls")
    ctr("content", "label", DIGEST, "x=")
    assert ctr.table("content", "ls", 'labels."a.b/c"==d')[0][-1] == "a.b/c=d"
    assert ctr.table("content", "ls", "labels.x") == []
    ctr("content", "rm", DIGEST)
    assert digests(ctr) == set()
    assert "there is no blob" in ctr.refused("content", "get", DIGEST)


def test_a_blob_with_another_digest_is_refused_and_committed_rightly_later(ctr: Ctr, where: Path) -> None:
    wrong = f"sha256:{'0' * 64}"
    (where / "blob").write_bytes(BLOB)
    ingest = ["content", "ingest", "--expected-size", str(len(BLOB)), "--expected-digest"]
    done = ingested(ctr, where / "blob", *ingest, wrong, "r")
    assert (done.returncode, f"expected {wrong}" in done.stderr) == (1, True)
    assert ctr.table("content", "active")[0][0] == "r"
    assert ingested(ctr, where / "blob", *ingest, DIGEST, "r").returncode == 0
    assert (digests(ctr), ctr.table("content", "active")) == ({DIGEST}, [])


def test_an_ingest_is_free_at_once_when_its_client_is_killed_and_goes_on(ctr: Ctr, where: Path) -> None:
    (where / "blob").write_bytes(BLOB)
    call = [ctr.release.program("ctr"), "-a", str(ctr.address), "-n", "tests", "content", "ingest", "r"]
    with subprocess.Popen(call, stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(BLOB[:-1])  # and then it waits for more
        writer.stdin.flush()
        end = time.monotonic() + 20
        while not any(row[0] == "r" and row[1] != "0B" for row in ctr.table("content", "active")):
            assert time.monotonic() < end
        writer.kill()
    began = time.monotonic()
    done = ingested(ctr, where / "blob", "content", "ingest", "--expected-digest", DIGEST, "r")  # waits for a lock
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 20
    assert ctr.raw("content", "get", DIGEST) == BLOB


def ingested(ctr: Ctr, blob: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What becomes of ctr when it reads from a file, in which it can go to where it left off."""
    with blob.open("rb") as stdin:
        return subprocess.run(
            [ctr.release.program("ctr"), "-a", str(ctr.address), "-n", "tests", *words],
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )


# Images -------------------------------------------------------------------------------------------------------------


def test_an_image_is_imported_listed_and_checked(imported: Ctr) -> None:
    image = runnable()
    (row,) = imported.table("images", "ls")
    assert row[:3] == [NAME, "application/vnd.oci.image.manifest.v1+json", image.descriptor["digest"]]
    assert settled(imported) == set(image.blobs)
    (checked,) = imported.table("images", "check")
    assert "complete" in checked
    assert imported.table("leases", "ls") == []


def test_an_image_is_tagged_labelled_and_removed_with_what_nothing_needs(imported: Ctr) -> None:
    imported("images", "tag", NAME, "example.org/small:two")
    # The server, where it is to do it, lets the name that is there name the other image.
    assert "already" in imported.refused("images", "tag", "--local", NAME, "example.org/small:two")
    imported("images", "label", NAME, "a=b")
    assert imported.table("images", "ls", "labels.a==b")[0][0] == NAME
    imported("images", "rm", "--sync", NAME)
    assert names(imported) == ["example.org/small:two"]
    assert settled(imported) == set(runnable().blobs)
    imported("images", "rm", "--sync", "example.org/small:two")
    assert (names(imported), digests(imported)) == ([], set())


def test_an_image_that_is_removed_is_collected_by_and_by(imported: Ctr) -> None:
    imported("images", "rm", NAME)
    end = time.monotonic() + 20
    while digests(imported):
        assert time.monotonic() < end


def test_an_image_is_exported_and_imported_again(imported: Ctr, where: Path) -> None:
    imported("images", "export", where / "out.tar", NAME)
    with tarfile.open(where / "out.tar") as tar:
        found = {f"sha256:{name[13:]}" for name in tar.getnames() if name.startswith("blobs/sha256/") and name[13:]}
    assert found == set(runnable().blobs)
    imported("images", "rm", "--sync", NAME)
    imported("images", "import", "--no-unpack", where / "out.tar")
    assert (names(imported), settled(imported)) == ([NAME], set(runnable().blobs))


def test_importing_twice_changes_nothing(imported: Ctr) -> None:
    again = archive(runnable(), "one")
    imported("images", "import", "--no-unpack", "--base-name", "example.org/small", "-", stdin=again)
    assert (names(imported), settled(imported)) == ([NAME], set(runnable().blobs))


def test_a_damaged_archive_is_refused_and_leaves_no_image(ctr: Ctr) -> None:
    whole = archive(runnable(), "one")
    done = subprocess.run(
        [ctr.release.program("ctr"), "-a", str(ctr.address), "images", "import", "--no-unpack", "-"],
        input=whole[: len(whole) // 2],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert (names(ctr), ctr.table("leases", "ls")) == ([], [])


def test_two_namespaces_keep_the_same_image_apart(imported: Ctr) -> None:
    other = imported.within("other")
    other("images", "import", "--no-unpack", "--base-name", "example.org/small", "-", stdin=archive(runnable(), "one"))
    imported("images", "rm", "--sync", NAME)
    assert (names(imported), digests(imported)) == ([], set())
    assert (names(other), settled(other)) == ([NAME], set(runnable().blobs))
    with tarfile.open(fileobj=io.BytesIO(other.raw("images", "export", "-", NAME))) as tar:
        assert "index.json" in tar.getnames()


# Leases -------------------------------------------------------------------------------------------------------------


def test_leases_are_made_listed_and_removed(ctr: Ctr) -> None:
    assert ctr("leases", "create", "--id", "one", "a=b").strip() == "one"
    made = ctr("leases", "create").strip()
    assert {row[0] for row in ctr.table("leases", "ls")} == {"one", made}
    (row,) = ctr.table("leases", "ls", "labels.a==b")
    assert row[0] == "one"
    assert "already" in ctr.refused("leases", "create", "--id", "one")
    ctr("leases", "rm", "--sync", "one")
    ctr("leases", "rm", made)
    assert ctr.table("leases", "ls") == []


def test_events_are_told_while_they_happen(ctr: Ctr) -> None:
    with subprocess.Popen(
        [ctr.release.program("ctr"), "-a", str(ctr.address), "events"], stdout=subprocess.PIPE
    ) as listener:
        try:
            assert listener.stdout is not None
            end = time.monotonic() + 60
            os.set_blocking(listener.stdout.fileno(), False)
            said = b""
            while b"/namespaces/create" not in said:
                assert time.monotonic() < end
                ctr("namespaces", "create", f"n{time.monotonic_ns()}")
                said += listener.stdout.read() or b""
        finally:
            listener.kill()
    assert b'"name":"n' in said
