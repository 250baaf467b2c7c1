# SPDX-License-Identifier: Apache-2.0
"""Layers from directories, blobs and files by path go on top; what is below is not touched, and often not read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lamella
from lamella.changes.apply import apply
from lamella.changes.dump import dump
from lamella.digests import Digest
from lamella.errors import Conflict, InvalidInput, LamellaError, LossRefused, NotFound
from lamella.images.resolve import open_platform_image
from lamella.layers.policy import Owners
from lamella.layers.tar.sink import TarSink
from lamella.operations.surgery.new_layers import Directory, File, FileLike, Symlink, changes_of
from lamella.testing.builders import directory, file

MakeImage = Callable[..., str]
View = Callable[[str], list[str]]


@pytest.fixture
def base(make_image: MakeImage) -> str:
    """Return the name of an image of one layer."""
    return make_image([directory("etc", mode=0o700), file("etc/motd", b"base\n"), file("old")])


def layer_text(files: dict[str, FileLike]) -> list[str]:
    return list(dump(changes_of(files)))


# Files by path ---------------------------------------------------------------------------------------------------


def test_files_by_path_become_a_sorted_layer_without_the_directories_on_the_way() -> None:
    files: dict[str, FileLike] = {
        "/usr/bin/b": File(b"b", mode=0o4755, uid=1, gid=2, mtime=5, xattrs={"user.a": b"1"}),
        "usr/bin-a": "text",
        "etc/gone": None,
        "usr": Directory(mode=0o711, gid=7),
        "link": Symlink("usr/bin", uid=3),
    }
    assert layer_text(files) == [
        "whiteout etc/gone",
        "put symlink 0777 3:0 0 link target=usr/bin",
        "put directory 0711 0:7 0 usr",
        f"put file 4755 1:2 5 usr/bin/b xattr.user.a=1 size=1 sha256={Digest.of(b'b').hex}",
        f"put file 0644 0:0 0 usr/bin-a size=4 sha256={Digest.of(b'text').hex}",
    ]


def test_files_without_a_time_are_of_source_date_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert layer_text({"a": Directory()}) == ["put directory 0755 0:0 1700000000 a"]


def test_a_file_on_disk_gives_its_content_and_whether_it_can_be_executed(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"x" * 300_000)
    program.chmod(0o700)
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "plain").chmod(0o600)
    assert layer_text({"a": program, "b": tmp_path / "plain", "c": File(program, mode=0o600)}) == [
        f"put file 0755 0:0 0 a size=300000 sha256={Digest.of(b'x' * 300_000).hex}",
        "put file 0644 0:0 0 b size=0",
        f"put file 0600 0:0 0 c size=300000 sha256={Digest.of(b'x' * 300_000).hex}",
    ]
    changes = changes_of({"a": program})
    program.write_bytes(b"longer" * 300_000)
    with pytest.raises(Conflict, match="changed while it was read"):
        apply(changes, TarSink(lambda _: None))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a": b"", "/a": b""}, "given twice"),
        ({"": b""}, "root must be a directory"),
        ({"/": Symlink("x")}, "root must be a directory"),
        ({"a/../b": b""}, "'..' component"),
        ({"a": b"", "a/b/c": b""}, "cannot be in 'a'"),
        ({"a": Symlink("b"), "a/b": b""}, "cannot be in 'a'"),
        ({".wh.a": b""}, "has the name of a whiteout"),
        ({"a/.wh..wh..opq/b": b""}, "has the name of a whiteout"),
        ({"a": 1}, "a int is not a file"),
        ({"a": "\udc80"}, "UTF-8"),
        ({"a": File(b"", mode=0o100644)}, "bits beyond 0o7777"),
        ({"a": File(b"", uid=-1)}, "owner -1:0 is out of range"),
        ({"a": Symlink("")}, "needs a target"),
        ({"a": Path("/")}, "not a regular file"),
    ],
)
def test_files_that_cannot_be_in_one_layer_are_refused(files: dict[str, FileLike], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        changes_of(files)


def test_a_directory_may_be_removed_and_filled_again() -> None:
    assert layer_text({"a/b": b"", "a": None})[0] == "whiteout a"


NAMES = st.text("abc", min_size=1, max_size=2)
FILES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=4), max_size=8)


@settings(max_examples=60)
@given(FILES, st.randoms(use_true_random=False))
def test_the_order_of_a_mapping_does_not_matter(files: dict[str, bytes], random: object) -> None:
    def outcome(given: dict[str, FileLike]) -> object:
        data = bytearray()
        try:
            apply(changes_of(given), TarSink(data.extend))
        except LamellaError as error:
            return type(error)
        return bytes(data)

    shuffled = list(files.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert outcome(dict(files)) == outcome(dict(shuffled))


# append ----------------------------------------------------------------------------------------------------------


def test_several_layers_of_all_kinds_go_on_top_in_their_order(base: str, view: View, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/motd").write_text("from the directory")
    tree.chmod(0o700)
    lamella.diff(None, tree, tmp_path / "blob.tar", lamella.DiffOptions(compression="none", owners=Owners.IGNORE))
    appended = lamella.append(base, [tree, tmp_path / "blob.tar", {"etc/motd": "last", "old": None}], base)
    assert [layer.entries for layer in appended.new_layers] == [2, 3, 2]
    assert [layer.facts.compression for layer in appended.new_layers] == ["gzip", "none", "gzip"]
    with lamella.open_image(base) as image:
        assert [layer.descriptor for layer in image.layers[1:]] == [layer.descriptor for layer in appended.new_layers]
        assert [step.created_by for step in image.config.history] == ["step 0", *["lamella append"] * 3]
        assert (image.filesystem() / "etc/motd").read_text() == "last"
        assert not (image.filesystem() / "old").exists()


def test_a_directory_leaves_the_root_as_it_is(make_image: MakeImage, view: View, tmp_path: Path) -> None:
    name = make_image([directory("", mode=0o751, uid=5)])
    (tmp_path / "tree").mkdir(mode=0o700)
    (tmp_path / "tree/file").touch()
    lamella.append(name, tmp_path / "tree", name)
    assert view(name)[0].startswith("put directory 0751 5:0 ")


def test_the_same_layers_give_the_same_digest_whatever_the_number_of_threads(base: str, tmp_path: Path) -> None:
    files: dict[str, FileLike] = {f"usr/share/{number}": os.urandom(20_000) * 20 for number in range(12)}
    digests = {
        lamella.append(
            base, dict(some), f"oci:{tmp_path}/out:{threads}", lamella.AppendOptions(threads=threads)
        ).descriptor.digest
        for threads, some in ((1, files.items()), (2, reversed(files.items())), (5, sorted(files.items())))
    }
    assert len(digests) == 1


def test_of_the_base_only_documents_are_read_where_the_target_has_its_layers(
    base: str, spoil_layers: Callable[[str], None]
) -> None:
    spoil_layers(base)
    lamella.append(base, {"new": b""}, base)
    lamella.mutate(base, base, lamella.Settings(user="app"))
    with open_platform_image(base) as image:
        assert len(image.layers) == 2


def test_an_image_of_dockers_format_stays_one(base: str, rewrite: Callable[..., None], tmp_path: Path) -> None:
    prefix = "application/vnd.docker."

    def to_docker(manifest: dict[str, object], config: object) -> None:
        manifest["mediaType"] = prefix + "distribution.manifest.v2+json"
        manifest["config"]["mediaType"] = prefix + "container.image.v1+json"  # type: ignore[index]
        manifest["layers"][0]["mediaType"] = prefix + "image.rootfs.diff.tar.gzip"  # type: ignore[index]

    rewrite(base, to_docker)
    appended = lamella.append(base, {"new": b""}, base)
    assert appended.descriptor.media_type == prefix + "distribution.manifest.v2+json"
    assert {layer.media_type for layer in appended.layers} == {prefix + "image.rootfs.diff.tar.gzip"}
    assert appended.manifest.config.media_type == prefix + "container.image.v1+json"
    zstd = lamella.append(base, {"newer": b""}, base, lamella.AppendOptions(compression="zstd"))
    assert zstd.descriptor.media_type == "application/vnd.oci.image.manifest.v1+json"
    assert {layer.media_type.rpartition(".")[2] for layer in zstd.layers} == {"tar+gzip", "tar+zstd"}
    assert lamella.verify(base).sound


def test_a_failed_append_keeps_the_target(base: str, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/out:v1"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/.wh.name").touch()
    with pytest.raises(LossRefused):
        lamella.append(base, tmp_path / "tree", target, job=lamella.Job(losses=lamella.Losses(refuse=True)))
    with pytest.raises(NotFound):
        lamella.append(base, tmp_path / "nothing", target)
    with pytest.raises(InvalidInput, match="would lie in"):
        lamella.append(base, tmp_path, target)
    assert not (tmp_path / "out").exists()
