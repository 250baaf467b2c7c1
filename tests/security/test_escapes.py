# SPDX-License-Identifier: Apache-2.0
"""Names, links, whiteouts and hard links that try to escape the target, and similar harmless ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.security.attacks import HARD_LINKS, LINKS, NAMES, PARSERS, TWINS, WHITEOUTS, Case
from tests.security.routes import ROUTES, CommandFailed, category

routes = pytest.mark.parametrize("route", ROUTES)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    place.mkdir()
    return place


def check(case: Case, route: str, target: Path, outside: Path, work: Path) -> None:
    tars = [layer.done() for layer in case.layers(outside)]
    if case.refused is None:
        held = ROUTES[route](target, work, tars)
        assert case.holds is not None
        assert dict(case.holds(outside)) == held
        return
    with pytest.raises((case.refused, CommandFailed)) as caught:
        ROUTES[route](target, work, tars)
    if isinstance(caught.value, CommandFailed):
        assert category(case.refused) == caught.value.code


def cases(table: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", table.values(), ids=table)


@routes
@cases(NAMES)
def test_a_name_cannot_escape(case: Case, route: str, target: Path, outside: Path, work: Path) -> None:
    check(case, route, target, outside, work)


@routes
@cases(LINKS)
def test_a_link_cannot_escape(case: Case, route: str, target: Path, outside: Path, work: Path) -> None:
    check(case, route, target, outside, work)


@routes
@cases(WHITEOUTS)
def test_a_whiteout_removes_nothing_outside(case: Case, route: str, target: Path, outside: Path, work: Path) -> None:
    check(case, route, target, outside, work)


@routes
@cases(HARD_LINKS)
def test_a_hard_link_cannot_reach_outside_files(
    case: Case, route: str, target: Path, outside: Path, work: Path
) -> None:
    check(case, route, target, outside, work)


@routes
@cases(PARSERS)
def test_a_header_has_one_meaning(case: Case, route: str, target: Path, outside: Path, work: Path) -> None:
    check(case, route, target, outside, work)


@routes
@cases(TWINS)
def test_harmless_layers_of_real_images_are_applied(
    case: Case, route: str, target: Path, outside: Path, work: Path
) -> None:
    check(case, route, target, outside, work)
