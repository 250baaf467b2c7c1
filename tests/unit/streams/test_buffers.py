# SPDX-License-Identifier: Apache-2.0
"""An uncompressed file in buffers."""

from __future__ import annotations

import io
from typing import BinaryIO, cast

import pytest
from tests.unit.streams.blobs import SIZES, Trickle, tar_like

from lamella.streams.buffers import BUFFER_SIZE, FileBuffers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("room", [512, BUFFER_SIZE])
def test_each_buffer_is_full_save_the_last(size: int, room: int) -> None:
    tar = tar_like(min(size, 3 * room))
    for source in (io.BytesIO(tar), cast("BinaryIO", Trickle(tar, 300))):
        buffers = FileBuffers(source, room)
        got = []
        while buffer := buffers.next_buffer():
            got.append(bytes(buffer))
        assert tar == b"".join(got)
        assert [room] * (len(got) - 1) == [len(buffer) for buffer in got[:-1]]
        assert len(buffers.next_buffer()) == 0
