"""Numbers that are rounded to integers later: most others round to the same, so that none is proved."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import compare

LENGTH = 12


def buckets(xp: Any, integer: Any, farthest: float) -> Any:
    """Give each distance a bucket, as relative positions do, on a scale of logarithms."""
    distance = xp.arange(LENGTH)[None] - xp.arange(LENGTH)[:, None]
    return integer(xp.log(1.0 + abs(distance)) / math.log(1 + farthest) * 6)


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.bias, self.out = torch.nn.Linear(5, 5), torch.nn.Embedding(7, 1), torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias(buckets(torch, lambda each: each.long(), 11))[..., 0]
        return self.out(torch.softmax(bias, -1) @ self.inner(x))


class Port(nnx.Module):
    def __init__(self, farthest: float, rngs: nnx.Rngs) -> None:
        self.inner, self.bias = nnx.Linear(5, 5, rngs=rngs), nnx.Embed(7, 1, rngs=rngs)
        self.out, self.farthest = nnx.Linear(5, 3, rngs=rngs), farthest

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.bias(buckets(jnp, lambda each: each.astype(jnp.int32), self.farthest))[..., 0]
        return self.out(jax.nn.softmax(bias, -1) @ self.inner(x))


def test_no_number_before_a_cast_to_integers_is_a_cause() -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(4, LENGTH, 5)).astype(np.float32)
    report = compare.check(compare.Torch(Original()), compare.Flax(Port(25.0, nnx.Rngs(0))), [(x, None)], device="cpu")
    assert report.verdict == "mismatch"
    for found in [report.divergence, *report.others]:
        assert found is not None
        assert found.cause is None or found.cause.name in ("other numbers", "another table"), str(report)
