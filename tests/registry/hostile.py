# SPDX-License-Identifier: Apache-2.0
"""A registry in memory that follows the specification unless a test installs a misbehaviour.

It records every request with its headers, so that tests can assert what was never sent. A behaviour takes the request
and a function that serves it correctly, and returns the answer; see `Registry.misbehave`.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Self, TypeAlias
from urllib.parse import parse_qs

from msgspec.structs import replace
from tests.registry.wire import Answer, Request, Server, handler

from lamella.testing.images import SmallImage, compact, digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
USER, PASSWORD, TOKEN = "ada", "a very secret password", "a.very.secret-token"
SECRETS = (PASSWORD, TOKEN, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())
"""Secrets that no message may contain, in any encoding."""

Serve: TypeAlias = Callable[[], Answer]
Behaviour: TypeAlias = Callable[[Request, Serve], Answer]


@dataclass(slots=True)
class _Rule:
    method: re.Pattern[str]
    path: re.Pattern[str]
    behaviour: Behaviour
    times: float


class Registry:
    """Runs on a loopback port from its creation to the end of its block.

    With ``auth`` "basic" or "bearer", requests need USER and PASSWORD, for the latter at its own ``/token``.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, auth: str = "", name: str = "127.0.0.1") -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        """Repository and tag or digest, to media type and bytes."""
        self.repositories: dict[str, set[str]] = {}
        """Repository to the digests of its blobs."""
        self.uploads: dict[str, bytearray] = {}
        self.requests: list[Request] = []
        self.auth = auth
        self.refuses_all = False
        """Whether even the right credential is refused."""
        self.challenge: str | None = None
        """Overrides the ``WWW-Authenticate`` header."""
        self.page = 100
        self._rules: list[_Rule] = []
        self._sessions = count()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = Server(("127.0.0.1", 0), handler(self.answer, self._stopped))
        self._server.tls = tls
        self.scheme = "https" if tls else "http"
        self.host = f"{name}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repository: str, tag: str, image: SmallImage) -> str:
        """Store an image and return the digest of its manifest."""
        raw = compact(image.manifest)
        for name, blob in image.blobs.items():
            if name != digest(raw):
                self.add_blob(repository, blob)
        return self.add_manifest(repository, tag, image.manifest["mediaType"], raw)

    def add_blob(self, repository: str, raw: bytes) -> str:
        name = digest(raw)
        self.blobs[name] = raw
        self.repositories.setdefault(repository, set()).add(name)
        return name

    def add_manifest(self, repository: str, tag: str, media_type: str, raw: bytes) -> str:
        self.manifests[repository, digest(raw)] = self.manifests[repository, tag] = (media_type, raw)
        self.repositories.setdefault(repository, set())
        return digest(raw)

    def misbehave(self, method: str, path: str, behaviour: Behaviour, times: float = float("inf")) -> None:
        """Let ``behaviour`` answer ``times`` requests whose method and path match the patterns."""
        self._rules.append(_Rule(re.compile(method), re.compile(path), behaviour, times))

    def asked(self, method: str = ".*", path: str = ".*") -> list[Request]:
        """The requests so far whose method and path match the patterns."""
        with self._lock:
            everything = list(self.requests)
        return [one for one in everything if re.fullmatch(method, one.method) and re.search(path, one.path)]

    def credentials_seen(self) -> list[str]:
        """All received headers that carry credentials."""
        return [
            f"{name}: {value}"
            for one in self.asked()
            for name, value in one.headers.items()
            if name.lower() in ("authorization", "cookie", "proxy-authorization")
        ]

    def answer(self, request: Request) -> Answer:
        """The answer to ``request``."""
        behaviour = None
        with self._lock:
            self.requests.append(request)
            for rule in self._rules:
                if rule.times > 0 and rule.method.fullmatch(request.method) and rule.path.search(request.path):
                    rule.times -= 1
                    behaviour = rule.behaviour
                    break

        def serve() -> Answer:
            request.preload()  # before the lock, since senders may be slow
            with self._lock:
                return self._serve(request)

        return serve() if behaviour is None else behaviour(request, serve)

    def _serve(self, request: Request) -> Answer:
        if request.path == "/token":
            return self._token(request)
        if self.auth and not self._allowed(request):
            return self._challenge(request)
        if request.path in ("/v2/", "/v2"):
            return _json(200, {})
        if request.path == "/v2/_catalog":
            return self._page(request, "repositories", sorted(self.repositories))
        for pattern, serve in (
            (r"/v2/(.+)/manifests/([^/]+)", self._manifest),
            (r"/v2/(.+)/blobs/uploads/([^/]*)", self._upload),
            (r"/v2/(.+)/blobs/([^/]+)", self._blob),
            (r"/v2/(.+)/tags/(list)", self._tags),
            (r"/v2/(.+)/referrers/([^/]+)", self._referrers),
        ):
            match = re.fullmatch(pattern, request.path)
            if match:
                return serve(request, match[1], match[2])
        return error(404, "UNSUPPORTED")

    def _token(self, request: Request) -> Answer:
        given = request.headers.get("Authorization", "")
        form = {name: values[0] for name, values in parse_qs(request.body().decode()).items()}
        known = given == f"Basic {SECRETS[2]}" or form.get("password") == PASSWORD or "refresh_token" in form
        if not known:
            return error(401, "UNAUTHORIZED")
        return _json(200, {"token": TOKEN, "access_token": TOKEN, "expires_in": 300})

    def _allowed(self, request: Request) -> bool:
        expected = f"Basic {SECRETS[2]}" if self.auth == "basic" else f"Bearer {TOKEN}"
        return request.headers.get("Authorization") == expected and not self.refuses_all

    def _challenge(self, request: Request) -> Answer:
        usual = 'Basic realm="tests"'
        if self.auth == "bearer":
            usual = (
                f'Bearer realm="{self.url}/token",service="tests",scope="repository:{_repository(request)}:pull,push"'
            )
        answer = error(401, "UNAUTHORIZED")
        answer.headers["WWW-Authenticate"] = self.challenge or usual
        return answer

    def _manifest(self, request: Request, name: str, reference: str) -> Answer:
        if request.method == "PUT":
            raw = request.body()
            if ":" in reference and reference != digest(raw):
                return error(400, "DIGEST_INVALID")
            self.add_manifest(name, reference, request.headers.get("Content-Type", ""), raw)
            where = {"Location": f"/v2/{name}/manifests/{digest(raw)}", "Docker-Content-Digest": digest(raw)}
            return Answer(201, where)
        found = self.manifests.get((name, reference))
        if found is None:
            return error(404, "MANIFEST_UNKNOWN" if name in self.repositories else "NAME_UNKNOWN")
        if request.method == "DELETE":
            del self.manifests[name, reference]
            return Answer(202)
        media_type, raw = found
        return Answer(200, {"Content-Type": media_type, "Docker-Content-Digest": digest(raw)}, raw)

    def _blob(self, request: Request, name: str, reference: str) -> Answer:
        if reference not in self.repositories.get(name, ()):
            return error(404, "BLOB_UNKNOWN")
        if request.method == "DELETE":
            self.repositories[name].discard(reference)
            return Answer(202)
        raw = self.blobs[reference]
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": reference,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if wanted is None:
            return Answer(200, headers, raw)
        start, end = int(wanted[1]), min(int(wanted[2] or len(raw) - 1), len(raw) - 1)
        if start > end:
            return Answer(416, {"Content-Range": f"bytes */{len(raw)}"})
        return Answer(206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(raw)}"}, raw[start : end + 1])

    def _upload(self, request: Request, name: str, session: str) -> Answer:
        if request.method == "POST":
            mount = request.query.get("mount", "")
            if mount in self.repositories.get(request.query.get("from", ""), ()):
                self.repositories.setdefault(name, set()).add(mount)
                return Answer(201, {"Location": f"/v2/{name}/blobs/{mount}", "Docker-Content-Digest": mount})
            session = f"session-{next(self._sessions)}"
            self.uploads[session] = bytearray()
            if "digest" not in request.query:
                return self._session(202, name, session)
        upload = self.uploads.get(session)
        if upload is None:
            return error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "GET":
            return self._session(204, name, session)
        if request.method == "DELETE":
            del self.uploads[session]
            return Answer(204)
        span = re.fullmatch(r"(?:bytes )?(\d+)-(\d+)(?:/.*)?", request.headers.get("Content-Range", ""))
        if span is not None and int(span[1]) != len(upload):
            request.body()
            return replace(self._session(416, name, session), body=b"")
        upload += request.body()
        if request.method == "PATCH":
            return self._session(202, name, session)
        raw = bytes(upload)
        del self.uploads[session]
        if digest(raw) != request.query.get("digest"):
            return error(400, "DIGEST_INVALID")
        self.add_blob(name, raw)
        return Answer(201, {"Location": f"/v2/{name}/blobs/{digest(raw)}", "Docker-Content-Digest": digest(raw)})

    def _session(self, status: int, name: str, session: str) -> Answer:
        size = len(self.uploads[session])
        where = f"/v2/{name}/blobs/uploads/{session}"
        return Answer(status, {"Location": where, "Range": f"0-{max(size - 1, 0)}", "Docker-Upload-UUID": session})

    def _tags(self, request: Request, name: str, _: str) -> Answer:
        if name not in self.repositories:
            return error(404, "NAME_UNKNOWN")
        tags = sorted(tag for repository, tag in self.manifests if repository == name and ":" not in tag)
        return self._page(request, "tags", tags, name=name)

    def _referrers(self, request: Request, name: str, subject: str) -> Answer:
        found = []
        for (repository, reference), (media_type, raw) in sorted(self.manifests.items()):
            document = json.loads(raw)
            if repository == name and ":" in reference and document.get("subject", {}).get("digest") == subject:
                artifact = document.get("artifactType") or document["config"]["mediaType"]
                found.append({"mediaType": media_type, "digest": reference, "size": len(raw), "artifactType": artifact})
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": found}
        return Answer(200, {"Content-Type": index["mediaType"]}, compact(index))  # type: ignore[dict-item]

    def _page(self, request: Request, key: str, items: list[str], **more: str) -> Answer:
        count = min(int(request.query.get("n", self.page)), self.page)
        rest = [item for item in items if item > request.query.get("last", "")]
        answer = _json(200, {**more, key: rest[:count]})
        if len(rest) > count:
            answer.headers["Link"] = f'<{request.path}?n={count}&last={rest[count - 1]}>; rel="next"'
        return answer


def _repository(request: Request) -> str:
    match = re.match(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/", request.path)
    return match[1] if match else ""


def _json(status: int, value: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, compact(value))


def error(status: int, code: str, message: str = "no") -> Answer:
    """An error response of the specification."""
    return _json(status, {"errors": [{"code": code, "message": message, "detail": {}}]})
