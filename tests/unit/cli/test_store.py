# SPDX-License-Identifier: Apache-2.0
"""lamella store, mount, umount and run, as far as they need no rights."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.cli.store import VERBS
from lamella.store.store import Store
from lamella.testing.images import digest, index_of, small_image, tagged, write_layout

Run = Callable[..., subprocess.CompletedProcess[str]]

IT = "docker.io/library/it:latest"
LAYERS: list[dict[str, bytes]] = [{"etc/os": b"it", "bin/sh": b"sh"}, {"etc/.wh.os": b"", "etc/new": b"new"}]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the store is, which the environment says."""
    monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def layout(tmp_path: Path) -> str:
    """Return the name of an image of two layers."""
    image = small_image(*LAYERS)
    return f"oci:{write_layout(str(tmp_path / 'layout'), [tagged(image.descriptor, 'it')], image.blobs)}:it"


@pytest.fixture
def kept(lamella: Run, layout: str) -> str:
    """Return the name that the image has in the store, where it is unpacked too."""
    done = lamella("store", "import", layout, "--name", "it", "--unpack", "--snapshotter", "directory")
    assert done.returncode == 0, done.stderr
    return "it"


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stderr == ""
    return json.loads(done.stdout)


def blob_file(root: Path, name: str) -> Path:
    return root / "blobs" / name.replace(":", "/")


def damage(path: Path) -> None:
    path.chmod(0o600)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


# The frame ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_store_verbs_has_the_first_line_of_each_help(lamella: Run, verb: str) -> None:
    done = lamella("store", verb, "--help")
    assert done.returncode == 0
    assert " ".join(done.stdout.split()).startswith(f"Usage: lamella store {verb} ")
    assert VERBS[verb][0] in done.stdout
    assert "--json" in done.stdout


def test_the_root_can_stand_before_the_verb_and_is_forgotten_after_it(
    lamella: Run, layout: str, tmp_path: Path, root: Path
) -> None:
    other = tmp_path / "other"
    assert lamella("--root", other, "store", "import", layout, "--name", "it").returncode == 0
    assert not root.exists()
    assert lamella("--root", other, "ls", "store:it").stdout == "bin\netc\n"
    assert os.environ["LAMELLA_ROOT"] == str(root)
    assert lamella("ls", "store:it").returncode == 4


def test_a_missing_store_is_reported_and_not_created(lamella: Run, root: Path) -> None:
    done = lamella("store", "images")
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        f"lamella: there is no store at {str(root)!r}",
        "hint: 'lamella store import' creates one; --root and LAMELLA_ROOT set its directory",
    ]
    assert not root.exists()


LOST: list[list[str]] = [
    ["store", "gc"],
    ["store", "gc", "--dry-run"],
    ["store", "import", "LAYOUT", "--name", "other"],
    ["store", "images"],
    ["store", "images", "rm", "it"],
    ["store", "check"],
    ["store", "check", "--repair"],
    ["store", "usage"],
    ["store", "export", "it", "oci:OUT:it"],
    ["ls", "store:it"],
    ["copy", "LAYOUT", "store:other"],
]


@pytest.mark.parametrize("words", LOST, ids=" ".join)
@pytest.mark.parametrize("remove", [False, True], ids=["emptied", "removed"])
def test_no_verb_touches_a_store_whose_database_is_lost(
    lamella: Run, kept: str, layout: str, root: Path, tmp_path: Path, words: list[str], remove: bool
) -> None:
    assert kept == "it"
    state = "is missing" if remove else "is empty"
    if remove:
        (root / "lamella.db").unlink()
    else:
        os.truncate(root / "lamella.db", 0)
    before = sorted(root.rglob("*"))
    places = {"LAYOUT": layout, "oci:OUT:it": f"oci:{tmp_path}/out:it"}
    done = lamella(*(places.get(word, word) for word in words))
    assert done.stderr.splitlines() == [
        f"lamella: the store's database '{root}/lamella.db' {state}, but blobs/ and snapshots/ are not empty",
        f"hint: move {root} aside, then restore the store from a backup or import its images again",
    ]
    assert (done.returncode, done.stdout) == (8, "")
    assert sorted(root.rglob("*")) == before


def test_namespaces_are_apart_wherever_the_option_stands(lamella: Run, layout: str) -> None:
    assert lamella("store", "-n", "one", "import", layout, "--name", "it").returncode == 0
    for words in (("-n", "one", "images"), ("images", "-n", "one"), ("images", "ls", "--namespace", "one")):
        assert [image["name"] for image in document(lamella("store", *words, "--json"))] == [IT]
    assert document(lamella("store", "images", "--json")) == []


# Import and export -------------------------------------------------------------------------------------------------


def test_an_imported_image_is_named_in_full_and_read_everywhere(lamella: Run, layout: str) -> None:
    done = document(lamella("store", "import", layout, "--name", "it", "--json"))
    assert [image["name"] for image in done["images"]] == [IT]
    assert (done["blobs"], done["present"]) == (4, 0)
    assert lamella("cat", "store:it::etc/new").stdout == "new"
    again = document(lamella("store", "import", layout, "--name", "it:2", "--json"))
    assert (again["blobs"], again["present"]) == (0, 4)


def test_an_exported_image_is_the_one_that_was_imported(lamella: Run, kept: str, layout: str, tmp_path: Path) -> None:
    for target in (f"oci:{tmp_path}/out:it", f"oci-archive:{tmp_path}/out.tar:it"):
        assert lamella("store", "export", kept, target).returncode == 0
        before, after = (document(lamella("inspect", "--json", name)) for name in (layout, target))
        assert before["manifest"] == after["manifest"]


def test_replace_moves_an_existing_name(lamella: Run, kept: str, tmp_path: Path) -> None:
    other = small_image({"other": b"other"})
    name = f"oci:{write_layout(str(tmp_path / 'layout2'), [tagged(other.descriptor, 'it')], other.blobs)}:it"
    assert lamella("store", "import", name, "--name", kept).returncode == 5
    assert lamella("ls", "store:it").stdout == "bin\netc\n"
    assert lamella("store", "import", name, "--name", kept, "--replace").returncode == 0
    assert lamella("ls", "store:it").stdout == "other\n"


def test_all_platforms_come_and_go_as_an_index(lamella: Run, tmp_path: Path) -> None:
    images = [small_image({"arch": arch.encode()}, platform=f"linux/{arch}") for arch in ("amd64", "arm64")]
    descriptor, raw = index_of(*images)
    blobs = {key: value for image in images for key, value in image.blobs.items()} | {digest(raw): raw}
    name = f"oci:{write_layout(str(tmp_path / 'index'), [tagged(descriptor, 'it')], blobs)}:it"
    assert lamella("store", "import", name, "--name", "it", "--all").returncode == 0
    assert lamella("cat", "--platform", "linux/arm64", "store:it::arch").stdout == "arm64"
    assert lamella("store", "export", "it", f"oci:{tmp_path}/out:it", "--all").returncode == 0
    assert lamella("cat", "--platform", "linux/amd64", f"oci:{tmp_path}/out:it::arch").stdout == "amd64"


def test_a_snapshotter_without_unpack_is_wrong_usage(lamella: Run, layout: str) -> None:
    assert lamella("store", "import", layout, "--name", "it", "--snapshotter", "directory").returncode == 2


def test_verity_is_for_layers_that_are_images(lamella: Run, layout: str, root: Path, tmp_path: Path) -> None:
    asked = lamella("store", "import", layout, "--name", "it", "--unpack", "--verity", "dm-verity")
    assert asked.returncode == 2
    assert "--snapshotter erofs" in asked.stderr
    image = small_image({"f": b"1"})
    single = f"oci:{write_layout(str(tmp_path / 'one'), [tagged(image.descriptor, 'one')], image.blobs)}:one"
    sealing = ("--snapshotter", "erofs", "--verity", "dm-verity")
    done = lamella("store", "import", single, "--name", "one", "--unpack", *sealing)
    assert done.returncode == 0, done.stderr
    assert len(list((root / "snapshots/erofs").glob("*/layer.roothash"))) == 1


# Images ------------------------------------------------------------------------------------------------------------


def test_images_are_listed_with_the_size_of_all_their_blobs(lamella: Run, kept: str, tmp_path: Path) -> None:
    (image,) = document(lamella("store", "images", "--json"))
    sizes = [path.stat().st_size for path in (tmp_path / "layout/blobs/sha256").iterdir()]
    assert (image["name"], image["size"], image["labels"]) == (IT, sum(sizes), {})
    header, line = lamella("store", "images").stdout.splitlines()
    assert header.split() == ["NAME", "DIGEST", "SIZE", "CREATED", "LABELS"]
    assert line.startswith(f"{IT}  {image['target']['digest']}")


def test_a_tag_is_a_further_name_that_replaces_none(lamella: Run, kept: str) -> None:
    assert lamella("store", "images", "tag", kept, "host.example/a/b:1", "other").returncode == 0
    names = [image["name"] for image in document(lamella("store", "images", "ls", "--json"))]
    assert names == [IT, "docker.io/library/other:latest", "host.example/a/b:1"]
    assert lamella("store", "images", "tag", kept, "other").returncode == 5
    assert lamella("store", "images", "tag", kept, "other", "--replace").returncode == 0


def test_removing_the_last_name_frees_the_blobs_of_the_image(lamella: Run, kept: str, root: Path) -> None:
    lamella("store", "images", "tag", kept, "other")
    assert document(lamella("store", "images", "rm", kept, "--json"))["freed"] == 0
    assert len(document(lamella("store", "content", "--json"))) == 4
    assert document(lamella("store", "images", "rm", "other", "--json"))["freed"] > 0
    assert document(lamella("store", "content", "--json")) == document(lamella("store", "snapshots", "--json")) == []
    assert list((root / "blobs/sha256").iterdir()) == list((root / "snapshots/native").iterdir()) == []


def test_no_gc_keeps_the_blobs_until_the_next_collection(lamella: Run, kept: str) -> None:
    assert lamella("store", "images", "rm", kept, "--no-gc").returncode == 0
    assert len(document(lamella("store", "content", "--json"))) == 4
    assert document(lamella("store", "gc", "--json"))["freed"] > 0
    assert document(lamella("store", "content", "--json")) == []


def test_labels_are_set_and_removed_and_filtered_by(lamella: Run, kept: str) -> None:
    assert lamella("store", "images", "label", kept, "tier=db", "x=y").returncode == 0
    assert lamella("store", "images", "label", kept, "x=").returncode == 0
    assert [image["labels"] for image in document(lamella("store", "images", "--json"))] == [{"tier": "db"}]
    assert len(document(lamella("store", "images", "ls", "labels.tier==db", "--json"))) == 1
    assert document(lamella("store", "images", "ls", "labels.tier==web", "--json")) == []


def test_a_missing_image_is_reported(lamella: Run, kept: str) -> None:
    for words in (("rm", "no"), ("tag", "no", "x"), ("label", "no", "a=b")):
        done = lamella("store", "images", *words)
        assert done.returncode == 4
        assert done.stderr.startswith("lamella: there is no image 'no' in the store\n")


# Snapshots, content, leases ----------------------------------------------------------------------------------------


def test_snapshots_are_listed_and_removed_from_the_top(lamella: Run, kept: str) -> None:
    top, base = sorted(document(lamella("store", "snapshots", "--json")), key=lambda one: not one["parent"])
    assert (top["snapshotter"], top["kind"], top["parent"]) == ("native", "committed", base["name"])
    assert lamella("store", "snapshots", "rm", base["name"]).returncode == 6
    assert lamella("store", "snapshots", "rm", top["name"], base["name"]).returncode == 0
    assert document(lamella("store", "snapshots", "--json")) == []
    assert lamella("store", "snapshots", "rm", base["name"]).returncode == 4


def test_a_referenced_blob_can_be_removed(lamella: Run, kept: str, root: Path) -> None:
    (image,) = document(lamella("store", "images", "--json"))
    name = image["target"]["digest"]
    assert lamella("store", "content", "rm", name).returncode == 0
    assert not blob_file(root, name).exists()
    assert lamella("inspect", "store:it").returncode == 4
    assert lamella("store", "content", "rm", name).returncode == 4
    assert lamella("store", "content", "rm", "sha256:1").returncode == 3


def test_a_lease_keeps_blobs_of_a_removed_image(lamella: Run, kept: str, root: Path) -> None:
    assert lamella("store", "leases", "create", "mine", "--label", "why=test").stdout == "mine\n"
    (image,) = document(lamella("store", "images", "--json"))
    with Store.open(root) as store:
        from lamella.store.contract import Resource

        store.namespace("default").leases.add("mine", Resource("content", image["target"]["digest"]))
    (lease,) = document(lamella("store", "leases", "--json"))
    assert (lease["id"], lease["labels"], len(lease["resources"])) == ("mine", {"why": "test"}, 1)
    assert document(lamella("store", "images", "rm", kept, "--json"))["freed"] == 0
    assert lamella("store", "leases", "rm", "mine").returncode == 0
    assert document(lamella("store", "gc", "--json"))["freed"] > 0


def test_an_expired_lease_is_removed_by_the_next_collection(lamella: Run, kept: str) -> None:
    name = lamella("store", "leases", "create", "--expires", "0").stdout.strip()
    done = document(lamella("store", "gc", "--json"))
    assert [(one["type"], one["id"]) for one in done["gone"]] == [("leases", name)]


# Usage, gc, check --------------------------------------------------------------------------------------------------


def test_usage_shows_the_size_that_a_collection_would_free(lamella: Run, kept: str) -> None:
    before = document(lamella("store", "usage", "--json"))
    objects = {one["type"]: (one["namespace"], one["count"]) for one in before["objects"]}
    assert objects == {"content": ("default", 4), "images": ("default", 1), "snapshots/native": ("default", 2)}
    assert before["reclaimable"] == 0
    lamella("store", "images", "rm", kept, "--no-gc")
    after = document(lamella("store", "usage", "--json"))
    assert after["reclaimable"] == before["blobs"] + before["snapshots"]


def test_a_dry_run_explains_each_object_and_removes_nothing(lamella: Run, kept: str) -> None:
    first = document(lamella("store", "gc", "--dry-run", "--json"))
    assert (first["freed"], len(first["verdicts"])) == (0, 7)
    assert all(one["stays"] and one["why"].startswith(f"image {IT} is an image") for one in first["verdicts"])
    lamella("store", "images", "rm", kept, "--no-gc")
    second = lamella("store", "gc", "--dry-run").stdout.splitlines()
    assert [line.split()[0] for line in second[1:7]] == ["goes"] * 6
    assert second[1].endswith("nothing refers to it")
    assert len(document(lamella("store", "content", "--json"))) == 4


def test_a_sound_store_is_found_sound_with_every_option(lamella: Run, kept: str) -> None:
    for options in ((), ("--rediff",), ("--repair",), ("--rediff", "--repair")):
        done = lamella("store", "check", *options)
        assert (done.returncode, done.stderr) == (0, "")
    found = document(lamella("store", "check", "--rediff", "--json"))
    assert (found["sound"], found["blobs"], found["snapshots"], found["same"]) == (True, 4, 2, 2)
    assert found["faults"] == found["notes"] == found["undecided"] == found["missing"] == []


def test_a_damaged_blob_is_found_put_aside_and_fetched_again(
    lamella: Run, kept: str, layout: str, root: Path, tmp_path: Path
) -> None:
    (image,) = document(lamella("store", "images", "--json"))
    name = image["target"]["digest"]
    damage(blob_file(root, name))
    done = lamella("store", "check")
    assert done.returncode == 8
    assert f"fetch again: {name}" in done.stdout.splitlines()
    assert done.stderr.splitlines()[1] == "hint: 'lamella store check --repair' moves damaged files aside"
    assert lamella("store", "check", "--repair").returncode == 8  # until it has been fetched
    assert len(list((root / "quarantine").iterdir())) == 1
    assert lamella("store", "import", layout, "--name", "it").returncode == 0
    assert lamella("store", "check", "--rediff").returncode == 0


def test_a_missing_file_is_found(lamella: Run, kept: str, root: Path) -> None:
    (image,) = document(lamella("store", "images", "--json"))
    blob_file(root, image["target"]["digest"]).unlink()
    done = lamella("store", "check", "--json")
    assert done.returncode == 8
    faults = {(one["type"], one["problem"]) for one in json.loads(done.stdout)["faults"]}
    assert faults == {("content", "its file is missing"), ("images", "1 of its blobs is missing")}


@pytest.mark.parametrize("change", ["content", "mode", "extra", "gone"])
def test_a_changed_snapshot_is_found_by_rediff_and_made_again(
    lamella: Run, kept: str, layout: str, root: Path, change: str
) -> None:
    top = next(one for one in document(lamella("store", "snapshots", "--json")) if one["parent"])
    with Store.open(root) as store:
        files = store.namespace("default").snapshots("native").directory(top["name"]) / "fs"
    times = (files / "etc").stat()
    match change:
        case "content":
            status = (files / "bin/sh").stat()
            (files / "bin/sh").write_bytes(b"hs")
            os.utime(files / "bin/sh", ns=(status.st_atime_ns, status.st_mtime_ns))
        case "mode":
            (files / "etc/new").chmod(0o4755)
        case "extra":
            (files / "etc/extra").touch()
        case "gone":
            (files / "etc/new").unlink()
    os.utime(files / "etc", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert lamella("store", "check").returncode == 0
    done = lamella("store", "check", "--rediff")
    assert done.returncode == 8
    assert done.stdout.startswith(f"snapshots/native {top['name']}")
    assert lamella("store", "check", "--rediff", "--repair").returncode == 0
    assert lamella("store", "import", layout, "--name", "it", "--unpack", "--snapshotter", "native").returncode == 0
    assert document(lamella("store", "check", "--rediff", "--json"))["same"] == 2


def test_a_snapshot_without_its_blob_is_not_compared(lamella: Run, kept: str) -> None:
    labelled = document(lamella("store", "content", "ls", 'labels."containerd.io/uncompressed"', "--json"))
    assert lamella("store", "content", "rm", *(one["digest"] for one in labelled)).returncode == 0
    found = document(lamella("store", "check", "--rediff", "--json"))
    assert (found["sound"], found["same"], len(found["undecided"])) == (True, 0, 2)
    assert len(found["notes"]) == 1  # the image is there in part, and unpacked


def test_a_snapshot_without_its_directory_is_found_and_dropped(lamella: Run, kept: str, root: Path) -> None:
    import shutil

    for place in (root / "snapshots/native").iterdir():
        shutil.rmtree(place)
    assert lamella("store", "check").returncode == 8
    assert lamella("store", "check", "--repair").returncode == 0
    assert document(lamella("store", "snapshots", "--json")) == []


def test_a_root_that_others_can_enter_is_found_and_closed(lamella: Run, kept: str, root: Path) -> None:
    root.chmod(0o755)
    assert lamella("store", "check").returncode == 8
    assert lamella("store", "check", "--repair").returncode == 0
    assert root.stat().st_mode & 0o7777 == 0o700


def test_leftovers_are_a_note_until_they_are_collected(lamella: Run, kept: str, root: Path) -> None:
    (root / "blobs/sha256" / ("0" * 64)).write_bytes(b"left")
    (root / "snapshots/native/77").mkdir()
    found = document(lamella("store", "check", "--json"))
    assert (found["sound"], len(found["notes"])) == (True, 1)
    assert lamella("store", "gc").returncode == 0
    assert document(lamella("store", "check", "--json"))["notes"] == []


# mount, umount, run: what can be told without mounting ---------------------------------------------------------------


@pytest.mark.parametrize("verb", [("mount", "DIR"), ("run",)])
def test_an_image_that_is_elsewhere_is_to_be_imported_first(
    lamella: Run, kept: str, verb: tuple[str, ...], tmp_path: Path
) -> None:
    done = lamella(verb[0], "oci:dir:it", *(tmp_path for _ in verb[1:]))
    assert done.returncode == 3
    assert done.stderr.splitlines()[1] == "hint: import it first: lamella store import oci:dir:it --name REF"


def test_mount_needs_a_directory_and_leaves_nothing_without(lamella: Run, kept: str, tmp_path: Path) -> None:
    assert lamella("mount", "store:it", tmp_path / "no").returncode == 4
    (tmp_path / "file").touch()
    assert lamella("mount", "store:it", tmp_path / "file").returncode == 3
    assert lamella("umount", tmp_path).returncode == 4
    assert document(lamella("store", "leases", "--json")) == []


def test_run_reports_a_missing_runtime(lamella: Run, kept: str) -> None:
    done = lamella("run", "store:it", "--runtime", "no-such-runtime")
    assert (done.returncode, done.stderr) == (7, "lamella: the runtime 'no-such-runtime' is not installed\n")
    assert document(lamella("store", "leases", "--json")) == []


def test_run_keeps_standard_output_for_the_container(lamella: Run, kept: str) -> None:
    assert lamella("run", "--json", "store:it").returncode == 2


def test_a_hundred_thousand_blobs_are_listed_in_a_second_of_work(lamella: Run, root: Path) -> None:
    with Store.open(root) as store, store.database.write() as connection:
        connection.executemany(
            "INSERT INTO blob (namespace, digest, size, created, updated) VALUES ('default', ?, 1, ?, 1)",
            ((f"sha256:{number:064x}", number * 10**7) for number in range(100_000)),
        )
    took = []
    for _ in range(3):  # noise only ever adds
        before = os.times()
        lines = lamella("store", "content").stdout.splitlines()
        after = os.times()
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert len(lines) == 100_001
        assert lines[-1].split() == [f"sha256:{99_999:064x}", "1", "B", "1970-01-01T00:16:39Z"]
    assert min(took) < 1


# A damaged database ------------------------------------------------------------------------------------------------

LISTS = (["images", "ls"], ["usage"], ["content", "ls"], ["snapshots", "ls"], ["check"], ["gc"])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image.name", b"\xff\xfe"),
        ("image.target", b"\xff\xfe"),
        ("image.target", b"{"),
        ("image.target", b"[1]"),
        ("image.target", b'{"a":1}'),
        ("image.labels", b"\xff\xfe"),
        ("image.labels", b"{"),
        ("blob.labels", b"\xff\xfe"),
        ("blob.digest", b"\xff\xfe"),
        ("snapshot.kind", b"other"),
        ("snapshot.kind", b"\xff\xfe"),
        ("snapshot.labels", b"["),
        ("namespace.name", b"\xff\xfe"),
    ],
)
def test_damaged_text_in_the_database_is_an_integrity_error(
    lamella: Run, kept: str, root: Path, column: str, value: bytes
) -> None:
    assert kept
    table, _, name = column.partition(".")
    connection = sqlite3.connect(root / "lamella.db")
    connection.execute("PRAGMA ignore_check_constraints = 1")
    first = f"(SELECT min({name}) FROM {table})"
    connection.execute(f"UPDATE {table} SET {name} = CAST(? AS TEXT) WHERE {name} = {first}", (value,))
    connection.commit()
    connection.close()
    done = [lamella("store", *verb) for verb in LISTS]
    assert {one.returncode for one in done} <= {0, 8}
    assert 8 in {one.returncode for one in done}
    assert not any("bug" in one.stderr for one in done)


def test_damaged_pages_of_the_database_are_an_integrity_error(lamella: Run, kept: str, root: Path) -> None:
    assert kept
    path = root / "lamella.db"
    raw = bytearray(path.read_bytes())
    for page in range(4096, len(raw), 4096):
        raw[page : page + 2048] = bytes(2048)
    path.write_bytes(raw)
    done = [lamella("store", *verb) for verb in LISTS]
    assert {one.returncode for one in done} == {8}
    path.write_bytes(b"not a database, but of the size of one" * 200)
    assert {lamella("store", *verb).returncode for verb in LISTS} == {8}
