"""Public reports of ports that went wrong: the right half matches, and the wrong half is placed and explained."""

import pytest
from in_ci import some
from reported import REPORTS, Report, check

EACH = some(REPORTS, ("debiased average", "zero scale"), lambda report: report.name)


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
