"""Every optimizer that `torch.optim` and optax both have: the right port, its state, and what differs by default."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import first, some
from torch import nn, optim

import compare
from benchmarks.traps.training import clip_like_torch, clipped, scheduled


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


class Port(nnx.Module):
    def __init__(self) -> None:
        self.fc1, self.fc2 = nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jnp.tanh(self.fc1(x)))


Optimizer = Callable[[Iterable[nn.Parameter]], optim.Optimizer]


def compared(ours: Optimizer, theirs: optax.GradientTransformation, steps: int | None = 5) -> compare.Report:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((16, 6), np.float32), rng.standard_normal((16, 4), np.float32)) for _ in range(3)]
    return compare.check(
        compare.Torch(Original(), nn.functional.mse_loss, ours),
        compare.Flax(Port(), lambda output, target: jnp.mean((output - target) ** 2), theirs),
        batches,
        steps=steps,
        device="cpu",
    )


def slots(report: compare.Report) -> set[str]:
    """What was compared of the optimizer's state of one parameter."""
    updates = [quantity for quantity in report.quantities if quantity.stage == "update"]
    prefix = "fc1.weight."
    return {quantity.torch.removeprefix(prefix) for quantity in updates if quantity.torch.startswith(prefix)}


class Right(NamedTuple):
    torch: Optimizer
    optax: optax.GradientTransformation
    slots: set[str]


def nadam(rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, decay: float = 4e-3) -> Any:
    """NAdam with torch's momentum schedule, which optax.nadam has not."""

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"count": jnp.zeros([], jnp.int32), "mu": zeros, "nu": zeros, "product": jnp.ones([])}

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        count = state["count"] + 1
        now, after = (b1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in (count, count + 1))
        product = state["product"] * now
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["mu"], grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state["nu"], grads)

        def step(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            mean = g * (1 - now) / (1 - product) + m * after / (1 - product * after)
            return -rate * mean / (jnp.sqrt(v / (1 - b2**count)) + eps)

        return jax.tree.map(step, grads, mu, nu), {"count": count, "mu": mu, "nu": nu, "product": product}

    return optax.GradientTransformation(init, update)


def adagrad(rate: float, eps: float = 1e-10) -> optax.GradientTransformation:
    """Adagrad with epsilon outside the root, where optax.adagrad has it inside."""

    def update(grads: Any, state: optax.ScaleByRssState, params: Any = None) -> Any:
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, grads)
        return jax.tree.map(lambda g, s: -rate * g / (jnp.sqrt(s) + eps), grads, total), optax.ScaleByRssState(total)

    return optax.GradientTransformation(optax.scale_by_rss(initial_accumulator_value=0.0).init, update)


MOMENTS = {"exp_avg", "exp_avg_sq", "step"}
RIGHT = {
    "SGD": Right(lambda p: optim.SGD(p, 0.1), optax.sgd(0.1), set()),
    "SGD, momentum": Right(lambda p: optim.SGD(p, 0.1, 0.9), optax.sgd(0.1, 0.9), {"momentum_buffer"}),
    "SGD, Nesterov": Right(
        lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True), {"momentum_buffer"}
    ),
    "SGD, weight decay": Right(
        lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9)),
        {"momentum_buffer"},
    ),
    "Adam": Right(lambda p: optim.Adam(p, 1e-3), optax.adam(1e-3), MOMENTS),
    "Adam, L2": Right(
        lambda p: optim.Adam(p, 1e-3, weight_decay=0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-3)),
        MOMENTS,
    ),
    "AdamW": Right(lambda p: optim.AdamW(p, 1e-3), optax.adamw(1e-3, weight_decay=1e-2), MOMENTS),
    "NAdam": Right(lambda p: optim.NAdam(p, 2e-3), nadam(2e-3), MOMENTS),
    "Adamax": Right(lambda p: optim.Adamax(p, 2e-3), optax.adamax(2e-3), {"exp_avg", "exp_inf", "step"}),
    "Adagrad": Right(lambda p: optim.Adagrad(p, 1e-2), adagrad(1e-2), {"sum"}),
    "Adadelta": Right(
        lambda p: optim.Adadelta(p, 1.0), optax.adadelta(1.0, rho=0.9, eps=1e-6), {"square_avg", "acc_delta"}
    ),
    "RMSprop": Right(
        lambda p: optim.RMSprop(p, 1e-3), optax.rmsprop(1e-3, decay=0.99, eps_in_sqrt=False), {"square_avg"}
    ),
    "RMSprop, centered, momentum": Right(
        lambda p: optim.RMSprop(p, 1e-3, centered=True, momentum=0.9),
        optax.rmsprop(1e-3, decay=0.99, eps_in_sqrt=False, centered=True, momentum=0.9),
        {"square_avg", "grad_avg", "momentum_buffer"},
    ),
    "clipping": Right(
        lambda p: clipped(optim.Adam(p, 1e-3), 0.1),
        optax.chain(clip_like_torch(0.1), optax.adam(1e-3)),
        MOMENTS,
    ),
    "StepLR": Right(
        lambda p: scheduled(optim.SGD(p, 0.1, 0.9), lambda o: optim.lr_scheduler.StepLR(o, 2, 0.5)),
        optax.sgd(optax.exponential_decay(0.1, 2, 0.5, staircase=True), 0.9),
        {"momentum_buffer"},
    ),
    "CosineAnnealingLR": Right(
        lambda p: scheduled(optim.AdamW(p, 1e-2), lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 10)),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 10), weight_decay=1e-2),
        MOMENTS,
    ),
    "parameter groups": Right(
        lambda p: optim.AdamW(
            [{"params": q, "weight_decay": 0.1 if q.dim() > 1 else 0.0, "lr": 1e-3 * q.dim()} for q in p]
        ),
        optax.multi_transform(
            {2: optax.adamw(2e-3, weight_decay=0.1), 1: optax.adam(1e-3)},
            lambda params: jax.tree.map(lambda leaf: leaf.ndim, params),
        ),
        MOMENTS,
    ),
    "Adafactor": Right(lambda p: optim.Adafactor(p, 1e-2), optax.adafactor(1e-2, min_dim_size_to_factor=1), {"step"}),
    "inject_hyperparams": Right(
        lambda p: optim.Adam(p, 1e-3), optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), MOMENTS
    ),
}


@pytest.mark.parametrize("name", some(RIGHT, list(RIGHT)[::4]))
def test_right_ports_match_in_state_and_updates(name: str) -> None:
    right = RIGHT[name]
    report = compared(right.torch, right.optax)
    assert report.verdict == "match", str(report)
    assert slots(report) == right.slots
    left = {each.name for each in report.not_compared if each.side == "torch"}
    assert not {each for each in left if each.partition("/")[0] in right.slots}


def clipped_by_value(opt: optim.Optimizer, largest: float) -> optim.Optimizer:
    def clip(opt: Any, *arguments: Any) -> None:
        nn.utils.clip_grad_value_([p for group in opt.param_groups for p in group["params"]], largest)

    opt.register_step_pre_hook(clip)
    return opt


class Different(NamedTuple):
    torch: Optimizer
    optax: optax.GradientTransformation
    step: int
    cause: str


DIFFERENT = {
    "AdamW's weight decay": Different(lambda p: optim.AdamW(p, 1e-3), optax.adamw(1e-3), 0, "weight decay"),
    "NAdam's momentum decay": Different(lambda p: optim.NAdam(p, 2e-3), optax.nadam(2e-3), 0, "momentum decay"),
    "Adagrad's accumulator": Different(
        lambda p: optim.Adagrad(p, 1e-2),
        optax.adagrad(1e-2),
        0,
        "epsilon and initial accumulator and epsilon inside the root",
    ),
    "RMSprop's decay": Different(
        lambda p: optim.RMSprop(p, 1e-2), optax.rmsprop(1e-2), 0, "decay and epsilon inside the root"
    ),
    "the maximum of AMSGrad": Different(
        lambda p: optim.Adam(p, 1e-2, amsgrad=True), optax.amsgrad(1e-2), 0, "amsgrad maximum"
    ),
    "clipping's epsilon": Different(
        lambda p: clipped(optim.SGD(p, 0.1), 0.1),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
        0,
        "clipping",
    ),
    "clipping by value": Different(
        lambda p: clipped(optim.Adam(p, 0.1), 0.1), optax.chain(optax.clip(0.01), optax.adam(0.1)), 0, "clipping"
    ),
    "clipping by value, of nothing": Different(
        lambda p: optim.SGD(p, 0.1), optax.chain(optax.clip(0.01), optax.sgd(0.1)), 0, "clipping"
    ),
    "clipping by value, forgotten": Different(
        lambda p: clipped_by_value(optim.SGD(p, 0.1), 0.01), optax.sgd(0.1), 0, "clipping"
    ),
    "dampening": Different(lambda p: optim.SGD(p, 0.1, 0.9, dampening=0.5), optax.sgd(0.1, 0.9), 1, "dampening"),
    "L2 or decoupled": Different(
        lambda p: optim.Adam(p, 1e-3, weight_decay=0.1),
        optax.adamw(1e-3, weight_decay=0.1),
        0,
        "decoupled weight decay",
    ),
    "a schedule that is a step ahead": Different(
        lambda p: scheduled(optim.SGD(p, 0.1), lambda o: optim.lr_scheduler.ExponentialLR(o, 0.5)),
        optax.sgd(lambda count: 0.1 * 0.5 ** (count + 1.0)),
        0,
        "schedule",
    ),
    "Rprop, a step late": Different(lambda p: optim.Rprop(p, 1e-3), optax.rprop(1e-3), 0, "a step late"),
    "RAdam's epsilon": Different(
        lambda p: optim.RAdam(p, 1e-3), optax.radam(1e-3), 5, "epsilon after the bias correction"
    ),
    "Adafactor": Different(lambda p: optim.Adafactor(p, 1e-2), optax.adafactor(1e-2), 0, ""),
    "frozen by optax alone": Different(
        lambda p: optim.SGD(p, 0.1),
        optax.masked(optax.set_to_zero(), lambda params: jax.tree.map(lambda leaf: leaf.ndim == 1, params)),
        0,
        "",
    ),
}


@pytest.mark.parametrize("name", some(DIFFERENT, ("clipping's epsilon", "Adagrad's accumulator")))
def test_true_differences_are_found_in_the_update(name: str) -> None:
    different = DIFFERENT[name]
    divergence = compared(different.torch, different.optax, steps=8).divergence
    assert divergence is not None
    assert (divergence.stage, divergence.step) == ("update", different.step)
    if different.cause:
        assert divergence.cause is not None
        assert divergence.cause.name == different.cause, divergence.cause


@pytest.mark.slow
def test_radam_takes_steps_until_it_divides_by_its_variance() -> None:
    """Its first five steps are momentum alone, which every RAdam makes alike."""
    report = compared(lambda p: optim.RAdam(p, 1e-3), optax.radam(1e-3), steps=None)
    assert report.verdict == "mismatch", str(report)
    assert report.settings["steps"] == report.steps == 6
    assert compared(lambda p: optim.Adam(p, 1e-3), optax.adam(1e-3), steps=None).steps == 3


class SignDescent(optim.Optimizer):
    """An optimizer that nobody knows: its state has names of its own."""

    def __init__(self, params: Iterable[nn.Parameter], rate: float) -> None:
        super().__init__(params, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state["energy"] = state.get("energy", torch.zeros_like(param)) + param.grad**2
                param.add_(param.grad / (1 + state["energy"]), alpha=-group["lr"])


def sign_descent(rate: float) -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        state = jax.tree.map(lambda e, g: e + g**2, state, grads)
        return jax.tree.map(lambda g, e: -rate * g / (1 + e), grads, state), state

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def test_an_unknown_optimizer_is_compared_by_its_updates() -> None:
    report = compared(lambda p: SignDescent(p, 0.1), sign_descent(0.1))
    assert report.verdict == "match", str(report)
    assert slots(report) == set()
    left = [each for each in report.not_compared if each.side == "torch" and "energy/" in each.name]
    assert len(left) == 4
    assert "has no state of that name" in str(report)
    wrong = compared(lambda p: SignDescent(p, 0.1), sign_descent(0.1001)).divergence
    assert wrong is not None
    assert wrong.stage == "update"
    assert wrong.cause is not None
    assert wrong.cause.name == "learning rate"


@pytest.mark.slow
def test_muon() -> None:
    """Matrices by Muon, the rest by AdamW."""
    ours = compared(
        lambda p: optim.Muon([q for q in p if q.dim() > 1], 0.02, weight_decay=0.0),
        optax.multi_transform(
            {
                2: optax.contrib.muon(0.02, adam_b1=0.9, weight_decay=0.0, adam_weight_decay=0.0),
                1: optax.set_to_zero(),
            },
            lambda params: jax.tree.map(lambda leaf: leaf.ndim, params),
        ),
    )
    assert ours.divergence is not None


@pytest.mark.parametrize("decay", [0.99, 0.98])
def test_squares_that_are_too_small_for_float32_are_no_other_program(decay: float) -> None:
    """XLA takes what is below float32's smallest normal number for zero on a CPU, and torch computes with it."""
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((16, 6)), rng.standard_normal((16, 4))) for _ in range(3)]
    report = compare.check(
        compare.Torch(Original(), lambda y, target: 1e-19 * ((y - target) ** 2).mean(), lambda p: optim.RMSprop(p)),
        compare.Flax(
            Port(),
            lambda y, target: 1e-19 * jnp.mean((y - target) ** 2),
            optax.rmsprop(1e-2, decay=decay, eps=1e-8, eps_in_sqrt=False),
        ),
        batches,
        device="cpu",
    )
    squares = [quantity for quantity in report.quantities if quantity.torch.endswith(".square_avg")]
    assert max(quantity.error_jax[0] for quantity in squares) > 1e-3, (
        "the squares of these gradients are normal numbers"
    )
    assert report.verdict == ("match" if decay == 0.99 else "mismatch"), str(report)


@pytest.mark.parametrize(
    "settings", first([({"eps": 1e-12},), ({"eps": 1e-7},), ({"eps": 1e-7, "initial_accumulator_value": 0.1},)])
)
def test_an_epsilon_of_adagrad_is_mended_by_no_argument(settings: dict[str, float]) -> None:
    """optax.adagrad adds its epsilon inside the root, so that no value of it is torch's."""
    theirs = optax.adagrad(1e-2, **{"initial_accumulator_value": 0.0, **settings})
    report = compared(lambda p: optim.Adagrad(p, 1e-2), theirs)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    fix = report.divergence.cause.fix
    assert "eps=" not in fix
    assert fix.count("write the update as -lr * g / (jnp.sqrt(sum_of_squares) + 1e-10)") == 1


def test_a_rate_that_differs_by_less_than_float32_rounds_is_not_called_rounded() -> None:
    report = compared(lambda p: optim.SGD(p, 0.1), optax.sgd(lambda count: 0.1 * (1 + 1e-10)))
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "learning rate", str(report)
