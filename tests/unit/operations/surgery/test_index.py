# SPDX-License-Identifier: Apache-2.0
"""Indexes are cut down, put together and converted without losing what belongs together."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lamella
from lamella.errors import Conflict, InvalidInput, LossRefused, NotFound, Unsupported
from lamella.images.graph import SUBJECT
from lamella.images.resolve import find_one, open_platform_image
from lamella.images.transports import open_reader, parse_image_name
from lamella.oci.index import Index, decode_index
from lamella.oci.platform import parse_platform
from lamella.operations.surgery.convert import Conversion
from lamella.operations.surgery.index import selects
from lamella.testing.images import OCI, SmallImage, compact, digest, index_of, small_image, tagged, write_layout

MakeImage = Callable[..., str]

SHARED = {"etc/shared": b"the same in all"}
AMD = small_image(SHARED, {"bin": b"amd"})
V6 = small_image(SHARED, {"bin": b"arm v6"}, platform="linux/arm/v6")
V7 = small_image(SHARED, {"bin": b"arm v7"}, platform="linux/arm/v7")
ARM64 = small_image(SHARED, {"bin": b"arm64"}, platform="linux/arm64")


def attestation(image: SmallImage) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What BuildKit puts beside an image."""
    statement = compact({"about": image.descriptor["digest"]})
    layer = {"mediaType": "application/vnd.in-toto+json", "digest": digest(statement), "size": len(statement)}
    manifest = compact(
        {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "config": {"mediaType": OCI + "config.v1+json", "digest": digest(b"{}"), "size": 2},
            "layers": [layer],
        }
    )
    entry = {
        "mediaType": OCI + "manifest.v1+json",
        "digest": digest(manifest),
        "size": len(manifest),
        "annotations": {SUBJECT: image.descriptor["digest"], "vnd.docker.reference.type": "attestation-manifest"},
        "platform": {"architecture": "unknown", "os": "unknown"},
    }
    return entry, {digest(manifest): manifest, digest(statement): statement, digest(b"{}"): b"{}"}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Return the name of an index of four images, two of them with attestations."""
    _, raw = index_of(V7, AMD, ARM64, V6)
    index = json.loads(raw)
    blobs = {**V7.blobs, **AMD.blobs, **ARM64.blobs, **V6.blobs}
    for image in (V7, AMD):
        entry, more = attestation(image)
        index["manifests"].append(entry)
        blobs |= more
    index["annotations"] = {"k": "v"}
    index["manifests"][0]["annotations"] = {"of": "the entry"}
    raw = compact(index)
    blobs[digest(raw)] = raw
    entry = {"mediaType": OCI + "index.v1+json", "digest": digest(raw), "size": len(raw)}
    return f"oci:{write_layout(str(tmp_path / 'source'), [tagged(entry, 'all')], blobs)}:all"


def read(name: str) -> Index:
    parsed = parse_image_name(name)
    with open_reader(parsed) as reader:
        found = find_one(reader, parsed.tag, parsed.position)
        return decode_index(reader.read_document(found), found.media_type)


def digests(name: str) -> list[str]:
    return [str(entry.digest) for entry in read(name).manifests]


# subset ----------------------------------------------------------------------------------------------------------


def test_only_the_platforms_that_are_wanted_stay_with_what_is_about_them(source: str, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/out:some"
    found = lamella.subset(source, target, ["linux/arm64", "linux/arm/v7"])
    assert digests(target) == [V7.descriptor["digest"], ARM64.descriptor["digest"], attestation(V7)[0]["digest"]]
    index = read(target)
    assert index.annotations == {"k": "v"}
    assert index.manifests[0].annotations == {"of": "the entry"}
    assert [str(one) for one in found.kept] == ["linux/arm/v7", "linux/arm64"]
    assert [str(one) for one in found.left_out] == ["linux/amd64", "linux/arm/v6"]
    assert digests(source)[:4] == [image.descriptor["digest"] for image in (V7, AMD, ARM64, V6)]
    with open_platform_image(target, "linux/arm/v7") as image:
        assert image.descriptor.digest == V7.descriptor["digest"]
        for layer in image.layers:
            layer.open().close()
    assert lamella.verify(target).sound


def test_a_subset_of_all_is_the_same_index(source: str, tmp_path: Path) -> None:
    target = f"oci-archive:{tmp_path}/out.tar:x"
    assert lamella.verify(source).images == 4
    assert lamella.subset(source, target, ["linux/arm", "amd64", "linux/arm64/v8"]).left_out == ()
    assert read(target) == read(source)


def test_an_image_for_two_platforms_stays_for_either(tmp_path: Path) -> None:
    platforms = [{"os": "linux", "architecture": "arm", "variant": variant} for variant in ("v6", "v7")]
    entries = [{**V6.descriptor, "platform": platform} for platform in platforms]
    about, blobs = attestation(V6)
    raw = compact({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [*entries, about]})
    top = {"mediaType": OCI + "index.v1+json", "digest": digest(raw), "size": len(raw)}
    layout = write_layout(str(tmp_path / "l"), [tagged(top, "x")], {**V6.blobs, **blobs, digest(raw): raw})
    for platform in ("linux/arm/v6", "linux/arm/v7"):
        target = f"oci:{tmp_path}/out:{platform[-2:]}"
        found = lamella.subset(f"oci:{layout}:x", target, [platform])
        assert [str(one) for one in found.kept] == [platform]
        assert [str(one.platform) for one in read(target).manifests] == [platform, "unknown/unknown"]


def test_a_missing_platform_is_not_found(source: str, tmp_path: Path) -> None:
    for platforms in (["linux/s390x"], ["linux/amd64", "linux/arm/v5"]):
        with pytest.raises(NotFound, match="no image for linux/"):
            lamella.subset(source, f"oci:{tmp_path}/out:x", platforms)
    assert not (tmp_path / "out").exists()


def test_a_subset_needs_an_index_on_both_sides(source: str, make_image: MakeImage, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not an index"):
        lamella.subset(make_image([]), f"oci:{tmp_path}/out:x", ["linux/amd64"])
    with pytest.raises(Unsupported, match="cannot hold an index"):
        lamella.subset(source, f"docker-archive:{tmp_path}/out.tar:x", ["linux/amd64"])
    with pytest.raises(InvalidInput, match="no platforms to keep"):
        lamella.subset(source, f"oci:{tmp_path}/out:x", [])


def test_indexes_in_an_index_are_cut_down_too(tmp_path: Path) -> None:
    inner, raw_inner = index_of(AMD, ARM64)
    other, raw_other = index_of(V7)
    outer = compact(
        {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [inner, other, {**V6.descriptor}]}
    )
    blobs = {**AMD.blobs, **ARM64.blobs, **V7.blobs, **V6.blobs}
    blobs |= {digest(raw): raw for raw in (raw_inner, raw_other, outer)}
    entry = {"mediaType": OCI + "index.v1+json", "digest": digest(outer), "size": len(outer)}
    name = f"oci:{write_layout(str(tmp_path / 'source'), [tagged(entry, 'all')], blobs)}:all"
    target = f"oci:{tmp_path}/out:x"
    lamella.subset(name, target, ["linux/arm64", "linux/arm/v6"])
    assert len(read(target).manifests) == 2
    assert digests(target)[1] == V6.descriptor["digest"]
    with open_platform_image(target, "linux/arm64") as image:
        assert image.descriptor.digest == ARM64.descriptor["digest"]


@pytest.mark.parametrize(
    ("wanted", "offered", "means"),
    [
        ("linux/arm", "linux/arm/v6", True),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/arm/v7", "linux/arm", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/amd64", "linux/amd64/v3", True),
        ("linux/amd64/v3", "linux/amd64", False),
        ("linux/amd64", "windows/amd64", False),
        ("windows(10.0.20348)/amd64", "windows(10.0.20348.5)/amd64", True),
        ("windows(10.0.17763)/amd64", "windows(10.0.20348.5)/amd64", False),
        ("windows/amd64", "windows(10.0.20348.5)/amd64", True),
    ],
)
def test_a_platform_means_what_is_built_for_it(wanted: str, offered: str, means: bool) -> None:
    assert selects(parse_platform(wanted), parse_platform(offered)) is means


# index -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def singles(tmp_path: Path) -> str:
    """Return a place of single images, by the names of their platforms."""
    entries = [tagged(image.descriptor, name) for image, name in ((AMD, "amd"), (V7, "v7"), (V6, "v6"))]
    return f"oci:{write_layout(str(tmp_path / 'singles'), entries, {**AMD.blobs, **V7.blobs, **V6.blobs})}"


def test_images_are_listed_in_their_order_for_what_their_configs_say(singles: str, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/out:multi"
    lamella.index([f"{singles}:v7", f"{singles}:amd"], target, annotations={"k": "v"})
    index = read(target)
    assert [str(entry.platform) for entry in index.manifests] == ["linux/arm/v7", "linux/amd64"]
    assert [entry.annotations for entry in index.manifests] == [{}, {}]
    assert digests(target) == [V7.descriptor["digest"], AMD.descriptor["digest"]]
    assert index.annotations == {"k": "v"}
    again = lamella.index(
        [f"{singles}:v7", f"{singles}:amd"], f"oci-archive:{tmp_path}/a.tar:x", annotations={"k": "v"}
    )
    with open_reader(parse_image_name(target)) as reader:
        assert again.entry.digest == find_one(reader, "multi", None).digest


def test_a_platform_can_be_given_for_each_image(singles: str, source: str, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/out:multi"
    lamella.index([(f"{singles}:v6", "linux/arm/v5"), (source, "linux/arm64"), f"{singles}:amd"], target)
    found = [(str(entry.platform), str(entry.digest)) for entry in read(target).manifests]
    assert found == [
        ("linux/arm/v5", V6.descriptor["digest"]),
        ("linux/arm64", ARM64.descriptor["digest"]),
        ("linux/amd64", AMD.descriptor["digest"]),
    ]


def test_an_index_gives_all_that_is_in_it(source: str, singles: str, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/out:multi"
    lamella.index([f"{singles}:v7", source], target)
    assert digests(target) == [digests(source)[0], *digests(source)[1:]]
    assert lamella.verify(target).sound


def test_two_images_for_one_platform_are_a_conflict(singles: str, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="are both for linux/arm/v7"):
        lamella.index([f"{singles}:v7", (f"{singles}:v6", "linux/arm/v7")], f"oci:{tmp_path}/out:x")
    with pytest.raises(InvalidInput, match="at least one"):
        lamella.index([], f"oci:{tmp_path}/out:x")
    with pytest.raises(Unsupported, match="cannot hold an index"):
        lamella.index([f"{singles}:v7"], f"docker-archive:{tmp_path}/out.tar:x")
    assert not (tmp_path / "out").exists()


# convert ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_layers_are_compressed_another_way_and_stay_the_same_layers(
    singles: str, tmp_path: Path, compression: str
) -> None:
    target = f"oci:{tmp_path}/out:x"
    done = lamella.convert(f"{singles}:amd", target, lamella.ConvertOptions(compression=compression))
    with open_platform_image(f"{singles}:amd") as before, open_platform_image(target) as after:
        assert [layer.diff_id for layer in before.layers] == [layer.diff_id for layer in after.layers]
        assert {layer.compression for layer in after.layers} == {compression}
        assert before.manifest.config.digest == after.manifest.config.digest
        changed = compression != "gzip"
        assert (before.descriptor.digest != after.descriptor.digest) is changed
        assert (len(done.layers), done.kept) == ((2, 0) if changed else (0, 2))
    assert lamella.verify(target).sound
    back = lamella.convert(target, f"oci:{tmp_path}/out:y", lamella.ConvertOptions(compression="none"))
    assert len(back.layers) == (0 if compression == "none" else 2)


def test_converting_is_the_same_whatever_the_number_of_threads(singles: str, tmp_path: Path) -> None:
    found = {
        lamella.convert(
            f"{singles}:amd",
            f"oci:{tmp_path}/out:{threads}",
            lamella.ConvertOptions(compression="gzip", level=9, again=True, threads=threads),
        ).descriptor.digest
        for threads in (1, 2, 4)
    }
    assert len(found) == 1
    assert found != {AMD.descriptor["digest"]}


def test_all_platforms_are_converted_and_a_shared_layer_once(source: str, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/out:x"
    done = lamella.convert(source, target, lamella.ConvertOptions(compression="zstd", all_platforms=True))
    assert (done.images, len(done.layers), done.kept) == (4, 5, 0)
    index = read(target)
    assert [str(entry.platform) for entry in index.manifests[:4]] == [
        *("linux/arm/v7", "linux/amd64", "linux/arm64", "linux/arm/v6")
    ]
    assert index.annotations == {"k": "v"}
    assert index.manifests[0].annotations == {"of": "the entry"}
    about = [entry.annotations[SUBJECT] for entry in index.manifests[4:]]
    assert about == [str(index.manifests[0].digest), str(index.manifests[1].digest)]
    assert [str(entry.digest) for entry in index.manifests[4:]] == digests(source)[4:]
    assert lamella.verify(target).sound


def test_annotations_stay_but_those_that_tell_of_the_compressed_bytes(tmp_path: Path) -> None:
    image = small_image({"a": b"1"})
    kept = {"k": "v"}
    image.manifest["annotations"] = kept
    stale = {"containerd.io/snapshot/stargz/toc.digest": "sha256:0", "io.github.containers.zstd-chunked.x": "y"}
    image.manifest["layers"][0]["annotations"] = {**kept, **stale}
    raw = compact(image.manifest)
    image.blobs[digest(raw)] = raw
    name = f"oci:{write_layout(str(tmp_path / 'source'), [tagged(image.descriptor, 'x')], image.blobs)}:x"
    lamella.convert(name, f"oci:{tmp_path}/out:x", lamella.ConvertOptions(compression="zstd"))
    with open_platform_image(f"oci:{tmp_path}/out:x") as after:
        assert after.manifest.annotations == kept
        assert after.layers[0].descriptor.annotations == kept
    losses = lamella.Losses()
    docker = lamella.convert(
        name, f"oci:{tmp_path}/out:y", lamella.ConvertOptions(format="docker"), job=lamella.Job(losses=losses)
    )
    assert [loss.what for loss in losses] == ["annotation k"]
    assert docker.descriptor.media_type == "application/vnd.docker.distribution.manifest.v2+json"
    with pytest.raises(LossRefused):
        lamella.convert(
            name,
            f"oci:{tmp_path}/out:z",
            lamella.ConvertOptions(format="docker"),
            job=lamella.Job(losses=lamella.Losses(refuse=True)),
        )


def test_docker_and_back_gives_the_same_digest(source: str, tmp_path: Path) -> None:
    losses = lamella.Losses()
    docker = lamella.convert(
        source,
        f"oci:{tmp_path}/out:docker",
        lamella.ConvertOptions(format="docker", all_platforms=True),
        job=lamella.Job(losses=losses),
    )
    assert docker.descriptor.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
    assert [loss.what.split()[0] for loss in losses] == ["attestation", "attestation", "annotation"]
    index = read(f"oci:{tmp_path}/out:docker")
    assert index.annotations == {}
    assert {entry.media_type for entry in index.manifests} == {"application/vnd.docker.distribution.manifest.v2+json"}
    lamella.convert(
        f"oci:{tmp_path}/out:docker",
        f"oci:{tmp_path}/out:oci",
        lamella.ConvertOptions(format="oci", all_platforms=True),
    )
    assert digests(f"oci:{tmp_path}/out:oci") == digests(source)[:4]
    assert lamella.verify(f"oci:{tmp_path}/out:docker").sound


def test_foreign_layers_are_left_alone(tmp_path: Path) -> None:
    image = small_image({"a": b"1"}, {"b": b"2"})
    image.manifest["layers"][0] |= {"mediaType": OCI + "layer.nondistributable.v1.tar+gzip", "urls": ["https://x"]}
    raw = compact(image.manifest)
    image.blobs[digest(raw)] = raw
    name = f"oci:{write_layout(str(tmp_path / 'source'), [tagged(image.descriptor, 'x')], image.blobs)}:x"
    done = lamella.convert(name, f"oci:{tmp_path}/out:x", lamella.ConvertOptions(compression="none", format="docker"))
    assert (len(done.layers), done.kept) == (1, 1)
    with open_platform_image(f"oci:{tmp_path}/out:x") as after:
        assert [layer.descriptor.media_type for layer in after.layers] == [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
        ]
        assert after.layers[0].descriptor.urls == ["https://x"]


def test_a_layer_that_is_not_what_it_should_be_is_not_converted(singles: str, tmp_path: Path) -> None:
    blob = Path(singles.split(":")[1], "blobs", AMD.manifest["layers"][1]["digest"].replace(":", "/"))
    raw = gzip.compress(gzip.decompress(blob.read_bytes()), mtime=1)
    assert len(raw) == blob.stat().st_size
    blob.write_bytes(raw)
    with pytest.raises(lamella.LamellaError, match="expected digest"):
        lamella.convert(f"{singles}:amd", f"oci:{tmp_path}/out:x", lamella.ConvertOptions(compression="zstd"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"compression": "bzip2"},
        {"format": "tar"},
        {"compression": "zstd", "format": "docker"},
        {"level": 3},
    ],
)
def test_conversions_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Conversion(**wrong)


def test_zstd_layers_cannot_stay_in_dockers_format(singles: str, tmp_path: Path) -> None:
    lamella.convert(f"{singles}:amd", f"oci:{tmp_path}/out:x", lamella.ConvertOptions(compression="zstd"))
    with pytest.raises(Unsupported, match="no zstd layers"):
        lamella.convert(f"oci:{tmp_path}/out:x", f"oci:{tmp_path}/out:y", lamella.ConvertOptions(format="docker"))
    done = lamella.convert(
        f"oci:{tmp_path}/out:x", f"oci:{tmp_path}/out:y", lamella.ConvertOptions(format="docker", compression="gzip")
    )
    assert len(done.layers) == 2
