"""Traps of structure: an operation that is left out, added, moved or exchanged, and another mask, slice or order."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from .forward import BETWEEN, JAX, TORCH, _layer_norm, function, image
from .trap import COUNT, Trap, on_loss

SEEN = np.tril(np.ones((COUNT, COUNT), bool))


def trap(
    name: str,
    torch_does: str,
    jax_does: str,
    source: str,
    pair: tuple[Callable[..., Any], Callable[..., Any]],
    cause: str,
    fix: str,
    build: Callable[..., Any] = function,
    place: tuple[str, str] = BETWEEN,
) -> Trap:
    """Describe one; the JAX side's function takes whether it is to be wrong."""
    return Trap(
        name=name,
        stage=place[0],
        torch=torch_does,
        jax=jax_does,
        source=source,
        build=build(*pair),
        wrong={"wrong": True},
        right={"wrong": False},
        place=place,
        cause=cause,
        fix=fix,
    )


def labelled(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of logits at places, and the class of each."""

    def build(wrong: bool) -> Any:
        return on_loss(ours, functools.partial(theirs, wrong=wrong), targets=lambda rng: rng.integers(0, 4, COUNT))

    return build


def _attend(x: Any, *, wrong: bool, mask: Callable[[Any], Any]) -> Any:
    return jax.nn.softmax(jnp.where(mask(SEEN) if wrong else SEEN, x @ x.T, -jnp.inf), -1) @ x


def attends(x: torch.Tensor) -> torch.Tensor:
    return (x @ x.T).masked_fill(~torch.as_tensor(SEEN), -torch.inf).softmax(-1) @ x


def _next(logits: Any, labels: Any, *, wrong: bool) -> Any:
    log = jax.nn.log_softmax(logits[:-1])
    return -jnp.take_along_axis(log, (labels[:-1] if wrong else labels[1:])[:, None], -1).mean()


def _resized(x: Any, *, wrong: bool) -> Any:
    return jax.image.resize(x, (len(x), 14, 14, x.shape[-1]), "nearest" if wrong else "bilinear")


def _heads(x: Any, *, wrong: bool) -> Any:
    heads = jnp.tanh(x).reshape(2, 3, 2, 4).swapaxes(1, 2)
    return (heads if wrong else heads.swapaxes(1, 2)).reshape(COUNT, 8)


def _gated(x: Any, *, wrong: bool) -> Any:
    a, b = jnp.split(x, 2, -1)
    y = a * jax.nn.silu(b) if wrong else jax.nn.silu(a) * b
    return jnp.concatenate([y, y], -1)


def gates(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    y = functional.silu(a) * b
    return torch.cat([y, y], -1)


def _through(x: Any, *, wrong: bool) -> Any:
    rounded = jnp.round(x)
    return rounded if wrong else x + jax.lax.stop_gradient(rounded - x)


VIT = "https://arxiv.org/abs/2010.11929"
RESNET = "https://arxiv.org/abs/1603.05027"
CAUSAL = f"{JAX}jax.numpy.tril.html"

TRAPS = [
    trap("residual left out", "x + f(x).", "f(x).", RESNET,
         (lambda x: x + torch.tanh(x), lambda x, wrong: jnp.tanh(x) if wrong else x + jnp.tanh(x)),
         "left out", "take the sum"),
    trap("pre-norm for post-norm", "norm(x + f(x)).", "x + f(norm(x)).", "https://arxiv.org/abs/2002.04745",
         (lambda x: functional.layer_norm(x + torch.sin(x), (8,)),
          lambda x, wrong: x + jnp.sin(_layer_norm(x)) if wrong else _layer_norm(x + jnp.sin(x))),
         "pre-norm", r"norm\(x \+ f\(x\)\)"),
    trap("ReLU before the sum", "relu(x + f(x)).", "x + relu(f(x)).", RESNET,
         (lambda x: torch.relu(x + torch.sin(x)),
          lambda x, wrong: x + jax.nn.relu(jnp.sin(x)) if wrong else jax.nn.relu(x + jnp.sin(x))),
         "another order", "take the sum first, then apply relu"),
    trap("activation on the last layer", "The last layer as it is.", "An activation after it.",
         f"{JAX}jax.nn.relu.html",
         (lambda x: 2 * x, lambda x, wrong: jax.nn.relu(2 * x) if wrong else 2 * x), "added", "leave out relu"),
    trap("norm left out", "f(norm(x)).", "f(x).", f"{TORCH}torch.nn.LayerNorm.html",
         (lambda x: torch.tanh(functional.layer_norm(x, (8,))),
          lambda x, wrong: jnp.tanh(x if wrong else _layer_norm(x))), "left out", "apply layer_norm"),
    trap("gate on the other branch", "silu(a) * b.", "a * silu(b).", "https://arxiv.org/abs/2002.05202",
         (gates, _gated), "another order", "apply silu"),
    trap("causal mask off by one", "Each position sees itself.", "It does not see itself, or sees the next.", CAUSAL,
         (attends, functools.partial(_attend, mask=lambda seen: np.tril(np.ones_like(seen), 1))), "mask", "mask|k="),
    trap("causal mask transposed", "Each position sees those before it.", "Each position sees those after it.", CAUSAL,
         (attends, functools.partial(_attend, mask=np.transpose)), "mask", "mask|tri"),
    trap("heads merged without a transpose", "transpose(1, 2), then reshape.", "reshape alone.",
         f"{TORCH}torch.reshape.html",
         (lambda x: torch.tanh(x).view(2, 3, 2, 4).transpose(1, 2).transpose(1, 2).reshape(COUNT, 8), _heads),
         "layout|left out", "transpose|merge|axes"),
    trap("tile for repeat", "repeat_interleave: each element.", "jnp.tile: the whole axis.",
         f"{JAX}jax.numpy.repeat.html",
         (lambda x: x[:, :4].repeat_interleave(2, 1),
          lambda x, wrong: jnp.tile(x[:, :4], (1, 2)) if wrong else jnp.repeat(x[:, :4], 2, 1)),
         "order", r"jnp\.repeat|take"),
    trap("parts in another order", "cat([sin, cos]).", "[cos, sin].", f"{JAX}jax.numpy.concatenate.html",
         (lambda x: torch.cat([x[:, :4].sin(), x[:, 4:].cos()], 1),
          lambda x, wrong: jnp.concatenate([jnp.sin(x[:, :4]), jnp.cos(x[:, 4:])][:: -1 if wrong else 1], 1)),
         "order|shifted", r"order|take|roll"),
    trap("largest for mean", "The mean over the features.", "The largest.", f"{JAX}jax.numpy.max.html",
         (lambda x: x - x.mean(1, keepdim=True),
          lambda x, wrong: x - (x.max(1, keepdims=True) if wrong else x.mean(1, keepdims=True))),
         "reduction", "take mean"),
    trap("last for first", "x[:, :1], as a class token.", "x[:, -1:].", VIT,
         (lambda x: x * x[:, :1], lambda x, wrong: x * (x[:, -1:] if wrong else x[:, :1])), "slice", r"\[:1\]"),
    trap("scale of the whole width", "scores / sqrt(head_dim).", "scores / sqrt(width).",
         f"{TORCH}torch.nn.functional.scaled_dot_product_attention.html",
         (lambda x: (x @ x.T * 4**-0.5).softmax(-1) @ x,
          lambda x, wrong: jax.nn.softmax(x @ x.T * (8 if wrong else 4) ** -0.5, -1) @ x), "scale|constant", "0.5"),
    trap("nearest for bilinear", 'interpolate(mode="bilinear").', 'resize(..., "nearest").',
         f"{TORCH}torch.nn.functional.interpolate.html",
         (lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"), _resized),
         "resizing", "linear", image),
    trap("labels not shifted", "logits[:-1] against labels[1:].", "Against labels[:-1].",
         "https://huggingface.co/docs/transformers/tasks/language_modeling",
         (lambda o, t: functional.cross_entropy(o[:-1], t[1:]), _next), "slice", r"\[1:\]", labelled, ("loss", "loss")),
    trap("straight-through forgotten", "x + (x.round() - x).detach().", "jnp.round(x), whose gradient is zero.",
         "https://arxiv.org/abs/1308.3432", (lambda x: x + (x.round() - x).detach(), _through),
         "stopped gradient", "stop_gradient", place=("gradient", "front.*")),
]  # fmt: skip
