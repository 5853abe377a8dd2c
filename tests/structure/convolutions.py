"""Architectures of images: ConvNeXt, U-Net, squeeze and excitation, DenseNet, ResNet, super-resolution."""

from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, conv, gelu, linear, norm, normal

C = 6


class NextT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, C, 1), nn.Conv2d(C, C, 3, padding=1, groups=C)
        self.norm, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 14), nn.Linear(14, C)
        self.gamma, self.head = nn.Parameter(torch.ones(C)), nn.Linear(C, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(functional.gelu(self.up(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class NextJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.stem, self.depth = conv(3, C, 1), conv(C, C, 3, feature_group_count=C)
        self.norm, self.up, self.down = norm(C), linear(C, 14), linear(14, C)
        self.gamma, self.head = nnx.Param(jnp.ones(C)), linear(C, 3)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        x = self.stem(x)
        y = self.depth(x)
        y = self.up(y if "norm left out" in f else self.norm(y))
        y = self.down(y if "gelu left out" in f else gelu(y))
        y = gelu(y) if "gelu behind" in f else y
        y = y if "gamma left out" in f else y + self.gamma[...] if "gamma added" in f else self.gamma[...] * y
        x = y if "no residual" in f else x + y
        x = gelu(x) if "gelu at the end" in f else x
        return self.head(x.max((1, 2)) if "max pool" in f else x.sum((1, 2)) if "sum pool" in f else x.mean((1, 2)))


class UnetT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(2 * C, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = torch.relu(self.a(x))
        y = functional.silu(self.b(functional.max_pool2d(skip, 2)))
        y = functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.c(torch.cat([skip, y], 1))


class UnetJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.a, self.b, self.c = conv(3, C, 3), conv(C, C, 3), conv(2 * C, 3, 1)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        a = self.a(x)
        skip = a if "no relu" in f else nnx.relu(a)
        pool = nnx.avg_pool if "mean for max" in f else nnx.max_pool
        b = self.b(pool(skip, (2, 2), (2, 2)))
        y = b if "no silu" in f else nnx.silu(b)
        n, h, w, c = y.shape
        y = jax.image.resize(y, (n, 2 * h, 2 * w, c), "nearest" if "nearest" in f else "bilinear")
        y = nnx.silu(y) if "silu behind" in f else y
        skip = a if "skip before relu" in f else skip
        return self.c(jnp.concatenate([y, skip] if "skip behind" in f else [skip, y], -1))


class SqueezeT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2, self.out = (
            nn.Conv2d(3, C, 3, padding=1),
            nn.Linear(C, 4),
            nn.Linear(4, C),
            nn.Conv2d(C, 2, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        s = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        s = torch.sigmoid(self.fc2(torch.relu(self.fc1(s))))
        return self.out(x * s[:, :, None, None] + x)


class SqueezeJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.conv, self.fc1, self.fc2, self.out = conv(3, C, 3), linear(C, 4), linear(4, C), conv(C, 2, 1)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        x = self.conv(x)
        s = x.max((1, 2)) if "largest" in f else x.sum((1, 2)) if "sum" in f else x.mean((1, 2))
        s = self.fc1(s)
        s = self.fc2(s if "no relu" in f else nnx.relu(s))
        s = s if "no sigmoid" in f else jax.nn.softmax(s, -1) if "softmax" in f else nnx.sigmoid(s)
        s = s[:, None, None, :]
        y = x + s if "added" in f else x * s
        return self.out(y if "no residual" in f else y + x)


class DenseT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([x, functional.elu(self.a(x))], 1)
        z = torch.cat([y, functional.elu(self.b(y))], 1)
        return self.c(functional.avg_pool2d(z, 2))


class DenseJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.a, self.b, self.c = conv(3, 4, 3), conv(7, 5, 3), conv(12, 2, 1)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        a = self.a(x)
        a = a if "no elu" in f else nnx.elu(a)
        y = jnp.concatenate([a, x] if "new first" in f else [x, a], -1)
        y = nnx.elu(y) if "elu of all" in f else y
        b = nnx.elu(self.b(y))
        z = jnp.concatenate([b, y], -1) if "second first" in f else jnp.concatenate([y, b], -1)
        z = jnp.concatenate([a, x, b], -1) if "first two exchanged" in f else z
        return self.c((nnx.max_pool if "max pool" in f else nnx.avg_pool)(z, (2, 2), (2, 2)))


class PreT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = (
            nn.Conv2d(3, C, 1),
            nn.Conv2d(C, C, 3, padding=1),
            nn.Conv2d(C, C, 3, padding=1),
        )
        self.norm1, self.norm2, self.out = nn.GroupNorm(2, C), nn.GroupNorm(3, C), nn.Conv2d(C, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.conv1(functional.relu(self.norm1(x)))
        y = self.conv2(functional.relu(self.norm2(y)))
        return self.out(x + y)


class PreJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.stem, self.conv1, self.conv2, self.out = conv(3, C, 1), conv(C, C, 3), conv(C, C, 3), conv(C, 2, 1)
        self.norm1, self.norm2 = (nnx.GroupNorm(C, n, epsilon=1e-5, rngs=nnx.Rngs(0)) for n in (2, 3))

    def __call__(self, x: Any) -> Any:
        f = self.faults
        x = self.stem(x)
        y = self.norm1(x)
        y = y if "first relu left out" in f else nnx.relu(y)
        x = y if "residual behind relu" in f else x
        y = self.norm2(self.conv1(y))
        y = self.conv2(nnx.relu(y))
        y = nnx.relu(y) if "relu before the sum" in f else y
        y = y if "no residual" in f else y - x if "difference" in f else x + y
        return self.out(nnx.relu(y) if "relu behind the sum" in f else y)


class ShuffleT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(functional.pixel_shuffle(self.body(x), 2)))


class ShuffleJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.body, self.out = faults, conv(3, 12, 3), conv(3, 2, 1)

    def __call__(self, x: Any) -> Any:
        f, y = self.faults, self.body(x)
        n, h, w, _ = y.shape
        if "channels last" in f:
            y = y.reshape(n, h, w, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
        elif "rows for columns" in f:
            y = y.reshape(n, h, w, 3, 2, 2).transpose(0, 1, 5, 2, 4, 3)
        else:
            y = y.reshape(n, h, w, 3, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        y = y.reshape(n, 2 * h, 2 * w, 3)
        return self.out(y if "no tanh" in f else jnp.tanh(y))


IMAGE = normal((2, 3, 6, 8))

ARCHITECTURES = [
    Architecture(
        "ConvNeXt", NextT, NextJ, IMAGE,
        {
            "norm left out": ("leaves out layer_norm", "norm"),
            "gelu left out": ("the identity", "leaves out gelu"),
            "gelu behind": ("gelu",),
            "gamma left out": ("leaves out the product",),
            "gamma added": ("add", "the sum of the two"),
            "no residual": ("leaves out the sum",),
            "gelu at the end": ("gelu",),
            "max pool": ("max",),
            "sum pool": ("sum",),
        },
        (("gamma left out", "no residual"), ("gelu at the end", "max pool"), ("gamma left out", "sum pool")),
    ),
    Architecture(
        "U-Net", UnetT, UnetJ, IMAGE,
        {
            "no relu": ("the identity", "leaves out relu"),
            "mean for max": ("mean",),
            "no silu": ("the identity", "leaves out silu"),
            "nearest": ("nearest",),
            "silu behind": ("silu",),
            "skip before relu": ("output of a", "leaves out relu"),
            "skip behind": ("order",),
        },
        (("nearest", "skip behind"), ("skip before relu", "skip behind"), ("no silu", "nearest")),
    ),
    Architecture(
        "squeeze and excitation", SqueezeT, SqueezeJ, IMAGE,
        {
            "largest": ("max", "largest"),
            "sum": ("sum",),
            "no relu": ("the identity", "leaves out relu"),
            "no sigmoid": ("the identity", "leaves out sigmoid"),
            "softmax": ("softmax",),
            "added": ("add", "the sum of the two"),
            "no residual": ("leaves out the sum",),
        },
        (("no sigmoid", "no residual"), ("softmax", "added")),
    ),
    Architecture(
        "DenseNet", DenseT, DenseJ, IMAGE,
        {
            "no elu": ("the identity", "leaves out elu"),
            "new first": ("order",),
            "elu of all": ("elu",),
            "second first": ("order",),
            "first two exchanged": ("order",),
            "max pool": ("largest", "max"),
        },
        (("new first", "no elu"), ("second first", "max pool")),
    ),
    Architecture(
        "pre-activation ResNet", PreT, PreJ, IMAGE,
        {
            "first relu left out": ("the identity", "leaves out relu"),
            "residual behind relu": ("relu", "input of conv1"),
            "relu before the sum": ("relu",),
            "no residual": ("leaves out the sum",),
            "difference": ("sub", "sign", "the difference of the two"),
            "relu behind the sum": ("relu",),
        },
        (("difference", "relu behind the sum"), ("relu before the sum", "relu behind the sum")),
    ),
    Architecture(
        "super-resolution", ShuffleT, ShuffleJ, IMAGE,
        {
            "channels last": ("splits", "transposes", "merges"),
            "rows for columns": ("splits", "transposes", "merges"),
            "no tanh": ("the identity", "leaves out tanh"),
        },
        (("channels last", "no tanh"),),
    ),
]  # fmt: skip
