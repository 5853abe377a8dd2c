"""The distance of arrays with values that are not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.numerics.distance import distance

FINITE = np.array([[1.0, -2.0], [3.0, 4.0]])


def put(value: float, at: tuple[int, int] = (0, 1)) -> np.ndarray:
    array = FINITE.copy()
    array[at] = value
    return array


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_what_both_sides_have_is_left_out(value: float) -> None:
    assert distance(put(value), put(value)) == 0
    near = put(value) * (1 + 1e-9)
    assert distance(near, put(value)) == pytest.approx(1e-9, rel=1e-3)


@pytest.mark.parametrize(("ours", "theirs"), [(np.inf, -np.inf), (np.inf, 1.0), (np.nan, np.inf), (1.0, np.nan)])
def test_what_one_side_has_is_infinitely_far(ours: float, theirs: float) -> None:
    assert distance(put(ours), put(theirs)) == np.inf
    assert distance(put(-np.inf), put(-np.inf, at=(1, 1))) == np.inf


@given(st.lists(st.sampled_from([1.0, -3.0, np.inf, -np.inf, np.nan, 1e200]), min_size=1, max_size=6))
def test_it_ends_for_all_values(values: list[float]) -> None:
    array = np.array(values)
    assert distance(array, array.copy()) == 0
    assert distance(array, np.ones_like(array)) >= 0
