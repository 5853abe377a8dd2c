"""A value that is used within modules and beside them: what follows from one fault is no other finding."""

from typing import Any

import jax
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

import compare

WIDTH = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.gate, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        y = functional.silu(self.front(x))
        return x + self.last(y * torch.sigmoid(self.gate(y)))


class PortOfBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.front, self.gate, self.last = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3))

    def __call__(self, x: jax.Array) -> Any:
        y = jax.nn.relu(self.front(x))
        return x + self.last(y * jax.nn.sigmoid(self.gate(y)))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([PortOfBlock(rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def test_one_activation_in_each_of_two_blocks_is_one_thing_to_mend() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((5, WIDTH)), rng.standard_normal((5, WIDTH))) for _ in range(2)]
    report = compare.check(
        compare.Torch(Original(), square, lambda parameters: torch.optim.SGD(parameters, 0.1)),
        compare.Flax(Port(nnx.Rngs(0)), square, optax.sgd(0.1)),
        batches,
        steps=2,
    )
    assert report.divergence is not None
    found = [report.divergence, *report.others]
    assert [each.torch for each in found] == [f"between blocks.{at}.front and blocks.{at}.gate" for at in range(2)]
    assert {each.cause.name for each in found if each.cause} == {"activation"}


def test_what_a_model_gives_after_another_update_follows_from_the_update() -> None:
    """The first update is below float32's rounding of the weights: the output of the next step shows it first."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((5, 4), np.float32), rng.standard_normal((5, 2), np.float32)) for _ in range(3)]
    report = compare.check(
        compare.Torch(nn.Linear(4, 2), square, lambda parameters: torch.optim.SGD(parameters, 2e-7)),
        compare.Flax(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), square, optax.sgd(3e-7)),
        batches,
        steps=3,
        quick=True,
    )
    assert report.divergence is not None
    assert report.divergence.stage == "update"
    assert not report.others
