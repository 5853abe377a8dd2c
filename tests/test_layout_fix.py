"""A vector that is split into a feature map in another order: the fix has the transpose that follows."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import compare


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.out = torch.nn.Linear(5, 60), torch.nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.front(x).view(-1, 4, 3, 5))


class FlaxDecoder(nnx.Module):
    def __init__(self, split: Any) -> None:
        self.front, self.out = nnx.Linear(5, 60, rngs=nnx.Rngs(0)), nnx.Conv(4, 2, (1, 1), rngs=nnx.Rngs(1))
        self.split = split

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.split(self.front(x)))


@pytest.mark.parametrize(
    ("split", "right"),
    [
        (lambda x: x.reshape(-1, 3, 5, 4), False),
        (lambda x: x.reshape(-1, 4, 3, 5).transpose(0, 2, 3, 1), True),  # what the fix says
    ],
)
def test_a_fix_that_needs_a_transpose_says_it(split: Any, right: bool) -> None:
    batches = [np.random.default_rng(seed).normal(size=(6, 5)) for seed in range(2)]
    report = compare.check(
        compare.Torch(Decoder()), compare.Flax(FlaxDecoder(split)), batches, device="cpu", quick=True
    )
    assert report.ok == right
    if not right:
        assert report.divergence is not None
        assert report.divergence.cause is not None
        assert "x.reshape(..., 4, 3, 5), and then .transpose(0, 2, 3, 1)" in report.divergence.cause.fix
