"""What is printed where a loss reduces other elements than torch's: a fix that makes it right, or none."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import compare


class TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.one(x), self.two(x)


class FlaxHeads(nnx.Module):
    def __init__(self) -> None:
        self.one, self.two = (nnx.Linear(4, 3, rngs=nnx.Rngs(seed)) for seed in (0, 1))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.one(x), self.two(x)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (lambda x: x.mean(), r"jnp\.sum\(\.\.\., axis=1\): reduce this axis alone, and the others as torch does"),
        (lambda x: x.sum(), r"take the mean of 6 numbers, as torch does, .*divided by 6"),
        (lambda x: x.sum(axis=1).mean(), None),
    ],
)
def test_a_reduction_of_other_axes_is_no_fix(taken: Any, expected: str | None) -> None:
    """The mean of sums over an axis is neither the mean of all elements nor their sum."""
    report = compare.check(
        compare.Torch(TwoHeads(), lambda given, y: (given[0].square() + given[1].exp() - y).sum(dim=1).mean()),
        compare.Flax(FlaxHeads(), lambda given, y: taken(given[0] ** 2 + jnp.exp(given[1]) - y)),
        [(np.random.default_rng(0).normal(size=(6, 4)), np.ones((6, 3)))],
        quick=True,
        device="cpu",
    )
    if expected is None:
        assert report.ok
        return
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "mean or sum"
    assert re.search(expected, report.divergence.cause.fix)
