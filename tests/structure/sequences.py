"""Architectures of sequences: MLP-mixer, a recurrent network, TextCNN, and pooling over what is no padding."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, gelu, linear, norm, normal

B, T, D = 4, 6, 5


class MixerT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.mix1, self.mix2, self.fc1, self.fc2 = nn.Linear(T, 9), nn.Linear(9, T), nn.Linear(D, 11), nn.Linear(11, D)
        self.head = nn.Linear(D, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mix2(functional.gelu(self.mix1(self.norm1(x).transpose(1, 2))))
        x = x + y.transpose(1, 2)
        x = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x).mean(1))


class MixerJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.norm1, self.norm2, self.norm = norm(D), norm(D), norm(D)
        self.mix1, self.mix2, self.fc1, self.fc2 = linear(T, 9), linear(9, T), linear(D, 11), linear(11, D)
        self.head = linear(D, 3)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        y = self.norm1(x)
        turned = y.reshape(B, D, T) if "reshaped" in f else y.swapaxes(1, 2)
        z = self.mix1(turned)
        z = self.mix2(z if "no gelu" in f else gelu(z)).swapaxes(1, 2)
        x = z if "no residual" in f else (y if "residual behind the norm" in f else x) + z
        y = self.norm1(x) if "norm1 again" in f else self.norm2(x)
        x = x + self.fc2(gelu(self.fc1(y)))
        x = x if "last norm left out" in f else self.norm(x)
        return self.head(x.max(1) if "largest" in f else x[:, -1] if "last" in f else x.mean(1))


class RecurrentT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(D + 7, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, states = x.new_zeros(B, 7), []
        for t in range(T):
            h = torch.tanh(self.cell(torch.cat([x[:, t], h], -1)))
            states.append(h)
        return self.head(torch.stack(states, 1)[:, -1])


class RecurrentJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.cell, self.head = faults, linear(D + 7, 7), linear(7, 3)

    def __call__(self, x: Any) -> Any:
        f, h, states = self.faults, jnp.zeros((B, 7)), []
        for t in range(T):
            i = T - 1 - t if "backwards" in f else t
            joined = [h, x[:, i]] if "state first" in f else [x[:, i], h]
            y = self.cell(jnp.concatenate(joined, -1))
            y = y if "no tanh" in f else nnx.sigmoid(y) if "sigmoid" in f else nnx.tanh(y)
            h = h + y if "residual" in f else y
            states.append(h)
        every = jnp.stack(states, 1)
        return self.head(
            every.mean(1) if "mean of states" in f else every[:, 0] if "first state" in f else every[:, -1]
        )


class TextT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, D), nn.Linear(7, 2)
        self.two, self.three = nn.Linear(2 * D, 3), nn.Linear(3 * D, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        pairs = torch.cat([x[:, :-1], x[:, 1:]], -1)
        triples = torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], -1)
        found = [functional.relu(f(y)).max(1).values for f, y in ((self.two, pairs), (self.three, triples))]
        return self.head(torch.cat(found, -1))


class TextJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.embed, self.head = nnx.Embed(12, D, rngs=nnx.Rngs(0)), linear(7, 2)
        self.two, self.three = linear(2 * D, 3), linear(3 * D, 4)

    def __call__(self, ids: Any) -> Any:
        f, x = self.faults, self.embed(ids)
        pairs = [x[:, :-1], x[:, 1:]]
        two = self.two(jnp.concatenate(pairs[::-1] if "next first" in f else pairs, -1))
        triples = [x[:, :-2], x[:, :-2] if "first twice" in f else x[:, 1:-1], x[:, 2:]]
        a, b = (y if "no relu" in f else nnx.relu(y) for y in (two, self.three(jnp.concatenate(triples, -1))))
        a, b = (y.mean(1) if "mean over time" in f else y.sum(1) if "sum over time" in f else y.max(1) for y in (a, b))
        found = jnp.concatenate([b, a] if "widths exchanged" in f else [a, b], -1)
        return self.head(nnx.tanh(found) if "tanh" in f else found)


class PooledT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(D, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.fc(x)) * mask[..., None]
        return self.head(h.sum(1) / mask.sum(1, keepdim=True))


class PooledJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.fc, self.head = faults, linear(D, 8), linear(8, 3)

    def __call__(self, x: Any, mask: Any) -> Any:
        f, h = self.faults, nnx.relu(self.fc(x))
        h = h if "padding summed" in f else h * mask[..., None]
        total = h.max(1) if "largest" in f else h.sum(1)
        if "padding counted" in f:
            return self.head(h.mean(1))
        return self.head(total if "not divided" in f else total / mask.sum(1, keepdims=True))


def _masked(rng: np.random.Generator) -> tuple[Any, ...]:
    return rng.normal(size=(B, T, D)), (np.arange(T)[None] < np.array([6, 3, 4, 5])[:, None]).astype(np.float32)


ARCHITECTURES = [
    Architecture(
        "MLP-mixer", MixerT, MixerJ, normal((B, T, D)),
        {
            "reshaped": ("reshapes in the place",),
            "no gelu": ("the identity", "leaves out gelu"),
            "no residual": ("leaves out the sum",),
            "residual behind the norm": ("output of norm1",),
            "norm1 again": ("norm1",),
            "last norm left out": ("norm",),
            "largest": ("max",),
            "last": ("last element",),
        },
        (("no gelu", "reshaped"),),
    ),
    Architecture(
        "recurrent", RecurrentT, RecurrentJ, normal((B, T, D)),
        {
            "backwards": ("5 for 0", "reversal", "for 0"),
            "state first": ("order",),
            "no tanh": ("the identity", "leaves out tanh"),
            "sigmoid": ("sigmoid",),
            "residual": ("adds",),
            "mean of states": ("mean",),
            "first state": ("first element", "0 for -1"),
        },
        (("state first", "backwards"), ("no tanh", "residual"), ("no tanh", "state first")),
    ),
    Architecture(
        "TextCNN", TextT, TextJ, lambda rng: (rng.integers(0, 12, (B, T)),),
        {
            "next first": ("order",),
            "first twice": ("[:-2]", "[0:4]", "getitem"),
            "no relu": ("the identity", "leaves out relu"),
            "mean over time": ("mean",),
            "sum over time": ("sum",),
            "widths exchanged": ("order",),
            "tanh": ("tanh",),
        },
        (("widths exchanged", "tanh"), ("no relu", "mean over time"), ("tanh", "sum over time")),
    ),
    Architecture(
        "pooling without padding", PooledT, PooledJ, _masked,
        {
            "padding summed": ("leaves out the product",),
            "largest": ("max",),
            "padding counted": ("divides by", "mean", "padding"),
            "not divided": ("leaves out the quotient",),
        },
        (("padding summed", "not divided"), ("largest", "not divided")),
    ),
]  # fmt: skip
