# SPDX-License-Identifier: Apache-2.0
"""Names, links, whiteouts and hard links that try to leave the target, and the real ones that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.security.attacks import HARD_LINKS, LINKS, NAMES, TWINS, WHITEOUTS, Case
from tests.security.routes import ROUTES
from tests.security.surroundings import listing


def check(case: Case, target: Path, outside: Path, route: str) -> None:
    layers = case.layers(outside)
    if case.refused is None:
        ROUTES[route](target, layers)
        assert case.holds is not None
        assert dict(case.holds(outside)) == listing(target)
    else:
        with pytest.raises(case.refused):
            ROUTES[route](target, layers)


def cases(table: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", table.values(), ids=table)


routes = pytest.mark.parametrize("route", ROUTES)


@routes
@cases(NAMES)
def test_a_name_leads_nowhere_else(case: Case, route: str, target: Path, outside: Path) -> None:
    check(case, target, outside, route)


@routes
@cases(LINKS)
def test_a_link_leads_nowhere_else(case: Case, route: str, target: Path, outside: Path) -> None:
    check(case, target, outside, route)


@routes
@cases(WHITEOUTS)
def test_a_whiteout_removes_nothing_else(case: Case, route: str, target: Path, outside: Path) -> None:
    check(case, target, outside, route)


@routes
@cases(HARD_LINKS)
def test_a_hard_link_reaches_nothing_else(case: Case, route: str, target: Path, outside: Path) -> None:
    check(case, target, outside, route)


@routes
@cases(TWINS)
def test_what_real_images_have_works(case: Case, route: str, target: Path, outside: Path) -> None:
    check(case, target, outside, route)
