"""What the programs share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx


class Pair(NamedTuple):
    """A training, its port and the batches of both."""

    original: Callable[[], Any]
    port: Callable[[], Any]
    batches: list[Any]


class TorchNet(torch.nn.Module):
    """A small network, with a norm that keeps running statistics if `norm` is set."""

    def __init__(self, inputs: int = 5, outputs: int = 3, hidden: int = 8, *, norm: bool = False) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(inputs, hidden)
        self.norm = torch.nn.BatchNorm1d(hidden) if norm else None
        self.fc2 = torch.nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc1(x)
        return self.fc2(torch.tanh(h if self.norm is None else self.norm(h)))


class BatchNorm(nnx.Module):
    """A batch norm that keeps the unbiased variance, as torch's does and Flax's does not."""

    def __init__(self, size: int) -> None:
        self.scale, self.bias = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(size)), nnx.BatchStat(jnp.ones(size))
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.use_running_average:
            return (x - self.mean[...]) / jnp.sqrt(self.var[...] + 1e-5) * self.scale[...] + self.bias[...]
        mean, var = x.mean(0), x.var(0)
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
        self.var[...] = 0.9 * self.var[...] + 0.1 * x.var(0, ddof=1)
        return (x - mean) / jnp.sqrt(var + 1e-5) * self.scale[...] + self.bias[...]


class FlaxNet(nnx.Module):
    """The same network in Flax."""

    def __init__(
        self, rngs: nnx.Rngs, inputs: int = 5, outputs: int = 3, hidden: int = 8, *, norm: bool = False
    ) -> None:
        self.fc1 = nnx.Linear(inputs, hidden, rngs=rngs)
        self.norm = BatchNorm(hidden) if norm else None
        self.fc2 = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.fc1(x)
        return self.fc2(jnp.tanh(h if self.norm is None else self.norm(h)))


def drawn(seed: int = 0, count: int = 3, size: int = 12, **shapes: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """Draw batches of normal numbers: `drawn(x=(5,), y=(3,))`."""
    rng = np.random.default_rng(seed)
    return [{name: rng.normal(size=(size, *shape)) for name, shape in shapes.items()} for _ in range(count)]


def clip_as_torch(gradients: Any, most: float) -> Any:
    """Clip by the global norm as `torch.nn.utils.clip_grad_norm_` does, with its 1e-6."""
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)))
    return jax.tree.map(lambda leaf: leaf * jnp.minimum(1.0, most / (norm + 1e-6)), gradients)


def squares(model: Any, batch: Any) -> jax.Array:
    """Give the mean of the squared errors of a model of nnx."""
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def trained(model: Any, tx: optax.GradientTransformation, loss_of: Callable[[Any, Any], jax.Array]) -> Any:
    """Give the state and the step of a port that takes the gradients of one loss, and updates one model."""
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        loss, gradients = nnx.value_and_grad(loss_of)(state["model"], batch)
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def trained_in_torch(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[Any, Any], torch.Tensor]
) -> Any:
    """Give the state and the step of a training that the port of `trained` is of."""

    def step(state: Any, batch: Any) -> Any:
        del state
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step
