"""One linear layer that is trained on squares: for what an optimizer, or clipping around it, does in a step."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import torch
from flax import nnx
from torch.nn import functional

from programs.common import squares, trained


def original(
    optimizer_of: Callable[[torch.nn.Linear], torch.optim.Optimizer],
    largest: float | None = None,
    change: Callable[[torch.nn.Linear], None] = lambda model: None,
) -> Any:
    """Build the torch program; with `largest`, the gradients are clipped to this norm. `change` changes them too."""

    def build() -> Any:
        model = torch.nn.Linear(4, 3)
        optimizer = optimizer_of(model)

        def step(_: Any, batch: Any) -> Any:
            optimizer.zero_grad()
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            loss.backward()
            if largest is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
            change(model)
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return build


def port(transform: optax.GradientTransformation) -> Any:
    """Build the same program in Flax."""
    return lambda: trained(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), transform, squares)


def clipped(largest: float, counted: Callable[[Any], Any] = lambda updates: updates) -> optax.GradientTransformation:
    """Clip as `clip_grad_norm_` does, to the norm of what is `counted`."""

    def clip(updates: Any, params: Any) -> Any:
        del params
        return optax.tree.scale(jnp.minimum(1.0, largest / (optax.tree.norm(counted(updates)) + 1e-6)), updates)

    return optax.stateless(clip)
