"""A cause in a step of many calls: the runs of a search are not spent on the calls of one function."""

from typing import Any

import jax
import optax
import pytest
import torch
from flax import nnx
from in_ci import first
from programs.common import drawn
from test_program_kinds import checked
from torch.nn import functional

DEPTH = 8


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(5, 5) for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c, d, e, f, g, h = self.layers
        x = x + functional.relu(a(x))
        x = x + functional.relu(b(x))
        x = x + functional.relu(c(x))
        x = x + functional.relu(d(x))
        x = x + functional.relu(e(x))
        x = x + functional.relu(f(x))
        x = x + functional.relu(g(x))
        return x + functional.relu(h(x))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(DEPTH)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = x + nnx.relu(layer(x))
        return x


class Normalized(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight - weight.mean()) / (weight.std() + 1e-8)


def original(share: float) -> Any:
    """Weigh the examples of a minibatch by normalized numbers, beside a larger loss."""
    model, normalized = Original(), Normalized()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(_: Any, batch: Any) -> Any:
        for start in range(0, 12, 3):
            x, weight = batch["x"][start : start + 3], batch["w"][start : start + 3, 0]
            output = model(x)
            loss = functional.mse_loss(output, x) + share * (normalized(weight) * output.mean(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {"last": loss}

    return {"model": model, "normalized": normalized, "optimizer": optimizer}, step


def port(share: float) -> Any:
    model = Port(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    def loss_of(model: Any, x: jax.Array, weight: jax.Array) -> jax.Array:
        weight = (weight - weight.mean()) / (weight.std() + 1e-8)
        output = model(x)
        return ((output - x) ** 2).mean() + share * (weight * output.mean(1)).mean()

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        for start in range(0, 12, 3):
            rows = batch["x"][start : start + 3], batch["w"][start : start + 3, 0]
            loss, gradients = nnx.value_and_grad(loss_of)(state["model"], *rows)
            state["optimizer"].update(state["model"], gradients)
        return state, {"last": loss}

    return {"model": model, "optimizer": optimizer}, step


@pytest.mark.parametrize("share", first([(1e-8,), (1e-4,)]))
def test_a_single_call_is_tried_beside_many_of_another_function(share: float) -> None:
    """With a small share, a millionth of the standard deviation moves the gradients by less than rounding."""
    report = checked(lambda: original(share), lambda: port(share), drawn(x=(5,), w=(1,)), steps=3)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "variance by n or n - 1"
    assert not report.others
