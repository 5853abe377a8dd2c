"""A first step that takes another way through the program than the later ones: what it shows alone is no cause."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import compare

KEPT = 0.9


def original() -> Any:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    centre = torch.zeros(3)
    taken: list[bool] = []

    def step(_: Any, batch: Any) -> Any:
        y = model(batch["x"])
        mean = y.detach().mean(0)
        if taken:
            centre.mul_(KEPT).add_((1 - KEPT) * mean)
        else:
            centre.copy_(mean)
        taken.append(True)
        loss = torch.square(torch.sin(y - centre)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer, "centre": centre}, step


def port() -> Any:
    """Take the centre of the step before, which is zero at first."""
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @jax.jit
    def following(centre: jax.Array, mean: jax.Array, count: jax.Array) -> jax.Array:
        return jnp.where(count == 0, mean, KEPT * centre + (1 - KEPT) * mean)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_fn(model: Any) -> Any:
            y = model(batch["x"])
            return jnp.square(jnp.sin(y - state["centre"])).mean(), y.mean(0)

        (loss, mean), gradients = nnx.value_and_grad(loss_fn, has_aux=True)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        centre = following(state["centre"], mean, state["count"])
        return {**state, "centre": centre, "count": state["count"] + 1}, {"loss": loss}

    count = jnp.zeros((), jnp.int32)
    return {"model": model, "optimizer": optimizer, "centre": jnp.zeros(3), "count": count}, step


def test_what_fits_the_first_step_alone_is_no_cause() -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": 1 + rng.normal(size=(6, 3))} for _ in range(3)]
    sides = compare.TorchProgram(original), compare.JaxProgram(port)
    report = compare.check(*sides, batches, steps=4, device="cpu")
    assert report.divergence is not None
    assert report.divergence.step == 0
    assert report.divergence.cause is None
