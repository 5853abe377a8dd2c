"""Architectures with gates: GLU, SwiGLU, highway, FiLM, WaveNet, a mixture of experts."""

from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, linear, norm, normal

D = 8


class GluT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out, self.norm = nn.Linear(D, 20), nn.Linear(10, D), nn.LayerNorm(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(functional.glu(self.inner(self.norm(x)), -1))


class GluJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.inner, self.out, self.norm = linear(D, 20), linear(10, D), norm(D)

    def __call__(self, x: Any) -> Any:
        f, y = self.faults, self.inner(self.norm(x))
        a, b = (y[..., ::2], y[..., 1::2]) if "every other" in f else jnp.split(y, 2, -1)
        if "gate first" in f:
            a, b = b, a
        b = b if "no sigmoid" in f else nnx.tanh(b) if "tanh" in f else nnx.silu(b) if "silu" in f else nnx.sigmoid(b)
        y = self.out(a + b if "added" in f else a * b)
        return y if "no residual" in f else x + y


class SwigluT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(D, 12, bias=False), nn.Linear(D, 12, bias=False), nn.Linear(12, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class SwigluJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.gate, self.up, self.down = linear(D, 12, bias=False), linear(D, 12, bias=False), linear(12, D)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        squares = x**2
        size = squares.sum(-1, keepdims=True) if "sum of squares" in f else squares.mean(-1, keepdims=True)
        size = squares.mean(keepdims=True) if "mean of all" in f else size
        if "norm left out" not in f:
            x = x * jax.lax.rsqrt(size + 1e-6)
        a, b = self.gate(x), self.up(x)
        if "other branch" in f:
            return self.down(a * nnx.silu(b))
        y = nnx.silu(a * b) if "silu of the product" in f else a * b if "silu left out" in f else nnx.silu(a) * b
        y = nnx.silu(a) + b if "sum" in f else nnx.silu(a) * nnx.silu(b) if "silu on both" in f else y
        return self.down(nnx.silu(a) if "up left out" in f else y)


class HighwayT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.gate, self.out = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, t = torch.tanh(self.plain(x)), torch.sigmoid(self.gate(x))
        return self.out(t * h + (1 - t) * x)


class HighwayJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.plain, self.gate, self.out = linear(D, D), linear(D, D), linear(D, 3)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        h, t = self.plain(x), self.gate(x)
        h = h if "no tanh" in f else nnx.relu(h) if "relu for tanh" in f else nnx.tanh(h)
        t = t if "no sigmoid" in f else nnx.sigmoid(t)
        if "gates exchanged" in f:
            return self.out((1 - t) * h + t * x)
        if "no carry" in f:
            return self.out(t * h)
        if "whole carry" in f:
            return self.out(t * h + x)
        return self.out(t * h + (1 - t) * (h if "carries itself" in f else x))


class FilmT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.condition, self.out = nn.Linear(6, D), nn.Linear(4, 2 * D), nn.Linear(D, 3)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.condition(z).chunk(2, -1)
        y = functional.layer_norm(self.body(x), (D,))
        return self.out(functional.relu((1 + gamma[:, None]) * y + beta[:, None]))


class FilmJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.body, self.condition, self.out = linear(6, D), linear(4, 2 * D), linear(D, 3)

    def __call__(self, x: Any, z: Any) -> Any:
        f = self.faults
        gamma, beta = jnp.split(self.condition(z), 2, -1)
        if "exchanged" in f:
            gamma, beta = beta, gamma
        y = self.body(x)
        if "no norm" not in f:
            y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)
        y = nnx.relu(y) if "relu first" in f else y
        y = (gamma if "no one" in f else 1 + gamma)[:, None] * y
        y = y if "no shift" in f else y + beta[:, None]
        return self.out(y if {"no relu", "relu first"} & f else nnx.relu(y))


class WaveT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter, self.gate, self.skip, self.res = (
            nn.Linear(2 * D, D),
            nn.Linear(2 * D, D),
            nn.Linear(D, D),
            nn.Linear(D, D),
        )
        self.out = nn.Linear(D, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.cat([functional.pad(x, (0, 0, 1, 0))[:, :-1], x], -1)
        y = torch.tanh(self.filter(pairs)) * torch.sigmoid(self.gate(pairs))
        skip, x = self.skip(y), x + self.res(y)
        return self.out(functional.relu(skip + x))


class WaveJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.filter, self.gate, self.skip, self.res = linear(2 * D, D), linear(2 * D, D), linear(D, D), linear(D, D)
        self.out = linear(D, 3)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        if "looks ahead" in f:
            before = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:]
        else:
            before = x if "no delay" in f else jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        pairs = jnp.concatenate([x, before] if "now first" in f else [before, x], -1)
        a, b = self.filter(pairs), self.gate(pairs)
        y = nnx.sigmoid(a) * nnx.tanh(b) if "gate on the other" in f else nnx.tanh(a) * nnx.sigmoid(b)
        y = nnx.tanh(a) + nnx.sigmoid(b) if "added" in f else y
        skip, res = self.skip(y), self.res(y)
        x = res if "no residual" in f else x + res
        total = x if "no skip" in f else skip * x if "product" in f else skip + x
        return self.out(total if "no relu" in f else nnx.relu(skip) + x if "relu of skip" in f else nnx.relu(total))


class ExpertsT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(D, 3), nn.Linear(D, 2)
        self.experts = nn.ModuleList([nn.Linear(D, D) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        outputs = torch.stack([functional.relu(expert(x)) for expert in self.experts], 1)
        return self.out((weights[..., None] * outputs).sum(1))


class ExpertsJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.router, self.out = linear(D, 3), linear(D, 2)
        self.experts = nnx.List([linear(D, D) for _ in range(3)])

    def __call__(self, x: Any) -> Any:
        f, scores = self.faults, self.router(x)
        weights = jax.nn.softmax(scores, 0 if "over the batch" in f else -1)
        weights = scores if "no softmax" in f else nnx.sigmoid(scores) if "sigmoid" in f else weights
        each = [expert(x) for expert in self.experts]
        outputs = jnp.stack([y if "no relu" in f else nnx.relu(y) for y in each], 1)
        outputs = outputs[:, ::-1] if "reversed" in f else outputs
        y = weights[..., None] * outputs
        y = y.max(1) if "best" in f else y.mean(1) if "mean" in f else y.sum(1)
        return self.out(outputs.mean(1) if "unweighted" in f else nnx.tanh(y) if "tanh at the end" in f else y)


ROWS = normal((5, D))

ARCHITECTURES = [
    Architecture(
        "GLU", GluT, GluJ, normal((3, 4, D)),
        {
            "every other": ("every 2th", "every other"),
            "gate first": ("in the order", "exchange", "sigmoid"),
            "no sigmoid": ("leaves out sigmoid", "the identity"),
            "tanh": ("tanh",),
            "silu": ("silu",),
            "added": ("add", "the sum of the two"),
            "no residual": ("leaves out the sum",),
        },
        (("every other", "tanh"), ("gate first", "added")),
    ),
    Architecture(
        "SwiGLU", SwigluT, SwigluJ, ROWS,
        {
            "sum of squares": ("sum",),
            "mean of all": ("over axis 0 and 1",),
            "norm left out": ("leaves out",),
            "other branch": ("to the output of up, torch to the output of gate",),
            "silu of the product": ("silu",),
            "silu left out": ("the identity", "leaves out silu"),
            "sum": ("add", "the sum of the two"),
            "silu on both": ("silu",),
            "up left out": ("leaves out the product",),
        },
        (("silu left out", "sum"),),
    ),
    Architecture(
        "highway", HighwayT, HighwayJ, ROWS,
        {
            "no tanh": ("the identity", "leaves out tanh"),
            "relu for tanh": ("relu",),
            "no sigmoid": ("the identity", "leaves out sigmoid"),
            "gates exchanged": ("exchange", "sign", "takes", "1 - x"),
            "no carry": ("leaves out the sum",),
            "whole carry": ("leaves out the product",),
            "carries itself": ("tanh",),
        },
        (("no tanh", "no carry"), ("relu for tanh", "no sigmoid"), ("no sigmoid", "whole carry")),
    ),
    Architecture(
        "FiLM", FilmT, FilmJ, normal((5, 3, 6), (5, 4)),
        {
            "exchanged": ("in the order",),
            "no norm": ("leaves out layer_norm",),
            "relu first": ("relu",),
            "no one": ("leaves out add", "leaves out"),
            "no shift": ("leaves out the sum",),
            "no relu": ("the identity", "leaves out relu"),
        },
        (("no one", "no shift"), ("exchanged", "no relu"), ("no norm", "no relu")),
    ),
    Architecture(
        "WaveNet", WaveT, WaveJ, normal((3, 6, D)),
        {
            "looks ahead": ("shift", "pad", "[1:"),
            "no delay": ("the input", "leaves out", "[1:7] for [:-1]"),
            "now first": ("order",),
            "gate on the other": ("tanh", "sigmoid"),
            "added": ("add", "the sum of the two"),
            "no residual": ("leaves out the sum",),
            "no skip": ("leaves out the sum",),
            "product": ("mul", "the product of the two"),
            "no relu": ("the identity", "leaves out relu"),
            "relu of skip": ("relu",),
        },
        (("no residual", "no relu"), ("no skip", "no relu"), ("looks ahead", "now first")),
    ),
    Architecture(
        "mixture of experts", ExpertsT, ExpertsJ, ROWS,
        {
            "over the batch": ("axis 0", "dim=0"),
            "no softmax": ("leaves out softmax", "the identity"),
            "sigmoid": ("sigmoid",),
            "no relu": ("the identity", "leaves out relu"),
            "reversed": ("order", "reversal"),
            "best": ("max",),
            "mean": ("mean",),
            "unweighted": ("leaves out",),
            "tanh at the end": ("tanh",),
        },
        (("no softmax", "mean"), ("reversed", "sigmoid"), ("over the batch", "no relu")),
    ),
]  # fmt: skip
