"""What a port may compute that no table of causes knows: functions behind a layer, and losses, for both frameworks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.nn import functional

Both = tuple[Callable[..., Any], Callable[..., Any]]

FUNCTIONS: dict[str, Both] = {
    "wave": (lambda x: x + 0.1 * torch.sin(3 * x), lambda x: x + 0.1 * jnp.sin(3 * x)),
    "scaled by its own mean": (lambda x: x * (1.1 + x.mean()), lambda x: x * (1.1 + x.mean())),
    "shifted by its own size": (lambda x: x + 0.1 * x.std(correction=0), lambda x: x + 0.1 * x.std()),
    "power": (lambda x: x * (x.abs() + 0.1) ** 0.1, lambda x: x * (jnp.abs(x) + 0.1) ** 0.1),
    "bounded by its largest": (
        lambda x: x.clamp(max=0.7 * x.max().item()),
        lambda x: jnp.where(x > 0.7 * x.max(), 0.7 * x.max(), x),
    ),
    "wrong slice": (lambda x: torch.cat([x[:1], x[1:] * 1.3]), lambda x: jnp.concatenate([x[:1], x[1:] * 1.3])),
}
"""Of what a layer gives; each says torch's first."""

LOSSES: dict[str, Both] = {
    "log cosh": (lambda o, t: torch.log(torch.cosh(o - t)).mean(), lambda o, t: jnp.log(jnp.cosh(o - t)).mean()),
    "weighed by the target": (
        lambda o, t: ((o - t) ** 2).mean() * (1 + t.std(correction=0)),
        lambda o, t: ((o - t) ** 2).mean() * (1 + t.std()),
    ),
    "fourth power": (
        lambda o, t: ((o - t) ** 2).mean() + 0.01 * (o**4).mean(),
        lambda o, t: ((o - t) ** 2).mean() + 0.01 * (o**4).mean(),
    ),
    "focal": (
        lambda o, t: _focal(functional.cross_entropy(o.flatten(0, -2), t.flatten(), reduction="none")),
        lambda o, t: _focal(-jnp.take_along_axis(jax.nn.log_softmax(o), t[..., None], -1)),
    ),
}


def _focal(each: Any) -> Any:
    return (each * (1 - 2.718281828459045 ** (-each)) ** 2).mean()
