# SPDX-License-Identifier: Apache-2.0
"""Verbs for registries, with the distribution project's registry, skopeo and umoci."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.registry.counting import Counting
from tests.registry.docker_registry import PASSWORD, USER, DockerRegistry, running
from tests.registry.hostile import Registry as Slow
from tests.registry.isolation import isolate
from tests.registry.misbehaviour import drip

from lamella.cli.main import run
from lamella.testing.images import compact, digest, index_of, small_image, tagged, write_layout

Needs = Callable[..., str]
Tool = Callable[..., str]

pytestmark = pytest.mark.interop

IMAGE = small_image({"etc/name": b"lamella", "bin/sh": b"#!"}, {"etc/.wh.name": b"", "etc/x": b"x" * 5000}, Cmd=["sh"])
ARM = small_image({"etc/name": b"arm"}, platform="linux/arm64/v8")
ENTRY, INDEX = index_of(ARM, IMAGE)
MIB = 1 << 20


@pytest.fixture(scope="module")
def registry(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with running(DockerRegistry(needs("docker-registry"), tmp_path_factory.mktemp("registry"))) as server:
        yield server


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def lamella(capsys: pytest.CaptureFixture[str]) -> Tool:
    """A function that runs a verb in this process, asserts success and returns its output."""

    def call(*words: str | Path) -> str:
        code = run([str(word) for word in words])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return call


@pytest.fixture
def skopeo(needs: Needs) -> Tool:
    return tool(needs("skopeo"), "--insecure-policy")


@pytest.fixture
def layout(tmp_path: Path) -> str:
    blobs = {**IMAGE.blobs, **ARM.blobs, digest(INDEX): INDEX}
    entries = [tagged(ENTRY, "all"), tagged(IMAGE.descriptor, "one")]
    return f"oci:{write_layout(str(tmp_path / 'layout'), entries, blobs)}"


def tool(*program: str) -> Tool:
    def call(*words: str | Path) -> str:
        command = [*program, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    return call


def named(registry: DockerRegistry | Counting, name: str) -> str:
    return f"docker://{registry.host}/{name}"


def blobs(layout: Path) -> set[str]:
    return set(os.listdir(layout / "blobs/sha256"))


# Pull, push and copy ----------------------------------------------------------------------------------------------


def test_pushed_and_pulled_images_have_the_digests_that_skopeo_reports(
    registry: DockerRegistry, lamella: Tool, skopeo: Tool, layout: str, tmp_path: Path
) -> None:
    name = named(registry, "verbs/round:v1")
    pushed = json.loads(lamella("push", "--json", f"{layout}:one", name))
    assert pushed["digest"] == IMAGE.descriptor["digest"]
    assert digest(skopeo("inspect", "--raw", "--tls-verify=false", name).encode()) == pushed["digest"]
    pulled = json.loads(lamella("pull", "--json", name, f"oci:{tmp_path}/ours:v1"))
    assert pulled["digest"] == IMAGE.descriptor["digest"]
    skopeo("copy", "-q", "--src-tls-verify=false", name, f"oci:{tmp_path}/theirs:v1")
    assert blobs(tmp_path / "theirs") == blobs(tmp_path / "ours")


def test_an_index_is_pushed_and_pulled_whole_or_by_platform(
    registry: DockerRegistry, lamella: Tool, skopeo: Tool, layout: str, tmp_path: Path
) -> None:
    name = named(registry, "verbs/index:v1")
    lamella("push", "--all", f"{layout}:all", name)
    assert skopeo("inspect", "--raw", "--tls-verify=false", name).encode() == INDEX
    whole = json.loads(lamella("pull", "--all", "--json", name, f"oci:{tmp_path}/whole:v1"))
    assert whole["digest"] == ENTRY["digest"]
    skopeo("copy", "-q", "--all", "--src-tls-verify=false", name, f"oci:{tmp_path}/theirs:v1")
    assert blobs(tmp_path / "theirs") == blobs(tmp_path / "whole")
    part = json.loads(lamella("pull", "--platform=linux/arm64", "--json", name, f"oci:{tmp_path}/part:v1"))
    assert part["digest"] == ARM.descriptor["digest"]


def test_a_docker_image_is_unpacked_as_umoci_does(
    registry: DockerRegistry, lamella: Tool, skopeo: Tool, needs: Needs, layout: str, tmp_path: Path
) -> None:
    name = named(registry, "verbs/docker:v1")
    skopeo("copy", "-q", "--format=v2s2", "--dest-tls-verify=false", f"{layout}:one", name)
    raw = skopeo("inspect", "--raw", "--tls-verify=false", name).encode()
    pulled = json.loads(lamella("pull", "--json", name, f"oci:{tmp_path}/docker:v1"))
    assert (digest(raw), "application/vnd.docker.distribution.manifest.v2+json") == (
        pulled["digest"],
        pulled["mediaType"],
    )
    lamella("unpack", name, tmp_path / "ours")
    skopeo("copy", "-q", "--src-tls-verify=false", name, f"oci:{tmp_path}/theirs:v1")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    tool(needs("umoci"))("unpack", *rootless, "--image", f"{tmp_path}/theirs:v1", tmp_path / "bundle")
    assert files(tmp_path / "bundle/rootfs") == files(tmp_path / "ours")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_only_blobs_that_the_target_lacks_are_transferred(
    registry: DockerRegistry, lamella: Tool, layout: str, tmp_path: Path
) -> None:
    noise = random.Random(5).randbytes(3 * MIB)
    base = small_image({"noise": noise}, compress=False)
    more = small_image({"noise": noise}, {"etc/x": b"x"}, compress=False)
    source = write_layout(
        str(tmp_path / "two"),
        [tagged(base.descriptor, "base"), tagged(more.descriptor, "more")],
        {**base.blobs, **more.blobs},
    )
    with Counting(registry.host) as way:
        lamella("push", f"oci:{source}:base", named(way, "verbs/lacks:base"))
        assert way.up > 3 * MIB
        before = way.both
        lamella("push", f"oci:{source}:more", named(way, "verbs/lacks:more"))
        assert way.both - before < 100_000
        lamella("pull", named(way, "verbs/lacks:base"), f"oci:{tmp_path}/out:base")
        before = way.both
        lamella("pull", named(way, "verbs/lacks:more"), f"oci:{tmp_path}/out:more")
        assert way.both - before < 100_000
        before = way.both
        copied = json.loads(lamella("copy", "--json", named(way, "verbs/lacks:more"), named(way, "verbs/lacks-too:v1")))
        assert way.both - before < 100_000
    assert more.descriptor["digest"] == copied["digest"]


@pytest.mark.parametrize(
    ("verb", "source", "target"),
    [
        ("pull", "oci:a:v1", "oci:b:v1"),
        ("pull", "docker://localhost:1/a", "docker://localhost:1/b"),
        ("push", "oci:a:v1", "oci:b:v1"),
        ("push", "docker://localhost:1/a", "docker://localhost:1/b"),
    ],
)
def test_pull_and_push_refuse_the_other_direction(
    verb: str, source: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, source, target]) == 3
    assert "'lamella copy' from anywhere to anywhere" in capsys.readouterr().err


def test_an_interrupted_pull_leaves_no_image(tmp_path: Path) -> None:
    image = small_image({"a": b"a" * 100_000}, {"b": b"b" * 100_000}, compress=False)
    program = str(Path(sys.executable).with_name("lamella"))
    with Slow() as slow:
        slow.add("app", "v1", image)
        slow.misbehave("GET", "/blobs/", drip(0.05, 200))
        command = [program, "pull", f"docker://{slow.host}/app:v1", f"oci:{tmp_path}/out:v1"]
        pulling = subprocess.Popen(command, stderr=subprocess.PIPE)
        end = time.monotonic() + 60
        while not any((tmp_path / "out").glob(".lamella-*/part-*")) and time.monotonic() < end:
            time.sleep(0.01)
        pulling.send_signal(signal.SIGINT)
        _, said = pulling.communicate(timeout=60)
    assert (pulling.returncode, said) == (130, b"lamella: interrupted\n")
    assert not (tmp_path / "out").exists()


# Surgery against a registry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["verbs/base:more", "verbs/elsewhere:v1"])
def test_append_to_a_remote_image_transfers_only_the_new_layer(
    registry: DockerRegistry, lamella: Tool, skopeo: Tool, tmp_path: Path, target: str
) -> None:
    base = small_image({"noise": random.Random(7).randbytes(32 * MIB)}, compress=False)
    source = write_layout(str(tmp_path / "base"), [tagged(base.descriptor, "v1")], base.blobs)
    lamella("push", f"oci:{source}:v1", named(registry, "verbs/base:v1"))
    (tmp_path / "layer/etc").mkdir(parents=True)
    (tmp_path / "layer/etc/x").write_text("x")
    with Counting(registry.host) as way:
        lamella("append", named(way, "verbs/base:v1"), tmp_path / "layer", named(way, target))
        assert way.both < 100_000
    inspected = json.loads(skopeo("inspect", "--tls-verify=false", named(registry, target)))
    assert [layer["digest"] for layer in base.manifest["layers"]] == inspected["Layers"][:1]
    assert len(inspected["Layers"]) == 2
    assert json.loads(lamella("verify", "--json", named(registry, target)))["sound"]


# Lists, referrers and deletion ------------------------------------------------------------------------------------


def test_tags_and_repositories_are_listed(registry: DockerRegistry, lamella: Tool, layout: str) -> None:
    for tag in ("b", "a"):
        lamella("push", f"{layout}:one", named(registry, f"verbs/listed:{tag}"))
    assert sorted(lamella("tags", named(registry, "verbs/listed")).splitlines()) == ["a", "b"]
    document = json.loads(lamella("tags", "--json", named(registry, "verbs/listed")))
    assert sorted(document["tags"]) == ["a", "b"]
    assert "verbs/listed" in lamella("catalog", registry.host).splitlines()
    assert "verbs/listed" in json.loads(lamella("catalog", "--json", registry.host))["repositories"]
    assert run(["tags", named(registry, "verbs/listed:a")]) == 3
    assert run(["tags", named(registry, "verbs/nothing")]) == 4
    assert run(["tags", f"{registry.host}/verbs/listed"]) == 3


def test_referrers_are_listed_by_the_fallback_tag(
    registry: DockerRegistry, lamella: Tool, layout: str, tmp_path: Path
) -> None:
    name = named(registry, "verbs/signed:v1")
    lamella("push", "--all", f"{layout}:all", name)
    empty: dict[str, Any] = {"image": name, **{key: ENTRY[key] for key in ("mediaType", "digest", "size")}}
    assert {**empty, "referrers": []} == json.loads(lamella("referrers", "--json", name))
    signature = {**ARM.manifest, "subject": IMAGE.descriptor, "artifactType": "application/x.signature"}
    raw = compact(signature)
    entry = {"mediaType": signature["mediaType"], "digest": digest(raw), "size": len(raw)}
    source = write_layout(str(tmp_path / "signature"), [tagged(entry, "s")], {**ARM.blobs, digest(raw): raw})
    lamella("push", f"oci:{source}:s", named(registry, "verbs/signed:signature"))
    assert lamella("referrers", name) == ""
    line = lamella("referrers", "--platform=linux/amd64", name)
    assert [digest(raw), "application/x.signature"] == [line.split()[0], line.split()[-1]]
    assert lamella("referrers", "--platform=linux/amd64", "--type=application/other", name) == ""
    document = json.loads(lamella("referrers", "--json", "--type=application/x.signature", f"{name}@{IMAGE_DIGEST}"))
    assert [{**entry, "artifactType": "application/x.signature"}] == document["referrers"]


IMAGE_DIGEST = IMAGE.descriptor["digest"]


def test_an_image_is_deleted_with_its_tags_by_an_option(
    registry: DockerRegistry, lamella: Tool, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = named(registry, "verbs/deleted")
    for tag in ("a", "b"):
        lamella("push", f"{layout}:one", f"{name}:{tag}")
    assert run(["delete", f"{name}:a"]) == 3
    assert "give --yes" in capsys.readouterr().err
    assert run(["delete", "--yes", name]) == 3
    assert "its tag or its digest" in capsys.readouterr().err
    assert run(["delete", "--yes", f"{name}:a"]) == 7  # this registry removes no tags
    assert "do so with --image" in capsys.readouterr().err
    assert run(["inspect", f"{name}:b"]) == 0
    capsys.readouterr()
    deleted = json.loads(lamella("delete", "--yes", "--image", "--json", f"{name}:a"))
    assert {"repository": name.removeprefix("docker://"), "tag": None, "digest": IMAGE_DIGEST} == deleted
    assert run(["inspect", f"{name}:b"]) == 4
    assert run(["delete", "--yes", f"{name}@{IMAGE_DIGEST}"]) == 4


# Options ----------------------------------------------------------------------------------------------------------


def test_every_verb_takes_plain_http_and_certs_dir(
    registry: DockerRegistry, lamella: Tool, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = named(registry, "verbs/plain:v1")
    lamella("push", f"{layout}:one", name)
    settings = tmp_path / "settings" / registry.host
    settings.mkdir(parents=True)
    (settings / "hosts.toml").write_text(f'server = "https://{registry.host}"\n')
    certs = f"--certs-dir={tmp_path / 'settings'}"
    assert run(["inspect", certs, name]) == 10
    assert "--plain-http" in capsys.readouterr().err
    for verb in (
        ["inspect", name],
        ["ls", name],
        ["verify", name],
        ["compare", name, name],
        ["tags", named(registry, "verbs/plain")],
        ["mutate", name, named(registry, "verbs/plain:mutated"), "--env=A=1"],
        ["pull", name, f"oci:{tmp_path}/out:v1"],
    ):
        lamella(*verb, certs, "--plain-http")


def test_logins_are_read_from_the_authfile_option(
    needs: Needs, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logins = tmp_path / "logins.json"
    with running(DockerRegistry(needs("docker-registry"), tmp_path / "basic", basic=True)) as registry:
        name = named(registry, "verbs/login:v1")
        password = tmp_path / "password"
        password.write_text(PASSWORD)
        program = str(Path(sys.executable).with_name("lamella"))
        command = [program, "login", registry.host, "-u", USER, "--password-stdin", "--authfile", str(logins)]
        with password.open("rb") as stream:
            subprocess.run(command, stdin=stream, check=True, capture_output=True)
        assert not (tmp_path / "docker").exists()
        assert run(["push", f"{layout}:one", name]) == 9
        assert run(["push", f"--authfile={logins}", f"{layout}:one", name]) == 0
        tool(needs("skopeo"), "--insecure-policy")(
            "copy", "-q", f"--authfile={logins}", "--src-tls-verify=false", name, f"oci:{tmp_path}/theirs:v1"
        )
        assert run(["logout", registry.host, f"--authfile={logins}"]) == 0
        assert run(["inspect", f"--authfile={logins}", name]) == 9
    capsys.readouterr()
