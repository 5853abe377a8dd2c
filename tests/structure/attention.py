"""Architectures with attention: ViT, GPT, cross attention, rotary positions, torch's own encoder layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, gelu, linear, norm, normal

B, T, D, H = 3, 5, 12, 3


class VitT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(7, D), nn.Linear(D, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, D)), nn.Parameter(torch.zeros(1, T + 1, D))
        self.norm1, self.norm2, self.norm = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.fc1, self.fc2 = nn.Linear(D, 20), nn.Linear(20, D)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, H, d // H).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (d // H) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.place
        x = x + self.attend(self.norm1(x))
        x = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


class VitJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.embed, self.head = linear(7, D), linear(D, 4)
        self.token, self.place = nnx.Param(jnp.zeros((1, 1, D))), nnx.Param(jnp.zeros((1, T + 1, D)))
        self.norm1, self.norm2, self.norm = norm(D), norm(D), norm(D)
        self.qkv, self.proj = linear(D, 3 * D), linear(D, D)
        self.fc1, self.fc2 = linear(D, 20), linear(20, D)

    def attend(self, x: Any) -> Any:
        f = self.faults
        b, t, d = x.shape
        split = self.qkv(x)
        if "heads of another order" in f:
            qkv = split.reshape(b, t, 3, d // H, H).transpose(2, 0, 4, 1, 3)
        elif "heads before q, k and v" in f:
            qkv = split.reshape(b, t, H, 3, d // H).transpose(3, 0, 2, 1, 4)
        else:
            qkv = split.reshape(b, t, 3, H, d // H).transpose(2, 0, 3, 1, 4)
        q, k, v = (qkv[1], qkv[0], qkv[2]) if "k before q" in f else qkv
        if "values for keys" in f:
            k, v = v, k
        scale = d**-0.5 if "scale of all heads" in f else 1 if "no scale" in f else (d // H) ** -0.5
        scores = q @ k.swapaxes(-2, -1) * scale
        weights = jax.nn.softmax(scores, -2 if "softmax over queries" in f else -1)
        if "sigmoid for softmax" in f:
            weights = jax.nn.sigmoid(scores)
        merged = weights @ v
        merged = (
            merged.reshape(b, t, d) if "merged without a transpose" in f else merged.swapaxes(1, 2).reshape(b, t, d)
        )
        return self.proj(merged)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        token, x = jnp.broadcast_to(self.token[...], (len(x), 1, D)), self.embed(x)
        x = jnp.concatenate([x, token] if "token at the end" in f else [token, x], 1)
        x = x if "no positions" in f else x + self.place[...]
        if "norm behind the sum" in f:
            x = self.norm1(x + self.attend(x))
            x = self.norm2(x + self.fc2(gelu(self.fc1(x))))
            return self.head(self.norm(x)[:, 0])
        if "residual behind the norm" in f:
            x = self.norm1(x)
            x = x + self.attend(x)
        else:
            a = self.attend(self.norm1(x))
            x = a if "no residual" in f else x + a
        x = x + self.fc2(gelu(self.fc1(x if "norm2 left out" in f else self.norm2(x))))
        x = self.norm(x)
        return self.head(x.mean(1) if "mean for token" in f else x[:, -1] if "last for first" in f else x[:, 0])


class GptT(nn.Module):
    hidden: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, D), nn.Embedding(T + 2, D)
        self.ln1, self.ln2, self.lnf = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.query, self.key, self.val, self.proj = (nn.Linear(D, D) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(D, 24), nn.Linear(24, D), nn.Linear(D, 11, bias=False)
        self.register_buffer("hidden", torch.triu(torch.ones(T, T, dtype=torch.bool), 1), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(T, device=ids.device))
        y = self.ln1(x)
        q, k, v = (f(y).view(B, T, H, D // H).transpose(1, 2) for f in (self.query, self.key, self.val))
        scores = q @ k.transpose(-2, -1) / math.sqrt(D // H)
        weights = functional.softmax(scores.masked_fill(self.hidden, float("-inf")), -1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(B, T, D))
        x = x + self.down(functional.relu(self.up(self.ln2(x))).square())
        return self.head(self.lnf(x))


class GptJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.wte, self.wpe = (nnx.Embed(n, D, rngs=nnx.Rngs(0)) for n in (11, T + 2))
        self.ln1, self.ln2, self.lnf = norm(D), norm(D), norm(D)
        self.query, self.key, self.val, self.proj = (linear(D, D) for _ in range(4))
        self.up, self.down, self.head = linear(D, 24), linear(24, D), linear(D, 11, bias=False)

    def attend(self, y: Any) -> Any:
        f = self.faults
        q, k, v = (g(y).reshape(B, T, H, D // H).swapaxes(1, 2) for g in (self.query, self.key, self.val))
        scores = q @ k.swapaxes(-2, -1)
        scores = scores if "scale left out" in f else scores / math.sqrt(D // H)
        if "scores transposed" in f:
            scores = scores.swapaxes(-2, -1)
        seen = jnp.tril(jnp.ones((T, T), bool), 1 if "mask off by one" in f else 0)
        seen = seen.T if "mask transposed" in f else ~seen if "mask inverted" in f else seen
        seen = jnp.ones((T, T), bool) if "no mask" in f else seen
        if "mask behind the softmax" in f:
            weights = jnp.where(seen, jax.nn.softmax(scores, -1), 0)
        else:
            weights = jax.nn.softmax(jnp.where(seen, scores, 0.0 if "masked by zero" in f else -jnp.inf), -1)
        heads = weights @ v
        return self.proj((heads if "no transpose back" in f else heads.swapaxes(1, 2)).reshape(B, T, D))

    def __call__(self, ids: Any) -> Any:
        f = self.faults
        x = self.wte(ids)
        x = x * D**0.5 if "embedding scaled" in f else x
        x = x + self.wpe(jnp.arange(T) + ("positions from one" in f))
        x = x + self.attend(x if "ln1 left out" in f else self.ln1(x))
        y = nnx.relu(self.up(self.ln2(x)))
        y = self.down(y if "square left out" in f else y**2)
        x = y if "mlp without residual" in f else x + y
        return self.head(x if "last norm left out" in f else self.lnf(x))


class CrossT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))
        self.norm, self.memory_norm = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        y, memory = self.norm(x), self.memory_norm(memory)
        q, k, v = (f.unflatten(-1, (H, -1)).transpose(1, 2) for f in (self.q(y), self.k(memory), self.v(memory)))
        attended = functional.scaled_dot_product_attention(q, k, v)
        return x + self.o(attended.transpose(1, 2).flatten(2))


class CrossJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.q, self.k, self.v, self.o = (linear(D, D) for _ in range(4))
        self.norm, self.memory_norm = norm(D), norm(D)

    def __call__(self, x: Any, memory: Any) -> Any:
        f = self.faults
        y, memory = self.norm(x), self.memory_norm(memory)
        source = y if "keys of itself" in f else memory
        q, k, v = (
            self.q(memory if "query of memory" in f else y),
            self.k(source),
            self.v(y if "values of itself" in f else memory),
        )
        q, k, v = (a.reshape(B, T, H, -1).swapaxes(1, 2) for a in (q, k, v))
        if "query for key" in f:
            q, k = k, q
        scores = q @ k.swapaxes(-2, -1) / np.sqrt(D if "scale by the width" in f else D // H)
        if "causal" in f:
            scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
        attended = self.o((jax.nn.softmax(scores, -1) @ v).swapaxes(1, 2).reshape(B, T, D))
        return (memory if "residual of memory" in f else y if "residual of the norm" in f else x) + attended


class RotaryT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(D, 8), nn.Linear(D, 8), nn.Linear(T, 3)

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        angles = (torch.arange(T)[:, None] * 0.5 ** torch.arange(4)).to(x.device)
        sin, cos = angles.sin(), angles.cos()
        a, b = x[..., :4], x[..., 4:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.turn(self.q(x)) @ self.turn(self.k(x)).transpose(1, 2))


class RotaryJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.q, self.k, self.o = linear(D, 8), linear(D, 8), linear(T, 3)

    def turn(self, x: Any) -> Any:
        f = self.faults
        angles = jnp.arange(T)[:, None] * 0.5 ** jnp.arange(4)
        sin, cos = jnp.sin(angles), jnp.cos(angles)
        sin = -sin if "turned the other way" in f else sin
        a, b = (x[..., ::2], x[..., 1::2]) if "every other" in f else (x[..., :4], x[..., 4:])
        joined = [a * cos - b * sin, b * cos + a * sin]
        return jnp.concatenate(joined[::-1] if "halves exchanged" in f else joined, -1)

    def __call__(self, x: Any) -> Any:
        q, k = self.turn(self.q(x)), self.k(x)
        k = k if "keys not turned" in self.faults else self.turn(k)
        return self.o(q @ k.swapaxes(1, 2))


class EncoderT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(D, H, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(D, 3)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x, src_key_padding_mask=padding).mean(1))


class LayerJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.self_attn = nnx.MultiHeadAttention(H, D, decode=False, rngs=nnx.Rngs(0))
        self.linear1, self.linear2, self.norm1, self.norm2 = linear(D, 16), linear(16, D), norm(D), norm(D)

    def __call__(self, x: Any, padding: Any) -> Any:
        f = self.faults
        seen = (padding if "padding inverted" in f else ~padding)[:, None, None, :]
        mask = None if "padding ignored" in f else seen

        def forward(x: Any) -> Any:
            y = self.linear1(x)
            return self.linear2(y if "relu left out" in f else nnx.relu(y))

        if "norm before" in f:
            x = x + self.self_attn(self.norm1(x), mask=mask)
            return x + forward(self.norm2(x))
        a = self.self_attn(x, mask=mask)
        x = self.norm1(a if "no residual" in f else x + a)
        return self.norm2(x) + forward(x) if "sum behind the norm" in f else self.norm2(x + forward(x))


class EncoderJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.layer, self.head = faults, LayerJ(faults), linear(D, 3)

    def __call__(self, x: Any, padding: Any) -> Any:
        y = self.layer(x, padding)
        return self.head(
            y.sum(1) if "sum for mean" in self.faults else y.max(1) if "max for mean" in self.faults else y.mean(1)
        )


def _padded(rng: np.random.Generator) -> tuple[Any, ...]:
    return rng.normal(size=(B, T, D)), np.arange(T)[None] >= np.array([5, 3, 4])[:, None]


ARCHITECTURES = [
    Architecture(
        "ViT", VitT, VitJ, normal((B, T, 7)),
        {
            "heads of another order": ("splits the axis", "transposes by", "merges"),
            "heads before q, k and v": ("splits the axis", "transposes by"),
            "k before q": ("in the order", "exchanges", "takes"),
            "values for keys": ("in the order", "exchanges", "takes"),
            "scale of all heads": ("sqrt(12)", "0.288675"),
            "no scale": ("leaves out", "takes 1", "would with 1."),
            "softmax over queries": ("dim=2", "dim=-2", "axis"),
            "sigmoid for softmax": ("sigmoid",),
            "merged without a transpose": ("merge", "leaves out transpose", "reshapes in the place", "transpos"),
            "token at the end": ("in the order",),
            "no positions": ("leaves out the sum",),
            "residual behind the norm": ("norm1",),
            "no residual": ("leaves out the sum",),
            "norm behind the sum": ("post-norm",),
            "norm2 left out": ("leaves out layer_norm", "norm2"),
            "mean for token": ("mean",),
            "last for first": ("last", "5 for 0", "-1"),
        },
        (("no scale", "softmax over queries"), ("k before q", "merged without a transpose"),
         ("token at the end", "no positions"), ("heads of another order", "no scale")),
    ),
    Architecture(
        "GPT", GptT, GptJ, lambda rng: (rng.integers(0, 11, (B, T)),),
        {
            "scale left out": ("leaves out div", "would with 1."),
            "scores transposed": ("transpos", "exchanges"),
            "mask off by one": ("diagonal",),
            "mask transposed": ("transposed",),
            "mask inverted": ("inverted",),
            "no mask": ("leaves out masked_fill", "left out"),
            "mask behind the softmax": ("after softmax",),
            "masked by zero": ("fills with 0",),
            "no transpose back": ("leaves out transpose", "merge", "transpos"),
            "embedding scaled": ("sqrt", "scale"),
            "positions from one": ("positions", "arange", "one"),
            "ln1 left out": ("ln1",),
            "square left out": ("leaves out square",),
            "mlp without residual": ("leaves out the sum",),
            "last norm left out": ("lnf",),
        },
        (
            ("scale left out", "no mask"), ("mask off by one", "no transpose back"),
            ("scale left out", "mask transposed"),
        ),
    ),
    Architecture(
        "cross attention", CrossT, CrossJ, normal((B, T, D), (B, T, D)),
        {
            "keys of itself": ("output of norm",),
            "query of memory": ("memory_norm",),
            "values of itself": ("output of norm",),
            "query for key": ("exchanges", "transpose", "output of k", "takes"),
            "scale by the width": ("attention scale", "sqrt(12)",),
            "causal": ("causal",),
            "residual of memory": ("memory_norm",),
            "residual of the norm": ("output of norm",),
        },
        (("scale by the width", "causal"), ("query for key", "scale by the width")),
    ),
    Architecture(
        "rotary", RotaryT, RotaryJ, normal((B, T, D)),
        {
            "turned the other way": ("sin", "sign"),
            "every other": ("every", "::2"),
            "halves exchanged": ("order",),
            "keys not turned": ("output of k", "leaves out"),
        },
    ),
    Architecture(
        "encoder layer", EncoderT, EncoderJ, _padded,
        {
            "padding inverted": ("inverted",),
            "padding ignored": ("left out", "leaves out", "key_padding_mask=none", "ignores"),
            "relu left out": ("the identity", "leaves out relu"),
            "norm before": ("norm1", "pre-norm"),
            "no residual": ("leaves out the sum",),
            "sum behind the norm": ("norm2", "layer_norm"),
            "sum for mean": ("sum",),
            "max for mean": ("max",),
        },
    ),
]  # fmt: skip
