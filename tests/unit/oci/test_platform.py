# SPDX-License-Identifier: Apache-2.0
"""Platforms are parsed as in containerd, and the best one that can run is chosen."""

from __future__ import annotations

import pytest

from lamella.errors import InvalidInput
from lamella.oci import platform as module
from lamella.oci.platform import Platform, best_match, host_platform, matches, parse_platform


def choose(wanted: str, *offers: str) -> str | None:
    return best_match(parse_platform(wanted), [(parse_platform(offer), offer) for offer in offers])


@pytest.fixture
def on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "host_platform", lambda: Platform(architecture="arm", os="linux", variant="v6"))


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/armhf/v6", "linux/arm/v6"),
            ("macos/arm64", "darwin/arm64"),
            ("linux/i686", "linux/386"),
            ("windows(10.0.20348.1)/amd64", "windows(10.0.20348.1)/amd64"),
            ("windows(10.0.20348+win32k)/amd64", "windows(10.0.20348+win32k)/amd64"),
        ],
    )
    def test_alternative_spellings_are_normalized(self, text: str, expected: str) -> None:
        assert str(parse_platform(text)) == expected

    @pytest.mark.usefixtures("on_arm")
    def test_missing_parts_are_those_of_the_host(self) -> None:
        assert (str(parse_platform("arm64")), str(parse_platform("linux"))) == ("linux/arm64", "linux/arm/v6")

    @pytest.mark.parametrize("text", ["", "/", "linux/", "linux//v8", "a/b/c/d", "a/b/", "li nux/amd64", "x(1)"])
    def test_malformed_platforms_are_refused(self, text: str) -> None:
        with pytest.raises(InvalidInput):
            parse_platform(text)

    def test_the_platform_of_the_host_survives_parsing(self) -> None:
        host = host_platform()
        assert parse_platform(str(host)) == host
        assert host.os in ("linux", "windows")


class TestMatching:
    def test_the_architecture_is_never_crossed(self) -> None:
        assert choose("linux/arm64", "linux/arm/v7", "linux/amd64") is None
        assert choose("linux/amd64", "linux/386") is None
        assert choose("linux/amd64", "windows/amd64") is None

    def test_the_highest_variant_that_runs_is_best(self) -> None:
        every = ("linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm/v8")
        assert [choose(f"linux/arm/v{level}", *every) for level in (5, 6, 7, 8)] == [
            "linux/arm/v5",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm/v8",
        ]
        assert choose("linux/arm/v5", "linux/arm/v6") is None

    def test_no_variant_means_the_baseline(self) -> None:
        assert choose("linux/arm", "linux/arm/v6", "linux/arm/v8", "linux/arm/v7") == "linux/arm/v7"
        assert choose("linux/arm/v6", "linux/arm") is None
        assert choose("linux/arm64", "linux/arm64/v8") == "linux/arm64/v8"
        assert choose("linux/arm64/v8", "linux/arm64") == "linux/arm64"
        assert choose("linux/amd64", "linux/amd64/v2", "linux/amd64/v1") == "linux/amd64/v1"
        assert choose("linux/amd64", "linux/amd64/v3") is None
        assert choose("linux/amd64/v4", "linux/amd64", "linux/amd64/v3", "linux/amd64/v2") == "linux/amd64/v3"

    def test_arm64_v9_runs_the_v8_versions_that_it_implies(self) -> None:
        assert choose("linux/arm64/v9", "linux/arm64", "linux/arm64/v8.5", "linux/arm64/v8.6") == "linux/arm64/v8.5"
        assert choose("linux/arm64/v9.2", "linux/arm64/v9", "linux/arm64/v8.7") == "linux/arm64/v9"

    def test_other_variants_must_be_equal(self) -> None:
        assert choose("linux/riscv64", "linux/riscv64") == "linux/riscv64"
        assert choose("linux/mips64le", "linux/mips64le/hardfloat") is None
        assert choose("linux/amd64/fast", "linux/amd64", "linux/amd64/fast") == "linux/amd64/fast"

    def test_the_first_of_equal_platforms_is_chosen(self) -> None:
        one = Platform(architecture="amd64", os="linux")
        assert best_match(one, [(one, "first"), (one, "second")]) == "first"

    def test_a_windows_version_matches_its_build(self) -> None:
        offers = ("windows(10.0.17763.1)/amd64", "windows(10.0.20348.1)/amd64", "windows(10.0.20348.7)/amd64")
        assert choose("windows/amd64", *offers) == offers[0]
        assert choose("windows(10.0.20348.2)/amd64", *offers) == offers[1]
        assert choose("windows(10.0.20348.7)/amd64", *offers) == offers[2]
        assert choose("windows(10.0.26100)/amd64", *offers) is None
        assert choose("windows(10.0.26100)/amd64", "windows/amd64") == "windows/amd64"

    def test_features_limit_the_images_that_can_run(self) -> None:
        offers = ("windows(+win32k)/amd64", "windows(+other)/amd64", "windows/amd64")
        assert choose("windows(+win32k)/amd64", *offers) == offers[0]
        assert choose("windows(+win32k)/amd64", *offers[1:]) == offers[2]
        assert choose("windows/amd64", *offers) == offers[0]

    def test_alternative_spellings_in_an_index_match(self) -> None:
        assert matches(parse_platform("linux/arm/v7"), Platform(architecture="armhf", os="Linux"))
        assert matches(parse_platform("linux/arm64"), Platform(architecture="aarch64", os="linux"))
