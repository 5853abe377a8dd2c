"""A model of torch's that puts another parameter in the place of one while it runs, as codebooks with averages do."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import nnx
from programs.common import drawn, trained, trained_in_torch
from torch import nn

import compare

DECAY = 0.9


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.centre = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(x)
        self.centre = nn.Parameter(DECAY * self.centre.detach() + (1 - DECAY) * y.detach().mean(0))
        return y - self.centre.detach()


class Port(nnx.Module):
    def __init__(self, decay: float, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(4, 3, rngs=rngs)
        self.centre, self.decay = nnx.BatchStat(jnp.zeros(3)), decay

    def __call__(self, x: jax.Array) -> Any:
        y = self.layer(x)
        mean = jax.lax.stop_gradient(y.mean(0))
        self.centre[...] = self.decay * self.centre[...] + (1 - self.decay) * mean
        return y - self.centre[...]


def loss_of(model: Any, batch: Any) -> Any:
    return ((model(batch["x"]) - batch["y"]) ** 2).mean()


def original() -> Any:
    model = Original()
    return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)


def port(decay: float) -> Any:
    return trained(Port(decay, nnx.Rngs(0)), optax.sgd(0.1), loss_of)


@pytest.mark.parametrize(("decay", "verdict"), [(DECAY, "match"), (0.8, "mismatch")])
def test_the_new_parameter_is_followed(decay: float, verdict: str) -> None:
    batches = drawn(x=(4,), y=(3,), size=6)
    sides = compare.TorchProgram(original), compare.JaxProgram(lambda: port(decay))
    report = compare.check(*sides, batches, steps=3, quick=True)
    assert report.verdict == verdict, str(report)
