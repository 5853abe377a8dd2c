"""Traps in optimizers and schedules where several things come together, as they do in training scripts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn, optim
from torch.optim import lr_scheduler

import compare

from .training import (
    OPTAX,
    SCHEDULE,
    UPDATE,
    clip_like_torch,
    clipped,
    decayed,
    optimizer,
    schedule,
    scheduled,
    setting,
)
from .trap import Pair, Trap


def every(opt: optim.Optimizer, steps: int, make: Callable[[Any], Any]) -> optim.Optimizer:
    """Step a schedule once in some steps, as once an epoch."""
    scheduler, taken = make(opt), [0]

    def step(*_: Any) -> None:
        taken[0] += 1
        if taken[0] % steps == 0:
            scheduler.step()

    opt.register_step_post_hook(step)
    return opt


def by_axes(params: Any) -> list[dict[str, Any]]:
    """Decay matrices alone."""
    params = list(params)
    return [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]


def named(*ends: str) -> Callable[[Any], Any]:
    """Make a mask of the parameters whose path has one of these ends."""

    def mask(params: Any) -> Any:
        def test(path: Any, _: Any) -> bool:
            return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value").endswith(ends)

        return jax.tree_util.tree_map_with_path(test, params)

    return mask


def recurrent(**settings: Any) -> Pair:
    """An LSTM of torch, with two biases for each gate, and one of Flax, with one."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((3, 5, 4), np.float32), np.float32(0)) for _ in range(2)]
    twice = optax.masked(optax.scale(2.0), named("bias")) if settings["twice"] else optax.identity()
    return Pair(
        compare.Torch(_Recurrent(), lambda o, t: ((o - t) ** 2).mean(), lambda p: optim.Adam(p, 1e-2)),
        compare.Flax(
            nnx.RNN(nnx.LSTMCell(4, 6, rngs=nnx.Rngs(0))),
            lambda o, t: jnp.mean((o - t) ** 2),
            optax.chain(optax.adam(1e-2), twice),
        ),
        batches,
    )


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.lstm(x)[0]
        return result


TRAPS = [
    schedule(
        "a long StepLR without staircase",
        lambda o: lr_scheduler.StepLR(o, 30),
        lambda **s: optax.sgd(optax.exponential_decay(0.1, 30, 0.1, **s)),
        {},
        {"staircase": True},
        ("The first 30 steps have one rate.", "exponential_decay falls at every step."),
        "schedule",
    ),
    Trap(
        name="a schedule by epochs",
        stage="schedule",
        torch="scheduler.step() once per epoch.",
        jax="A schedule counts updates.",
        source=SCHEDULE,
        build=optimizer(
            lambda p: every(optim.SGD(p, 0.1), 3, lambda o: lr_scheduler.ExponentialLR(o, 0.5)),
            lambda each: optax.sgd(lambda count: 0.1 * 0.5 ** (count // each)),
        ),
        wrong={"each": 1},
        right={"each": 3},
        place=UPDATE,
        cause="schedule",
        fix=r"count // 3",
        steps=7,
    ),
    Trap(
        name="a warm-up from 0, with clipping and a mask",
        stage="schedule",
        torch="LambdaLR starts with its first factor; only weights are decayed; the gradient is clipped.",
        jax="linear_schedule(0, ...), and everything is decayed.",
        source=SCHEDULE,
        build=optimizer(
            lambda p: scheduled(
                clipped(optim.AdamW(by_axes(p), 1e-2), 0.1),
                lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, (t + 1) / 4)),
            ),
            lambda start, steps, mask: optax.chain(
                clip_like_torch(0.1),
                optax.adamw(optax.linear_schedule(start, 1e-2, steps), weight_decay=0.1, mask=mask),
            ),
        ),
        wrong={"start": 0.0, "steps": 4, "mask": None},
        right={"start": 2.5e-3, "steps": 3, "mask": named("kernel")},
        place=UPDATE,
        cause="schedule and weight decay mask",
        fix=r"linear_schedule\(0\.0025, 0\.01, 3\).*mask=",
        steps=6,
    ),
    Trap(
        name="restarts of a cosine",
        stage="schedule",
        torch="CosineAnnealingWarmRestarts starts again.",
        jax="cosine_decay_schedule stays at its end.",
        source=SCHEDULE,
        build=optimizer(
            lambda p: scheduled(optim.SGD(p, 0.1, 0.9), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3)),
            lambda again: optax.sgd(
                (lambda count: optax.cosine_decay_schedule(0.1, 3)(count % 3))
                if again
                else optax.cosine_decay_schedule(0.1, 3),
                0.9,
            ),
        ),
        wrong={"again": False},
        right={"again": True},
        place=UPDATE,
        cause="schedule",
        fix="count % 3",
        steps=6,
    ),
    setting(
        "L2 left out",
        lambda p: optim.Adam(p, 1e-2, weight_decay=1e-2),
        lambda decay: decayed(optax.adam(1e-2), decay, first=True),
        {"decay": 0.0},
        {"decay": 1e-2},
        ("weight_decay=0.01, a part of the gradient.", "optax.adam has no such argument: it is left out."),
        "weight decay",
        r"optax\.chain\(optax\.add_decayed_weights\(0\.01\), optax\.adam\(\.\.\.\)\)",
    ),
    setting(
        "a weight decay mask of one layer",
        lambda p: optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda mask: optax.adamw(1e-2, weight_decay=0.1, mask=mask),
        {"mask": named("front/kernel", "bias")},
        {"mask": None},
        ("Decays every parameter.", "One kernel is left out."),
        "weight decay mask",
        r"weight_decay=0\.1",
    ),
    setting(
        "two masks the wrong way round",
        lambda p: optim.AdamW(by_axes(p), 1e-2),
        lambda decayed: optax.chain(
            optax.masked(optax.adamw(1e-2, weight_decay=0.1), named(decayed)),
            optax.masked(optax.adamw(1e-2, weight_decay=0.0), named("bias" if decayed == "kernel" else "kernel")),
        ),
        {"decayed": "bias"},
        {"decayed": "kernel"},
        ("Matrices are decayed.", "Two masked optimizers in a chain, exchanged."),
        "weight decay mask",
        r"weight_decay=0\.1, mask=.*/kernel",
    ),
    setting(
        "parameters outside of every mask",
        lambda p: optim.SGD(p, 0.1),
        lambda all_of_them: optax.masked(optax.sgd(0.1), (lambda _: True) if all_of_them else named("kernel")),
        {"all_of_them": False},
        {"all_of_them": True},
        ("Trains all.", "optax.masked passes the gradients outside its mask on unchanged."),
        "outside of the mask",
        "multi_transform",
    ),
    setting(
        "amsgrad left out, with clipping and a schedule",
        lambda p: scheduled(
            clipped(optim.Adam(p, 1e-2, amsgrad=True), 0.05), lambda o: lr_scheduler.ExponentialLR(o, 0.5)
        ),
        lambda like_torch: optax.chain(
            clip_like_torch(0.05),
            _amsgrad(optax.exponential_decay(1e-2, 1, 0.5)) if like_torch else optax.adam(lambda t: 1e-2 * 0.5**t),
        ),
        {"like_torch": False},
        {"like_torch": True},
        ("amsgrad=True.", "optax.adam has none."),
        "amsgrad",
        "docs/optimizers.md",
    ),
    setting(
        "eps_root, with clipping and a schedule",
        lambda p: scheduled(clipped(optim.Adam(p, 1e-2), 0.05), lambda o: lr_scheduler.ExponentialLR(o, 0.5)),
        lambda **s: optax.chain(clip_like_torch(0.05), optax.adam(optax.exponential_decay(1e-2, 1, 0.5), **s)),
        {"eps_root": 1e-8},
        {"eps_root": 0.0},
        ("Nothing is added inside the root.", "eps_root=1e-8 besides eps."),
        "inside the root",
        "eps_root=0",
    ),
    setting(
        "ascent, with clipping and a schedule",
        lambda p: scheduled(clipped(optim.SGD(p, 0.1, 0.9), 0.05), lambda o: lr_scheduler.ExponentialLR(o, 0.5)),
        lambda sign: optax.chain(
            clip_like_torch(0.05), optax.scale(sign), optax.sgd(optax.exponential_decay(0.1, 1, 0.5), 0.9)
        ),
        {"sign": -1.0},
        {"sign": 1.0},
        ("Steps against the gradient.", "Along it."),
        "ascent",
        "sign",
    ),
    setting(
        "clipping by norm for by value",
        lambda p: _clipped_by_value(optim.Adam(p, 1e-2), 0.01),
        lambda by_value: optax.chain(optax.clip(0.01) if by_value else clip_like_torch(0.01), optax.adam(1e-2)),
        {"by_value": False},
        {"by_value": True},
        ("clip_grad_value_.", "The norm of all gradients is clipped."),
        "clipping",
        r"optax\.clip\(0\.01\)",
    ),
    Trap(
        name="one bias for two",
        stage="optimizer",
        torch="An LSTM has two biases for each gate, and each makes a step.",
        jax="One bias makes one step.",
        source=f"{OPTAX}combining_optimizers.html",
        build=recurrent,
        wrong={"twice": False},
        right={"twice": True},
        place=("update", "*bias*"),
        cause="two biases",
        fix=r"optax\.masked\(optax\.scale\(2",
    ),
]


def _clipped_by_value(opt: optim.Optimizer, largest: float) -> optim.Optimizer:
    def clip(opt: Any, *_: Any) -> None:
        nn.utils.clip_grad_value_([p for group in opt.param_groups for p in group["params"]], largest)

    opt.register_step_pre_hook(clip)
    return opt


def _amsgrad(rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Adam with the largest of the uncorrected second moments, as torch has it."""

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"count": jnp.zeros([], jnp.int32), "mu": zeros, "nu": zeros, "nu_max": zeros}

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        count = state["count"] + 1
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["mu"], grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["nu"], grads)
        most = jax.tree.map(jnp.maximum, state["nu_max"], nu)

        def step(m: Any, v: Any) -> Any:
            return -rate(state["count"]) * m / (1 - 0.9**count) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

        return jax.tree.map(step, mu, most), {"count": count, "mu": mu, "nu": nu, "nu_max": most}

    return optax.GradientTransformation(init, update)
