"""Random numbers, and numbers that are rounded to float32 before a program runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch.nn import functional

from programs.averages import mse
from programs.common import FlaxNet, Pair, TorchNet, drawn


def noisy(fault: str = "") -> Pair:
    """Noise on the inputs and dropout on the outputs, from a key in the state; and a table of scales in float32."""

    class Scaled(TorchNet):
        def __init__(self) -> None:
            super().__init__()
            self.table: torch.Tensor
            self.register_buffer("table", torch.exp(-0.37 * torch.arange(5)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = super().forward(x * self.table)
            return output

    def original() -> Any:
        model = Scaled()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(state: Any, batch: Any) -> Any:
            x = batch["x"] + 0.1 * torch.randn_like(batch["x"])
            loss = functional.mse_loss(functional.dropout(model(x), 0.5), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        rate = 0.4 if fault == "rate" else 0.5

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            key, for_noise, for_dropout = jax.random.split(state["key"], 3)
            x = batch["x"] + 0.1 * jax.random.normal(for_noise, batch["x"].shape)
            x = x * jnp.exp(jnp.asarray(-0.37 * np.arange(5), jnp.float32))
            kept = jax.random.bernoulli(for_dropout, 1 - rate, (len(x), 3))

            def loss_of(model: FlaxNet) -> jax.Array:
                return mse(jnp.where(kept, model(x) / (1 - rate), 0), batch["y"])

            loss, gradients = nnx.value_and_grad(loss_of)(state["model"])
            state["optimizer"].update(state["model"], gradients)
            if fault == "idle":
                loss = loss + 0.0 * jax.random.normal(key, ())
            return {**state, "key": state["key"] if fault == "same key" else key}, {"loss": loss}

        return {"model": model, "optimizer": optimizer, "key": jax.random.key(0)}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))
