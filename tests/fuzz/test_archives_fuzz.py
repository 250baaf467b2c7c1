# SPDX-License-Identifier: Apache-2.0
"""A damaged archive is read or refused with an expected error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import LamellaError
from lamella.images.resolve import open_platform_image
from lamella.testing.images import compact, layout_files, small_image, tagged, tar_of

IMAGE = small_image({"a": b"1"}, {"b": b"2"}, compress=False)
SAVED: dict[str, Any] = {
    "c.json": compact(IMAGE.config),
    "1.tar": IMAGE.layers[0],
    "2.tar": IMAGE.layers[1],
    "manifest.json": compact([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["1.tar", "2.tar"]}]),
}
SEEDS = (tar_of(layout_files([tagged(IMAGE.descriptor, "v1")], IMAGE.blobs)), tar_of(SAVED))


def seeds() -> Iterator[bytes]:
    yield from SEEDS


def fuzz_archive(data: bytes) -> None:
    """One input as both kinds of archive; every layer is read to its end, and is never longer than promised."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        descriptors = len(os.listdir("/proc/self/fd"))
        for form in ("oci-archive", "docker-archive"):
            try:
                with open_platform_image(f"{form}:{file.name}") as image:
                    for layer in image.layers:
                        with layer.open() as blob:
                            assert len(blob.read()) <= layer.descriptor.size
            except LamellaError:
                pass
        assert descriptors == len(os.listdir("/proc/self/fd"))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 16))] = draw(st.binary(max_size=16))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@settings(max_examples=150)
@given(damaged())
def test_archives_that_are_damaged(data: bytes) -> None:
    fuzz_archive(data)


MEMBERS = st.dictionaries(
    st.sampled_from([*SAVED, "oci-layout", "index.json", "blobs/sha256/x", "./c.json", "x"]),
    st.one_of(
        st.sampled_from([*SAVED.values(), b"{}", b"[]", b"null", b'[{"Config":"x","Layers":["x"]}]']),
        st.tuples(st.sampled_from([b"1", b"2", b"5", b"6"]), st.sampled_from(["x", "../x", "/x", "1.tar", "", "x/.."])),
    ),
)


@settings(max_examples=150)
@given(MEMBERS)
def test_archives_with_members_replaced(members: dict[str, Any]) -> None:
    fuzz_archive(tar_of({**SAVED, **members}))
