"""What a loss does otherwise: within torch's own losses too, and told from what only agrees on the batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

import compare
from compare.diagnosis.structure.decompositions import DECOMPOSITIONS, LOSSES

CLASSES, SIZE = 4, 6


def picked(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


def masked(output: Any, target: Any) -> Any:
    mask = (target > 0).to(output.dtype)
    return ((output - target) ** 2 * mask).sum() / mask.sum()


def positive_alone(output: Any, target: Any) -> Any:
    return -(target * jax.nn.log_sigmoid(output)).mean()


def divergence_of(output: Any, sign: float) -> Any:
    mean, log = output[:, :2], output[:, 2:]
    return sign * -0.5 * (1 + log - mean**2 - jnp.exp(log)).sum(-1).mean()


def gaussian(output: Any, target: Any) -> Any:
    mean, log = output[:, :2], output[:, 2:]
    return functional.mse_loss(output, target) - 0.5 * (1 + log - mean**2 - log.exp()).sum(-1).mean()


def hinge(output: Any, target: Any) -> Any:
    return functional.relu(1 - 0.1 * (2 * target - 1) * output).mean()


def jax_hinge(output: Any, target: Any) -> Any:
    return (jax.nn.relu(1 - 0.1 * (2 * target - 1) * output) ** 2).mean()


def compared(torch_loss: Callable[..., Any], jax_loss: Callable[..., Any], targets: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    report = compare.check(
        compare.Torch(nn.Linear(3, CLASSES), torch_loss, lambda parameters: torch.optim.SGD(parameters, 0.05)),
        compare.Flax(nnx.Linear(3, CLASSES, rngs=nnx.Rngs(0)), jax_loss, optax.sgd(0.05)),
        [(rng.standard_normal((SIZE, 3), np.float32), targets(rng)) for _ in range(3)],
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    return report.divergence.cause


def numbers(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((SIZE, CLASSES), np.float32)


def labels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, CLASSES, SIZE)


def flags(rng: np.random.Generator) -> np.ndarray:
    return (rng.random((SIZE, CLASSES)) < 0.5).astype(np.float32)


Case = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], str, str]
"""Torch's loss, the port's, its targets, the name of the cause, and words of its explanation."""

CASES: dict[str, Case] = {
    "a root over the whole loss": (
        *(masked, lambda o, t: jnp.sqrt(((o - t) ** 2 * (t > 0)).sum() / (t > 0).sum()), numbers),
        *("operation added", "a square root"),
    ),
    "absolute values for squares": (
        *(masked, lambda o, t: (jnp.abs(o - t) * (t > 0)).sum() / (t > 0).sum(), numbers),
        *("another operation", "applies abs for"),
    ),
    "a logarithm over the whole loss": (
        *(functional.mse_loss, lambda o, t: jnp.log(((o - t) ** 2).mean()), numbers),
        *("operation added", "log"),
    ),
    "probabilities for their logarithms": (
        *(functional.cross_entropy, lambda o, t: picked(jax.nn.softmax(o), t).mean(), labels),
        *("another operation", "softmax for log_softmax"),
    ),
    "logits for logarithms": (
        *(functional.cross_entropy, lambda o, t: picked(o, t).mean(), labels),
        *("operation left out", "leaves out log_softmax"),
    ),
    "a softmax over the batch": (
        *(functional.cross_entropy, lambda o, t: picked(jax.nn.log_softmax(o, 0), t).mean(), labels),
        *("another axis", "axis 0 in log_softmax"),
    ),
    "labels that are one more": (
        *(functional.cross_entropy, lambda o, t: picked(jax.nn.log_softmax(o), (t + 1) % CLASSES).mean(), labels),
        *("other numbers", "target of cross_entropy"),
    ),
    "positive examples alone": (
        *(functional.binary_cross_entropy_with_logits, positive_alone, flags),
        *("operation left out", "leaves out the sum"),
    ),
    "the other sign of a negative term": (
        *(gaussian, lambda o, t: ((o - t) ** 2).mean() + divergence_of(o, -1.0), numbers),
        *("another operation", "computes the sum of the two operands of sub"),
    ),
    "a hinge whose bound no example reaches": (
        *(hinge, jax_hinge, flags),
        *("another operation", "square to the output of relu"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cause_is_what_the_jax_side_computes(name: str) -> None:
    torch_loss, jax_loss, targets, cause, words = CASES[name]
    found = compared(torch_loss, jax_loss, targets)
    assert found.name == cause
    assert words in found.explanation


def test_a_number_that_nobody_writes_is_no_factor_if_it_holds_only_nearly() -> None:
    def sum_of_squares(output: Any, target: Any) -> Any:
        return ((output - target) ** 2).sum()

    def mean_and_a_small_term(output: Any, target: Any) -> Any:
        return ((output - target) ** 2).mean() + 3e-5 * (output**4).mean()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    first = rng.standard_normal((SIZE, 3), np.float32), numbers(rng)
    divergence = compare.check(
        compare.Torch(nn.Linear(3, CLASSES), sum_of_squares, lambda parameters: torch.optim.SGD(parameters, 1e-7)),
        compare.Flax(nnx.Linear(3, CLASSES, rngs=nnx.Rngs(0)), mean_and_a_small_term, optax.sgd(1e-7)),
        [first],
        steps=4,
    ).divergence
    assert divergence is not None
    assert divergence.cause is None or "factor" not in divergence.cause.name


ARGUMENTS = {
    "cross_entropy": (numbers, labels),
    "nll_loss": (numbers, labels),
    "binary_cross_entropy_with_logits": (numbers, flags),
    "binary_cross_entropy": (lambda rng: rng.uniform(0.1, 0.9, (SIZE, CLASSES)), flags),
    "l1_loss": (numbers, numbers),
    "huber_loss": (numbers, numbers),
    "smooth_l1_loss": (numbers, numbers),
    "mse_loss": (numbers, numbers),
    "kl_div": (numbers, lambda rng: rng.uniform(0.1, 0.9, (SIZE, CLASSES))),
}


@pytest.mark.parametrize("name", [*LOSSES, "mse_loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.filterwarnings("ignore:reduction:UserWarning")
def test_a_loss_that_is_written_out_is_torchs(name: str, reduction: str) -> None:
    rng = np.random.default_rng(0)
    given = [torch.as_tensor(make(rng)) for make in ARGUMENTS[name]]
    given = [each.double() if each.is_floating_point() else each for each in given]
    written_out = (DECOMPOSITIONS | LOSSES)[name](*given, reduction=reduction)
    torch.testing.assert_close(written_out, getattr(functional, name)(*given, reduction=reduction))
