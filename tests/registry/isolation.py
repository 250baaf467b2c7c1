# SPDX-License-Identifier: Apache-2.0
"""Isolation of tests from the settings and logins of the user who runs them."""

from __future__ import annotations

from pathlib import Path

import pytest


def isolate(monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    """Use only settings below ``home``; return the directory for certificates."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "docker"))
    monkeypatch.setenv("LAMELLA_CERTS_DIR", str(home / "certs.d"))
    monkeypatch.setenv("LAMELLA_REGISTRIES", str(home / "registries.toml"))
    return home / "certs.d"
