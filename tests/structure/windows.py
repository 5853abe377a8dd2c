"""Architectures whose attention is not plain: windows, biases by distance, shared keys, latents, no softmax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, gelu, linear, norm, normal

B, D, H = 2, 8, 2


class WindowT(nn.Module):
    """Attention within windows of 2 by 2 that are shifted by one, with a bias for each pair of places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.qkv, self.proj = (
            nn.LayerNorm(D),
            nn.LayerNorm(D),
            nn.Linear(D, 24),
            nn.Linear(D, D),
        )
        self.fc1, self.fc2, self.bias = nn.Linear(D, 12), nn.Linear(12, D), nn.Parameter(torch.zeros(H, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, h, w = len(x), 4, 6
        x = x.view(b, h, w, D)
        y = torch.roll(self.norm1(x), (-1, -1), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, D).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, D)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (D // H) ** -0.5) @ k.transpose(-2, -1) + self.bias
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(-1, 4, D)
        y = self.proj(y).view(b, h // 2, w // 2, 2, 2, D).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, D)
        x = x + torch.roll(y, (1, 1), (1, 2))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class WindowJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.norm1, self.norm2, self.qkv, self.proj = norm(D), norm(D), linear(D, 24), linear(D, D)
        self.fc1, self.fc2, self.bias = linear(D, 12), linear(12, D), nnx.Param(jnp.zeros((H, 4, 4)))

    def __call__(self, x: Any) -> Any:
        f, b, h, w = self.faults, len(x), 4, 6
        x = x.reshape(b, h, w, D)
        y = x if "norm1 left out" in f else self.norm1(x)
        y = y if "not shifted" in f else jnp.roll(y, (1, 1) if "shifted the other way" in f else (-1, -1), (1, 2))
        if "windows without a transpose" in f:
            y = y.reshape(-1, 4, D)
        else:
            y = y.reshape(b, h // 2, 2, w // 2, 2, D).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, D)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, H, D // H).transpose(2, 0, 3, 1, 4)
        scores = (q * (D // H) ** -0.5) @ k.swapaxes(-2, -1)
        if "bias left out" not in f:
            scores = scores + (self.bias[...].swapaxes(1, 2) if "bias transposed" in f else self.bias[...])
        y = self.proj((jax.nn.softmax(scores, -1) @ v).swapaxes(1, 2).reshape(-1, 4, D))
        y = y.reshape(b, h // 2, w // 2, 2, 2, D).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, D)
        y = y if {"not shifted back", "not shifted"} & f else jnp.roll(y, (1, 1), (1, 2))
        x = (self.norm1(x) if "residual of the norm" in f else x) + y
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class AlibiT(nn.Module):
    """Two query heads share each key; scores fall with the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 4, 2).transpose(1, 2)
        k, v = self.kv(x).view(b, t, 2, 2, 2).permute(2, 0, 3, 1, 4)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        places = torch.arange(t)
        distance = (places[None] - places[:, None]).to(x)
        slopes = (2.0 ** -(torch.arange(4) + 1)).to(x)
        scores = q @ k.transpose(-1, -2) / math.sqrt(2) + slopes[:, None, None] * distance
        scores = scores.masked_fill(distance > 0, -math.inf)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class AlibiJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.q, self.kv, self.o = faults, linear(D, D), linear(D, D), linear(D, D)

    def __call__(self, x: Any) -> Any:
        f, (b, t, _) = self.faults, x.shape
        q = self.q(x).reshape(b, t, 4, 2).swapaxes(1, 2)
        kv = self.kv(x).reshape(b, t, 2, 2, 2)
        k, v = kv.transpose(3, 0, 2, 1, 4) if "heads before k and v" in f else kv.transpose(2, 0, 3, 1, 4)
        spread = (lambda a: jnp.tile(a, (1, 2, 1, 1))) if "tile for repeat" in f else (lambda a: jnp.repeat(a, 2, 1))
        k, v = spread(k), spread(v)
        distance = jnp.arange(t)[None] - jnp.arange(t)[:, None]
        slopes = 2.0 ** -(jnp.arange(4) + (0 if "slopes from zero" in f else 1))
        slopes = slopes[::-1] if "slopes reversed" in f else slopes
        bias = slopes[:, None, None] * distance
        bias = -bias if "bias of the other sign" in f else bias
        scores = q @ k.swapaxes(-1, -2)
        scores = (scores + bias) / math.sqrt(2) if "scaled behind the bias" in f else scores / math.sqrt(2) + bias
        scores = scores if "not causal" in f else jnp.where(distance > 0, -jnp.inf, scores)
        return self.o((jax.nn.softmax(scores, -1) @ v).swapaxes(1, 2).reshape(b, t, D))


def _buckets(xp: Any, t: int) -> Any:
    distance = xp.arange(t)[None] - xp.arange(t)[:, None]
    return xp.clip(distance, -3, 3) + 3


class BucketT(nn.Module):
    """T5: root mean square, no scale, a learned bias by distance, a gated layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.size1, self.size2 = (
            nn.Embedding(7, H),
            nn.Parameter(torch.ones(D)),
            nn.Parameter(torch.ones(D)),
        )
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.wi0, self.wi1, self.wo = nn.Linear(D, 12, bias=False), nn.Linear(D, 12, bias=False), nn.Linear(12, D)

    @staticmethod
    def rms(x: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        return size * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        y = self.rms(x, self.size1)
        q, k, v = (f(y).view(b, t, H, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3) + self.table(_buckets(torch, t)).permute(2, 0, 1)[None]
        x = x + self.o((functional.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(b, t, D))
        y = self.rms(x, self.size2)
        return x + self.wo(functional.gelu(self.wi0(y)) * self.wi1(y))


class BucketJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.table = nnx.Embed(7, H, rngs=nnx.Rngs(0))
        self.size1, self.size2 = nnx.Param(jnp.ones(D)), nnx.Param(jnp.ones(D))
        self.q, self.k, self.v, self.o = (linear(D, D, bias=False) for _ in range(4))
        self.wi0, self.wi1, self.wo = linear(D, 12, bias=False), linear(D, 12, bias=False), linear(12, D)

    def rms(self, x: Any, size: Any) -> Any:
        x = x - x.mean(-1, keepdims=True) if "mean taken out" in self.faults else x
        x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x if "size left out" in self.faults else size * x

    def __call__(self, x: Any) -> Any:
        f, (b, t, _) = self.faults, x.shape
        y = self.rms(x, self.size1[...])
        q, k, v = (g(y).reshape(b, t, H, -1).swapaxes(1, 2) for g in (self.q, self.k, self.v))
        scores = q @ k.swapaxes(2, 3)
        scores = scores / math.sqrt(D // H) if "scaled" in f else scores
        buckets = _buckets(jnp, t)
        buckets = buckets.T if "distance of the other sign" in f else buckets
        scores = scores if "bias left out" in f else scores + self.table(buckets).transpose(2, 0, 1)[None]
        x = x + self.o((jax.nn.softmax(scores, -1) @ v).swapaxes(1, 2).reshape(b, t, D))
        y = self.rms(x, self.size2[...])
        a, c = self.wi0(y), self.wi1(y)
        y = self.wo(a * gelu(c) if "gelu on the other" in f else gelu(a * c) if "gelu of both" in f else gelu(a) * c)
        return y if "no second residual" in f else x + y


class LatentT(nn.Module):
    """Perceiver: learned latents ask the input; queries and keys are normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.temperature = nn.Parameter(torch.zeros(3, D)), nn.Parameter(torch.ones(1))
        self.q, self.k, self.v, self.o, self.head = (nn.Linear(D, D) for _ in range(5))
        self.ln_q, self.ln_x, self.ln = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.latents.expand(len(x), -1, -1)
        x = self.ln_x(x)
        q, k = functional.normalize(self.q(self.ln_q(z)), dim=-1), functional.normalize(self.k(x), dim=-1)
        weights = torch.softmax(q @ k.mT * self.temperature.exp(), -1)
        z = z + self.o(weights @ self.v(x))
        return self.head(self.ln(z).flatten(1).view(len(x), 3, D).mean(1))


class LatentJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.latents, self.temperature = nnx.Param(jnp.zeros((3, D))), nnx.Param(jnp.ones(1))
        self.q, self.k, self.v, self.o, self.head = (linear(D, D) for _ in range(5))
        self.ln_q, self.ln_x, self.ln = norm(D), norm(D), norm(D)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        z = jnp.broadcast_to(self.latents[...], (len(x), 3, D))
        raw, x = x, self.ln_x(x)
        q, k = self.q(z if "latents not normed" in f else self.ln_q(z)), self.k(x)
        q = q if "query not normalized" in f else q / jnp.linalg.norm(q, axis=-1, keepdims=True)
        k = k / jnp.linalg.norm(k, axis=1 if "keys over time" in f else -1, keepdims=True)
        t = self.temperature[...]
        t = t if "temperature itself" in f else jnp.exp(t)
        scores = q @ k.swapaxes(1, 2)
        weights = jax.nn.softmax(scores / t if "divided by temperature" in f else scores * t, -1)
        y = self.o(weights @ self.v(raw if "values not normed" in f else x))
        z = y if "no residual" in f else z + y
        z = self.ln(z)
        return self.head(z[:, 0] if "first latent" in f else z.mean(1))


class KernelT(nn.Module):
    """Attention without a softmax: elu + 1 of queries and keys, divided by their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = functional.elu(self.q(x)) + 1, functional.elu(self.k(x)) + 1, self.v(x)
        memory = torch.einsum("btd,bte->bde", k, v)
        below = torch.einsum("btd,bd->bt", q, k.sum(1))
        return x + self.o(torch.einsum("btd,bde->bte", q, memory) / (below[..., None] + 1e-6))


class KernelJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.q, self.k, self.v, self.o = (linear(D, D) for _ in range(4))

    def __call__(self, x: Any) -> Any:
        f = self.faults
        q, k, v = self.q(x), self.k(x), self.v(x)
        q = nnx.elu(q) if "no one for queries" in f else nnx.relu(q) + 1 if "relu for elu" in f else nnx.elu(q) + 1
        k = k if "keys as they are" in f else nnx.elu(k) + 1
        memory = jnp.einsum("btd,bte->bed" if "memory transposed" in f else "btd,bte->bde", k, v)
        below = jnp.einsum("btd,bd->bt", q, k.mean(1) if "mean of keys" in f else k.sum(1))
        y = jnp.einsum("btd,bde->bte", q, memory)
        y = y if "not divided" in f else y / (below[..., None] + 1e-6)
        return x + self.o(y)


ARCHITECTURES = [
    Architecture(
        "shifted windows", WindowT, WindowJ, normal((B, 24, D)),
        {
            "norm1 left out": ("leaves out layer_norm", "norm1"),
            "not shifted": ("leaves out roll",),
            "shifted the other way": ("rolls the other way",),
            "windows without a transpose": ("leaves out permute",),
            "bias left out": ("leaves out the sum of", "leaves out add"),
            "bias transposed": ("transpose of axes 1 and 2", "transposes"),
            "not shifted back": ("leaves out roll",),
            "residual of the norm": ("output of norm1",),
        },
        (("bias left out", "windows without a transpose"), ("not shifted back", "residual of the norm")),
    ),
    Architecture(
        "ALiBi with grouped keys", AlibiT, AlibiJ, normal((B, 5, D)),
        {
            "heads before k and v": ("splits the axis", "transposes by"),
            "tile for repeat": ("jnp.tile",),
            "slopes from zero": ("leaves out add", "adds", "factor 2", "leaves out the sum"),
            "slopes reversed": ("reversal",),
            "bias of the other sign": ("sign", "the difference of the two", "exchanges"),
            "scaled behind the bias": ("applies div", "div (windows", "before the quotient"),
            "not causal": ("left out", "leaves out masked_fill"),
        },
        (("tile for repeat", "not causal"), ("bias of the other sign", "not causal")),
    ),
    Architecture(
        "T5", BucketT, BucketJ, normal((B, 5, D)),
        {
            "mean taken out": ("subtraction of the mean",),
            "size left out": ("leaves out the product of",),
            "scaled": ("factor 1/sqrt(4)", "factor 1/2", "sqrt", "0.5"),
            "distance of the other sign": ("transpose", "exchanges", "sign"),
            "bias left out": ("leaves out the sum of",),
            "gelu on the other": ("gelu",),
            "gelu of both": ("gelu",),
            "no second residual": ("leaves out the sum of",),
        },
        (("scaled", "bias left out"), ("gelu of both", "no second residual")),
    ),
    Architecture(
        "Perceiver", LatentT, LatentJ, normal((B, 5, D)),
        {
            "latents not normed": ("ln_q", "leaves out layer_norm"),
            "query not normalized": ("leaves out normalize",),
            "keys over time": ("axis 1", "dim=1"),
            "temperature itself": ("leaves out exp",),
            "divided by temperature": ("the quotient of the two", "divides"),
            "values not normed": ("the input", "leaves out layer_norm", "ln_x"),
            "no residual": ("leaves out the sum of",),
            "first latent": ("first element",),
        },
        (("keys over time", "divided by temperature"), ("no residual", "values not normed")),
    ),
    Architecture(
        "linear attention", KernelT, KernelJ, normal((B, 5, D)),
        {
            "no one for queries": ("leaves out add",),
            "relu for elu": ("relu",),
            "keys as they are": ("leaves out", "takes the output of k wherever"),
            "memory transposed": ("transpose", "exchanges"),
            "mean of keys": ("mean",),
            "not divided": ("leaves out the quotient",),
        },
        (("mean of keys", "relu for elu"), ("memory transposed", "not divided")),
    ),
]  # fmt: skip
