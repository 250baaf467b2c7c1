# SPDX-License-Identifier: Apache-2.0
"""Origins, forbidden addresses and proxies of URLs."""

from __future__ import annotations

import pytest

from lamella.errors import Denied, InvalidInput
from lamella.registry.http.urls import Origin, check_address, join_url, parse_origin, proxy_for, redact_url

HTTPS = Origin("https", "registry.example", 443)


@pytest.mark.parametrize(
    ("url", "expected", "text"),
    [
        ("https://Registry.Example/v2/", HTTPS, "registry.example"),
        ("https://registry.example:443", HTTPS, "registry.example"),
        ("https://registry.example.:443/", HTTPS, "registry.example"),
        ("http://registry.example:443/", Origin("http", "registry.example", 443), "registry.example:443"),
        ("http://[::1]:5000/a?b", Origin("http", "::1", 5000), "[::1]:5000"),
    ],
)
def test_the_origin_of_a_url(url: str, expected: Origin, text: str) -> None:
    assert parse_origin(url) == expected
    assert str(parse_origin(url)) == text


@pytest.mark.parametrize(
    "url",
    [
        *("", "registry.example", "ftp://a/b", "file:///etc/passwd", "https://", "https://a:b/", "https://a:99999/"),
        *("https://user@a/", "https://user:secret@a/", "https://[::1/", "https://a b/", "https://a/\nb", "https://ä/"),
    ],
)
def test_malformed_and_foreign_urls_have_no_origin(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_origin(url)
    assert "secret" not in str(caught.value)


def test_a_redacted_url_has_no_user_and_query() -> None:
    assert redact_url("https://u:p@a.example:1/b/c?signature=x#y") == "https://a.example:1/b/c"


def test_a_location_is_relative_to_its_response() -> None:
    assert join_url("https://a.example/v2/x?y", "/v2/z") == "https://a.example/v2/z"
    with pytest.raises(InvalidInput):
        join_url("https://a.example/", "http://[::1")


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
        *("2002:a9fe:a9fe::1", "fd00:ec2::254", "100.100.100.200", "0.0.0.0", "::", "224.0.0.1"),
    ],
)
def test_link_local_and_metadata_addresses_are_refused(address: str) -> None:
    for loopback in (False, True):
        with pytest.raises(Denied):
            check_address(address, loopback=loopback)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost"])
def test_loopback_is_reached_from_loopback_only(address: str) -> None:
    check_address(address, loopback=True)
    with pytest.raises(Denied):
        check_address(address, loopback=False)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "fd12::1", "8.8.8.8", "storage.example"])
def test_private_networks_are_allowed(address: str) -> None:
    check_address(address, loopback=False)


PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": PROXY}, PROXY),
        ({"https_proxy": "proxy.example:3128"}, PROXY),
        ({"HTTP_PROXY": PROXY}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "registry.example"}, None),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "a, .example"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "example"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "registry.example:443"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "registry.example:5000"}, PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": ".registry.example,ample,10.0.0.0/8,,"}, PROXY),
    ],
)
def test_the_proxy_comes_from_the_environment(environ: dict[str, str], expected: str | None) -> None:
    assert proxy_for(HTTPS, environ) == expected


@pytest.mark.parametrize("exceptions", ["10.0.0.0/8", "10.1.2.3", "10.1.2.3:5000", "fd00::/8,10.1.0.0/16"])
def test_no_proxy_takes_networks(exceptions: str) -> None:
    environ = {"HTTP_PROXY": PROXY, "NO_PROXY": exceptions}
    assert proxy_for(Origin("http", "10.1.2.3", 5000), environ) is None
    assert proxy_for(Origin("http", "11.1.2.3", 5000), environ) == PROXY


def test_loopback_uses_no_proxy() -> None:
    for host in ("localhost", "127.0.0.1", "::1"):
        assert proxy_for(Origin("http", host, 5000), {"HTTP_PROXY": PROXY}) is None


def test_http_proxy_is_ignored_in_a_cgi_program() -> None:
    environ = {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}
    assert proxy_for(Origin("http", "registry.example", 80), environ) is None


def test_other_proxy_schemes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="HTTPS_PROXY"):
        proxy_for(HTTPS, {"HTTPS_PROXY": "socks5://u:secret@a"})
