# SPDX-License-Identifier: Apache-2.0
"""Blobs over gRPC: reading in pieces, and the rules of writing, which clients lean on."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from tests.unit.service.serving import Client, Served, code_of, failure, within

from lamella.protocol.proto import content_pb2 as pb
from lamella.protocol.proto import leases_pb2
from lamella.service.services import content as module

Code = grpc.StatusCode
BLOB = bytes(range(256)) * 12_000  # three chunks


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def sha512(data: bytes) -> str:
    return f"sha512:{hashlib.sha512(data).hexdigest()}"


class Writer:
    """A Write stream, driven message by message as containerd's clients do."""

    def __init__(self, client: Client, namespace: str = "default", lease: str = "") -> None:
        self._requests: SimpleQueue[pb.WriteContentRequest | None] = SimpleQueue()
        self.call: Any = client.content.Write(iter(self._requests.get, None), metadata=within(namespace, lease))

    def send(self, action: pb.WriteAction = pb.WRITE, **fields: Any) -> pb.WriteContentResponse:
        self._requests.put(pb.WriteContentRequest(action=action, **fields))
        answer: pb.WriteContentResponse = next(self.call)
        return answer

    def done(self) -> list[pb.WriteContentResponse]:
        self._requests.put(None)
        return list(self.call)


def put(client: Client, data: bytes, namespace: str = "default", lease: str = "", **fields: Any) -> str:
    writer = Writer(client, namespace, lease)
    answer = writer.send(pb.COMMIT, ref=f"put-{sha256(data)}", data=data, total=len(data), **fields)
    assert writer.done() == []
    return answer.digest


def read(client: Client, digest: str, offset: int = 0, size: int = 0) -> list[pb.ReadContentResponse]:
    request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
    return list(client.content.Read(request, metadata=within()))


# Reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 0),
        (0, len(BLOB)),
        (0, len(BLOB) + 1),
        (-5, 10),
        (7, 32768),
        (1, 65536),
        (1, 65537),
        (1 << 20, 1 << 20),
        (5, 3_000_000),
        (len(BLOB) - 1, 0),
        (len(BLOB) - 1, 9),
    ],
)
def test_a_range_of_a_blob_is_read(client: Client, offset: int, size: int) -> None:
    digest = put(client, BLOB)
    start = max(0, offset)
    expected = BLOB[start : start + size] if size else BLOB[start:]
    assert expected == b"".join(answer.data for answer in read(client, digest, offset, size))


def test_offsets_of_answers_count_from_the_start_of_the_range(client: Client) -> None:
    digest = put(client, BLOB)
    assert [answer.offset for answer in read(client, digest, 10)] == [0, 1 << 20, 2 << 20]


def test_reading_at_the_end_gives_nothing_and_past_it_is_out_of_range(client: Client) -> None:
    digest = put(client, BLOB)
    assert read(client, digest, len(BLOB)) == []
    assert code_of(lambda: read(client, digest, len(BLOB) + 1)) == Code.OUT_OF_RANGE


def test_an_empty_blob_is_written_and_read(client: Client) -> None:
    digest = put(client, b"")
    assert digest == sha256(b"")
    assert read(client, digest) == []


def test_a_deleted_blob_is_not_read_from_the_file_that_is_still_open(client: Client) -> None:
    digest = put(client, BLOB)
    assert len(read(client, digest, 0, 100)) == 1
    client.content.Delete(pb.DeleteContentRequest(digest=digest), metadata=within())
    assert code_of(lambda: read(client, digest, 0, 100)) == Code.NOT_FOUND


def test_another_namespace_does_not_read_a_blob(client: Client) -> None:
    digest = put(client, BLOB)
    assert len(read(client, digest, 0, 100)) == 1
    request = pb.ReadContentRequest(digest=digest, size=100)
    assert code_of(lambda: client.content.Read(request, metadata=within("other"))) == Code.NOT_FOUND


def test_a_read_that_is_cancelled_ends(client: Client) -> None:
    digest = put(client, BLOB)
    call = client.content.Read(pb.ReadContentRequest(digest=digest), metadata=within())
    next(call)
    call.cancel()
    assert code_of(lambda: call) == Code.CANCELLED
    assert len(read(client, digest)) == 3


# Records -----------------------------------------------------------------------------------------------------------


def test_the_metadata_of_a_blob_is_read_and_changed(client: Client) -> None:
    digest = put(client, b"abc", labels={"a": "1", "x.y/z": "2"})
    info = client.content.Info(pb.InfoRequest(digest=digest), metadata=within()).info
    assert (info.digest, info.size, dict(info.labels)) == (digest, 3, {"a": "1", "x.y/z": "2"})
    assert info.created_at == info.updated_at
    change = pb.Info(digest=digest, labels={"x.y/z": "3", "b": "4"}, created_at=Timestamp(seconds=-62135596800))
    mask = FieldMask(paths=["labels.x.y/z", "labels.gone"])
    changed = client.content.Update(pb.UpdateRequest(info=change, update_mask=mask), metadata=within()).info
    assert dict(changed.labels) == {"a": "1", "x.y/z": "3"}
    assert changed.created_at == info.created_at
    assert changed.updated_at.ToNanoseconds() > info.updated_at.ToNanoseconds()
    replaced = client.content.Update(pb.UpdateRequest(info=change), metadata=within()).info
    assert dict(replaced.labels) == {"x.y/z": "3", "b": "4"}


def test_blobs_are_listed_by_digest_in_pages_and_through_filters(served: Served) -> None:
    client = served.client
    lease = client.leases.Create(leases_pb2.CreateRequest(id="l"), metadata=within()).lease.id
    blobs = sorted(put(client, str(number).encode(), lease=lease) for number in range(130))
    pages = list(client.content.List(pb.ListContentRequest(), metadata=within()))
    assert [len(page.info) for page in pages] == [100, 30]
    assert blobs == [info.digest for page in pages for info in page.info]
    wanted = pb.ListContentRequest(filters=[f"digest=={blobs[3]}", f"digest=={blobs[5]}"])
    assert [blobs[3], blobs[5]] == [
        info.digest for page in client.content.List(wanted, metadata=within()) for info in page.info
    ]


UNKNOWN = sha256(b"unknown")


@pytest.mark.parametrize(
    ("code", "call"),
    [
        (Code.NOT_FOUND, lambda c: c.content.Info(pb.InfoRequest(digest=UNKNOWN), metadata=within())),
        (Code.INVALID_ARGUMENT, lambda c: c.content.Info(pb.InfoRequest(digest="sha256:1"), metadata=within())),
        (Code.INVALID_ARGUMENT, lambda c: c.content.Info(pb.InfoRequest(), metadata=within())),
        (Code.INVALID_ARGUMENT, lambda c: c.content.Info(pb.InfoRequest(digest="md5:" + "0" * 32), metadata=within())),
        (Code.FAILED_PRECONDITION, lambda c: c.content.Info(pb.InfoRequest(digest=UNKNOWN))),
        (Code.FAILED_PRECONDITION, lambda c: c.content.Info(pb.InfoRequest(digest=UNKNOWN), metadata=within(""))),
        (Code.INVALID_ARGUMENT, lambda c: c.content.Info(pb.InfoRequest(digest=UNKNOWN), metadata=within("a/b"))),
        (Code.NOT_FOUND, lambda c: c.content.Delete(pb.DeleteContentRequest(digest=UNKNOWN), metadata=within())),
        (Code.NOT_FOUND, lambda c: c.content.Read(pb.ReadContentRequest(digest=UNKNOWN), metadata=within())),
        (Code.NOT_FOUND, lambda c: c.content.Read(pb.ReadContentRequest(digest=UNKNOWN, size=1), metadata=within())),
        (Code.NOT_FOUND, lambda c: c.content.Status(pb.StatusRequest(ref="r"), metadata=within())),
        (Code.NOT_FOUND, lambda c: c.content.Abort(pb.AbortRequest(ref="r"), metadata=within())),
        (Code.NOT_FOUND, lambda c: c.content.Update(pb.UpdateRequest(info={"digest": UNKNOWN}), metadata=within())),
        (Code.INVALID_ARGUMENT, lambda c: c.content.List(pb.ListContentRequest(filters=["a=b"]), metadata=within())),
        (
            Code.INVALID_ARGUMENT,
            lambda c: c.content.ListStatuses(pb.ListStatusesRequest(filters=["=="]), metadata=within()),
        ),
    ],
)
def test_calls_that_cannot_be_answered_have_their_status(
    client: Client, code: grpc.StatusCode, call: Callable[[Client], object]
) -> None:
    assert code_of(lambda: call(client)) == code


@pytest.mark.parametrize("path", ["size", "labelsx", "labels.", "digest"])
def test_a_mask_of_something_else_than_labels_is_refused(client: Client, path: str) -> None:
    digest = put(client, b"abc")
    request = pb.UpdateRequest(info=pb.Info(digest=digest), update_mask=FieldMask(paths=[path]))
    assert code_of(lambda: client.content.Update(request, metadata=within())) == Code.INVALID_ARGUMENT


def test_a_call_without_a_namespace_is_refused(client: Client) -> None:
    assert failure(lambda: client.content.Info(pb.InfoRequest(digest=UNKNOWN))).details() == "namespace is required"


# Writing -----------------------------------------------------------------------------------------------------------


def test_each_answer_has_the_offset_and_the_running_digest(client: Client) -> None:
    writer = Writer(client)
    stat = writer.send(pb.STAT, ref="r", total=6)
    assert (stat.action, stat.offset, stat.total, stat.digest) == (pb.STAT, 0, 6, sha256(b""))
    assert stat.started_at.seconds > 0
    first = writer.send(data=b"abc")
    assert (first.action, first.offset, first.digest) == (pb.WRITE, 3, sha256(b"abc"))
    nothing = writer.send(offset=3)
    assert (nothing.offset, nothing.digest) == (3, sha256(b"abc"))
    second = writer.send(offset=3, data=b"def")
    assert (second.offset, second.digest) == (6, sha256(b"abcdef"))
    done = writer.send(pb.COMMIT, offset=6, total=6, expected=sha256(b"abcdef"), labels={"a": "b"})
    assert (done.action, done.offset, done.total, done.digest) == (pb.COMMIT, 6, 6, sha256(b"abcdef"))
    assert writer.done() == []
    info = client.content.Info(pb.InfoRequest(digest=sha256(b"abcdef")), metadata=within()).info
    assert dict(info.labels) == {"a": "b"}


def test_the_first_message_must_name_the_ingest(client: Client) -> None:
    assert code_of(lambda: Writer(client).send(pb.STAT)) == Code.INVALID_ARGUMENT


def test_a_stream_without_a_message_ends_well(client: Client) -> None:
    assert Writer(client).done() == []


def test_an_ingest_resumes_at_its_offset(client: Client) -> None:
    writer = Writer(client)
    writer.send(ref="r", data=b"abc")
    assert writer.done() == []
    (status,) = client.content.ListStatuses(pb.ListStatusesRequest(filters=[""]), metadata=within()).statuses
    assert (status.ref, status.offset) == ("r", 3)
    again = Writer(client)
    stat = again.send(pb.STAT, ref="r")
    assert (stat.offset, stat.digest) == (3, sha256(b"abc"))
    again.send(pb.COMMIT, offset=3, data=b"d")
    assert [answer.data for answer in read(client, sha256(b"abcd"))] == [b"abcd"]
    assert not client.content.ListStatuses(pb.ListStatusesRequest(), metadata=within()).statuses


def test_another_total_starts_over(client: Client) -> None:
    writer = Writer(client)
    writer.send(ref="r", data=b"abc", total=10)
    writer.done()
    assert Writer(client).send(pb.STAT, ref="r", total=11).offset == 0


def test_offset_0_starts_over_and_any_other_must_be_the_end(client: Client) -> None:
    writer = Writer(client)
    writer.send(ref="r", data=b"abc")
    reset = writer.send(data=b"x")
    assert (reset.offset, reset.digest) == (1, sha256(b"x"))
    assert writer.send().offset == 0
    assert code_of(lambda: writer.send(offset=2, data=b"y")) == Code.OUT_OF_RANGE


@pytest.mark.parametrize("wrong", [{"total": 4}, {"expected": sha256(b"else")}])
def test_a_commit_of_something_else_keeps_the_ingest(client: Client, wrong: dict[str, Any]) -> None:
    writer = Writer(client)
    writer.send(ref="r", data=b"abc")
    assert code_of(lambda: writer.send(pb.COMMIT, offset=3, **wrong)) == Code.FAILED_PRECONDITION
    status = client.content.Status(pb.StatusRequest(ref="r"), metadata=within()).status
    assert status.offset == 3
    assert Writer(client).send(pb.COMMIT, ref="r", offset=3, total=3, expected=sha256(b"abc")).digest == sha256(b"abc")


def test_a_blob_that_is_there_is_not_written_again(client: Client) -> None:
    digest = put(client, b"abc")
    assert code_of(lambda: Writer(client).send(pb.STAT, ref="r", expected=digest)) == Code.ALREADY_EXISTS
    late = Writer(client)
    late.send(ref="r", data=b"ab")
    assert code_of(lambda: late.send(offset=2, expected=digest)) == Code.ALREADY_EXISTS
    last = Writer(client)
    assert last.send(ref="r", data=b"abc").digest == digest
    assert code_of(lambda: last.send(pb.COMMIT, offset=3)) == Code.ALREADY_EXISTS
    assert not client.content.ListStatuses(pb.ListStatusesRequest(), metadata=within()).statuses


def test_sha512_is_computed_where_it_is_expected(client: Client) -> None:
    writer = Writer(client)
    assert writer.send(pb.STAT, ref="r", expected=sha512(b"abc")).digest == sha512(b"")
    assert writer.send(pb.COMMIT, data=b"abc").digest == sha512(b"abc")


def test_what_another_namespace_has_is_there_at_once(client: Client) -> None:
    digest = put(client, b"abc")
    writer = Writer(client, "other")
    stat = writer.send(pb.STAT, ref="r", expected=digest)
    assert (stat.offset, stat.total, stat.digest) == (3, 3, digest)
    assert writer.send(pb.COMMIT, offset=3, total=3, expected=digest).offset == 3
    assert client.content.Info(pb.InfoRequest(digest=digest), metadata=within("other")).info.size == 3


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        (Code.INVALID_ARGUMENT, {"ref": "r", "expected": "sha256:zz"}),
        (Code.INVALID_ARGUMENT, {"ref": "r", "total": -1}),
        (Code.INVALID_ARGUMENT, {"ref": "r", "action": 7}),
        (Code.OUT_OF_RANGE, {"ref": "r", "offset": 9}),
        (Code.OUT_OF_RANGE, {"ref": "r", "offset": -1}),
        (Code.INVALID_ARGUMENT, {"ref": "r", "action": pb.COMMIT, "labels": {"a": "b" * 4096}}),
    ],
)
def test_messages_that_make_no_sense_are_refused(client: Client, code: grpc.StatusCode, fields: dict[str, Any]) -> None:
    action = fields.pop("action", pb.WRITE)
    assert code_of(lambda: Writer(client).send(action, **fields)) == code
    # And the ingest is nobody's.
    assert Writer(client).send(pb.STAT, ref="r").offset == 0


def test_a_lease_that_does_not_exist_is_not_found(client: Client) -> None:
    assert code_of(lambda: Writer(client, lease="none").send(pb.STAT, ref="r")) == Code.NOT_FOUND


def test_blobs_are_put_under_the_lease_of_the_call(client: Client) -> None:
    there = put(client, b"there")
    client.leases.Create(leases_pb2.CreateRequest(id="l"), metadata=within())
    made = put(client, b"made", lease="l")
    assert code_of(lambda: Writer(client, lease="l").send(ref="r", expected=there)) == Code.ALREADY_EXISTS
    held = client.leases.ListResources(leases_pb2.ListResourcesRequest(id="l"), metadata=within()).resources
    assert sorted([("content", made), ("content", there)]) == sorted((one.type, one.id) for one in held)


# Locks -------------------------------------------------------------------------------------------------------------


def test_an_ingest_that_is_open_is_not_opened_or_aborted_by_another(client: Client) -> None:
    holder = Writer(client)
    holder.send(ref="r", data=b"abc")
    assert code_of(lambda: Writer(client).send(ref="r")) == Code.UNAVAILABLE
    assert code_of(lambda: client.content.Abort(pb.AbortRequest(ref="r"), metadata=within())) == Code.UNAVAILABLE
    assert Writer(client, "other").send(ref="r").offset == 0
    assert holder.send(offset=3, data=b"d").offset == 4


def test_an_ingest_is_free_as_soon_as_its_client_cancels(client: Client) -> None:
    for length in range(1, 30):
        writer = Writer(client)
        assert writer.send(ref="r", offset=length - 1, data=b"x").offset == length
        writer.call.cancel()


def test_an_ingest_that_was_being_opened_when_its_client_cancelled_is_free(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = module._Writer
    began = threading.Event()

    def slowly(*arguments: Any) -> Any:
        found = opened(*arguments)
        if not began.is_set():
            began.set()
            time.sleep(0.5)
        return found

    monkeypatch.setattr(module, "_Writer", slowly)
    writer = Writer(client)
    writer._requests.put(pb.WriteContentRequest(ref="r", action=pb.WRITE, data=b"abc"))
    assert began.wait(20)
    writer.call.cancel()
    assert Writer(client).send(pb.STAT, ref="r").offset in (0, 3)


def test_an_ingest_whose_client_begins_the_next_call_before_it_cancels_is_free(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OVERTAKEN", 5.0)  # a tenth of a second is little on a busy machine
    for length in range(1, 10):
        holder = Writer(client)
        assert holder.send(ref="r", offset=length - 1, data=b"x").offset == length
        threading.Timer(0.02, holder.call.cancel).start()
        following = Writer(client)
        assert following.send(pb.STAT, ref="r").offset == length
        following.call.cancel()


def test_an_ingest_is_free_as_soon_as_its_client_is_gone(served: Served) -> None:
    for length in range(1, 6):
        other = Client(served.address)
        assert Writer(other).send(ref="r", offset=length - 1, data=b"x").offset == length
        other.close()
    served.client.content.Abort(pb.AbortRequest(ref="r"), metadata=within())
    assert code_of(lambda: served.client.content.Status(pb.StatusRequest(ref="r"), metadata=within())) == Code.NOT_FOUND


def test_large_messages_arrive_and_larger_ones_than_16_mib_are_refused(client: Client) -> None:
    data = bytes(8 << 20)
    assert put(client, data) == sha256(data)
    too_large = bytes((16 << 20) + 1)
    assert code_of(lambda: Writer(client).send(ref="r", data=too_large)) == Code.RESOURCE_EXHAUSTED
    assert put(client, b"still served") == sha256(b"still served")


def test_many_clients_write_and_read_side_by_side(served: Served) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            client = Client(served.address)
            data = bytes([number]) * (200_000 + number)
            digest = put(client, data)
            for _ in range(3):
                assert b"".join(answer.data for answer in read(client, digest)) == data
            client.close()
        except BaseException as problem:  # noqa: BLE001 told by the main thread
            failures.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_stream_that_rests_does_not_hold_others_up(client: Client) -> None:
    resting = [Writer(client) for _ in range(40)]
    for number, writer in enumerate(resting):
        writer.send(ref=f"r{number}")
    began = time.monotonic()
    assert put(client, b"abc") == sha256(b"abc")
    assert time.monotonic() - began < 5


def requests_that_stop() -> Iterator[pb.WriteContentRequest]:
    yield pb.WriteContentRequest(ref="r", action=pb.WRITE, data=b"abc")
    raise ValueError("the client fails")


def test_a_client_that_fails_while_it_sends_leaves_what_it_sent(client: Client) -> None:
    call = client.content.Write(requests_that_stop(), metadata=within())
    with pytest.raises(grpc.RpcError):
        list(call)
    stat = Writer(client).send(pb.STAT, ref="r")
    assert stat.offset in (0, 3)
