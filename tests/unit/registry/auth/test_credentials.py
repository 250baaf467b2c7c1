# SPDX-License-Identifier: Apache-2.0
"""Credentials are found where other tools store them, stored where they are found, and never shown."""

from __future__ import annotations

import base64
import gc
import json
import os
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.errors import Exhausted, InvalidInput, LamellaError, NotFound, Unavailable
from lamella.registry.auth import helper_program
from lamella.registry.auth.credentials import Credential, Credentials, login, logout

SECRET = "s3cret-of-ada"
HOST = "registry.example:5000"
PROGRAM = """#!/usr/bin/python3
import json, os, sys
store = os.path.join(os.path.dirname(sys.argv[0]), "kept.json")
kept = json.load(open(store)) if os.path.exists(store) else {}
text = sys.stdin.read()
if sys.argv[1] == "get":
    if text not in kept:
        print("credentials not found in native keychain")
        sys.exit(1)
    print(json.dumps(kept[text]))
elif sys.argv[1] == "store":
    entry = json.loads(text)
    kept[entry["ServerURL"]] = entry
elif sys.argv[1] == "erase":
    del kept[text]
json.dump(kept, open(store, "w"))
"""

Helper = Callable[..., Path]


def auth(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def write(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin")}


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    return tmp_path / ".docker/config.json"


@pytest.fixture
def helper(tmp_path: Path) -> Helper:
    """A function that installs a credential helper and returns the file that it stores to."""

    def make(name: str, script: str = PROGRAM) -> Path:
        program = tmp_path / "bin" / f"docker-credential-{name}"
        program.parent.mkdir(exist_ok=True)
        program.write_text(script)
        program.chmod(0o755)
        return program.with_name("kept.json")

    return make


class TestFinding:
    def test_without_files_there_are_no_credentials(self, environ: dict[str, str]) -> None:
        assert Credentials.load(environ).for_registry(HOST, "team/app") is None

    def test_the_longest_matching_key_counts(self, environ: dict[str, str], docker: Path) -> None:
        keys = [HOST, f"{HOST}/team", f"{HOST}/team/app", f"{HOST}/te"]
        write(docker, {"auths": {key: {"auth": auth("u", key)} for key in keys}})
        known = Credentials.load(environ)
        for repository, key in [
            ("team/app", f"{HOST}/team/app"),
            ("team/app/part", f"{HOST}/team/app"),
            ("team/application", f"{HOST}/team"),
            ("teams", HOST),
            ("", HOST),
        ]:
            assert Credential("u", key) == known.for_registry(HOST, repository), repository

    @pytest.mark.parametrize(
        "key", [HOST, f"https://{HOST}", f"https://{HOST}/v1/", f"http://{HOST}/v2/", f"https://{HOST}/"]
    )
    def test_old_keys_with_a_scheme_match_the_host(self, environ: dict[str, str], docker: Path, key: str) -> None:
        write(docker, {"auths": {key: {"auth": auth("ada", SECRET)}}})
        assert Credentials.load(environ).for_registry(HOST, "team/app") == Credential("ada", SECRET)

    @pytest.mark.parametrize(
        "key", ["https://index.docker.io/v1/", "index.docker.io/v1", "docker.io", "index.docker.io"]
    )
    def test_docker_hub_is_found_by_each_of_its_names(self, environ: dict[str, str], docker: Path, key: str) -> None:
        write(docker, {"auths": {key: {"auth": auth("ada", SECRET)}}})
        assert Credentials.load(environ).for_registry("docker.io", "library/busybox") == Credential("ada", SECRET)

    @pytest.mark.parametrize(
        "key", ["registry.example", "registry.example:50", "xregistry.example:5000", "example:5000"]
    )
    def test_the_credential_of_another_host_is_not_used(self, environ: dict[str, str], docker: Path, key: str) -> None:
        write(docker, {"auths": {key: {"auth": auth("ada", SECRET)}}})
        assert Credentials.load(environ).for_registry(HOST, "team/app") is None

    def test_the_first_file_with_an_entry_counts(self, environ: dict[str, str], docker: Path, tmp_path: Path) -> None:
        environ["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
        write(docker, {"auths": {HOST: {"auth": auth("docker", "x")}, "b.example": {"auth": auth("docker", "x")}}})
        write(tmp_path / ".config/containers/auth.json", {"auths": {HOST: {"auth": auth("config", "x")}}})
        assert Credentials.load(environ).for_registry(HOST) == Credential("config", "x")
        write(tmp_path / "run/containers/auth.json", {"auths": {HOST: {"auth": auth("run", "x")}}})
        assert Credentials.load(environ).for_registry(HOST) == Credential("run", "x")
        assert Credentials.load(environ).for_registry("b.example") == Credential("docker", "x")

    def test_only_the_file_in_the_environment_is_read(
        self, environ: dict[str, str], docker: Path, tmp_path: Path
    ) -> None:
        write(docker, {"auths": {HOST: {"auth": auth("docker", "x")}}})
        environ["REGISTRY_AUTH_FILE"] = str(write(tmp_path / "named.json", {"auths": {}}))
        assert Credentials.load(environ).for_registry(HOST) is None

    def test_docker_config_names_the_directory_of_dockers_file(
        self, environ: dict[str, str], docker: Path, tmp_path: Path
    ) -> None:
        write(docker, {"auths": {HOST: {"auth": auth("home", "x")}}})
        write(tmp_path / "elsewhere/config.json", {"auths": {HOST: {"auth": auth("elsewhere", "x")}}})
        environ["DOCKER_CONFIG"] = str(tmp_path / "elsewhere")
        assert Credentials.load(environ).for_registry(HOST) == Credential("elsewhere", "x")

    def test_an_identity_token_comes_with_its_user(self, environ: dict[str, str], docker: Path) -> None:
        write(docker, {"auths": {HOST: {"auth": auth("ada", ""), "identitytoken": SECRET}}})
        assert Credentials.load(environ).for_registry(HOST) == Credential("ada", "", SECRET)

    def test_passwords_keep_colons_and_lose_dockers_padding(self, environ: dict[str, str], docker: Path) -> None:
        write(docker, {"auths": {HOST: {"auth": auth("ada", "a:b:c\0\0")}}})
        assert Credentials.load(environ).for_registry(HOST) == Credential("ada", "a:b:c")

    def test_an_empty_entry_is_no_credential(self, environ: dict[str, str], docker: Path) -> None:
        write(docker, {"auths": {HOST: {}}, "unknown": [1]})
        assert Credentials.load(environ).for_registry(HOST) is None

    def test_an_empty_file_has_no_credential(self, environ: dict[str, str], docker: Path) -> None:
        docker.parent.mkdir()
        docker.write_text("\n")
        assert Credentials.load(environ).for_registry(HOST) is None


class TestKeychains:
    def test_a_helper_is_run_for_its_registry(self, environ: dict[str, str], docker: Path, helper: Helper) -> None:
        kept = helper("chain")
        write(kept, {HOST: {"Username": "ada", "Secret": SECRET}})
        write(docker, {"credHelpers": {HOST: "chain"}, "auths": {HOST: {"auth": auth("file", "x")}}})
        known = Credentials.load(environ)
        assert known.for_registry(HOST, "team/app") == Credential("ada", SECRET)
        assert known.for_registry("other.example") is None

    def test_the_default_helper_is_run_with_dockers_key_for_its_hub(
        self, environ: dict[str, str], docker: Path, helper: Helper
    ) -> None:
        write(helper("chain"), {"https://index.docker.io/v1/": {"Username": "ada", "Secret": SECRET}})
        write(docker, {"credsStore": "chain", "auths": {"https://index.docker.io/v1/": {}}})
        assert Credentials.load(environ).for_registry("docker.io", "library/busybox") == Credential("ada", SECRET)

    def test_the_user_token_marks_an_identity_token(
        self, environ: dict[str, str], docker: Path, helper: Helper
    ) -> None:
        write(helper("chain"), {HOST: {"Username": "<token>", "Secret": SECRET}})
        write(docker, {"credsStore": "chain"})
        assert Credentials.load(environ).for_registry(HOST) == Credential(identity_token=SECRET)

    def test_the_file_counts_if_the_keychain_has_no_entry(
        self, environ: dict[str, str], docker: Path, helper: Helper
    ) -> None:
        helper("chain")
        write(docker, {"credsStore": "chain", "auths": {HOST: {"auth": auth("file", "x")}}})
        assert Credentials.load(environ).for_registry(HOST) == Credential("file", "x")

    def test_a_missing_default_helper_is_an_error_only_if_it_is_needed(
        self, environ: dict[str, str], docker: Path
    ) -> None:
        write(docker, {"credsStore": "absent", "auths": {HOST: {"auth": auth("file", "x")}}})
        known = Credentials.load(environ)
        assert known.for_registry(HOST) == Credential("file", "x")
        with pytest.raises(NotFound, match="credsStore: docker-credential-absent is not on the PATH"):
            known.for_registry("other.example")

    @pytest.mark.parametrize("name", ["../../bin/sh", "a b", "-x", "a;b", "a/b", "\0", "a\nb"])
    def test_helper_names_with_path_characters_are_refused(
        self, environ: dict[str, str], docker: Path, name: str
    ) -> None:
        write(docker, {"credHelpers": {HOST: name}})
        with pytest.raises(InvalidInput, match="credHelpers"):
            Credentials.load(environ).for_registry(HOST)

    @pytest.mark.parametrize(
        ("script", "expected"),
        [
            (f"echo {SECRET}; exit 3", Unavailable),
            (f"echo {SECRET}", InvalidInput),
            (f'echo \'{{"Secret": "{SECRET}"}}\'', InvalidInput),
            (f"echo '[\"{SECRET}\"]'", InvalidInput),
            (f"echo {SECRET} >&2; yes", Exhausted),
            ("exec sleep 60", Unavailable),
            ("sleep 60 & exit 0", Unavailable),
        ],
        ids=["fails", "no JSON", "half", "a list", "endless", "silent", "a child that holds the pipe"],
    )
    def test_the_output_of_a_failing_helper_is_not_quoted(
        self,
        environ: dict[str, str],
        docker: Path,
        helper: Helper,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        script: str,
        expected: type[LamellaError],
    ) -> None:
        monkeypatch.setattr(helper_program, "TIMEOUT", 2 if "sleep" not in script else 0.3)
        environ["PATH"] += ":/usr/bin:/bin"
        helper("bad", f"#!/bin/sh\n{script}\n")
        write(docker, {"credsStore": "bad"})
        with pytest.raises(expected) as caught:
            Credentials.load(environ).for_registry(HOST)
        told = f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
        assert SECRET not in told + "".join(capfd.readouterr())

    def test_a_pipe_held_by_a_child_of_the_helper_is_closed(
        self, environ: dict[str, str], docker: Path, helper: Helper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(helper_program, "TIMEOUT", 0.2)
        environ["PATH"] += ":/usr/bin:/bin"
        helper("bad", "#!/bin/sh\nsleep 0.6 & exit 0\n")
        write(docker, {"credsStore": "bad"})
        before = set(threading.enumerate())
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with pytest.raises(Unavailable):
                Credentials.load(environ).for_registry(HOST)
            for thread in set(threading.enumerate()) - before:
                thread.join(10)
            gc.collect()
        assert [str(warning.message) for warning in seen] == []


class TestMalformedFiles:
    @pytest.mark.parametrize(
        ("document", "key"),
        [
            ([SECRET], ""),
            ({"auths": [SECRET]}, "auths"),
            ({"auths": {HOST: SECRET}}, f"auths.{HOST}"),
            ({"auths": {HOST: {"auth": f"%{SECRET}"}}}, f"auths.{HOST}.auth"),
            ({"auths": {HOST: {"auth": base64.b64encode(SECRET.encode()).decode()}}}, f"auths.{HOST}.auth"),
            ({"auths": {HOST: {"auth": base64.b64encode(b"\xff:" + SECRET.encode()).decode()}}}, f"auths.{HOST}.auth"),
            ({"auths": {HOST: {"auth": [SECRET]}}}, f"auths.{HOST}.auth"),
            ({"auths": {HOST: {"identitytoken": [SECRET]}}}, f"auths.{HOST}.identitytoken"),
            ({"credsStore": [SECRET]}, "credsStore"),
            ({"credHelpers": {HOST: [SECRET]}}, f"credHelpers.{HOST}"),
        ],
    )
    def test_errors_name_file_and_key_but_no_content(
        self, environ: dict[str, str], docker: Path, document: Any, key: str
    ) -> None:
        write(docker, document)
        with pytest.raises(InvalidInput) as caught:
            Credentials.load(environ).for_registry(HOST)
        assert str(caught.value).startswith(f"{docker}: {key}")
        assert SECRET not in repr((caught.value, caught.value.__cause__, caught.value.hint))
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    @pytest.mark.parametrize("text", ['{"auths": {"a": "s3cret-of-ada"', "[" * 200_000, "\0", '{"a": "\udcff"}'])
    def test_malformed_json_is_not_quoted(self, environ: dict[str, str], docker: Path, text: str) -> None:
        docker.parent.mkdir()
        docker.write_text(text, errors="surrogateescape")
        with pytest.raises(InvalidInput, match="not JSON") as caught:
            Credentials.load(environ)
        assert SECRET not in str(caught.value)

    def test_a_huge_file_is_refused(self, environ: dict[str, str]) -> None:
        with pytest.raises(Exhausted):
            Credentials.load({**environ, "REGISTRY_AUTH_FILE": "/dev/zero"})

    def test_a_login_does_not_replace_a_file_that_it_cannot_read(self, environ: dict[str, str], docker: Path) -> None:
        docker.parent.mkdir()
        docker.write_text("{")
        with pytest.raises(InvalidInput):
            login(HOST, Credential("ada", SECRET), environ=environ)
        assert docker.read_text() == "{"


class TestLogin:
    def test_a_stored_login_is_found_and_readable_by_its_owner_only(
        self, environ: dict[str, str], docker: Path
    ) -> None:
        assert login(HOST, Credential("ada", SECRET), environ=environ) == str(docker)
        assert Credentials.load(environ).for_registry(HOST, "team/app") == Credential("ada", SECRET)
        assert stat.S_IMODE(docker.stat().st_mode) == 0o600
        assert stat.S_IMODE(docker.parent.stat().st_mode) == 0o700
        assert [docker.name] == os.listdir(docker.parent)

    def test_other_entries_and_unknown_keys_stay(self, environ: dict[str, str], docker: Path) -> None:
        others = {"a.example": {"auth": auth("u", "p"), "email": "u@a.example"}}
        before = {"HttpHeaders": {"X": "y"}, "auths": {**others, f"https://{HOST}/v1/": {"auth": auth("old", "x")}}}
        write(docker, before)
        docker.chmod(0o644)
        login(HOST, Credential("ada", SECRET), environ=environ)
        expected = {"HttpHeaders": {"X": "y"}, "auths": {**others, HOST: {"auth": auth("ada", SECRET)}}}
        assert json.loads(docker.read_text()) == expected
        assert stat.S_IMODE(docker.stat().st_mode) == 0o600
        logout(HOST, environ=environ)
        assert {"HttpHeaders": {"X": "y"}, "auths": others} == json.loads(docker.read_text())

    def test_docker_hub_is_stored_under_dockers_key(self, environ: dict[str, str], docker: Path) -> None:
        login("docker.io", Credential("ada", SECRET), environ=environ)
        assert list(json.loads(docker.read_text())["auths"]) == ["https://index.docker.io/v1/"]

    def test_a_stored_identity_token_is_found(self, environ: dict[str, str]) -> None:
        credential = Credential("ada", "", SECRET)
        login(HOST, credential, environ=environ)
        assert credential == Credentials.load(environ).for_registry(HOST)

    def test_a_login_goes_to_the_file_that_has_the_registry(self, environ: dict[str, str], tmp_path: Path) -> None:
        first = write(tmp_path / ".config/containers/auth.json", {"auths": {HOST: {"auth": auth("old", "x")}}})
        assert str(first) == login(HOST, Credential("ada", SECRET), environ=environ)
        assert Credentials.load(environ).for_registry(HOST) == Credential("ada", SECRET)

    def test_a_symlinked_file_stays_a_symlink(self, environ: dict[str, str], docker: Path, tmp_path: Path) -> None:
        target = write(tmp_path / "dotfiles/config.json", {})
        docker.parent.mkdir()
        docker.symlink_to(target)
        login(HOST, Credential("ada", SECRET), environ=environ)
        assert docker.is_symlink()
        assert HOST in json.loads(target.read_text())["auths"]

    def test_a_login_goes_to_the_keychain_and_not_to_the_file(
        self, environ: dict[str, str], docker: Path, helper: Helper
    ) -> None:
        kept = helper("chain")
        write(docker, {"credsStore": "chain", "auths": {HOST: {"auth": auth("old", "x")}}})
        assert login(HOST, Credential("ada", SECRET), environ=environ) == "docker-credential-chain"
        assert json.loads(docker.read_text()) == {"credsStore": "chain", "auths": {}}
        assert json.loads(kept.read_text()) == {HOST: {"ServerURL": HOST, "Username": "ada", "Secret": SECRET}}
        assert Credentials.load(environ).for_registry(HOST) == Credential("ada", SECRET)
        logout(HOST, environ=environ)
        assert json.loads(kept.read_text()) == {}

    def test_a_keychain_stores_an_identity_token_under_the_token_user(
        self, environ: dict[str, str], docker: Path, helper: Helper
    ) -> None:
        kept = helper("chain")
        write(docker, {"credHelpers": {HOST: "chain"}})
        login(HOST, Credential("ada", "", SECRET), environ=environ)
        assert json.loads(kept.read_text()) == {HOST: {"ServerURL": HOST, "Username": "<token>", "Secret": SECRET}}

    def test_after_logout_no_file_has_the_registry(self, environ: dict[str, str], docker: Path, tmp_path: Path) -> None:
        write(docker, {"auths": {HOST: {"auth": auth("ada", SECRET)}}})
        write(tmp_path / ".config/containers/auth.json", {"auths": {HOST: {"auth": auth("ada", SECRET)}}})
        logout(HOST, environ=environ)
        assert Credentials.load(environ).for_registry(HOST) is None
        with pytest.raises(NotFound, match=r"there is no login for registry\.example:5000"):
            logout(HOST, environ=environ)

    def test_a_user_name_with_a_colon_is_refused(self, environ: dict[str, str], docker: Path) -> None:
        with pytest.raises(InvalidInput, match="colon"):
            login(HOST, Credential("a:b", SECRET), environ=environ)
        assert not docker.exists()

    def test_a_login_needs_a_home_directory(self) -> None:
        with pytest.raises(NotFound):
            login(HOST, Credential("ada", SECRET), environ={})


def test_the_repr_shows_no_secret(environ: dict[str, str]) -> None:
    credential = Credential("ada", SECRET, SECRET)
    login(HOST, credential, environ=environ)
    known = Credentials.load(environ)
    for text in (str(credential), repr(credential), f"{credential}", repr(known), str(known), repr([credential])):
        assert SECRET not in text
