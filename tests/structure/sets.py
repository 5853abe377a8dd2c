"""Architectures of sets and of coordinates: PointNet, DeepSets, Siamese, DLRM, NeRF, autoencoder."""

from typing import Any

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, linear, normal

D = 6


class PointT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(3, D), nn.Linear(2 * D, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(1, keepdim=True)
        h = functional.relu(self.fc1(x))
        whole = h.max(1, keepdim=True)[0].expand(-1, h.shape[1], -1)
        h = functional.relu(self.fc2(torch.cat([h, whole], -1)))
        return self.head(h.amax(1))


class PointJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.fc1, self.fc2, self.head = faults, linear(3, D), linear(2 * D, 8), linear(8, 2)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        if "not centred" not in f:
            x = x - x.mean(2 if "centred over axis 2" in f else 1, keepdims=True)
        h = self.fc1(x)
        h = h if "no relu" in f else nnx.relu(h)
        whole = h.mean(1, keepdims=True) if "mean first" in f else h.max(1, keepdims=True)
        whole = jnp.broadcast_to(whole, h.shape)
        h = nnx.relu(self.fc2(jnp.concatenate([whole, h] if "whole first" in f else [h, whole], -1)))
        return self.head(h.mean(1) if "mean at the end" in f else h.sum(1) if "sum at the end" in f else h.max(1))


class SetsT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi1, self.phi2, self.rho = nn.Linear(4, D), nn.Linear(D, D), nn.Linear(2 * D, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.phi2(torch.tanh(self.phi1(x)))
        return self.rho(torch.cat([h.sum(1), h.std(1)], -1))


class SetsJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.phi1, self.phi2, self.rho = faults, linear(4, D), linear(D, D), linear(2 * D, 3)

    def __call__(self, x: Any) -> Any:
        f, h = self.faults, self.phi1(x)
        h = self.phi2(h if "no tanh" in f else jnp.tanh(h))
        h = jnp.tanh(h) if "tanh on the last" in f else h
        total = h.mean(1) if "mean" in f else h.max(1) if "largest" in f else h.sum(1)
        spread = h.var(1, ddof=1) if "var" in f else h.std(1) if "ddof" in f else h.std(1, ddof=1)
        return self.rho(jnp.concatenate([spread, total] if "spread first" in f else [total, spread], -1))


class SiameseT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.Linear(4, D), nn.Linear(3 * D, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a, b = functional.normalize(self.encode(x), dim=-1), functional.normalize(self.encode(y), dim=-1)
        return self.head(torch.cat([a, b, (a - b).abs()], -1))


class SiameseJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.encode, self.head = faults, linear(4, D), linear(3 * D, 1)

    def __call__(self, x: Any, y: Any) -> Any:
        f = self.faults

        def encoded(x: Any) -> Any:
            h = self.encode(x)
            axis = 0 if "over the batch" in f else -1
            return h if "not normalized" in f else h / jnp.linalg.norm(h, axis=axis, keepdims=True)

        a, b = encoded(x), encoded(y)
        apart = a - b if "no abs" in f else (a - b) ** 2 if "squared" in f else a * b if "product" in f else abs(a - b)
        parts = [b, a, apart] if "exchanged" in f else [apart, a, b] if "difference first" in f else [a, b, apart]
        return self.head(jnp.concatenate(parts, -1))


class DlrmT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bottom, self.top = nn.Linear(4, D), nn.Linear(D + 6, 1)
        self.tables = nn.ModuleList([nn.Embedding(7, D) for _ in range(3)])

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        dense = functional.relu(self.bottom(x))
        every = torch.stack([dense, *(table(ids[:, n]) for n, table in enumerate(self.tables))], 1)
        rows, columns = torch.tril_indices(4, 4, -1)
        products = (every @ every.transpose(1, 2))[:, rows, columns]
        return torch.sigmoid(self.top(torch.cat([dense, products], 1)))


class DlrmJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.bottom, self.top = faults, linear(4, D), linear(D + 6, 1)
        self.tables = nnx.List([nnx.Embed(7, D, rngs=nnx.Rngs(0)) for _ in range(3)])

    def __call__(self, x: Any, ids: Any) -> Any:
        f, dense = self.faults, self.bottom(x)
        dense = dense if "no relu" in f else nnx.relu(dense)
        sparse = [table(ids[:, n]) for n, table in enumerate(self.tables)]
        every = jnp.stack([*sparse, dense] if "dense last" in f else [dense, *sparse], 1)
        rows, columns = jnp.triu_indices(4, 1) if "upper" in f else jnp.tril_indices(4, -1)
        products = (every @ every.swapaxes(1, 2))[:, rows, columns]
        parts = [products, dense] if "products first" in f else [dense, products]
        y = self.top(jnp.concatenate(parts, 1))
        return y if "no sigmoid" in f else nnx.sigmoid(y)


class NerfT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(15, D), nn.Linear(D + 15, D), nn.Linear(D, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.cat([x, 2 * x], -1)
        code = torch.cat([x, angles.sin(), angles.cos()], -1)
        h = functional.relu(self.fc1(code))
        h = functional.relu(self.fc2(torch.cat([code, h], -1)))
        y = self.out(h)
        return torch.cat([torch.sigmoid(y[..., :3]), functional.softplus(y[..., 3:])], -1)


class NerfJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.fc1, self.fc2, self.out = faults, linear(15, D), linear(D + 15, D), linear(D, 4)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        angles = jnp.concatenate([2 * x, x] if "frequencies exchanged" in f else [x, 2 * x], -1)
        sin, cos = jnp.sin(angles), jnp.cos(angles)
        code = jnp.concatenate([x, cos, sin] if "cos first" in f else [x, sin, cos], -1)
        h = nnx.relu(self.fc1(code))
        h = self.fc2(jnp.concatenate([h, code] if "skip last" in f else [code, h], -1))
        y = self.out(h if "second relu left out" in f else nnx.relu(h))
        colour = y[..., :3] if "no sigmoid" in f else nnx.sigmoid(y[..., :3])
        density = nnx.relu(y[..., 3:]) if "relu for softplus" in f else nnx.softplus(y[..., 3:])
        density = y[..., 3:] if "no softplus" in f else density
        return jnp.concatenate([density, colour] if "density first" in f else [colour, density], -1)


class AutoT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.dec1, self.dec2 = nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.enc2(functional.relu(self.enc1(x)))
        return torch.sigmoid(self.dec2(functional.relu(self.dec1(z))))


class AutoJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.enc1, self.enc2, self.dec1, self.dec2 = linear(8, 6), linear(6, 3), linear(3, 6), linear(6, 8)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        h = self.enc1(x)
        z = self.enc2(h if "no relu" in f else nnx.relu(h))
        z = nnx.relu(z) if "relu on the code" in f else nnx.tanh(z) if "tanh on the code" in f else z
        y = self.dec2(nnx.relu(self.dec1(z)))
        y = nnx.relu(y) if "relu on the last" in f else y
        return y if {"no sigmoid", "relu on the last"} & f else nnx.sigmoid(nnx.sigmoid(y) if "twice" in f else y)


ARCHITECTURES = [
    Architecture(
        "PointNet", PointT, PointJ, normal((3, 5, 3)),
        {
            "not centred": ("leaves out",),
            "centred over axis 2": ("axis 2",),
            "no relu": ("the identity", "leaves out relu"),
            "mean first": ("mean",),
            "whole first": ("order",),
            "mean at the end": ("mean",),
            "sum at the end": ("sum",),
        },
        (("no relu", "mean first"), ("mean first", "whole first"), ("no relu", "whole first")),
    ),
    Architecture(
        "DeepSets", SetsT, SetsJ, normal((4, 5, 4)),
        {
            "no tanh": ("the identity", "leaves out tanh"),
            "tanh on the last": ("tanh",),
            "mean": ("mean",),
            "largest": ("max",),
            "var": ("var",),
            "ddof": ("ddof=0", "divides by n"),
            "spread first": ("order",),
        },
        (("mean", "ddof"), ("mean", "spread first"), ("tanh on the last", "ddof")),
    ),
    Architecture(
        "Siamese", SiameseT, SiameseJ, normal((5, 4), (5, 4)),
        {
            "over the batch": ("axis 0",),
            "not normalized": ("leaves out normalize",),
            "no abs": ("leaves out abs", "the identity"),
            "squared": ("square",),
            "product": ("mul", "the product of the two"),
            "exchanged": ("order",),
            "difference first": ("order",),
        },
        (("no abs", "exchanged"), ("squared", "difference first")),
    ),
    Architecture(
        "DLRM", DlrmT, DlrmJ, lambda rng: (rng.normal(size=(5, 4)), rng.integers(0, 7, (5, 3))),
        {
            "no relu": ("the identity", "leaves out relu"),
            "dense last": ("order",),
            "upper": ("order", "triu", "upper"),
            "products first": ("order",),
            "no sigmoid": ("the identity", "leaves out sigmoid"),
        },
        (("dense last", "products first"),),
    ),
    Architecture(
        "NeRF", NerfT, NerfJ, normal((6, 3)),
        {
            "frequencies exchanged": ("order",),
            "cos first": ("order",),
            "skip last": ("order",),
            "second relu left out": ("the identity", "leaves out relu"),
            "no sigmoid": ("the identity", "leaves out sigmoid"),
            "relu for softplus": ("relu",),
            "no softplus": ("leaves out softplus", "the identity"),
            "density first": ("order",),
        },
        (("no sigmoid", "density first"), ("no sigmoid", "relu for softplus"), ("frequencies exchanged", "cos first")),
    ),
    Architecture(
        "autoencoder", AutoT, AutoJ, normal((5, 8)),
        {
            "no relu": ("the identity", "leaves out relu"),
            "relu on the code": ("relu",),
            "tanh on the code": ("tanh",),
            "relu on the last": ("relu",),
            "no sigmoid": ("the identity", "leaves out sigmoid"),
            "twice": ("twice", "sigmoid"),
        },
    ),
]  # fmt: skip
