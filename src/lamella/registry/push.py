# SPDX-License-Identifier: Apache-2.0
"""Uploads of blobs in pieces, each of which can be sent again (distribution-spec, "Push")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from lamella.digests import Digest
from lamella.errors import Conflict, DigestMismatch, LamellaError, NotFound, Unavailable
from lamella.images.contract import Buffer
from lamella.registry.endpoint import Endpoint, Request
from lamella.registry.http.retry import Retries
from lamella.registry.http.transport import Interrupted, Response

_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_MAX_CHUNK_MINIMUM: Final = 64 << 20
_BYTES: Final = {"Content-Type": "application/octet-stream"}


class UploadLost(Unavailable):
    """The registry has lost the upload, which must be started again."""


class Upload:
    """An upload session. Not thread-safe."""

    def __init__(self, endpoint: Endpoint, repository: str, scopes: Sequence[str], response: Response) -> None:
        self._endpoint = endpoint
        self._repository = repository
        self._scopes = scopes
        self._where = endpoint.registry
        self._url = ""
        self.offset = 0
        """Bytes that the registry has."""
        self._follow(response)
        if not self._url:
            raise Unavailable(f"{self._where}: the response that began an upload has no Location")
        text = response.headers.get("OCI-Chunk-Min-Length", "")
        minimum = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0
        self.chunk_minimum = min(minimum, _MAX_CHUNK_MINIMUM)
        """Bytes that each piece except the last must have."""

    def send(self, piece: memoryview) -> None:
        """Append a piece; after a failure, only the part that the registry lacks is sent again.

        Raises UploadLost, Unavailable, Denied, Unsupported, Exhausted, Conflict.
        """
        start, end = self.offset, self.offset + len(piece)
        retries = Retries(self._endpoint.options)
        while self.offset < end:
            rest = piece[self.offset - start :]
            headers = {**_BYTES, "Content-Range": f"{self.offset}-{end - 1}"}
            before = self.offset
            retries.begin()
            accept = (202, 201, 204)
            request = Request("PATCH", self._url, "upload a piece", self._scopes, headers, rest, accept, repeat=False)
            try:
                response = self._endpoint.send(request)
            except NotFound as problem:
                raise UploadLost(str(problem), hint="try again") from None
            except (Interrupted, Unavailable, Conflict) as problem:
                self._query_offset(start, end)
                retries.progress(max(0, self.offset - before))
                retries.pause(problem)
                continue
            response.discard()
            self._follow(response)
            arrived = _arrived(response)
            self.offset = end if arrived is None else arrived
            if not start <= self.offset <= end:
                raise Conflict(f"{self._where}: claims {self.offset} bytes of an upload of {end}")
            if self.offset < end:
                retries.pause(Unavailable(f"{self._where}: accepted only a part of a piece"))

    def finish(self, digest: Digest, body: Buffer | None = None) -> None:
        """Append ``body`` and complete the upload as the blob ``digest``. Raises as `send`, Integrity."""
        total = self.offset + (len(body) if body is not None else 0)
        retries = Retries(self._endpoint.options)
        while True:
            url = f"{self._url}{'&' if '?' in self._url else '?'}digest={digest}"
            rest = memoryview(body)[len(body) - (total - self.offset) :] if body is not None else None
            headers = dict(_BYTES)
            if rest is not None and self.offset:
                headers["Content-Range"] = f"{self.offset}-{total - 1}"
            retries.begin()
            request = Request(
                "PUT", url, f"put the blob {digest}", self._scopes, headers, rest, (201, 204), repeat=False
            )
            try:
                response = self._endpoint.send(request)
            except (NotFound, Interrupted, Unavailable, Conflict) as problem:
                retries.pause(problem, 0.0 if isinstance(problem, NotFound) else None)
                try:
                    self._query_offset(total - (len(body) if body is not None else 0), total)
                except UploadLost:
                    if self._blob_exists(digest, total):  # it was completed, and the response was lost
                        return
                    raise
                continue
            response.discard()
            stored = response.headers.get("Docker-Content-Digest")
            if stored is not None and stored.startswith(f"{digest.algorithm}:") and stored != digest:
                raise DigestMismatch(f"{self._where}: the blob as stored", expected=digest, actual=stored[:200])
            return

    def cancel(self) -> None:
        """Cancel the upload at the registry; errors are ignored."""
        try:
            accept = (204, 202, 200, 404)
            request = Request("DELETE", self._url, "cancel an upload", self._scopes, accept=accept, repeat=False)
            self._endpoint.send(request).discard()
        except LamellaError:
            pass

    def _query_offset(self, start: int, end: int) -> None:
        """Ask how many bytes have arrived. Raises UploadLost if they are fewer than ``start``, which are not kept."""
        try:
            response = self._endpoint.send(
                Request("GET", self._url, "query an upload", self._scopes, accept=(204, 200))
            )
        except (NotFound, Conflict) as problem:
            raise UploadLost(str(problem), hint="try again") from None
        response.discard()
        self._follow(response)
        arrived = _arrived(response) or 0
        if arrived > end:
            raise Conflict(f"{self._where}: claims {arrived} bytes of an upload of {end}")
        if arrived < start:
            raise UploadLost(f"{self._where}: lost bytes of an upload: it has {arrived} of {start}", hint="try again")
        self.offset = arrived

    def _blob_exists(self, digest: Digest, size: int) -> bool:
        url = self._endpoint.url(f"{self._repository}/blobs/{digest}")
        try:
            response = self._endpoint.send(Request("HEAD", url, "look for a blob", self._scopes))
        except NotFound:
            return False
        response.close()
        return response.length == size

    def _follow(self, response: Response) -> None:
        self._url = self._endpoint.location(response) or self._url


def _arrived(response: Response) -> int | None:
    """The bytes that the registry has, from its ``Range`` header; None if it is absent.

    ``0-0`` means none: registries send it for a new upload, and no piece has a single byte.
    """
    match = _RANGE.fullmatch(response.headers.get("Range", "").strip())
    if match is None:
        return None
    last = int(match[1])
    return last + 1 if last else 0
