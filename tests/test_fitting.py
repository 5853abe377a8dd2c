"""A number that stands in the place of another one is found from what is computed with it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from compare.numerics.fitting import fitted

RATES = some.integers(1, 19).map(lambda twentieths: twentieths / 20)
KEPT = np.random.default_rng(0).normal(size=20)


@given(RATES, RATES)
def test_another_rate_of_dropout_is_found(own: float, other: float) -> None:
    """What is kept is divided by 1 - rate, which has a pole at 1, and no rate is above it."""
    target = KEPT / (1 - other)

    def run(rate: float) -> np.ndarray | None:
        return KEPT / (1 - rate) if 0 <= rate < 1 else None

    def apart(given: np.ndarray | None) -> float:
        return np.inf if given is None else float(np.abs(given - target).max() / np.abs(target).max() / 1e-14)

    left, found = fitted(own, run, target, apart)
    assert left <= 1, found
    assert found == other
