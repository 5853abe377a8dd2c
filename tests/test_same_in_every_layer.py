"""The same mistake in every layer of a program is one thing to mend."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import some
from programs.common import trained

import compare

LAYERS = 4


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project = torch.nn.LayerNorm(5), torch.nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.project(self.norm(x)) / 3)


class BlockPort(nnx.Module):
    def __init__(self, epsilon: float, divisor: float, rngs: nnx.Rngs) -> None:
        self.norm, self.project = nnx.LayerNorm(5, epsilon=epsilon, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)
        self.divisor = divisor

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jax.numpy.tanh(self.project(self.norm(x)) / self.divisor)


def original() -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Block() for _ in range(LAYERS)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(state: Any, batch: Any) -> Any:
        del state
        loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port(epsilon: float = 1e-5, divisor: float = 3.0) -> Any:
    def build() -> Any:
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(*(BlockPort(epsilon, divisor, rngs) for _ in range(LAYERS)))

        def loss_of(model: Any, batch: Any) -> Any:
            return ((model(batch["x"]) - batch["y"]) ** 2).mean()

        return trained(model, optax.sgd(0.1), loss_of)

    return build


CASES = {"eps": {"epsilon": 1e-2}, "constant": {"divisor": 4.0}}


@pytest.mark.parametrize("cause", some(CASES, []))
def test_a_fault_of_every_layer_is_one_thing_to_mend(cause: str) -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((6, 5)), "y": rng.standard_normal((6, 5))} for _ in range(3)]
    ports = compare.JaxProgram(port(**CASES[cause]))
    report = compare.check(compare.TorchProgram(original), ports, batches, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert cause in report.divergence.cause.name
    assert not report.others, str(report)
