"""A model of torch's that puts another parameter in the place of one while it runs, as codebooks with averages do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
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


def original() -> Any:
    model = Original()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        loss = torch.square(model(batch["x"]) - batch["y"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port(decay: float) -> Any:
    model = Port(decay, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_fn(model: Any) -> Any:
            return jnp.square(model(batch["x"]) - batch["y"]).mean()

        loss, gradients = nnx.value_and_grad(loss_fn)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


@pytest.mark.parametrize(("decay", "verdict"), [(DECAY, "match"), (0.8, "mismatch")])
def test_the_new_parameter_is_followed(decay: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": rng.normal(size=(6, 3))} for _ in range(3)]
    sides = compare.TorchProgram(original), compare.JaxProgram(lambda: port(decay))
    report = compare.check(*sides, batches, steps=3, quick=True)
    assert report.verdict == verdict, str(report)
