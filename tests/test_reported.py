"""Public reports of ports that went wrong: the right half matches, and the wrong half is placed and explained."""

import pytest
from reported import REPORTS, Report, check

FAST = ("clip epsilon", "debiased average", "trained buffer", "half weights", "zero scale")
"""The reports that are checked in CI; `make test-all` checks all of them."""

EACH = [pytest.param(r, id=r.name, marks=() if r.name in FAST else pytest.mark.slow) for r in REPORTS]


@pytest.mark.parametrize("report", EACH)
def test_the_right_half_matches(report: Report) -> None:
    found = check(report, wrong=False)
    assert found.verdict in report.right, str(found)


@pytest.mark.parametrize("report", EACH)
def test_the_wrong_half_is_placed_and_explained(report: Report) -> None:
    found = check(report, wrong=True)
    assert found.verdict == report.wrong, str(found)
    first, cause = found.divergence, next(iter(found.notes), None)
    if first is not None:
        assert first.stage == report.stage, first.headline
        assert report.place in first.torch, first.headline
        assert not found.others, str(found)
        cause = first.cause
    if report.words:
        assert cause is not None, str(found)
        said = f"{cause.name} {cause.explanation} {cause.fix}"
        assert any(words in said for words in report.words.split("|")), said
    else:
        assert cause is None, cause
