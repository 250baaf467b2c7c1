# SPDX-License-Identifier: Apache-2.0
"""References follow the grammar of the distribution project, with the short forms of Docker."""

from __future__ import annotations

import pytest

from lamella.errors import InvalidInput, Unsupported
from lamella.oci.reference import Reference, parse_reference

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("me/app", "docker.io/me/app", "me/app"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("ghcr.io/me/app:x", "ghcr.io/me/app:x", "ghcr.io/me/app:x"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
        ("LOCAL/app", "LOCAL/app", "LOCAL/app"),
        ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
        ("a__b/c--d.e", "docker.io/a__b/c--d.e", "a__b/c--d.e"),
        (f"busybox@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}", f"busybox@sha256:{HEX}"),
        (f"x.io/a:t@sha256:{HEX}", f"x.io/a:t@sha256:{HEX}", f"x.io/a:t@sha256:{HEX}"),
    ],
)
def test_short_forms_are_expanded_and_shortened_again(text: str, full: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert (full, familiar) == (str(reference), reference.familiar)
    assert reference == parse_reference(full) == parse_reference(familiar)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "a:",
        "A",
        "me/App",
        "a/",
        "/a",
        "a//b",
        "a b",
        "-a",
        "a-",
        "a___b",
        "a..b",
        "a:b c",
        "a:.b",
        "x.io:port/a",
        "x.io:/a",
        "-x.io/a",
        "http://x.io/a",
        "../a",
        "a@sha256:1",
        "a@",
        "a\n",
        "ä",
        HEX,
        "a:" + "t" * 129,
        "x.io/" + "a" * 251,
    ],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_reference(text)


def test_a_digest_of_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(Unsupported):
        parse_reference("a@md5:abc")


def test_the_default_tag_is_added_only_on_request() -> None:
    assert parse_reference("a").tag is None
    assert str(parse_reference("a").with_default_tag()) == "docker.io/library/a:latest"
    pinned = parse_reference(f"a@sha256:{HEX}")
    assert pinned.with_default_tag() == pinned
    assert Reference("x.io", "a", "t") == parse_reference("x.io/a:t").with_default_tag()


def test_the_longest_allowed_names_and_tags_are_accepted() -> None:
    assert parse_reference("a:" + "t" * 128).tag == "t" * 128
    assert len(parse_reference("x.io/" + "a" * 250).name) == 255
