# SPDX-License-Identifier: Apache-2.0
"""Laws of documents, references and platforms."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.digests import Digest
from lamella.oci.documents import encode
from lamella.oci.index import decode_index
from lamella.oci.manifest import decode_manifest
from lamella.oci.platform import Platform, best_match, matches, parse_platform
from lamella.oci.reference import parse_reference

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
UNKNOWN = st.dictionaries(st.text(max_size=6).map(lambda key: f"x-{key}"), JSON, max_size=3)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: f"sha256:{raw.hex()}")


@st.composite
def descriptors(draw: st.DrawFn) -> dict[str, Any]:
    descriptor: dict[str, Any] = {
        "mediaType": draw(st.sampled_from(["application/vnd.oci.image.layer.v1.tar+gzip", "a/b"])),
        "digest": draw(DIGESTS),
        "size": draw(st.integers(0, 2**63 - 1)),
    }
    annotations = draw(st.dictionaries(st.text(), st.text(), max_size=3))
    if annotations:
        descriptor["annotations"] = annotations
    if draw(st.booleans()):
        descriptor["platform"] = {"architecture": "arm", "os": "linux", "variant": "v7", **draw(UNKNOWN)}
    return {**descriptor, **draw(UNKNOWN)}


@settings(max_examples=60)
@given(descriptors(), st.lists(descriptors(), max_size=3), UNKNOWN, st.randoms(use_true_random=False))
def test_a_manifest_loses_nothing_and_accepts_any_order_of_known_keys(
    config: dict[str, Any], layers: list[dict[str, Any]], unknown: dict[str, Any], random: Any
) -> None:
    document = {"schemaVersion": 2, "config": config, "layers": layers}
    keys = list(document)
    random.shuffle(keys)
    shuffled = {key: document[key] for key in keys} | unknown
    written = encode(decode_manifest(json.dumps(shuffled).encode()))
    assert {**document, **unknown} == json.loads(written)
    assert encode(decode_manifest(written)) == written
    assert encode(decode_manifest(json.dumps({**document, **unknown}).encode())) == written
    assert not any(character in written for character in b"<>&")


@settings(max_examples=60)
@given(st.lists(descriptors(), max_size=4))
def test_an_index_loses_nothing(manifests: list[dict[str, Any]]) -> None:
    document = {"schemaVersion": 2, "manifests": manifests}
    index = decode_index(json.dumps(document, ensure_ascii=False).encode())
    assert json.loads(encode(index)) == document
    assert all(type(entry.digest) is Digest for entry in index.manifests)


COMPONENTS = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)


@settings(max_examples=100)
@given(
    st.sampled_from(["me/", "docker.io/", "x.io/", "localhost/", "localhost:1/", "[::1]:80/"]),
    st.lists(COMPONENTS, min_size=1, max_size=3).map("/".join),
    st.one_of(st.just(""), st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True)),
    st.one_of(st.just(""), DIGESTS.map(lambda digest: f"@{digest}")),
)
def test_the_full_and_the_familiar_form_parse_to_the_same_reference(
    registry: str, repository: str, tag: str, digest: str
) -> None:
    reference = parse_reference(registry + repository + tag + digest)
    assert reference == parse_reference(str(reference)) == parse_reference(reference.familiar)
    assert (tag[1:] or None, digest[1:] or None) == (reference.tag, reference.digest)


PLATFORMS = st.builds(
    lambda os, architecture, variant, version: Platform(
        os=os, architecture=architecture, variant=variant, os_version=version if os == "windows" else ""
    ),
    st.sampled_from(["linux", "windows"]),
    st.sampled_from(["amd64", "arm64", "arm", "386"]),
    st.sampled_from(["", "v1", "v6", "v7", "v8", "v8.5", "v9", "odd"]),
    st.sampled_from(["", "10.0.1.1", "10.0.1.2", "10.0.2.1"]),
)


@settings(max_examples=150)
@given(PLATFORMS, st.lists(PLATFORMS, max_size=6))
def test_the_chosen_platform_matches_and_an_exact_match_wins(wanted: Platform, offers: list[Platform]) -> None:
    chosen = best_match(wanted, [(offer, at) for at, offer in enumerate(offers)])
    assert (chosen is None) == (not any(matches(wanted, offer) for offer in offers))
    if chosen is not None:
        assert matches(wanted, offers[chosen])
    exact = best_match(wanted, [*((offer, False) for offer in offers if offer != wanted), (wanted, True)])
    assert exact is not None
    assert matches(wanted, wanted)
    assert parse_platform(str(wanted)) == wanted
