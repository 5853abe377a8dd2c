"""Architectures that generate, and those that learn without labels: VAE, VQ-VAE, flow, DiT, BYOL, teacher, policy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, linear, mean_squared, normal

B, D, Z = 5, 6, 3


class VariationalT(nn.Module):
    """What is drawn is an input, so that both sides have the same."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.hidden, self.decode = nn.Linear(D, 2 * Z), nn.Linear(Z, 7), nn.Linear(7, D)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, log = self.encode(x).chunk(2, -1)
        z = mean + noise * torch.exp(0.5 * log)
        return self.decode(functional.relu(self.hidden(z))), mean, log


class VariationalJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.encode, self.hidden, self.decode = faults, linear(D, 2 * Z), linear(Z, 7), linear(7, D)

    def __call__(self, x: Any, noise: Any) -> Any:
        f = self.faults
        mean, log = jnp.split(self.encode(x), 2, -1)
        if "spread first" in f:
            mean, log = log, mean
        spread = log if "spread itself" in f else jnp.exp(log if "variance for spread" in f else 0.5 * log)
        z = mean if "no noise" in f else mean + noise * spread
        h = self.hidden(z)
        return self.decode(h if "no relu" in f else nnx.relu(h)), mean, log


def lower_bound(output: Any, target: torch.Tensor) -> torch.Tensor:
    x, mean, log = output
    rest = ((x - target) ** 2).sum(-1).mean()
    return rest - 0.5 * (1 + log - mean.pow(2) - log.exp()).sum(-1).mean()


def jax_lower_bound(faults: frozenset[str]) -> Callable[..., Any]:
    def loss(output: Any, target: Any) -> Any:
        x, mean, log = output
        squares = (x - target) ** 2
        rest = squares.mean() if "mean over features" in faults else squares.sum(-1).mean()
        size = 0 if "mean not squared" in faults else mean**2
        size = mean if "mean not squared" in faults else size
        each = 1 + log - size - (jnp.exp(2 * log) if "log of the spread" in faults else jnp.exp(log))
        divergence = each.sum(-1).mean()
        divergence = divergence if "no half" in faults else 0.5 * divergence
        return rest + divergence if "sign of the divergence" in faults else rest - divergence

    return loss


class QuantizedT(nn.Module):
    """The nearest of the codes takes the place of each vector; the gradient goes straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.codes = nn.Linear(D, Z), nn.Linear(Z, D), nn.Embedding(4, Z)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(self.encode(x))
        distance = (z[:, None] - self.codes.weight[None]).pow(2).sum(-1)
        q = self.codes(distance.argmin(1))
        return self.decode(z + (q - z).detach())


class QuantizedJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.encode, self.decode = faults, linear(D, Z), linear(Z, D)
        self.codes = nnx.Embed(4, Z, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        f, z = self.faults, self.encode(x)
        z = z if "no tanh" in f else jnp.tanh(z)
        distance = ((z[:, None] - self.codes.embedding[...][None]) ** 2).sum(-1)
        q = self.codes(distance.argmax(1) if "farthest" in f else distance.argmin(1))
        if "nothing straight through" in f:
            return self.decode(q)
        if "codes learn too" in f:
            return self.decode(z + q - jax.lax.stop_gradient(z))
        if "not stopped" in f:
            return self.decode(z + (q - z))
        return self.decode(z + jax.lax.stop_gradient(q - z))


class FlowT(nn.Module):
    """RealNVP: half of the features scale and shift the other half, twice; the log-determinant comes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 6), nn.Linear(3, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        log, shift = self.one(a).chunk(2, -1)
        log = torch.tanh(log)
        b, total = b * torch.exp(log) + shift, log.sum(-1)
        log, shift = self.two(b).chunk(2, -1)
        log = torch.tanh(log)
        a, total = a * torch.exp(log) + shift, total + log.sum(-1)
        return torch.cat([a, b, total[:, None]], -1)


class FlowJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.one, self.two = faults, linear(3, 6), linear(3, 6)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        a, b = (x[:, ::2], x[:, 1::2]) if "every other" in f else jnp.split(x, 2, -1)
        log, shift = jnp.split(self.one(a), 2, -1)
        log = log if "no tanh" in f else jnp.tanh(log)
        b = (b + shift) * jnp.exp(log) if "shifted first" in f else b * jnp.exp(log) + shift
        total = log.sum(-1)
        log, shift = jnp.split(self.two(x[:, 3:] if "second of the input" in f else b), 2, -1)
        log, shift = (shift, log) if "second exchanged" in f else (log, shift)
        log = jnp.tanh(log)
        a = a * jnp.exp(-log if "inverse scale" in f else log) + shift
        more = log.mean(-1) if "mean of logs" in f else log.sum(-1)
        total = more if "second determinant alone" in f else total - more if "difference" in f else total + more
        parts = [b, a, total[:, None]] if "halves exchanged" in f else [a, b, total[:, None]]
        return jnp.concatenate(parts, -1)


class DiffusedT(nn.Module):
    """DiT: the time's code gives shift, scale and gate of a norm without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.modulate, self.fc1, self.fc2 = (
            nn.Linear(8, 8),
            nn.Linear(8, 3 * D),
            nn.Linear(D, 9),
            nn.Linear(9, D),
        )
        self.norm = nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        frequencies = torch.exp(-torch.arange(4).to(x))
        angles = t[:, None] * frequencies[None]
        code = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        shift, scale, gate = self.modulate(functional.silu(code))[:, None].chunk(3, -1)
        y = self.norm(x) * (1 + scale) + shift
        return x + gate * self.fc2(functional.gelu(self.fc1(y), approximate="tanh"))


class DiffusedJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.time, self.modulate, self.fc1, self.fc2 = linear(8, 8), linear(8, 3 * D), linear(D, 9), linear(9, D)

    def __call__(self, x: Any, t: Any) -> Any:
        f = self.faults
        angles = t[:, None] * jnp.exp(-jnp.arange(4.0))[None]
        sin, cos = jnp.sin(angles), jnp.cos(angles)
        code = self.time(jnp.concatenate([sin, cos] if "sin first" in f else [cos, sin], -1))
        both = self.modulate(code if "silu left out" in f else nnx.silu(code))[:, None]
        shift, scale, gate = jnp.split(both, 3, -1)
        shift, scale = (scale, shift) if "scale first" in f else (shift, scale)
        gate, shift = (shift, gate) if "gate first" in f else (gate, shift)
        y = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        y = x if "norm left out" in f else y
        y = y * (scale if "no one" in f else 1 + scale) + shift
        y = self.fc2(nnx.gelu(self.fc1(y), approximate="exact gelu" not in f))
        y = y if "gate left out" in f else (1 + gate) * y if "gate of one more" in f else gate * y
        return x + y


class TwinsT(nn.Module):
    """BYOL: the prediction of one view is held against the other's projection, which is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.project, self.predict = nn.Linear(D, 7), nn.Linear(7, Z), nn.Linear(Z, Z)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a, b = (self.project(torch.tanh(self.encode(each))) for each in (x, y))
        first = functional.cosine_similarity(self.predict(a), b.detach(), dim=-1)
        second = functional.cosine_similarity(self.predict(b), a.detach(), dim=-1)
        return 2 - first - second


class TwinsJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.encode, self.project, self.predict = faults, linear(D, 7), linear(7, Z), linear(Z, Z)

    def __call__(self, x: Any, y: Any) -> Any:
        f = self.faults

        def encoded(x: Any) -> Any:
            h = self.encode(x)
            return self.project(h if "no tanh" in f else jnp.tanh(h))

        def near(a: Any, b: Any, stop: bool) -> Any:
            b = jax.lax.stop_gradient(b) if stop else b
            a = (a + jax.lax.stop_gradient(a)) / 2 if "gradient halved" in f else a
            a = a if "not predicted" in f else self.predict(a)
            a = jax.lax.stop_gradient(a) if "prediction stopped" in f else a
            return (a * b).sum(-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))

        a, b = encoded(x), encoded(y)
        first = near(a, b, "first not stopped" not in f and "none stopped" not in f)
        second = near(b, a, "none stopped" not in f)
        return 2 - first if "second left out" in f else 2 - first - second


def mean_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output * target).mean()


def jax_mean_of(faults: frozenset[str]) -> Callable[..., Any]:
    return lambda output, target: (output * target).mean()


class PolicyT(nn.Module):
    """Logits and values of an actor and a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = nn.Linear(D, 8), nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.tanh(self.body(x))
        return self.actor(h), self.critic(h)[:, 0]


class PolicyJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.body, self.actor, self.critic = faults, linear(D, 8), linear(8, 4), linear(8, 1)

    def __call__(self, x: Any) -> Any:
        h = jnp.tanh(self.body(x))
        return self.actor(h), self.critic(h)[:, 0]


def clipped(output: Any, target: Any) -> torch.Tensor:
    logits, values = output
    actions, old, returns = target[:, 0].long(), target[:, 1], target[:, 2]
    log = torch.log_softmax(logits, -1)
    ratio = torch.exp(log.gather(1, actions[:, None])[:, 0] - old)
    gain = returns - values.detach()
    gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    policy = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
    entropy = -(log.exp() * log).sum(-1).mean()
    return policy + 0.5 * (values - returns).pow(2).mean() - 0.01 * entropy


def jax_clipped(f: frozenset[str]) -> Callable[..., Any]:
    def loss(output: Any, target: Any) -> Any:
        logits, values = output
        actions, old, returns = target[:, 0].astype(int), target[:, 1], target[:, 2]
        log = jax.nn.log_softmax(logits, -1)
        ratio = jnp.exp(jnp.take_along_axis(log, actions[:, None], 1)[:, 0] - old)
        gain = returns - (values if "advantage not stopped" in f else jax.lax.stop_gradient(values))
        ddof = 0 if "ddof" in f else 1
        gain = gain if "not normalized" in f else (gain - gain.mean()) / (gain.std(ddof=ddof) + 1e-8)
        other = jnp.clip(ratio, 0.8, 1.2) * gain
        smaller = jnp.maximum if "larger of both" in f else jnp.minimum
        policy = -(ratio * gain if "not clipped" in f else smaller(ratio * gain, other)).mean()
        entropy = -(jnp.exp(log) * log).sum(-1).mean()
        entropy = -entropy if "entropy of the other sign" in f else entropy
        value = ((values - returns) ** 2).mean()
        return policy + (value if "value not halved" in f else 0.5 * value) - 0.01 * entropy

    return loss


def _policy_target(rng: np.random.Generator) -> Any:
    return np.stack([rng.integers(0, 4, 9), -1.4 + 0.3 * rng.normal(size=9), rng.normal(size=9)], 1)


def _jax_squared(faults: frozenset[str]) -> Callable[..., Any]:
    return mean_squared


ARCHITECTURES = [
    Architecture(
        "VAE", VariationalT, VariationalJ, normal((B, D), (B, Z)),
        {
            "spread first": ("order",),
            "spread itself": ("takes output 1 of chunk", "leaves out exp",),
            "variance for spread": ("leaves out mul", "factor 2"),
            "no noise": ("leaves out the sum",),
            "no relu": ("the identity", "leaves out relu"),
            "mean over features": ("mean",),
            "mean not squared": ("leaves out pow", "power"),
            "log of the spread": ("factor 2", "twice", "square"),
            "no half": ("leaves out mul", "takes 1"),
            "sign of the divergence": ("the sum of the two", "sign"),
        },
        (("spread itself", "no relu"), ("no half", "sign of the divergence")),
        target=lambda rng: rng.normal(size=(B, D)), loss=lower_bound, jax_loss=jax_lower_bound,
    ),
    Architecture(
        "VQ-VAE", QuantizedT, QuantizedJ, normal((B, D)),
        {
            "no tanh": ("the identity", "leaves out tanh"),
            "farthest": ("argmax",),
            "nothing straight through": ("gradient", "stop_gradient", "detach"),
            "codes learn too": ("gradient", "stop_gradient", "detach"),
            "not stopped": ("gradient", "stop_gradient", "detach"),
        },
        (("no tanh", "farthest"),),
        target=lambda rng: rng.normal(size=(B, D)), loss=functional.mse_loss, jax_loss=_jax_squared,
    ),
    Architecture(
        "RealNVP", FlowT, FlowJ, normal((B, D)),
        {
            "every other": ("every 2th", "::2"),
            "no tanh": ("the identity", "leaves out tanh"),
            "shifted first": ("applies mul", "applies add", "to the sum", "before"),
            "second of the input": ("takes",),
            "second exchanged": ("order",),
            "inverse scale": ("sign", "the quotient of the two"),
            "mean of logs": ("mean",),
            "second determinant alone": ("leaves out the sum",),
            "difference": ("the difference of the two", "sign"),
            "halves exchanged": ("order",),
        },
        (("second exchanged", "mean of logs"), ("inverse scale", "halves exchanged")),
    ),
    Architecture(
        "DiT", DiffusedT, DiffusedJ, lambda rng: (rng.normal(size=(B, 4, D)), rng.uniform(0, 3, B)),
        {
            "sin first": ("order",),
            "silu left out": ("leaves out silu", "the identity"),
            "scale first": ("order",),
            "gate first": ("order",),
            "norm left out": ("leaves out layer_norm",),
            "no one": ("leaves out add",),
            "exact gelu": ("approximate",),
            "gate left out": ("leaves out the product",),
            "gate of one more": ("adds",),
        },
        (("scale first", "gate left out"), ("no one", "norm left out")),
    ),
    Architecture(
        "BYOL", TwinsT, TwinsJ, normal((B, D), (B, D)),
        {
            "no tanh": ("the identity", "leaves out tanh"),
            "not predicted": ("takes", "leaves out linear"),
            "second left out": ("leaves out the difference",),
            "first not stopped": ("gradient", "stop_gradient", "detach"),
            "none stopped": ("gradient", "stop_gradient", "detach"),
            "prediction stopped": ("gradient", "stop_gradient", "detach"),
        },
        (("no tanh", "second left out"),),
        target=lambda rng: rng.normal(size=B), loss=mean_of, jax_loss=jax_mean_of,
    ),
    Architecture(
        "clipped policy loss", PolicyT, PolicyJ, normal((9, D)),
        {
            "advantage not stopped": ("gradient", "stop_gradient", "detach"),
            "ddof": ("ddof=0", "divides by n"),
            "not normalized": ("leaves out", "takes"),
            "larger of both": ("maximum", "max of"),
            "not clipped": ("leaves out minimum", "leaves out min", "leaves out clamp"),
            "entropy of the other sign": ("sign", "leaves out neg"),
            "value not halved": ("leaves out mul", "takes 1"),
        },
        (("ddof", "value not halved"), ("larger of both", "entropy of the other sign")),
        target=_policy_target, loss=clipped, jax_loss=jax_clipped,
    ),
]  # fmt: skip
