"""A gradient that the port clips to another norm: no schedule, although a rate at each step explains it as well."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

import compare


def original() -> Any:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(batch["x"]), batch["y"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port(counted: Any, rate: Any) -> Any:
    def build() -> Any:
        model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def clip(updates: Any, params: Any) -> Any:
            del params
            return optax.tree.scale(jnp.minimum(1.0, 1.0 / (optax.tree.norm(counted(updates)) + 1e-6)), updates)

        optimizer = nnx.Optimizer(model, optax.chain(optax.stateless(clip), optax.sgd(rate)), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(batch["x"]) - batch["y"]) ** 2))(
                state["model"]
            )
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return build


@pytest.mark.parametrize(
    ("counted", "rate", "cause"),
    [
        (lambda updates: updates["kernel"], 0.1, ""),
        (lambda updates: updates, optax.piecewise_constant_schedule(0.1, {1: 0.5, 3: 0.5}), "schedule"),
    ],
    ids=["norm", "schedule"],
)
def test_another_norm_is_no_schedule(counted: Any, rate: Any, cause: str) -> None:
    rng = np.random.default_rng(0)
    # Every second batch is so near that its gradient is not clipped.
    sizes = (9.0, 0.1, 9.0, 0.1)
    batches = [{"x": rng.normal(size=(6, 4)), "y": size * rng.normal(size=(6, 3))} for size in sizes]
    sides = compare.TorchProgram(original), compare.JaxProgram(port(counted, rate))
    report = compare.check(*sides, batches, steps=4, device="cpu", quick=True)
    assert report.divergence is not None
    name = report.divergence.cause.name if report.divergence.cause else ""
    assert name == cause, str(report)
