"""Attention with another number of heads is told as such, in each layer as one thing to mend."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import compare

WIDTH, HEADS = 12, 3


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.norm(x + self.one(x, x, x, need_weights=False)[0])
        return x + self.two(x, x, x, need_weights=False)[0]


class Port(nnx.Module):
    def __init__(self, heads: int, rngs: nnx.Rngs) -> None:
        self.one, self.two = (nnx.MultiHeadAttention(heads, WIDTH, decode=False, rngs=rngs) for _ in range(2))
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> Any:
        x = self.norm(x + self.one(x))
        return x + self.two(x)


class LinenPort(linen.Module):
    heads: int

    @linen.compact
    def __call__(self, x: jax.Array) -> Any:
        x = linen.LayerNorm(epsilon=1e-5, name="norm")(
            x + linen.MultiHeadDotProductAttention(self.heads, name="one")(x, x)
        )
        return x + linen.MultiHeadDotProductAttention(self.heads, name="two")(x, x)


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


@pytest.mark.parametrize("of", ["nnx", "linen"])
@pytest.mark.parametrize("heads", [HEADS, 4])
def test_another_number_of_heads(of: str, heads: int) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((2, 5, WIDTH), np.float32) for _ in range(2))
    module = LinenPort(heads)
    port: Any = Port(heads, nnx.Rngs(0)) if of == "nnx" else (module, module.init(jax.random.key(0), x))
    report = compare.check(
        compare.Torch(Original(), square, lambda parameters: torch.optim.SGD(parameters, 0.1)),
        compare.Flax(port, square, optax.sgd(0.1)),
        [(x, y)] * 2,
        steps=2,
        quick=True,
    )
    assert report.verdict == ("match" if heads == HEADS else "mismatch"), str(report)
    for found in (report.divergence, *report.others):
        if found is not None:
            assert found.cause is not None
            assert found.cause.name == "number of heads"
            assert found.cause.fix.endswith(f"(..., num_heads={HEADS})")
