# SPDX-License-Identifier: Apache-2.0
"""Documents validate known fields and keep unknown ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lamella.digests import Digest
from lamella.errors import Exhausted, InvalidInput, Unsupported
from lamella.oci.config import History, ImageConfig, RootFs, decode_config, pair_layers
from lamella.oci.descriptor import Descriptor
from lamella.oci.docker import decode_saved
from lamella.oci.documents import MAX_DEPTH, MAX_DOCUMENT, decode, encode, load
from lamella.oci.index import decode_index, is_image_entry, new_index
from lamella.oci.layout import decode_layout, parse_tag
from lamella.oci.manifest import MAX_LAYERS, decode_manifest, new_manifest
from lamella.oci.mediatypes import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    layer_compression,
)

HEX = "0123456789abcdef" * 4
CONFIG: dict[str, Any] = {"mediaType": OCI_CONFIG, "digest": f"sha256:{HEX}", "size": 2}
LAYER: dict[str, Any] = {"mediaType": OCI_LAYER_GZIP, "digest": f"sha256:{HEX[::-1]}", "size": 7}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
INDEX: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
IMAGE: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "config": {},
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
}


def raw(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def refusal(document: object, expected: type[Exception] = InvalidInput) -> str:
    with pytest.raises(expected) as caught:
        decode_manifest(document if isinstance(document, bytes) else raw(document))
    assert type(caught.value) is expected
    return str(caught.value)


class TestRoundTrip:
    def test_a_document_of_a_go_tool_is_kept_byte_for_byte(self) -> None:
        written = raw(
            {
                "created": "2024-02-03T04:05:06.7Z",
                "author": "me",
                "architecture": "arm64",
                "os": "linux",
                "variant": "v8",
                "config": {"User": "1", "Env": ["A=b"], "Cmd": ["sh"], "Labels": {"a": "1", "b": "2"}},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
                "history": [{"created_by": "sh -c a && b <c >d", "empty_layer": True}, {"comment": "\u2028 é"}],
            }
        )
        for plain, escaped in ((b"&", b"\\u0026"), (b"<", b"\\u003c"), (b">", b"\\u003e"), (b"\\u00e9", "é".encode())):
            written = written.replace(plain, escaped)
        assert encode(decode_config(written)) == written

    def test_unknown_fields_are_kept_at_every_level(self) -> None:
        document = {
            **MANIFEST,
            "new": [1, {"deep": None}],
            "config": {**CONFIG, "platform": {"os": "linux", "architecture": "arm", "features": ["sse"]}, "x": 1.5},
            "layers": [{**LAYER, "y": {"z": 1 << 80}}],
        }
        assert json.loads(encode(decode_manifest(raw(document)))) == document

    def test_dockers_own_fields_of_a_config_are_kept(self) -> None:
        document = {
            **IMAGE,
            "config": {"Hostname": "h", "Healthcheck": {"Test": ["NONE"]}, "OnBuild": [], "Memory": 0},
            "container_config": {"Cmd": None},
            "docker_version": "20.10",
        }
        assert json.loads(encode(decode_config(raw(document)))) == document

    def test_null_for_a_known_field_counts_as_absent(self) -> None:
        given = {**IMAGE, "history": None, "config": {"Entrypoint": None, "Labels": None, "Volumes": None}}
        assert json.loads(encode(decode_config(raw(given)))) == IMAGE
        assert decode_index(raw({**INDEX, "manifests": None})).manifests == []

    def test_the_order_of_an_annotations_object_does_not_change_the_bytes(self) -> None:
        one = Descriptor(media_type="a/b", digest=Digest(f"sha256:{HEX}"), size=1, annotations={"b": "1", "a": "2"})
        two = Descriptor(media_type="a/b", digest=Digest(f"sha256:{HEX}"), size=1, annotations={"a": "2", "b": "1"})
        assert encode(one) == encode(two)

    def test_an_unknown_key_may_be_named_like_the_field_of_unknown_keys(self) -> None:
        document = {**INDEX, "(extra)": {"mediaType": 1}, "extra": 2}
        assert json.loads(encode(decode_index(raw(document)))) == document

    def test_an_unknown_field_cannot_be_set_to_shadow_a_known_one(self) -> None:
        sneaky = RootFs(diff_ids=[], extra={"type": "other"})
        with pytest.raises(InvalidInput, match="known field 'type'"):
            encode(sneaky)

    def test_new_documents_order_keys_as_the_specification_does(self) -> None:
        config = Descriptor(media_type=OCI_CONFIG, digest=Digest(f"sha256:{HEX}"), size=2)
        layer = Descriptor(media_type=OCI_LAYER_GZIP, digest=Digest(f"sha256:{HEX[::-1]}"), size=7)
        assert raw(MANIFEST) == encode(new_manifest(config, [layer]))
        assert raw(INDEX) == encode(new_index([]))
        image = ImageConfig(architecture="amd64", os="linux", rootfs=RootFs(diff_ids=[Digest(f"sha256:{HEX}")]))
        assert raw(IMAGE) == encode(image)
        assert encode(History(created_by="x", empty_layer=True)) == b'{"created_by":"x","empty_layer":true}'


class TestRefusals:
    def test_errors_name_the_document_and_the_field(self) -> None:
        assert (
            refusal({**MANIFEST, "layers": [{**LAYER, "size": "7"}]})
            == "manifest: layers[0].size: expected int, got str"
        )

    def test_a_missing_required_field_is_refused(self) -> None:
        assert "missing required field config" in refusal({"schemaVersion": 2, "layers": []})
        assert "missing required field mediaType" in refusal({**MANIFEST, "config": {**CONFIG, "mediaType": None}})

    @pytest.mark.parametrize("size", [-1, 1.0, True, 1 << 63, "1", None])
    def test_a_malformed_size_is_refused(self, size: object) -> None:
        assert "config" in refusal({**MANIFEST, "config": {**CONFIG, "size": size}})

    def test_malformed_digests_are_refused(self) -> None:
        for digest in ("sha256:ab", f"sha256:{HEX.upper()}", f"sha256:../{HEX[3:]}", HEX, 7):
            assert "config.digest: " in refusal({**MANIFEST, "config": {**CONFIG, "digest": digest}})
        assert "blake3" in refusal({**MANIFEST, "config": {**CONFIG, "digest": "blake3:aa"}}, Unsupported)

    def test_a_duplicate_key_is_refused(self) -> None:
        twice = raw(MANIFEST).replace(b'"size":7', b'"size":7,"size":8')
        assert refusal(twice) == "manifest: the key 'size' is repeated in one object"

    def test_a_duplicate_key_deep_in_unknown_fields_is_refused(self) -> None:
        assert "repeated" in refusal(raw(MANIFEST)[:-1] + b',"x":[{"a":{"b":1,"b":1}}]}')

    @pytest.mark.parametrize("key", ["Layers", "LAYERS", "layer\u017f"])
    def test_a_key_that_go_matches_regardless_of_case_is_refused(self, key: str) -> None:
        assert "only in case" in refusal({**MANIFEST, key: []})

    def test_a_key_that_go_matches_in_a_nested_object_is_refused(self) -> None:
        assert "manifest: layers[0].'Digest' differs" in refusal({**MANIFEST, "layers": [{**LAYER, "Digest": "x"}]})

    @pytest.mark.parametrize("text", [b"", b"{", b"{} {}", b"[1,]", b"{'a':1}", b"\xef\xbb\xbf{}", b"nul"])
    def test_text_that_is_not_json_is_refused(self, text: bytes) -> None:
        assert "not JSON" in refusal(text)

    @pytest.mark.parametrize("text", [b"\xff", '{"a":1}'.encode("utf-16"), b'"\xed\xa0\x80"', b'{"a":"\\ud800"}'])
    def test_bytes_that_are_not_utf_8_are_refused(self, text: bytes) -> None:
        assert "UTF-8" in refusal(text) or "surrogate" in refusal(text)

    def test_a_surrogate_pair_is_one_character(self) -> None:
        assert load(b'{"a":"\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}

    @pytest.mark.parametrize("text", [b"NaN", b"[Infinity]", b"1e999", b"9" * 41, b"9" * 9000])
    def test_nonstandard_and_unreasonable_numbers_are_refused(self, text: bytes) -> None:
        refusal(text)

    @pytest.mark.parametrize("value", [None, [], "x", 1, True])
    def test_a_document_that_is_no_object_is_refused(self, value: object) -> None:
        assert "expected a JSON object" in refusal(value)

    def test_deep_nesting_is_refused(self) -> None:
        assert "nested deeper" in refusal(b"[" * 100_000 + b"]" * 100_000, Exhausted)
        assert "nested deeper" in refusal(b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), Exhausted)
        load(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "x")

    def test_documents_and_lists_beyond_the_limits_are_refused(self) -> None:
        assert "bytes exceed the limit" in refusal(b'"' + b"a" * MAX_DOCUMENT + b'"', Exhausted)
        assert "objects and lists" in refusal(b"[" + b"[]," * 300_000 + b"1]", Exhausted)
        assert "layers exceed the limit" in refusal({**MANIFEST, "layers": [LAYER] * (MAX_LAYERS + 1)}, Exhausted)
        assert len(decode_manifest(raw({**MANIFEST, "layers": [LAYER] * MAX_LAYERS})).layers) == MAX_LAYERS


class TestConfusion:
    def test_a_document_that_is_both_manifest_and_index_is_refused(self) -> None:
        both = {**MANIFEST, "manifests": []}
        assert "the kind of the document is ambiguous" in refusal(both)
        del both["mediaType"]
        assert "ambiguous" in refusal(both)
        with pytest.raises(InvalidInput, match="ambiguous"):
            decode_index(raw(both))
        with pytest.raises(InvalidInput, match="ambiguous"):
            decode_index(raw({**INDEX, "Config": CONFIG}))

    def test_a_manifest_that_could_be_schema_1_is_refused(self) -> None:
        assert "ambiguous" in refusal({**MANIFEST, "fsLayers": []})

    def test_the_media_type_inside_must_be_the_declared_one(self) -> None:
        assert decode_manifest(raw(MANIFEST), OCI_MANIFEST).layers[0].size == MANIFEST["layers"][0]["size"]
        with pytest.raises(InvalidInput, match=r"mediaType: expected .*docker.*, got .*oci"):
            decode_manifest(raw(MANIFEST), DOCKER_MANIFEST)
        with pytest.raises(InvalidInput, match="mediaType"):
            decode_index(raw(MANIFEST), OCI_INDEX)
        with pytest.raises(Unsupported, match="is not one of"):
            decode_manifest(raw(MANIFEST), OCI_INDEX)

    def test_a_document_without_a_media_type_has_that_of_its_descriptor(self) -> None:
        bare = {key: value for key, value in MANIFEST.items() if key != "mediaType"}
        assert decode_manifest(raw(bare), DOCKER_MANIFEST).media_type == ""
        assert decode_index(raw({"schemaVersion": 2, "manifests": []}), DOCKER_LIST).media_type == ""

    def test_an_old_schema_version_is_refused(self) -> None:
        assert "schemaVersion" in refusal({**MANIFEST, "schemaVersion": 1})


class TestConfigAndLayers:
    def test_every_layer_has_one_diff_id(self) -> None:
        manifest, config = decode_manifest(raw(MANIFEST)), decode_config(raw(IMAGE))
        assert [(manifest.layers[0], config.rootfs.diff_ids[0])] == pair_layers(manifest, config)
        with pytest.raises(InvalidInput, match="2 layers, but the config has 1 diff ids"):
            pair_layers(decode_manifest(raw({**MANIFEST, "layers": [LAYER, LAYER]})), config)

    def test_an_image_without_layers_has_no_diff_ids(self) -> None:
        empty = decode_config(raw({**IMAGE, "rootfs": {"type": "layers", "diff_ids": None}}))
        assert pair_layers(decode_manifest(raw({**MANIFEST, "layers": []})), empty) == []

    def test_a_root_file_system_of_another_type_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match=r"image config: rootfs.type"):
            decode_config(raw({**IMAGE, "rootfs": {"type": "tree", "diff_ids": []}}))

    def test_the_platform_is_read_from_the_config(self) -> None:
        config = decode_config(raw({**IMAGE, "os": "windows", "os.version": "10.0.17763.1"}))
        assert str(config.platform) == "windows(10.0.17763.1)/amd64"


class TestOtherDocuments:
    def test_attestations_in_an_index_are_distinguished_from_images(self) -> None:
        entry = {**CONFIG, "mediaType": OCI_MANIFEST}
        about = [
            {**entry, "artifactType": "application/vnd.example"},
            {**entry, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
            {**entry, "platform": {"os": "unknown", "architecture": "unknown"}},
            {**entry, "mediaType": "application/json"},
        ]
        index = decode_index(raw({**INDEX, "manifests": [entry, {**entry, "mediaType": OCI_INDEX}, *about]}))
        assert [is_image_entry(one) for one in index.manifests] == [True, True, False, False, False, False]

    def test_the_layout_file_must_have_a_known_version(self) -> None:
        assert decode_layout(b'{"imageLayoutVersion":"1.0.0"}').image_layout_version == "1.0.0"
        with pytest.raises(Unsupported):
            decode_layout(b'{"imageLayoutVersion":"2.0.0"}')
        with pytest.raises(InvalidInput):
            decode_layout(b"{}")

    def test_tags_follow_the_grammar_of_the_annotation(self) -> None:
        for tag in ("latest", "docker.io/library/busybox:1.36", "a--b", "v1.0_x", "a@b"):
            assert parse_tag(tag) == tag
        for tag in ("", "a b", "-a", "a/", "a..b", "a\n", "a" * 1025):
            with pytest.raises(InvalidInput):
                parse_tag(tag)

    def test_the_manifest_list_of_a_docker_archive_is_read(self) -> None:
        [image] = decode_saved(b'[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar"],"Parent":"p"}]')
        assert (
            image.config,
            image.repo_tags,
            image.layers,
            image.extra,
        ) == ("c.json", [], ["a/layer.tar"], {"Parent": "p"})
        with pytest.raises(InvalidInput, match=r"manifest.json\[0\]: .*Layers"):
            decode_saved(b'[{"Config":"c.json"}]')
        with pytest.raises(InvalidInput, match="expected a list"):
            decode_saved(b"{}")

    def test_media_types_determine_the_compression_of_layers(self) -> None:
        assert layer_compression(OCI_LAYER_GZIP) == "gzip"
        assert layer_compression("application/vnd.docker.image.rootfs.diff.tar") == "none"
        assert layer_compression("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip") == "gzip"
        assert layer_compression("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd") == "zstd"
        with pytest.raises(Unsupported, match="encrypted"):
            layer_compression(f"{OCI_LAYER_GZIP}+encrypted")
        with pytest.raises(Unsupported, match="not the media type of a tar layer"):
            layer_compression(OCI_CONFIG)

    def test_decode_errors_name_the_document(self) -> None:
        with pytest.raises(InvalidInput, match=r"^the thing: "):
            decode(History, b"[]", "the thing")
