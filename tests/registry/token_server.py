# SPDX-License-Identifier: Apache-2.0
"""A token server for a registry (Docker's token authentication)."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from tests.registry.docker_registry import PASSWORD, USER

ISSUER = "issuer of the tests"
SERVICE = "registry of the tests"
IDENTITY_TOKEN = "an identity token of the tests"


class TokenServer:
    """Users may do everything, anonymous clients pull from ``public/``. Records requests in ``asked``."""

    def __init__(self, directory: Path, authority: trustme.CA) -> None:
        self.asked: list[dict[str, Any]] = []
        self.life = 300
        """Lifetime of a token in seconds."""
        directory.mkdir(parents=True, exist_ok=True)
        self._bundle = directory / "tokens.pem"
        authority.cert_pem.write_to_path(str(self._bundle))
        leaf = authority.issue_cert("tokens.example", key_type=trustme.KeyType.ECDSA)
        key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
        self._chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a registry that uses this token server."""
        realm = f"https://127.0.0.1:{self._server.server_port}/token"
        return {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(self._bundle)}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, form: Mapping[str, list[str]], authorization: str) -> tuple[int, dict[str, Any]]:
        """Status and document for one request."""
        known, refresh = False, form.get("refresh_token", [""])[0]
        if authorization.startswith("Basic "):
            known = base64.b64decode(authorization[6:]).decode() == f"{USER}:{PASSWORD}"
            if not known:
                return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]}
        if refresh:
            known = refresh == IDENTITY_TOKEN
        elif form.get("grant_type") == ["password"]:
            known = (form.get("username"), form.get("password")) == ([USER], [PASSWORD])
        if method == "POST" and not known:
            return 401, {"error": "invalid_grant"}
        scopes = " ".join(form.get("scope", [])).split()
        self.asked.append({"method": method, "scopes": scopes, "known": known, "refresh": bool(refresh)})
        token = self._sign([access for scope in scopes if (access := _granted(scope, known))])
        answer: dict[str, Any] = {"token": token, "access_token": token, "expires_in": self.life}
        if method == "POST" or form.get("offline_token") == ["true"]:
            answer["refresh_token"] = IDENTITY_TOKEN
        return 200, answer

    def _sign(self, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "ES256", "x5c": self._chain}
        claims = {
            "iss": ISSUER,
            "sub": USER,
            "aud": SERVICE,
            "exp": now + self.life,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        signed = f"{_url64(json.dumps(header).encode())}.{_url64(json.dumps(claims).encode())}"
        r, s = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_url64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _granted(scope: str, known: bool) -> dict[str, Any] | None:
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    allowed = actions.split(",")
    if not known:
        allowed = [action for action in allowed if action == "pull" and name.startswith("public/")]
    return {"type": kind, "name": name, "actions": allowed} if allowed else None


def _url64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _handler(server: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(urlsplit(self.path).query)

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())

        def _answer(self, form: str) -> None:
            status, document = server.answer(self.command, parse_qs(form), self.headers.get("Authorization", ""))
            raw = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler
