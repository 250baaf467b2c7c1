# SPDX-License-Identifier: Apache-2.0
"""Behaviours for `Registry.misbehave`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from msgspec.structs import replace
from tests.registry.hostile import Behaviour, Registry, Serve
from tests.registry.wire import Answer, Request, head


def say(answer: Answer) -> Behaviour:
    """Give the same answer each time, after the request's body has been read."""

    def act(request: Request, serve: Serve) -> Answer:
        request.body()
        return replace(answer, headers=dict(answer.headers))

    return act


def redirect(url: str, status: int = 307) -> Behaviour:
    """Redirect; ``{path}`` in the URL is the requested path."""

    def act(request: Request, serve: Serve) -> Answer:
        request.body()
        return Answer(status, {"Location": url.replace("{path}", request.path)})

    return act


def with_body(change: Callable[[bytes], bytes]) -> Behaviour:
    """Change the body, and the length with it."""

    def act(request: Request, serve: Serve) -> Answer:
        answer = serve()
        return replace(answer, body=change(_whole(answer)))

    return act


def with_headers(**headers: str | None) -> Behaviour:
    """Replace headers, or remove them by None; ``_`` stands for a hyphen."""

    def act(request: Request, serve: Serve) -> Answer:
        answer = serve()
        for name, value in headers.items():
            name = name.replace("_", "-")
            answer.headers = {key: old for key, old in answer.headers.items() if key.lower() != name.lower()}
            if value is not None:
                answer.headers[name] = value
        return answer

    return act


def cut_body(after: int) -> Behaviour:
    """Reset the connection after so many bytes of the body."""

    def act(request: Request, serve: Serve) -> Answer:
        return replace(serve(), cut=after)

    return act


def short_body(missing: int) -> Behaviour:
    """Send fewer bytes than the length says, and close the connection."""

    def act(request: Request, serve: Serve) -> Answer:
        answer = serve()
        raw = _whole(answer)
        start = head(answer.status, {**answer.headers, "Content-Length": str(len(raw))})
        return Answer(answer.status, raw=start + raw[: len(raw) - missing])

    return act


def endless(piece: bytes = b"\0" * 65536) -> Behaviour:
    """Send an endless body in chunks."""

    def forever() -> Iterator[bytes]:
        while True:
            yield piece

    def act(request: Request, serve: Serve) -> Answer:
        return replace(serve(), body=forever(), chunked=True)

    return act


def drip(seconds: float, count: int = 1) -> Behaviour:
    """Send the body so many bytes at a time, with a pause after each."""

    def slowly(raw: bytes) -> Iterator[bytes]:
        for at in range(0, len(raw), count):
            yield raw[at : at + count]
            time.sleep(seconds)

    def act(request: Request, serve: Serve) -> Answer:
        answer = serve()
        raw = _whole(answer)
        return replace(answer, body=slowly(raw), headers={**answer.headers, "Content-Length": str(len(raw))})

    return act


def endless_head(start: bytes, piece: bytes, seconds: float, times: int = 1_000_000) -> Behaviour:
    """Send the start of a head, then a piece so many times, with a pause before each."""

    def act(request: Request, serve: Serve) -> Answer:
        def slowly() -> Iterator[bytes]:
            yield start
            for _ in range(times):
                time.sleep(seconds)
                yield piece

        return Answer(0, raw=slowly())

    return act


def lying_chunks(request: Request, serve: Serve) -> Answer:
    """Send a chunk that is shorter than its size line says."""
    answer = serve()
    raw = _whole(answer)
    start = head(answer.status, {**answer.headers, "Transfer-Encoding": "chunked"})
    return Answer(answer.status, raw=start + b"%x\r\n" % (len(raw) + 100) + raw + b"\r\n0\r\n\r\n")


def reset(request: Request, serve: Serve) -> Answer:
    """Reset the connection instead of answering."""
    return Answer(0, cut=0, raw=b"")


def cut_upload(after: int, registry: Registry, *, keep: bool = True) -> Behaviour:
    """Read so many bytes of a body, keep them in the upload or not, and reset the connection."""

    def act(request: Request, serve: Serve) -> Answer:
        taken = b""
        while len(taken) < after and (part := request.take(after - len(taken))):
            taken += part
        session = request.path.rpartition("/")[2]
        if keep and session in registry.uploads:
            registry.uploads[session] += taken
        return Answer(0, cut=0, raw=b"")

    return act


def lose_upload(registry: Registry) -> Behaviour:
    """Lose the upload session before the request is served."""

    def act(request: Request, serve: Serve) -> Answer:
        registry.uploads.pop(request.path.rpartition("/")[2], None)
        request.body()
        return serve()

    return act


def _whole(answer: Answer) -> bytes:
    assert isinstance(answer.body, bytes)
    return answer.body
