"""A counter in the state of a port that starts elsewhere than torch's."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet

import compare

WARM_UP = 10


def original() -> Any:
    torch.manual_seed(0)
    model = TorchNet(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(state: Any, batch: Any) -> Any:
        weight = min(1.0, (state["steps"] + 1) / WARM_UP)
        loss = weight * torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state["steps"] += 1
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer, "steps": 0}, step


def port(start: int, *, factor: float = 1.0) -> Any:
    model = FlaxNet(nnx.Rngs(0), 4, 3)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def of_model(model: Any) -> Any:
            weight = factor * jnp.minimum(1.0, (state["steps"] + 1) / WARM_UP)
            return weight * jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

        loss, gradients = nnx.value_and_grad(of_model)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return {**state, "steps": state["steps"] + 1}, {"loss": loss}

    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    return {"model": model, "optimizer": optimizer, "steps": jnp.array(start)}, step


def checked(start: int, **settings: Any) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(5, 4)), "y": rng.normal(size=(5, 3))} for _ in range(3)]
    sides = compare.TorchProgram(original), compare.JaxProgram(lambda: port(start, **settings))
    return compare.check(*sides, [{name: each.astype(np.float32) for name, each in batch.items()} for batch in batches])


@pytest.mark.parametrize("start", [1, 1000])
def test_it_is_named(start: int) -> None:
    report = checked(start)
    assert report.divergence
    assert report.divergence.cause
    assert report.divergence.cause.name == "starting value"
    assert f"steps starts at {start} on the JAX side. Started at 0" in report.divergence.cause.explanation
    assert report.divergence.cause.fix.startswith("start steps at 0")
    assert report.divergence.cause.fix.endswith(", or count after it is read") == (start == 1)


def test_what_is_wrong_besides_is_not_blamed_on_it() -> None:
    assert checked(0).ok
    report = checked(0, factor=2.0)
    assert report.divergence
    assert report.divergence.cause is None or report.divergence.cause.name != "starting value"
