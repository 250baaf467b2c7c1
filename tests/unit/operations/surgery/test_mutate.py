# SPDX-License-Identifier: Apache-2.0
"""A config is changed where it is told to be, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import lamella
from lamella.errors import InvalidInput
from lamella.images.resolve import open_platform_image
from lamella.oci.config import ContainerConfig
from lamella.oci.documents import encode
from lamella.testing.builders import file

MakeImage = Callable[..., str]
Rewrite = Callable[[str, Callable[[Any, Any], None]], None]

CONFIG = ContainerConfig(
    env=["PATH=/bin", "A=1", "PATH=/again"],
    cmd=["sh"],
    labels={"a": "1", "b": "2"},
    exposed_ports={"80/tcp": {}, "443": {}},
    volumes={"/data": {}},
    working_dir="/srv",
)


@pytest.fixture
def image(make_image: MakeImage) -> str:
    """Return the name of an image with a config."""
    return make_image([file("a")], config=CONFIG)


def config_of(name: str) -> dict[str, Any]:
    with open_platform_image(name) as image:
        found: dict[str, Any] = json.loads(encode(image.config))
        return found


def changed(image: str, **settings: Any) -> dict[str, Any]:
    lamella.mutate(image, image, lamella.Settings(**settings))
    return config_of(image)


def test_variables_keep_their_places_and_go_by_name(image: str) -> None:
    config = changed(image, env={"NEW": "x=y", "PATH": "/usr/bin", "A": None, "GONE": None})
    assert config["config"]["Env"] == ["PATH=/usr/bin", "NEW=x=y"]


def test_sets_take_members_and_give_them_up(image: str) -> None:
    config = changed(
        image,
        labels={"a": None, "c": ""},
        exposed_ports={"443": False, "53/udp": True, "80/tcp": True},
        volumes=["/logs"],
    )["config"]
    assert config["Labels"] == {"b": "2", "c": ""}
    assert config["ExposedPorts"] == {"53/udp": {}, "80/tcp": {}}
    assert config["Volumes"] == {"/data": {}, "/logs": {}}


def test_values_are_set_and_taken_away(image: str) -> None:
    config = changed(image, cmd=[], entrypoint=["/init", "x"], working_dir="", user="1:2", stop_signal="SIGINT")
    assert "Cmd" not in config["config"]
    assert "WorkingDir" not in config["config"]
    assert (config["config"]["Entrypoint"], config["config"]["User"]) == (["/init", "x"], "1:2")
    assert config["config"]["StopSignal"] == "SIGINT"
    config = changed(
        image, author="me", platform="windows(10.0.20348.1)/amd64", os_version="10.0.1", history="made by hand"
    )
    assert (config["author"], config["os"], config["os.version"]) == ("me", "windows", "10.0.1")
    assert config["history"][-1] == {
        "created": "2024-01-02T03:04:05Z",
        "created_by": "made by hand",
        "empty_layer": True,
    }


def test_where_nothing_changes_the_digest_stays(image: str, rewrite: Rewrite, tmp_path: Path) -> None:
    def odd(manifest: Any, config: Any) -> None:
        manifest["annotations"] = {"z": "1", "a": "2"}
        manifest["unknown"] = [1]
        config["config"]["Healthcheck"] = {"Test": ["NONE"]}

    rewrite(image, odd)  # written with spaces, which Lamella would not do
    with open_platform_image(image) as opened:
        before = opened.descriptor.digest
    assert lamella.mutate(image, f"oci:{tmp_path}/other:x").descriptor.digest == before
    same = lamella.mutate(image, f"oci-archive:{tmp_path}/a.tar:x", lamella.Settings(env={"A": "1"}, user=""))
    assert same.config.config.env == ["PATH=/bin", "A=1", "PATH=/again"]
    assert same.descriptor.digest == before


def test_unknown_fields_stay(image: str, rewrite: Rewrite) -> None:
    def odd(manifest: Any, config: Any) -> None:
        manifest["unknown"] = {"x": [1]}
        config["config"]["Healthcheck"] = {"Test": ["NONE"]}
        config["docker_version"] = "1"

    rewrite(image, odd)
    finished = lamella.mutate(image, image, lamella.Settings(user="x"), annotations={"k": "v", "gone": None})
    config = config_of(image)
    assert (config["config"]["Healthcheck"], config["docker_version"]) == ({"Test": ["NONE"]}, "1")
    assert finished.manifest.extra == {"unknown": {"x": [1]}}
    assert finished.manifest.annotations == {"k": "v"}


def test_created_sets_the_date_of_an_image(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed(image, user="x")["created"] == "2024-01-02T03:04:05Z"
    assert changed(image, created="2020-01-01T00:00:00+01:00")["created"] == "2020-01-01T00:00:00+01:00"
    moment = datetime(2021, 2, 3, 4, 5, 6, 70_000, timezone(timedelta(hours=2)))
    assert changed(image, created=moment)["created"] == "2021-02-03T02:05:06.07Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert changed(image)["created"] == "2023-11-14T22:13:20Z"
    assert changed(image, created=datetime(1, 1, 1, tzinfo=UTC))["created"] == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "settings",
    [
        {"env": {"": "x"}},
        {"env": {"a=b": "x"}},
        {"env": {"a": 1}},
        {"env": {"a": "\udcff"}},
        {"labels": {"\udcff": "a"}},
        {"cmd": "sh -c"},
        {"entrypoint": [1]},
        {"user": 0},
        {"exposed_ports": ["0"]},
        {"exposed_ports": ["70000/tcp"]},
        {"exposed_ports": ["80/icmp"]},
        {"exposed_ports": ["90-80"]},
        {"exposed_ports": "80"},
        {"volumes": [""]},
        {"created": "yesterday"},
        {"created": "2024-13-01T00:00:00Z"},
        {"created": datetime(2024, 1, 1)},  # noqa: DTZ001  # that is what is wrong with it
        {"platform": "a/b/c/d"},
    ],
)
def test_settings_that_no_config_can_have_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        lamella.Settings(**settings)


def test_settings_do_not_change_with_what_they_were_made_from() -> None:
    env, words = {"A": "1"}, ["sh"]
    settings = lamella.Settings(env=env, cmd=words, exposed_ports=iter(["80"]))
    env["A"] = "2"
    words.append("x")
    assert (settings.env, settings.cmd, settings.exposed_ports) == ({"A": "1"}, ("sh",), {"80": True})
