# SPDX-License-Identifier: Apache-2.0
"""Any document is read or refused with an expected error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import LamellaError
from lamella.oci.config import decode_config
from lamella.oci.docker import decode_saved
from lamella.oci.documents import Document, encode
from lamella.oci.index import decode_index
from lamella.oci.layout import decode_layout
from lamella.oci.manifest import decode_manifest
from lamella.oci.platform import parse_platform
from lamella.oci.reference import parse_reference

DECODERS: tuple[Callable[[bytes], Document], ...] = (decode_manifest, decode_index, decode_config, decode_layout)
TEXTS: tuple[Callable[[str], object], ...] = (parse_reference, parse_platform)


def check_wording(error: LamellaError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def fuzz_document(data: bytes) -> None:
    """One input for everything here that reads bytes; what is read once must come out and in again the same."""
    for decoder in DECODERS:
        try:
            document = decoder(data)
        except LamellaError as error:
            check_wording(error)
            continue
        written = encode(document)
        assert document == decoder(written)
        assert written == encode(decoder(written))
    try:
        decode_saved(data)
    except LamellaError:
        pass
    text = data.decode("utf-8", "replace")
    for parse in TEXTS:
        try:
            parsed = parse(text)
        except LamellaError:
            continue
        assert parsed == parse(str(parsed))


WORDS = st.sampled_from(
    [
        *("schemaVersion", "mediaType", "config", "layers", "manifests", "size", "digest", "annotations", "platform"),
        *("os", "architecture", "variant", "os.version", "os.features", "rootfs", "diff_ids", "type", "history", "Env"),
        *("Config", "Layers", "RepoTags", "imageLayoutVersion", "(extra)", "extra", "Digest", "layer\u017f", ""),
    ]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["sha256:" + "a" * 64, "layers", "1.0.0", "application/vnd.oci.image.manifest.v1+json"]),
)
DOCUMENTS = st.recursive(
    VALUES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(WORDS, st.text(max_size=4)), inner)),
    max_leaves=25,
)

DESCRIPTOR = {"mediaType": "a/b", "digest": "sha256:" + "a" * 64, "size": 1}
WHOLE: list[dict[str, Any]] = [
    {"schemaVersion": 2, "config": DESCRIPTOR, "layers": [DESCRIPTOR]},
    {"schemaVersion": 2, "manifests": [{**DESCRIPTOR, "platform": {"os": "linux", "architecture": "arm"}}]},
    {"os": "linux", "architecture": "arm", "rootfs": {"type": "layers", "diff_ids": []}, "config": {}},
    {"imageLayoutVersion": "1.0.0"},
]


def seeds() -> Iterator[bytes]:
    for document in WHOLE:
        yield json.dumps(document).encode()
    yield b"registry.example:5000/some/name:tag@sha256:" + b"a" * 64
    yield b"windows(10.0.20348.1+win32k)/amd64"


@settings(max_examples=150)
@given(st.binary(max_size=64))
def test_bytes_that_mean_nothing(data: bytes) -> None:
    fuzz_document(data)


@settings(max_examples=250)
@given(DOCUMENTS)
def test_json_that_is_nearly_a_document(value: object) -> None:
    fuzz_document(json.dumps(value).encode())


@settings(max_examples=250)
@given(st.sampled_from(WHOLE), st.dictionaries(WORDS, DOCUMENTS, max_size=3))
def test_documents_with_a_few_fields_replaced(whole: dict[str, Any], changes: dict[str, Any]) -> None:
    fuzz_document(json.dumps({**whole, **changes}).encode())
