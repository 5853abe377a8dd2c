"""A residual network with BatchNorm in train mode: NCHW in torch, NHWC in Flax.

Strided, padded and 1×1 convolutions, a bias that feeds BatchNorm (its gradient is zero but for rounding), and a linear
layer after a flattened (nnx) or an averaged (Linen) image.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen, nnx
from torch.nn import functional

import compare

from .data import Pair, digits

WIDTHS = (8, 16)


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(outputs)
        self.shortcut = torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class TorchResNet(torch.nn.Module):
    def __init__(self, *, flatten: bool) -> None:
        super().__init__()
        self.flatten = flatten
        self.stem = torch.nn.Conv2d(1, WIDTHS[0], 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(WIDTHS[0])
        self.block1 = TorchBlock(WIDTHS[0], WIDTHS[0], 1)
        self.block2 = TorchBlock(*WIDTHS, 2)
        self.head = torch.nn.Linear(WIDTHS[1] * (16 if flatten else 1), 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block2(self.block1(functional.relu(self.norm(self.stem(x)))))
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))


class BatchNorm(nnx.BatchNorm):
    """Keeps the running variance as torch does: the unbiased estimate, where Flax keeps the biased one."""

    def __init__(self, features: int, rngs: nnx.Rngs) -> None:
        super().__init__(features, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        kept = self.momentum * self.var[...]
        normalized = super().__call__(x)
        if not self.use_running_average:
            count = x.size // x.shape[-1]
            self.var[...] = kept + (self.var[...] - kept) * count / (count - 1)
        return normalized


class Block(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: Any, rngs: nnx.Rngs) -> None:
        # Padding of one on each side, as torch's: "SAME" pads only the end where the stride is 2.
        self.conv1 = nnx.Conv(inputs, outputs, (3, 3), stride, padding=1, use_bias=False, rngs=rngs)
        self.norm1 = norm(outputs, rngs=rngs)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm2 = norm(outputs, rngs=rngs)
        self.shortcut = nnx.Conv(inputs, outputs, (1, 1), stride, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, norm: Any = BatchNorm) -> None:
        self.stem = nnx.Conv(1, WIDTHS[0], (3, 3), padding=1, rngs=rngs)
        self.norm = norm(WIDTHS[0], rngs=rngs)
        self.block1 = Block(WIDTHS[0], WIDTHS[0], 1, norm, rngs)
        self.block2 = Block(*WIDTHS, 2, norm, rngs)
        self.head = nnx.Linear(WIDTHS[1] * 16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.block2(self.block1(nnx.relu(self.norm(self.stem(x)))))
        return self.head(x.reshape(len(x), -1))


class LinenBatchNorm(linen.BatchNorm):
    """`BatchNorm` in Linen."""

    momentum: float = 0.9

    @linen.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:  # type: ignore[override]
        kept = self.get_variable("batch_stats", "var", 0.0) * self.momentum
        normalized = super().__call__(x, use_running_average)
        if not use_running_average and not self.is_initializing():
            count = x.size // x.shape[-1]
            biased: Any = self.get_variable("batch_stats", "var")
            self.put_variable("batch_stats", "var", kept + (biased - kept) * count / (count - 1))
        return normalized


class LinenBlock(linen.Module):
    outputs: int
    stride: int

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(linen.Conv, self.outputs, use_bias=False)
        h = conv((3, 3), self.stride, padding=1, name="conv1")(x)
        h = linen.relu(LinenBatchNorm(name="norm1")(h, not train))
        h = conv((3, 3), padding=1, name="conv2")(h)
        h = LinenBatchNorm(name="norm2")(h, not train)
        return linen.relu(h + conv((1, 1), self.stride, name="shortcut")(x))


class LinenResNet(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Conv(WIDTHS[0], (3, 3), padding=1, name="stem")(x)
        x = linen.relu(LinenBatchNorm(name="norm")(x, not train))
        x = LinenBlock(WIDTHS[0], 1, name="block1")(x, train)
        x = LinenBlock(WIDTHS[1], 2, name="block2")(x, train)
        return linen.Dense(10, name="head")(x.mean((1, 2)))


def _torch(flatten: bool, optimizer: Any) -> compare.Torch:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return compare.Torch(TorchResNet(flatten=flatten), loss=functional.cross_entropy, optimizer=optimizer)


def _channels_last(image: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.moveaxis(image, 1, -1), target


def _cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def in_nnx(norm: Any = BatchNorm) -> Pair:
    """Build the pair with Adam, which makes whole steps of a gradient that is nothing but rounding."""
    return (
        _torch(True, lambda params: torch.optim.Adam(params, 1e-3)),
        compare.Flax(ResNet(nnx.Rngs(1), norm), loss=_cross_entropy, optimizer=optax.adam(1e-3), batch=_channels_last),
        digits(),
    )


def in_nnx_with_flax_statistics() -> Pair:
    """Build the pair with Flax's own BatchNorm: its running variance is another, by n / (n - 1)."""
    return in_nnx(partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5))


def in_linen() -> Pair:
    """Build the pair with Nesterov's momentum."""
    model = LinenResNet()
    variables = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)), train=False)
    return (
        _torch(False, lambda params: torch.optim.SGD(params, 0.05, momentum=0.9, nesterov=True)),
        compare.Flax(
            (model, variables),
            loss=_cross_entropy,
            optimizer=optax.sgd(0.05, momentum=0.9, nesterov=True),
            batch=_channels_last,
        ),
        digits(),
    )
