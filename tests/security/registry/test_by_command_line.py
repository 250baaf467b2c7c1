# SPDX-License-Identifier: Apache-2.0
"""The output of commands, which may end up in logs, shows no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.registry import hostile
from tests.registry.hostile import PASSWORD, SECRETS, TOKEN, Registry, error
from tests.registry.misbehaviour import say, with_body
from tests.registry.wire import Answer, Request
from tests.security.registry.pulling import BLOBS, MANIFESTS, name_in

from lamella.cli.main import run


class TestCommandLine:
    """Hostile registries through the command line."""

    @pytest.fixture(autouse=True)
    def logged_in(self, registry: Registry, tmp_path: Path) -> None:
        (tmp_path / "docker").mkdir()
        entry = {"auths": {registry.host: {"auth": SECRETS[2]}}}
        (tmp_path / "docker/config.json").write_text(json.dumps(entry))

    def test_the_legitimate_copy_works(
        self, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["copy", name_in(registry), f"oci:{tmp_path}/out:v1"]) == 0
        said = "".join(capsys.readouterr())
        assert [secret for secret in SECRETS if secret in said] == []

    @pytest.mark.parametrize("options", [[], ["--debug"], ["--json"], ["--debug", "--json"]])
    def test_secrets_echoed_by_a_registry_are_masked(
        self, registry: Registry, capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        def echo(request: Request, serve: hostile.Serve) -> Answer:
            if "Authorization" not in request.headers:
                return serve()
            message = f"{request.headers['Authorization']} {PASSWORD} {SECRETS[2]}"
            return error(403, "DENIED", message)

        registry.misbehave("GET", MANIFESTS, echo)
        assert run(["inspect", *options, name_in(registry)]) == 9
        said = "".join(capsys.readouterr())
        assert "DENIED" in said
        assert [secret for secret in SECRETS if secret in said] == []
        assert registry.asked("GET", MANIFESTS)[-1].headers["Authorization"] == f"Bearer {TOKEN}"

    @pytest.mark.parametrize("options", [[], ["--debug"]])
    def test_secrets_echoed_by_a_token_server_are_masked(
        self, registry: Registry, capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        def echo(request: Request, serve: hostile.Serve) -> Answer:
            return error(401, "UNAUTHORIZED", f"{request.headers.get('Authorization')} {PASSWORD}")

        registry.misbehave(".*", "/token", echo)
        assert run(["inspect", *options, name_in(registry)]) == 9
        said = "".join(capsys.readouterr())
        assert [secret for secret in SECRETS if secret in said] == []

    def test_messages_of_a_registry_contain_no_control_characters(
        self, registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        registry.misbehave("GET", MANIFESTS, say(error(403, "DENIED", "\x1b[2J\r\n\u202egood")))
        assert run(["inspect", name_in(registry)]) == 9
        said = capsys.readouterr().err
        assert not any(letter in said for letter in "\x1b\r\u202e")

    def test_wrong_bytes_leave_no_target_directory(
        self, registry: Registry, target: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        registry.misbehave("GET", BLOBS, with_body(lambda raw: raw[:-1] + b"!"))
        assert run(["unpack", "--owner", "ignore", name_in(registry), str(target / "new")]) == 8
        assert not (target / "new").exists()
        assert "digest" in capsys.readouterr().err
