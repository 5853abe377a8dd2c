"""The right ports from which the corpus is made: three small models, each with its training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import compare


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc2(torch.tanh(self.norm(self.fc1(x))))


class FlaxNet(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.fc1, self.fc2 = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.fc2(jnp.tanh(self.norm(self.fc1(x))))


class TorchImages(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class FlaxImages(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs)
        self.norm, self.fc = nnx.GroupNorm(4, num_groups=2, epsilon=1e-5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.fc(nnx.relu(self.norm(self.conv(jnp.moveaxis(x, 1, -1)))).mean((1, 2)))


class TorchTokens(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2 = torch.nn.Embedding(9, 6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor) -> Any:
        x = self.embed(tokens)
        return self.fc2((x + torch.nn.functional.silu(self.fc1(x))).mean(1))


class FlaxTokens(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed, self.fc1 = nnx.Embed(9, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.fc2 = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        return self.fc2((x + nnx.silu(self.fc1(x))).mean(1))


def mse(output: Any, target: Any) -> Any:
    return jnp.mean((output - target) ** 2)


def cross_entropy(output: Any, target: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(output, target).mean()


@dataclass(frozen=True)
class Base:
    """A right port, taken apart."""

    name: str
    torch_model: type[torch.nn.Module]
    flax_model: type[nnx.Module]
    torch_loss: Callable[..., Any]
    loss: Callable[..., Any]
    torch_optimizer: Callable[..., torch.optim.Optimizer]
    optimizer: optax.GradientTransformation
    batches: Callable[[], list[tuple[np.ndarray, np.ndarray]]]

    def original(self, *, trained: bool = True, **other: Any) -> compare.Torch:
        """Give the torch side, with its loss and optimizer or without, and with `other` fields."""
        torch.manual_seed(0)
        training = {"loss": self.torch_loss, "optimizer": self.torch_optimizer} if trained else {}
        return compare.Torch(**{"model": self.torch_model(), **training, **other})

    def port(self, model: Any = None, *, trained: bool = True, **other: Any) -> compare.Flax:
        """Give the JAX side likewise."""
        training = {"loss": self.loss, "optimizer": self.optimizer} if trained else {}
        return compare.Flax(**{"model": model or self.flax_model(), **training, **other})


def _rows(count: int = 2, size: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(size, 6)), rng.normal(size=(size, 3))) for _ in range(count)]


def _images() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(4, 3, 5, 5)), rng.integers(0, 3, 4)) for _ in range(2)]


def _tokens() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [(rng.integers(0, 9, (4, 5)), rng.integers(0, 3, 4)) for _ in range(2)]


NET = Base(
    "net",
    TorchNet,
    FlaxNet,
    torch.nn.MSELoss(),
    mse,
    lambda params: torch.optim.AdamW(params, 1e-2, weight_decay=1e-2),
    optax.adamw(1e-2, weight_decay=1e-2),
    _rows,
)
IMAGES = Base(
    "images",
    TorchImages,
    FlaxImages,
    torch.nn.CrossEntropyLoss(),
    cross_entropy,
    lambda params: torch.optim.SGD(params, 0.1, momentum=0.9),
    optax.sgd(0.1, momentum=0.9),
    _images,
)
TOKENS = Base(
    "tokens",
    TorchTokens,
    FlaxTokens,
    torch.nn.CrossEntropyLoss(),
    cross_entropy,
    lambda params: torch.optim.Adam(params, 1e-2),
    optax.adam(1e-2),
    _tokens,
)
BASES = (NET, IMAGES, TOKENS)
