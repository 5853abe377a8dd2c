"""The order of axes in which a tensor of the JAX side has the numbers of torch's."""

import numpy as np
import pytest

from compare.step.layouts import ActivationLayouts
from compare.step.observation import Observation


def found(torch: np.ndarray, jax: np.ndarray) -> str:
    layout = ActivationLayouts((), Observation(), Observation())(torch, jax, may_be_flattened=False)
    assert layout is not None
    return layout.name


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_an_order_that_brings_equal_numbers_is_taken(scale: float) -> None:
    array = 0.5 + scale * np.random.default_rng(0).normal(size=(4, 4, 3))
    assert found(array, array.swapaxes(0, 1)) == "first two axes exchanged"
    assert found(array, array) == "as it is"


def test_numbers_that_hardly_differ_do_not_decide() -> None:
    """A saturated layer gives nearly the same at all positions: which order is nearer by a little is chance."""
    rng = np.random.default_rng(0)
    array = 0.5 + 1e-12 * rng.normal(size=(4, 4, 3))
    assert found(array, array.swapaxes(0, 1) + 1e-13 * rng.normal(size=array.shape)) == "as it is"
