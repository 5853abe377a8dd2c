"""What a trap is, and the pairs that most of them are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

import compare


class Pair(NamedTuple):
    """The arguments of `compare.check`."""

    torch: compare.Torch
    jax: Any
    """A `compare.Flax`."""
    batches: list[Any]


@dataclass(frozen=True, kw_only=True)
class Trap:
    """One way in which a port goes wrong."""

    name: str
    stage: str
    """Of the catalogue: weights, forward, loss, gradient, optimizer, schedule, buffers, data, precision, randomness."""
    torch: str
    """What torch does."""
    jax: str
    """What JAX, Flax or optax does, or what people write."""
    source: str
    build: Callable[..., Pair]
    """Makes the pair, from settings of the JAX side."""
    wrong: dict[str, Any]
    right: dict[str, Any]
    place: tuple[str, str]
    """Where a report must first show it: its stage, and the name on the torch side, in which "*" is anything."""
    cause: str
    """A regular expression for the name of the cause."""
    fix: str
    """A regular expression for the fix."""
    verdict: str = "mismatch"
    """Of the wrong half; "error" where `compare.check` refuses it, with the culprit's name in the message."""
    allowed: str = "match"
    """Of the right half."""
    steps: int = 3
    whole: bool = True
    """Whether the function in the fix is all that the layer between is."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `compare.check`."""


class Net(nn.Module):
    """A layer with weights, and what follows it."""

    front: Any
    layer: Any
    after: Any

    def __init__(self, front: nn.Module, layer: Callable[..., Any], after: nn.Module | None = None) -> None:
        super().__init__()
        self.front, self.layer, self.after = front, layer, after

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(self.front(x))
        return y if self.after is None else self.after(y)


class Port(nnx.Module):
    """Its port."""

    def __init__(self, front: nnx.Module, layer: Any, after: Any = None) -> None:
        self.front, self.layer, self.after = front, layer, after

    def __call__(self, x: jax.Array) -> Any:
        y = self.layer(self.front(x))
        return y if self.after is None else self.after(y)


def square(output: Any, target: Any) -> Any:
    """A loss, the same in both frameworks."""
    return ((output - target) ** 2).mean()


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1)


WIDTH, COUNT, SIZE = 8, 6, 7


def vectors(features: int = WIDTH, *, count: int = 3, scale: float = 1.0, seed: int = 0) -> list[Any]:
    """Draw batches of vectors, with targets of the same shape."""
    rng = np.random.default_rng(seed)
    shape = (COUNT, features)
    return [
        (scale * rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)) for _ in range(count)
    ]


def on_vectors(
    ours: Callable[..., Any],
    theirs: Any,
    *,
    features: int = WIDTH,
    loss: Callable[..., Any] = square,
    jax_loss: Callable[..., Any] = square,
    batches: list[Any] | None = None,
    train: bool = True,
    outputs: int | None = None,
) -> Pair:
    """A linear layer, and on it what is to be compared."""
    torch.manual_seed(0)
    rngs = nnx.Rngs(0)
    outputs = outputs or features
    model = Net(nn.Linear(features, outputs), ours).train(train)
    port = Port(nnx.Linear(features, outputs, rngs=rngs), theirs(rngs) if isinstance(theirs, _Built) else theirs)
    return Pair(
        compare.Torch(model, loss, sgd),
        compare.Flax(port, jax_loss, optax.sgd(0.1)),
        vectors(features) if batches is None else batches,
    )


class _Built(NamedTuple):
    make: Callable[[nnx.Rngs], Any]

    def __call__(self, rngs: nnx.Rngs) -> Any:
        return self.make(rngs)


def built(make: Callable[[nnx.Rngs], Any]) -> Any:
    """Mark what makes a Flax layer, from what is one."""
    return _Built(make)


def images(channels: int = 3, size: int = SIZE, *, count: int = 2) -> list[Any]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((COUNT, channels, size, size), np.float32), np.float32(0)) for _ in range(count)]


def on_images(
    ours: Callable[..., Any], theirs: Any, *, channels: int = 4, size: int = SIZE, train: bool = True
) -> Pair:
    """A convolution, and on it what is to be compared: NCHW against NHWC."""
    torch.manual_seed(0)
    rngs = nnx.Rngs(0)
    model = Net(nn.Conv2d(3, channels, 1), ours).train(train)
    port = Port(nnx.Conv(3, channels, (1, 1), rngs=rngs), theirs(rngs) if isinstance(theirs, _Built) else theirs)
    return Pair(
        compare.Torch(model, square, sgd),
        compare.Flax(port, square, optax.sgd(0.1), batch=lambda inputs, target: (np.moveaxis(inputs, 1, -1), target)),
        images(3, size),
    )


def on_loss(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *,
    targets: Callable[[np.random.Generator], np.ndarray],
    outputs: int = 4,
    after: tuple[Callable[..., Any], Callable[..., Any]] = (lambda x: x, lambda x: x),
) -> Pair:
    """A linear model with a loss."""
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((COUNT, WIDTH), np.float32), targets(rng)) for _ in range(2)]
    return on_vectors(*after, loss=ours, jax_loss=theirs, batches=batches, features=WIDTH, outputs=outputs)


def on_optimizer(
    ours: Callable[..., torch.optim.Optimizer],
    theirs: optax.GradientTransformation,
    *,
    hidden: Sequence[Callable[..., Any]] = (torch.tanh, jnp.tanh),
) -> Pair:
    """Two linear layers under an optimizer."""
    torch.manual_seed(0)
    rngs = nnx.Rngs(0)
    model = Net(nn.Linear(WIDTH, WIDTH), hidden[0], nn.Linear(WIDTH, WIDTH))
    port = Port(nnx.Linear(WIDTH, WIDTH, rngs=rngs), hidden[1], nnx.Linear(WIDTH, WIDTH, rngs=rngs))
    return Pair(compare.Torch(model, functional.mse_loss, ours), compare.Flax(port, square, theirs), vectors())
