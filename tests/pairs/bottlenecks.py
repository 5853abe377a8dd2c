"""A small ResNet of bottlenecks, and a port with three mistakes: two paddings, the norms' momentum, weight decay."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import compare

LAYERS = (1, 1, 1)


class BatchNorm(nnx.BatchNorm):
    """As PyTorch's: the variance that it keeps is divided by n - 1."""

    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
        before = self.var[...]
        y = super().__call__(x, use_running_average, mask=mask)
        if not self.use_running_average:
            n = x.size // x.shape[-1]
            kept = self.momentum * before
            self.var[...] = kept + (self.var[...] - kept) * n / (n - 1)
        return y


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for number, count in enumerate(LAYERS):
            blocks = []
            for block in range(count):
                blocks.append(Bottleneck(inputs, width * 2**number, 2 if number and not block else 1))
                inputs = 4 * width * 2**number
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for number in range(len(LAYERS)):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.fc(x.mean((2, 3)))


class Block(nnx.Module):
    def __init__(self, inputs: int, width: int, stride: int, padding: Any, rngs: nnx.Rngs) -> None:
        def conv(i: int, o: int, size: int, stride: int = 1, padding: Any = 0) -> nnx.Conv:
            return nnx.Conv(i, o, (size, size), strides=stride, padding=padding, use_bias=False, rngs=rngs)

        self.conv1, self.bn1 = conv(inputs, width, 1), BatchNorm(width, epsilon=1e-5, rngs=rngs)
        self.conv2 = conv(width, width, 3, stride, padding)
        self.bn2 = BatchNorm(width, epsilon=1e-5, rngs=rngs)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), BatchNorm(4 * width, epsilon=1e-5, rngs=rngs)
        self.downsample = nnx.data(None)
        if stride != 1 or inputs != 4 * width:
            self.downsample = nnx.Sequential(
                conv(inputs, 4 * width, 1, stride), BatchNorm(4 * width, epsilon=1e-5, rngs=rngs)
            )

    def __call__(self, x: Any) -> Any:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = 2) -> None:
        self.conv1 = nnx.Conv(3, width, (7, 7), strides=2, padding=3, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(width, epsilon=1e-5, rngs=rngs)
        inputs = width
        for number, count in enumerate(LAYERS):
            blocks = []
            for block in range(count):
                stride = 2 if number and not block else 1
                padding = "SAME" if number in (1, 2) and not block else 1
                blocks.append(Block(inputs, width * 2**number, stride, padding, rngs))
                inputs = 4 * width * 2**number
            setattr(self, f"layer{number + 1}", nnx.Sequential(*blocks))
        self.fc = nnx.Linear(inputs, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for number in range(len(LAYERS)):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.fc(x.mean((1, 2)))


def cross_entropy(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pair() -> Any:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(4, 3, 16, 16)), rng.integers(0, 5, 4)) for _ in range(2)]
    original = compare.Torch(ResNet(), nn.CrossEntropyLoss(), lambda params: torch.optim.AdamW(params, 1e-3))
    port = compare.Flax(
        Port(nnx.Rngs(0)), cross_entropy, optax.adamw(1e-3), batch=lambda x, y: ((jnp.moveaxis(x, 1, -1), y))
    )
    return original, port, batches
