"""Architectures of graphs and tables: graph convolution, graph attention, messages, crosses of features, Q values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, linear, norm, normal

N, D = 6, 5


class ConvolvedT(nn.Module):
    """Two graph convolutions with the adjacency normalized on both sides, and self-loops."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, 7, bias=False), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        a = edges + torch.eye(N).to(edges)
        scale = a.sum(1).rsqrt()
        a = scale[:, None] * a * scale[None]
        x = torch.relu(a @ self.fc1(x))
        return torch.log_softmax(a @ self.fc2(x), -1)


class ConvolvedJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.fc1, self.fc2 = faults, linear(D, 7, bias=False), linear(7, 3)

    def __call__(self, x: Any, edges: Any) -> Any:
        f = self.faults
        a = edges if "no self-loops" in f else edges + jnp.eye(N)
        total = a.sum(0 if "degree of the columns" in f else 1)
        scale = 1 / total if "no root" in f else total**-0.5
        if "normalized on one side" in f:
            a = scale[:, None] * a
        elif "not normalized" not in f:
            a = scale[:, None] * a * scale[None]
        a = a.T if "edges the other way" in f else a
        y = a @ self.fc1(x)
        y = y if "no relu" in f else nnx.relu(y)
        y = a @ self.fc2(y)
        return jax.nn.log_softmax(y, 0 if "over the nodes" in f else -1)


class AttendedT(nn.Module):
    """Graph attention: a score of each pair, of neighbours alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.source, self.target, self.out = nn.Linear(D, 8), nn.Linear(8, 1), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        h = self.fc(x)
        scores = functional.leaky_relu(self.target(h) + self.source(h).T, 0.2)
        scores = scores.masked_fill(edges == 0, -1e9)
        return self.out(functional.elu(functional.softmax(scores, 1) @ h))


class AttendedJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.fc, self.source, self.target, self.out = linear(D, 8), linear(8, 1), linear(8, 1), linear(8, 2)

    def __call__(self, x: Any, edges: Any) -> Any:
        f, h = self.faults, self.fc(x)
        if "source and target exchanged" in f:
            scores = self.source(h) + self.target(h).T
        else:
            scores = self.target(h) + self.source(h).T
        scores = nnx.leaky_relu(scores, 0.2) if "slope" not in f else nnx.leaky_relu(scores)
        masked = edges != 0 if "neighbours hidden" in f else edges == 0
        masked = masked.T if "edges transposed" in f else masked
        scores = scores if "no mask" in f else jnp.where(masked, -1e9, scores)
        y = jax.nn.softmax(scores, 0 if "softmax over targets" in f else 1) @ h
        return self.out(nnx.relu(y) if "relu for elu" in f else y if "no elu" in f else nnx.elu(y))


class MessagesT(nn.Module):
    """Messages along a list of edges, summed at their targets."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update, self.norm = nn.Linear(2 * D, 7), nn.Linear(D + 7, D), nn.LayerNorm(D)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges[0], edges[1]
        messages = torch.tanh(self.message(torch.cat([x[target], x[source]], -1)))
        total = torch.zeros(N, 7).to(x).index_add(0, target, messages)
        count = torch.zeros(N).to(x).index_add(0, target, torch.ones(len(target)).to(x))
        total = total / count.clamp(min=1)[:, None]
        return self.norm(x + self.update(torch.cat([x, total], -1)))


class MessagesJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.message, self.update, self.norm = faults, linear(2 * D, 7), linear(D + 7, D), norm(D)

    def __call__(self, x: Any, edges: Any) -> Any:
        f = self.faults
        source, target = edges[1], edges[0]
        source, target = (source, target) if "source for target" in f else (target, source)
        ends = [x[source], x[target]] if "ends exchanged" in f else [x[target], x[source]]
        ends = [x[target], x[target]] if "target twice" in f else ends
        messages = self.message(jnp.concatenate(ends, -1))
        messages = messages if "no tanh" in f else jnp.tanh(messages)
        to = source if "summed at the source" in f else target
        total = jnp.zeros((N, 7)).at[to].add(messages)
        count = jnp.zeros(N).at[to].add(1.0)
        total = total if "sum for mean" in f else total / jnp.maximum(count, 1)[:, None]
        y = self.update(jnp.concatenate([total, x] if "total first" in f else [x, total], -1))
        return self.norm(y if "no residual" in f else x + y)


class CrossedT(nn.Module):
    """Two crosses of the features beside a deep part, and the factorization machine's pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.cross1, self.cross2, self.deep, self.out = (
            nn.Linear(D, D),
            nn.Linear(D, D),
            nn.Linear(D, 4),
            nn.Linear(10, 1),
        )
        self.factors = nn.Parameter(torch.zeros(D, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.cross1(x) + x
        y = x * self.cross2(y) + y
        pairs = 0.5 * ((x @ self.factors).pow(2) - x.pow(2) @ self.factors.pow(2)).sum(1, keepdim=True)
        return self.out(torch.cat([y, functional.relu(self.deep(x)), pairs], -1))


class CrossedJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.cross1, self.cross2, self.deep, self.out = linear(D, D), linear(D, D), linear(D, 4), linear(10, 1)
        self.factors = nnx.Param(jnp.zeros((D, 3)))

    def __call__(self, x: Any) -> Any:
        f, factors = self.faults, self.factors[...]
        y = x * self.cross1(x) + x
        first = y if "crosses itself" in f else x
        crossed = self.cross2(x if "second of the input" in f else y)
        y = first * crossed if "no second residual" in f else first * crossed + (x if "residual of x" in f else y)
        squares = x**2 @ (factors if "factors not squared" in f else factors**2)
        both = (x @ factors) ** 2
        pairs = (both + squares if "squares added" in f else both - squares).sum(1, keepdims=True)
        pairs = pairs if "no half" in f else 0.5 * pairs
        deep = self.deep(y if "deep of the cross" in f else x)
        return self.out(jnp.concatenate([y, nnx.relu(deep), pairs], -1))


class DuelT(nn.Module):
    """Dueling Q values over quantiles."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.value, self.advantage = nn.Linear(D, 8), nn.Linear(8, 4), nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu(self.body(x))
        v, a = self.value(h).view(-1, 1, 4), self.advantage(h).view(-1, 3, 4)
        q = v + a - a.mean(1, keepdim=True)
        return (functional.softmax(q, 2) * torch.linspace(-1, 2, 4).to(x)).sum(2)


class DuelJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.body, self.value, self.advantage = faults, linear(D, 8), linear(8, 4), linear(8, 12)

    def __call__(self, x: Any) -> Any:
        f, h = self.faults, self.body(x)
        h = h if "no relu" in f else nnx.relu(h)
        v, a = self.value(h).reshape(-1, 1, 4), self.advantage(h)
        a = a.reshape(-1, 4, 3).swapaxes(1, 2) if "quantiles first" in f else a.reshape(-1, 3, 4)
        middle = a.max(1, keepdims=True) if "largest" in f else a.mean(2 if "over quantiles" in f else 1, keepdims=True)
        q = v + a if "mean left out" in f else a - middle if "value left out" in f else v + a - middle
        weights = jax.nn.softmax(q, 1 if "softmax over actions" in f else 2)
        support = jnp.linspace(-1, 2, 4)
        return (weights * (support[::-1] if "support reversed" in f else support)).sum(2)


def _edges(rng: np.random.Generator) -> tuple[Any, ...]:
    edges = (rng.random((N, N)) < 0.5).astype(np.float32)
    np.fill_diagonal(edges, 0)
    return rng.normal(size=(N, D)), edges


def _loops(rng: np.random.Generator) -> tuple[Any, ...]:
    x, edges = _edges(rng)
    return x, np.maximum(edges, np.eye(N, dtype=np.float32))


def _list(rng: np.random.Generator) -> tuple[Any, ...]:
    return rng.normal(size=(N, D)), rng.integers(0, N, (2, 11))


ARCHITECTURES = [
    Architecture(
        "graph convolution", ConvolvedT, ConvolvedJ, _edges,
        {
            "no self-loops": ("leaves out the sum", "other numbers for the output of mul"),
            "degree of the columns": ("over axis 0",),
            "no root": ("other numbers for the output of mul", "rsqrt", "square"),
            "normalized on one side": ("leaves out the product of",),
            "not normalized": ("other numbers for the output of mul", "leaves out", "takes"),
            "edges the other way": ("transpos", "other numbers for the output of mul"),  # the matrix that both make
            "no relu": ("the identity", "leaves out relu"),
            "over the nodes": ("axis 0", "dim=0"),
        },
        (("no self-loops", "edges the other way"), ("no relu", "over the nodes")),
    ),
    Architecture(
        "graph attention", AttendedT, AttendedJ, _loops,
        {
            "source and target exchanged": ("transpos", "output of target", "output of source", "takes"),
            "slope": ("slope",),
            "neighbours hidden": ("inverted",),
            "edges transposed": ("transposed",),
            "no mask": ("left out", "leaves out masked_fill"),
            "softmax over targets": ("dim=0", "axis 0"),
            "relu for elu": ("relu",),
            "no elu": ("the identity", "leaves out elu"),
        },
        (("no mask", "softmax over targets"), ("edges transposed", "no elu")),
    ),
    Architecture(
        "message passing", MessagesT, MessagesJ, _list,
        {
            "source for target": ("exchange", "takes", "0 for 1", "1 for 0", "in the order 1, 0"),
            "ends exchanged": ("order",),
            "target twice": ("takes",),
            "no tanh": ("the identity", "leaves out tanh"),
            "summed at the source": ("takes", "0 for 1"),
            "sum for mean": ("leaves out the quotient",),
            "total first": ("order",),
            "no residual": ("leaves out the sum",),
        },
        (("no tanh", "sum for mean"), ("total first", "sum for mean")),
    ),
    Architecture(
        "crosses and pairs", CrossedT, CrossedJ, normal((4, D)),
        {
            "crosses itself": ("takes",),
            "second of the input": ("takes", "the input"),
            "no second residual": ("leaves out the sum",),
            "residual of x": ("takes the input",),
            "factors not squared": ("leaves out pow",),
            "squares added": ("the sum of the two", "sign"),
            "no half": ("leaves out mul",),
            "deep of the cross": ("has the output of add (graphs.py", "takes"),
        },
        (("crosses itself", "no half"), ("factors not squared", "squares added")),
    ),
    Architecture(
        "dueling quantiles", DuelT, DuelJ, normal((4, D)),
        {
            "no relu": ("the identity", "leaves out relu"),
            "quantiles first": ("splits the axis",),
            "largest": ("max",),
            "over quantiles": ("axis 2", "leaves out the difference"),
            "mean left out": ("leaves out the difference",),
            "value left out": ("leaves out the sum",),
            "softmax over actions": ("axis 1", "dim=1"),
            "support reversed": ("reversal",),
        },
        (("largest", "softmax over actions"), ("value left out", "support reversed")),
    ),
]  # fmt: skip
