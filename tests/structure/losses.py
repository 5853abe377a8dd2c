"""Losses of language models, of masked regression and of contrasted pairs, on a model of two layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, linear, normal

B, T, D, V = 4, 6, 5, 7


class WordsT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(ids)))


class WordsJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.embed, self.head = nnx.Embed(V, D, rngs=nnx.Rngs(0)), linear(D, V)

    def __call__(self, ids: Any) -> Any:
        return self.head(jnp.tanh(self.embed(ids)))


def next_word(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits[:, :-1].reshape(-1, V), ids[:, 1:].reshape(-1), ignore_index=0)


def jax_next_word(faults: frozenset[str]) -> Callable[..., Any]:
    def loss(logits: Any, ids: Any) -> Any:
        logits, labels = logits[:, :-1], ids[:, :-1] if "not shifted" in faults else ids[:, 1:]
        if "shifted back" in faults:
            logits, labels = logits[:, 1:], ids[:, 1:-1]
        log = jax.nn.log_softmax(logits, 1 if "softmax over time" in faults else -1)
        each = -jnp.take_along_axis(log, labels[..., None], -1)[..., 0]
        if "padding counted" in faults:
            return each.mean()
        kept = jnp.where(labels != 0, each, 0)
        return (
            kept.sum()
            if "sum" in faults
            else kept.mean()
            if "divided by all" in faults
            else kept.sum() / (labels != 0).sum()
        )

    return loss


class RowsT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


class RowsJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.fc1, self.fc2 = linear(D, 8), linear(8, 3)

    def __call__(self, x: Any) -> Any:
        return self.fc2(jnp.tanh(self.fc1(x)))


def masked(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    mask = (target[..., :1] > -0.5).double().to(output.dtype)
    return ((output - target).pow(2) * mask).sum() / mask.sum()


def jax_masked(faults: frozenset[str]) -> Callable[..., Any]:
    def loss(output: Any, target: Any) -> Any:
        mask = (target[..., :1] > -0.5).astype(output.dtype)
        squares = abs(output - target) if "absolute" in faults else (output - target) ** 2
        masked = squares if "mask left out" in faults else squares * mask
        if "mean of all" in faults:
            return masked.mean()
        return (
            masked.sum()
            if "sum" in faults
            else jnp.sqrt(masked.sum() / mask.sum())
            if "root" in faults
            else masked.sum() / mask.sum()
        )

    return loss


def contrasted(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    a, b = functional.normalize(output, dim=-1), functional.normalize(target, dim=-1)
    logits = a @ b.T * 5.0
    labels = torch.arange(len(a), device=a.device)
    return functional.cross_entropy(logits, labels) + 0.5 * (a * b).sum(-1).mean()


def jax_contrasted(faults: frozenset[str]) -> Callable[..., Any]:
    def loss(output: Any, target: Any) -> Any:
        a, b = output, target / jnp.linalg.norm(target, axis=-1, keepdims=True)
        a = a if "not normalized" in faults else a / jnp.linalg.norm(a, axis=-1, keepdims=True)
        logits = (a @ b.T) if "temperature left out" in faults else a @ b.T * 5.0
        logits = logits.T if "transposed" in faults else logits
        nll = -jnp.diagonal(jax.nn.log_softmax(logits, -1)).mean()
        rest = 0.5 * (a * b).sum(-1).mean()
        return nll if "second term left out" in faults else nll - rest if "sign" in faults else nll + rest

    return loss


ARCHITECTURES = [
    Architecture(
        "language model loss", WordsT, WordsJ, lambda rng: (rng.integers(0, V, (B, T)),),
        {
            "not shifted": ("[0:", "[:-1]", "[0:5]"),
            "softmax over time": ("axis", "softmax"),
            "padding counted": ("ignore",),
            "sum": ("sum",),
            "divided by all": ("ignore", "divide", "mean"),
        },
        target=lambda rng: rng.integers(0, V, (B, T)), loss=next_word, jax_loss=jax_next_word,
    ),
    Architecture(
        "masked regression loss", RowsT, RowsJ, normal((B, T, D)),
        {
            "absolute": ("abs",),
            "mask left out": ("leaves out the product",),
            "mean of all": ("divides by", "mean",),
            "sum": ("leaves out the quotient",),
            "root": ("root", "sqrt"),
        },
        target=lambda rng: rng.normal(size=(B, T, 3)), loss=masked, jax_loss=jax_masked,
    ),
    Architecture(
        "contrastive loss", RowsT, RowsJ, normal((6, D)),
        {
            "not normalized": ("leaves out normalize",),
            "temperature left out": ("leaves out mul", "takes 1"),
            "transposed": ("transpos", "exchange"),
            "second term left out": ("leaves out the sum",),
            "sign": ("sub", "sign", "negative", "the difference of the two"),
        },
        target=lambda rng: rng.normal(size=(6, 3)), loss=contrasted, jax_loss=jax_contrasted,
    ),
]  # fmt: skip
