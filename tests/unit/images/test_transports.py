# SPDX-License-Identifier: Apache-2.0
"""Names of images are those that skopeo's users write."""

from __future__ import annotations

import pytest

from lamella.digests import Digest
from lamella.errors import InvalidInput
from lamella.images.transports import ImageName, open_writer, parse_image_name

DIGEST = Digest.of(b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:dir", ImageName("oci", "dir")),
        ("oci:dir:", ImageName("oci", "dir")),
        ("oci:/a/b c:v1.0", ImageName("oci", "/a/b c", "v1.0")),
        ("oci:dir:docker.io/library/x:1", ImageName("oci", "dir", "docker.io/library/x:1")),
        ("oci:dir:@3", ImageName("oci", "dir", position=3)),
        ("oci-archive:a.tar:v1", ImageName("oci-archive", "a.tar", "v1")),
        ("docker-archive:a.tar", ImageName("docker-archive", "a.tar")),
        ("docker-archive:a.tar:busybox", ImageName("docker-archive", "a.tar", "docker.io/library/busybox:latest")),
        ("docker-archive:a.tar:x.io/a:t", ImageName("docker-archive", "a.tar", "x.io/a:t")),
        ("docker-archive:a.tar:@0", ImageName("docker-archive", "a.tar", position=0)),
        ("docker://busybox", ImageName("docker", "docker.io/library/busybox", "latest")),
        ("docker://localhost:5000/a/b:1", ImageName("docker", "localhost:5000/a/b", "1")),
        (f"docker://x.io/a@{DIGEST}", ImageName("docker", "x.io/a", digest=DIGEST)),
        (f"docker://[::1]:5000/a:t@{DIGEST}", ImageName("docker", "[::1]:5000/a", "t", digest=DIGEST)),
    ],
)
def test_names_are_parsed_into_form_path_and_tag(text: str, expected: ImageName) -> None:
    assert expected == parse_image_name(text)
    assert expected == parse_image_name(str(expected))


@pytest.mark.parametrize("text", ["", "busybox", "busybox:latest", "./dir", "OCI:dir", "docker-daemon:x"])
def test_the_hint_for_a_name_without_a_form_lists_the_forms(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_image_name(text)
    assert "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF]" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["dir:a", "cim:a.cim"])
def test_the_hint_for_a_tree_names_pack(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_image_name(text)
    assert "'lamella pack'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        *("oci:", "oci::tag", "oci:a\0b", "oci:a:@", "oci:a:@-1", "oci:a:@x", "docker-archive:a:Bad Ref"),
        *("docker:busybox", "docker://", "docker://Bad", "docker://a:b:c", "docker://x.io/a@sha256:1", "docker:///a"),
    ],
)
def test_malformed_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_image_name(text)


def test_an_image_in_an_archive_has_no_name_by_digest() -> None:
    with pytest.raises(InvalidInput, match="not by digests"):
        parse_image_name(f"docker-archive:a.tar:busybox@sha256:{'a' * 64}")


def test_an_image_cannot_be_written_at_a_number() -> None:
    with pytest.raises(InvalidInput, match="at a number"):
        open_writer(parse_image_name("oci:dir:@0"))


@pytest.mark.parametrize(("host", "path"), [("nt", "C:\\images"), ("posix", "C")])
def test_a_windows_drive_is_a_part_of_the_path_on_windows_alone(
    monkeypatch: pytest.MonkeyPatch, host: str, path: str
) -> None:
    monkeypatch.setattr("lamella.images.transports.os.name", host)
    assert path == parse_image_name("oci:C:\\images:v1").path


@pytest.mark.parametrize("form", ["store", "containerd"])
def test_an_image_of_a_store_is_named_as_in_a_registry(form: str) -> None:
    assert ImageName(form, "docker.io/library/busybox", "latest") == parse_image_name(f"{form}:busybox")
    named = parse_image_name(f"{form}:localhost:5000/a/b:1@sha256:{'a' * 64}")
    assert (named.path, named.tag, named.digest) == ("localhost:5000/a/b", "1", f"sha256:{'a' * 64}")
    assert str(named) == f"{form}:localhost:5000/a/b:1@sha256:{'a' * 64}"
    with pytest.raises(InvalidInput):
        parse_image_name(f"{form}:")
