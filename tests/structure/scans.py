"""More architectures of sequences: a GRU by hand with attention, dilated convolutions, state spaces, RWKV, an LSTM."""

from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, linear, norm, normal

B, T, D, S = 3, 5, 4, 6


class GatedT(nn.Module):
    """A GRU cell written out, and additive attention of its last state over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.wx, self.wh, self.score = nn.Linear(D, 3 * S), nn.Linear(S, 3 * S), nn.Linear(2 * S, S)
        self.vote, self.out = nn.Linear(S, 1, bias=False), nn.Linear(2 * S, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, states = x.new_zeros(len(x), S), []
        for t in range(T):
            xr, xz, xn = self.wx(x[:, t]).chunk(3, -1)
            hr, hz, hn = self.wh(h).chunk(3, -1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            n = torch.tanh(xn + r * hn)
            h = (1 - z) * n + z * h
            states.append(h)
        memory = torch.stack(states, 1)
        asked = torch.cat([h[:, None].expand(-1, T, -1), memory], -1)
        weights = torch.softmax(self.vote(torch.tanh(self.score(asked))), 1)
        return self.out(torch.cat([h, (weights * memory).sum(1)], -1))


class GatedJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.wx, self.wh, self.score = linear(D, 3 * S), linear(S, 3 * S), linear(2 * S, S)
        self.vote, self.out = linear(S, 1, bias=False), linear(2 * S, 2)

    def __call__(self, x: Any) -> Any:
        f, h, states = self.faults, jnp.zeros((len(x), S)), []
        for t in range(T):
            xr, xz, xn = jnp.split(self.wx(x[:, t]), 3, -1)
            hr, hz, hn = jnp.split(self.wh(h), 3, -1)
            if "gates in another order" in f:
                xr, xz, hr, hz = xz, xr, hz, hr
            r, z = nnx.sigmoid(xr + hr), nnx.sigmoid(xz + hz)
            n = jnp.tanh(r * (xn + hn) if "reset of both" in f else xn + hn if "no reset" in f else xn + r * hn)
            h = z * n + (1 - z) * h if "update the other way" in f else (1 - z) * n + z * h
            states.append(h)
        memory = jnp.stack(states, 1)
        last = jnp.broadcast_to(h[:, None], memory.shape)
        asked = jnp.concatenate([memory, last] if "memory first" in f else [last, memory], -1)
        y = self.score(asked)
        y = self.vote(y if "no tanh" in f else jnp.tanh(y))
        weights = jax.nn.softmax(y, -1 if "softmax over one" in f else 1)
        found = (weights * memory).mean(1) if "mean of memory" in f else (weights * memory).sum(1)
        return self.out(jnp.concatenate([found, h] if "context first" in f else [h, found], -1))


class DilatedT(nn.Module):
    """A TCN: causal convolutions of distance 1 and 2, each with a residual and a ReLU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(D, S, 2), nn.Conv1d(S, S, 2, dilation=2)
        self.skip, self.out = nn.Conv1d(D, S, 1), nn.Linear(S, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        y = functional.relu(self.conv1(functional.pad(x, (1, 0))))
        y = functional.relu(self.skip(x) + y)
        z = functional.relu(self.conv2(functional.pad(y, (2, 0))))
        y = functional.relu(y + z)
        return self.out(y[:, :, -1])


class DilatedJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults

        def conv(inputs: int, outputs: int, size: int, dilation: int = 1) -> nnx.Conv:
            return nnx.Conv(inputs, outputs, (size,), padding="VALID", kernel_dilation=dilation, rngs=nnx.Rngs(0))

        self.conv1, self.conv2 = conv(D, S, 2), conv(S, S, 2, 1 if "not dilated" in faults else 2)
        self.skip, self.out = conv(D, S, 1), linear(S, 3)

    def __call__(self, x: Any) -> Any:
        f = self.faults

        def padded(x: Any, by: int, ahead: bool = False) -> Any:
            return jnp.pad(x, ((0, 0), (0, by) if ahead else (by, 0), (0, 0)))

        y = nnx.relu(self.conv1(padded(x, 1, "first looks ahead" in f)))
        y = y if "no skip" in f else self.skip(x) + y
        y = y if "no relu behind the sum" in f else nnx.relu(y)
        z = self.conv2(padded(y, 1 if "not dilated" in f else 2, "second looks ahead" in f))
        z = z if "no relu before the sum" in f else nnx.relu(z)
        y = nnx.relu(z if "no residual" in f else y + z)
        return self.out(y.mean(1) if "mean over time" in f else y[:, 0] if "first for last" in f else y[:, -1])


class StatesT(nn.Module):
    """Mamba's selective state space, step by step, with its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = (
            nn.LayerNorm(D),
            nn.Linear(D, 2 * S, bias=False),
            nn.Linear(S, D, bias=False),
        )
        self.select, self.delta = nn.Linear(S, 2 + 3 + 3, bias=False), nn.Linear(2, S)
        self.log_a, self.skip = nn.Parameter(torch.zeros(S, 3)), nn.Parameter(torch.ones(S))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, gate = self.inner(self.norm(x)).chunk(2, -1)
        u = functional.silu(u)
        low, b, c = self.select(u).split([2, 3, 3], -1)
        delta = functional.softplus(self.delta(low))
        a = -torch.exp(self.log_a)
        h, given = u.new_zeros(len(x), S, 3), []
        for t in range(T):
            decay = torch.exp(delta[:, t, :, None] * a)
            h = decay * h + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
            given.append((h * c[:, t, None]).sum(-1))
        y = torch.stack(given, 1) + self.skip * u
        return x + self.outer(y * functional.silu(gate))


class StatesJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.norm, self.inner, self.outer = norm(D), linear(D, 2 * S, bias=False), linear(S, D, bias=False)
        self.select, self.delta = linear(S, 8, bias=False), linear(2, S)
        self.log_a, self.skip = nnx.Param(jnp.zeros((S, 3))), nnx.Param(jnp.ones(S))

    def __call__(self, x: Any) -> Any:
        f = self.faults
        u, gate = jnp.split(self.inner(self.norm(x)), 2, -1)
        u, gate = (gate, u) if "gate first" in f else (u, gate)
        u = u if "silu left out" in f else nnx.silu(u)
        low, b, c = jnp.split(self.select(u), [2, 5], -1)
        b, c = (c, b) if "b and c exchanged" in f else (b, c)
        delta = self.delta(low)
        delta = nnx.relu(delta) if "relu for softplus" in f else nnx.softplus(delta)
        a = jnp.exp(self.log_a[...])
        a = a if "growing" in f else -a
        h, given = jnp.zeros((len(x), S, 3)), []
        for t in range(T):
            decay = jnp.exp(delta[:, t, :, None] * a)
            source = u[:, t] if "input not weighed" in f else delta[:, t] * u[:, t]
            h = decay * h + source[..., None] * b[:, t, None]
            given.append((h * c[:, t, None]).sum(-1))
        y = jnp.stack(given, 1)
        y = y if "no skip" in f else y + self.skip[...] * u
        y = self.outer(
            y * (nnx.sigmoid(gate) if "sigmoid gate" in f else gate if "gate not silu" in f else nnx.silu(gate))
        )
        return y if "no residual" in f else x + y


class MixedT(nn.Module):
    """RWKV: this step mixed with the one before, exponential weights of the past, a squared ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.full((D,), 0.4)) for _ in range(3))
        self.key, self.value, self.receptance, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.decay, self.first, self.norm = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D)), nn.LayerNorm(D)
        self.ffn_k, self.ffn_v = nn.Linear(D, 7, bias=False), nn.Linear(7, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        before = functional.pad(y, (0, 0, 1, -1))
        k = self.key(y * self.mix_k + before * (1 - self.mix_k))
        v = self.value(y * self.mix_v + before * (1 - self.mix_v))
        r = torch.sigmoid(self.receptance(y * self.mix_r + before * (1 - self.mix_r)))
        above, below, given = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(T):
            now = torch.exp(self.first + k[:, t])
            given.append((above + now * v[:, t]) / (below + now))
            decay, weight = torch.exp(-torch.exp(self.decay)), torch.exp(k[:, t])
            above, below = decay * above + weight * v[:, t], decay * below + weight
        x = x + self.out(r * torch.stack(given, 1))
        return x + self.ffn_v(torch.relu(self.ffn_k(x)) ** 2)


class MixedJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.mix_k, self.mix_v, self.mix_r = (nnx.Param(jnp.full((D,), 0.4)) for _ in range(3))
        self.key, self.value, self.receptance, self.out = (linear(D, D, bias=False) for _ in range(4))
        self.decay, self.first, self.norm = nnx.Param(jnp.zeros(D)), nnx.Param(jnp.zeros(D)), norm(D)
        self.ffn_k, self.ffn_v = linear(D, 7, bias=False), linear(7, D, bias=False)

    def __call__(self, x: Any) -> Any:
        f, y = self.faults, self.norm(x)
        if "next for before" in f:
            before = jnp.pad(y, ((0, 0), (0, 1), (0, 0)))[:, 1:]
        else:
            before = jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1]

        def mixed(share: Any) -> Any:
            share = 1 - share if "mixed the other way" in f else share
            return y * share + before * (1 - share)

        k = self.key(mixed(self.mix_k[...]))
        v = self.value(mixed((self.mix_k if "mix of the key" in f else self.mix_v)[...]))
        r = self.receptance(y if "receptance not mixed" in f else mixed(self.mix_r[...]))
        r = r if "no sigmoid" in f else nnx.sigmoid(r)
        above, below, given = jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[:, 0]), []
        for t in range(T):
            now = jnp.exp(k[:, t] if "no bonus" in f else self.first[...] + k[:, t])
            given.append((above + now * v[:, t]) / (below + now))
            decay = self.decay[...]
            decay = jnp.exp(-decay) if "decay by one exp" in f else jnp.exp(-jnp.exp(decay))
            weight = jnp.exp(k[:, t])
            above, below = decay * above + weight * v[:, t], decay * below + weight
        y = self.out(r * jnp.stack(given, 1))
        x = y if "no residual" in f else x + y
        hidden = nnx.relu(self.ffn_k(x))
        return x + self.ffn_v(hidden if "not squared" in f else hidden**2)


class CellT(nn.Module):
    """An LSTM cell with peepholes, bidirectional, its states joined."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead, self.back, self.out = nn.Linear(D + S, 4 * S), nn.Linear(D + S, 4 * S), nn.Linear(2 * S, 3)

    @staticmethod
    def run(cell: nn.Module, steps: list[torch.Tensor]) -> list[torch.Tensor]:
        h = c = steps[0].new_zeros(len(steps[0]), S)
        states = []
        for x in steps:
            i, f, g, o = cell(torch.cat([x, h], -1)).chunk(4, -1)
            c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return states

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = list(x.unbind(1))
        ahead, back = self.run(self.ahead, steps), self.run(self.back, steps[::-1])[::-1]
        return self.out(torch.stack([torch.cat(pair, -1) for pair in zip(ahead, back, strict=True)], 1))


class CellJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.ahead, self.back, self.out = (
            faults,
            linear(D + S, 4 * S),
            linear(D + S, 4 * S),
            linear(2 * S, 3),
        )

    def run(self, cell: Any, steps: list[Any]) -> list[Any]:
        faults = self.faults
        h = c = jnp.zeros((len(steps[0]), S))
        states = []
        for x in steps:
            i, f, g, o = jnp.split(cell(jnp.concatenate([x, h], -1)), 4, -1)
            if "g and o exchanged" in faults:
                g, o = o, g
            if "i and f exchanged" in faults:
                i, f = f, i
            f = f if "no forget bias" in faults else f + 1
            c = nnx.sigmoid(f) * c + nnx.sigmoid(i) * (nnx.sigmoid(g) if "sigmoid for tanh" in faults else jnp.tanh(g))
            h = nnx.sigmoid(o) * (c if "cell without tanh" in faults else jnp.tanh(c))
            states.append(c if "cells for states" in faults else h)
        return states

    def __call__(self, x: Any) -> Any:
        f, steps = self.faults, [x[:, t] for t in range(T)]
        ahead, back = self.run(self.ahead, steps), self.run(self.back, steps if "both ahead" in f else steps[::-1])
        back = back if {"not turned back", "both ahead"} & f else back[::-1]
        pairs = zip(back, ahead, strict=True) if "back first" in f else zip(ahead, back, strict=True)
        return self.out(jnp.stack([jnp.concatenate(pair, -1) for pair in pairs], 1))


ARCHITECTURES = [
    Architecture(
        "GRU with attention", GatedT, GatedJ, normal((B, T, D)),
        {
            "gates in another order": ("order",),
            "reset of both": ("before the product", "mul", "leaves out", "to the sum"),
            "no reset": ("leaves out the product",),
            "update the other way": ("1 - x", "exchange", "takes", "sign"),
            "memory first": ("order",),
            "no tanh": ("leaves out tanh", "the identity"),
            "softmax over one": ("dim=2", "dim=-1", "axis 2"),
            "mean of memory": ("mean",),
            "context first": ("order",),
        },
        (("memory first", "no tanh"), ("mean of memory", "context first")),
    ),
    Architecture(
        "TCN", DilatedT, DilatedJ, normal((B, T, D)),
        {
            "not dilated": ("dilation",),
            "first looks ahead": ("pad", "shift", "behind"),
            "second looks ahead": ("pad", "shift", "behind"),
            "no skip": ("leaves out the sum",),
            "no relu behind the sum": ("the identity", "leaves out relu"),
            "no relu before the sum": ("the identity", "leaves out relu"),
            "no residual": ("leaves out the sum",),
            "mean over time": ("mean",),
            "first for last": ("first element", "0 for -1"),
        },
        (("no skip", "no relu behind the sum"), ("no residual", "mean over time")),
    ),
    Architecture(
        "selective state space", StatesT, StatesJ, normal((B, T, D)),
        {
            "gate first": ("order",),
            "silu left out": ("leaves out silu", "the identity"),
            "b and c exchanged": ("order", "exchange", "takes"),
            "relu for softplus": ("relu",),
            "growing": ("leaves out neg", "sign"),
            "input not weighed": ("leaves out the product",),
            "no skip": ("leaves out the sum",),
            "sigmoid gate": ("sigmoid",),
            "gate not silu": ("leaves out silu", "the identity"),
            "no residual": ("leaves out the sum",),
        },
        (("no skip", "sigmoid gate"), ("gate first", "silu left out")),
    ),
    Architecture(
        "RWKV", MixedT, MixedJ, normal((B, T, D)),
        {
            "next for before": ("shift", "pad"),
            "mixed the other way": ("1 - x", "exchange", "takes"),
            "mix of the key": ("takes mix_k", "takes the input of key"),
            "receptance not mixed": ("takes", "leaves out"),
            "no sigmoid": ("leaves out sigmoid", "the identity"),
            "no bonus": ("leaves out the sum",),
            "decay by one exp": ("leaves out exp",),
            "no residual": ("leaves out the sum",),
            "not squared": ("leaves out pow", "power"),
        },
        (("no sigmoid", "no bonus"), ("no residual", "no sigmoid")),
    ),
    Architecture(
        "LSTM by hand", CellT, CellJ, normal((B, T, D)),
        {
            "g and o exchanged": ("order",),
            "i and f exchanged": ("order",),
            "no forget bias": ("leaves out add",),
            "sigmoid for tanh": ("sigmoid",),
            "cell without tanh": ("leaves out tanh", "the identity"),
            "cells for states": ("takes",),
            "both ahead": ("reversal", "takes", "order"),
            "not turned back": ("order", "reversal", "takes"),
            "back first": ("order",),
        },
        (("no forget bias", "cell without tanh"), ("sigmoid for tanh", "back first")),
    ),
]  # fmt: skip
