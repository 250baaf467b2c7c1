# SPDX-License-Identifier: Apache-2.0
"""Blobs arrive whole and in order, by one request or several, despite cuts."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.registry.hostile import Registry
from tests.registry.misbehaviour import cut_body, say, with_headers
from tests.registry.wire import Answer, Request

from lamella.digests import Digest
from lamella.errors import Cancelled, LamellaError, NotFound, SizeMismatch, Unavailable
from lamella.images.options import RegistryOptions
from lamella.oci.descriptor import Descriptor
from lamella.progress import Cancellation
from lamella.registry import blob_fetch
from lamella.registry.blob_fetch import BlobStream
from lamella.registry.client import Client
from lamella.registry.http.transport import Response

RAW = random.Random(3).randbytes(1_000_003)
BLOB = Descriptor(media_type="application/octet-stream", digest=Digest.of(RAW), size=len(RAW))
FAST = RegistryOptions(tries=3, retry_wait=2, read_timeout=5)

Open = Callable[..., BlobStream]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        server.add_blob("a", RAW)
        yield server


@pytest.fixture
def start(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """A function that opens the blob, with ranges of 100,000 bytes."""
    monkeypatch.setattr(blob_fetch, "RANGE_SIZE", 100_000)
    monkeypatch.setattr(blob_fetch, "SINGLE_REQUEST_SIZE", 200_000)
    monkeypatch.setattr(blob_fetch, "FAST_RATE", 1e18)
    monkeypatch.setattr("lamella.registry.http.retry.FIRST_PAUSE", 0.01)
    client = Client(registry.host, "a", FAST)

    def call(streams: int = 3, options: RegistryOptions = FAST, budget: int | threading.Semaphore = 5) -> BlobStream:
        options = RegistryOptions(
            streams=streams, tries=options.tries, read_timeout=options.read_timeout, cancel=options.cancel
        )
        held = threading.Semaphore(budget) if isinstance(budget, int) else budget
        return BlobStream(lambda at, stop: client.blob(BLOB.digest, at, stop), BLOB, "test", options, held)

    yield call
    client.close()


def ranges(registry: Registry) -> list[str]:
    return [request.headers.get("Range", "") for request in registry.asked("GET", "/blobs/")]


@pytest.mark.parametrize("streams", [1, 2, 5])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_blob_comes_whole(start: Open, streams: int, budget: int) -> None:
    with start(streams, budget=budget) as stream:
        assert stream.readall() == RAW
        assert stream.read(1) == b""


def test_one_stream_makes_one_request_without_a_range(start: Open, registry: Registry) -> None:
    with start(1) as stream:
        stream.readall()
    assert ranges(registry) == [""]


def test_several_streams_ask_for_each_range_once(start: Open, registry: Registry) -> None:
    with start(3) as stream:
        stream.readall()
    expected = [f"bytes={at}-{at + 99_999}" for at in range(0, 1_000_000, 100_000)] + ["bytes=1000000-"]
    assert sorted(ranges(registry), key=lambda text: int(text[6:].partition("-")[0])) == expected


def test_a_fast_registry_is_asked_for_the_rest_at_once(
    start: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_fetch, "FAST_RATE", 0)
    with start(3) as stream:
        assert stream.readall() == RAW
    assert ranges(registry) == ["bytes=0-99999", "bytes=100000-"]


def test_reads_into_a_buffer_of_any_size(start: Open) -> None:
    room = bytearray(70_001)
    got = bytearray()
    with start(2) as stream:
        while count := stream.readinto(room):
            got += room[:count]
    assert bytes(got) == RAW


@pytest.mark.parametrize("streams", [1, 3])
def test_a_cut_blob_is_continued_by_a_request_for_the_rest(start: Open, registry: Registry, streams: int) -> None:
    registry.misbehave("GET", "/blobs/", cut_body(50_000), times=2)
    with start(streams) as stream:
        assert stream.readall() == RAW


@pytest.mark.parametrize("streams", [1, 3])
def test_a_blob_comes_whole_from_a_registry_without_ranges(start: Open, registry: Registry, streams: int) -> None:
    def ignore(request: Request, serve: Callable[[], Answer]) -> Answer:
        request.headers.pop("Range", None)
        return serve()

    registry.misbehave("GET", "/blobs/", cut_body(300_000), times=1)
    registry.misbehave("GET", "/blobs/", ignore)
    with start(streams) as stream:
        assert stream.readall() == RAW


def test_a_large_blob_that_is_answered_whole_takes_one_request(start: Open, registry: Registry) -> None:
    def ignore(request: Request, serve: Callable[[], Answer]) -> Answer:
        wanted.append(request.headers.pop("Range", ""))
        return serve()

    wanted: list[str] = []
    registry.misbehave("GET", "/blobs/", ignore)
    with start(3) as stream:
        assert stream.readall() == RAW
    assert wanted == ["bytes=0-99999"]


@pytest.mark.parametrize("streams", [1, 3])
def test_cuts_without_end_exhaust_the_tries(start: Open, registry: Registry, streams: int) -> None:
    registry.misbehave("GET", "/blobs/", cut_body(10))
    with pytest.raises(Unavailable), start(streams) as stream:
        stream.readall()
    assert len(ranges(registry)) <= 3 * FAST.tries


def test_the_error_of_a_range_is_raised_where_the_range_is_read(start: Open, registry: Registry) -> None:
    def fail(request: Request, serve: Callable[[], Answer]) -> Answer:
        return Answer(404) if request.headers.get("Range", "").startswith("bytes=500000-") else serve()

    registry.misbehave("GET", "/blobs/", fail)
    got = bytearray()

    def read_on() -> None:
        with start(3) as stream:
            while piece := stream.read(1 << 16):
                got.extend(piece)

    with pytest.raises(NotFound):
        read_on()
    assert bytes(got) == RAW[:500_000]


def test_an_absent_blob_cannot_be_opened(start: Open, registry: Registry) -> None:
    registry.repositories["a"].clear()
    for streams in (1, 3):
        with pytest.raises(NotFound):
            start(streams)


def test_a_stream_that_failed_to_open_is_closed_without_a_warning() -> None:
    closed = []

    class Watched(BlobStream):
        def close(self) -> None:
            super().close()
            closed.append(self.closed)

    def fetch(start: int, stop: int | None) -> Response:
        raise NotFound("no such blob")

    with pytest.raises(NotFound):
        Watched(fetch, BLOB, "a", FAST, threading.Semaphore(1))
    assert closed == [True]


@pytest.mark.parametrize("streams", [1, 3])
def test_a_wrong_size_is_found_when_the_blob_is_opened(start: Open, registry: Registry, streams: int) -> None:
    registry.blobs[BLOB.digest] = RAW + b"x"
    with pytest.raises(SizeMismatch):
        start(streams).readall()


def test_a_range_other_than_the_requested_one_is_refused(start: Open, registry: Registry) -> None:
    registry.misbehave("GET", "/blobs/", with_headers(Content_Range=f"bytes 7-99999/{len(RAW)}"))
    with pytest.raises(LamellaError, match="asked for bytes from 0"):
        start(3).readall()


def test_a_stream_that_is_closed_early_stops_its_threads(start: Open) -> None:
    before = threading.active_count()
    stream = start(4)
    stream.read(150_000)
    stream.read(150_000)
    stream.close()
    for thread in threading.enumerate():
        if thread.name == "lamella-range":
            thread.join(5)
    assert [one.name for one in threading.enumerate() if one.name == "lamella-range"] == []
    assert threading.active_count() >= before - 1
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_a_cancelled_read_stops(start: Open, registry: Registry) -> None:
    for streams in (1, 3):
        cancel = Cancellation()
        options = RegistryOptions(tries=3, cancel=cancel)
        with start(streams, options) as stream:
            stream.read(10)
            cancel.cancel()
            with pytest.raises(Cancelled):
                stream.readall()


@pytest.mark.parametrize("end", ["read", "closed", "failed"])
def test_the_budget_of_ranges_is_given_back(start: Open, registry: Registry, end: str) -> None:
    def fail(request: Request, serve: Callable[[], Answer]) -> Answer:
        return Answer(404) if request.headers.get("Range", "").startswith("bytes=300000-") else serve()

    if end == "failed":
        registry.misbehave("GET", "/blobs/", fail)
    budget = threading.Semaphore(3)
    stream = start(4, budget=budget)
    got = 0
    while got <= 100_000:  # the first range and one byte of the read-ahead
        got += len(stream.read(100_001 - got))
    while budget.acquire(blocking=False):
        budget.release()
        time.sleep(0.01)
    if end == "read":
        assert got + len(stream.readall()) == len(RAW)
    elif end == "failed":
        with pytest.raises(NotFound):
            stream.readall()
    stream.close()
    for thread in threading.enumerate():
        if thread.name == "lamella-range":
            thread.join(5)
    assert [budget.acquire(blocking=False) for _ in range(4)] == [True, True, True, False]


def test_a_refusal_is_not_retried(start: Open, registry: Registry) -> None:
    registry.misbehave("GET", "/blobs/", say(Answer(403)))
    with pytest.raises(LamellaError):
        start(1)
    assert len(ranges(registry)) == 1
