# SPDX-License-Identifier: Apache-2.0
"""One blob on its way into a registry: in pieces, each of which can be sent again (distribution-spec, "Push")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from lamella.digests import Digest
from lamella.errors import Conflict, DigestMismatch, LamellaError, NotFound, Unavailable
from lamella.images.contract import Buffer
from lamella.registry.endpoint import Endpoint
from lamella.registry.http.retry import Patience
from lamella.registry.http.transport import Interrupted, Response

_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_MAX_LEAST: Final = 64 << 20

_BYTES: Final = {"Content-Type": "application/octet-stream"}


class UploadLost(Unavailable):
    """The registry does not know the upload any more, so that it must begin anew."""


class Upload:
    """A blob in the making at a registry. Not to be used by two threads at once."""

    def __init__(self, endpoint: Endpoint, repository: str, scopes: Sequence[str], response: Response) -> None:
        self._endpoint = endpoint
        self._repository = repository
        self._scopes = scopes
        self._where = endpoint.registry
        self._url = ""
        self.offset = 0
        """Bytes that have arrived."""
        self._follow(response)
        if not self._url:
            raise Unavailable(f"{self._where}: began an upload without saying where it goes on")
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        self.least = min(int(least), _MAX_LEAST) if least.isascii() and least.isdigit() and len(least) < 12 else 0
        """Bytes that every piece but the last must have."""

    def send(self, piece: memoryview) -> None:
        """Append a piece; what of it has arrived is not sent again after a failure.

        Raises UploadLost, Unavailable, Denied, Unsupported, Exhausted, Conflict.
        """
        start, end = self.offset, self.offset + len(piece)
        patience = Patience(self._endpoint.options)
        while self.offset < end:
            rest = piece[self.offset - start :]
            headers = {**_BYTES, "Content-Range": f"{self.offset}-{end - 1}"}
            try:
                response = self._request("PATCH", self._url, rest, headers, (202, 201, 204), "send a piece of a blob")
            except NotFound as problem:
                raise UploadLost(str(problem), hint="try again") from None
            except (Interrupted, Unavailable, Conflict) as problem:
                patience.pause(problem)
                self._ask(start, end)
                continue
            response.discard()
            self._follow(response)
            arrived = _arrived(response)
            self.offset = end if arrived is None else arrived
            if not start <= self.offset <= end:
                raise Conflict(f"{self._where}: counts {self.offset} bytes of an upload where there are {end}")
            if self.offset < end:
                patience.pause(Unavailable(f"{self._where}: takes less of an upload than it was sent"))

    def finish(self, digest: Digest, body: Buffer | None = None) -> None:
        """Make what has been sent, and then ``body``, the blob ``digest``. Raises as `send`; Integrity."""
        total = self.offset + (len(body) if body is not None else 0)
        patience = Patience(self._endpoint.options)
        while True:
            url = f"{self._url}{'&' if '?' in self._url else '?'}digest={digest}"
            rest = memoryview(body)[len(body) - (total - self.offset) :] if body is not None else None
            headers = dict(_BYTES)
            if rest is not None and self.offset:
                headers["Content-Range"] = f"{self.offset}-{total - 1}"
            try:
                response = self._request("PUT", url, rest, headers, (201, 204), f"put the blob {digest}")
            except (NotFound, Interrupted, Unavailable, Conflict) as problem:
                if not isinstance(problem, NotFound):
                    patience.pause(problem)
                try:
                    self._ask(total - (len(body) if body is not None else 0), total)
                except UploadLost:
                    if self._is_there(digest, total):  # it was finished, and the answer lost
                        return
                    raise
                continue
            response.discard()
            stored = response.headers.get("Docker-Content-Digest")
            if stored is not None and stored.startswith(f"{digest.algorithm}:") and stored != digest:
                raise DigestMismatch(f"{self._where}: the blob as stored", expected=digest, actual=stored[:200])
            return

    def cancel(self) -> None:
        """Tell the registry that nothing more comes; whatever it says to that."""
        try:
            self._request("DELETE", self._url, None, {}, (204, 202, 200, 404), "give up an upload").discard()
        except LamellaError:
            pass

    def _ask(self, start: int, end: int) -> None:
        """How far the upload has come. Raises UploadLost where what is missing is not at hand any more."""
        try:
            response = self._endpoint.request(
                "GET", self._url, doing="ask for an upload", scopes=self._scopes, accept=(204, 200)
            )
        except (NotFound, Conflict) as problem:
            raise UploadLost(str(problem), hint="try again") from None
        response.discard()
        self._follow(response)
        arrived = _arrived(response) or 0
        if arrived > end:
            raise Conflict(f"{self._where}: counts {arrived} bytes of an upload where there are {end}")
        if arrived < start:
            raise UploadLost(
                f"{self._where}: has {arrived} bytes of an upload of which it had {start}", hint="try again"
            )
        self.offset = arrived

    def _is_there(self, digest: Digest, size: int) -> bool:
        url = self._endpoint.url(f"{self._repository}/blobs/{digest}")
        try:
            response = self._endpoint.request("HEAD", url, doing="look for a blob", scopes=self._scopes)
        except NotFound:
            return False
        response.close()
        return response.length == size

    def _request(
        self,
        method: str,
        url: str,
        body: Buffer | None,
        headers: dict[str, str],
        accept: tuple[int, ...],
        doing: str,
    ) -> Response:
        return self._endpoint.request(
            method,
            url,
            doing=doing,
            scopes=self._scopes,
            headers=headers,
            body=body,
            accept=accept,
            repeat=False,
        )

    def _follow(self, response: Response) -> None:
        self._url = self._endpoint.location(response) or self._url


def _arrived(response: Response) -> int | None:
    """Bytes that the registry has, as its ``Range`` says; None where it says nothing.

    ``0-0`` stands for none: registries say so of an upload that has just begun, and no piece has a single byte.
    """
    match = _RANGE.fullmatch(response.headers.get("Range", "").strip())
    if match is None:
        return None
    last = int(match[1])
    return last + 1 if last else 0
