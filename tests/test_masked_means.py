"""Means with a mask: of what it keeps, of everything, and of each row first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import some
from programs.common import trained, trained_in_torch
from torch.nn import functional

import compare

B, T, D, V = 4, 6, 5, 3


class Case(NamedTuple):
    original: Callable[[Any, Any, Any], Any]
    """A loss of scores of B, T, V, labels of B, T and a mask of B, T."""
    right: Callable[[Any, Any], Any]
    """The same of cross-entropies of B, T and the mask."""
    wrong: Callable[[Any, Any], Any]
    said: str


def torch_each(scores: Any, labels: Any) -> Any:
    return functional.cross_entropy(scores.mT, labels, reduction="none")


CASES = {
    "all for kept": Case(
        lambda scores, labels, mask: (torch_each(scores, labels) * mask).sum() / mask.sum(),
        lambda each, mask: (each * mask).sum() / mask.sum(),
        lambda each, mask: (each * mask).mean(),
        f"divides by {B * T} in div",
    ),
    # Where both sums are means, the bound of the divisor takes over, and the quotient is the mean of all.
    "all for kept, bounded": Case(
        lambda scores, labels, mask: (torch_each(scores, labels) * mask).sum() / mask.sum().clamp(min=1),
        lambda each, mask: (each * mask).sum() / jnp.maximum(mask.sum(), 1),
        lambda each, mask: (each * mask).mean(),
        f"divides by {B * T} in div",
    ),
    "kept for all": Case(
        lambda scores, labels, mask: (torch_each(scores, labels) * mask).mean(),
        lambda each, mask: (each * mask).mean(),
        lambda each, mask: (each * mask).sum() / mask.sum(),
        "takes the mean over what",
    ),
    "mask that torch has not": Case(
        lambda scores, labels, mask: 0 * mask.sum() + functional.cross_entropy(scores.mT, labels),
        lambda each, mask: each.mean(),
        lambda each, mask: (each * mask).sum() / mask.sum(),
        "takes the mean over what",
    ),
    "kept for all, of all but the last": Case(
        lambda scores, labels, mask: (torch_each(scores, labels)[:, 1:] * mask[:, :-1]).mean(),
        lambda each, mask: (each[:, 1:] * mask[:, :-1]).mean(),
        lambda each, mask: (each[:, 1:] * mask[:, :-1]).sum() / mask[:, :-1].sum(),
        "takes the mean over what",
    ),
    "all for selected": Case(
        lambda scores, labels, mask: functional.cross_entropy(scores[mask.bool()], labels[mask.bool()]),
        lambda each, mask: (each * mask).sum() / mask.sum(),
        lambda each, mask: (each * mask).mean(),
        f"divides by all {B * T} elements for cross_entropy",
    ),
    "rows first": Case(
        lambda scores, labels, mask: (torch_each(scores, labels) * mask).sum() / mask.sum().clamp(min=1),
        lambda each, mask: (each * mask).sum() / mask.sum(),
        lambda each, mask: ((each * mask).sum(1) / mask.sum(1)).mean(),
        "takes the mean of each row first",
    ),
    "rows together": Case(
        lambda scores, labels, mask: ((torch_each(scores, labels) * mask).sum(1) / mask.sum(1)).mean(),
        lambda each, mask: ((each * mask).sum(1) / mask.sum(1)).mean(),
        lambda each, mask: (each * mask).sum() / mask.sum(),
        "before the quotient",
    ),
}


def check(case: Case, reduced: Callable[[Any, Any], Any]) -> compare.Report:
    def original() -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(D, V)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return trained_in_torch(
            model, optimizer, lambda model, batch: case.original(model(batch["x"]), batch["y"], batch["mask"])
        )

    def port() -> Any:
        def loss_of(model: Any, batch: Any) -> jax.Array:
            each = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
            return reduced(each, batch["mask"])

        return trained(nnx.Linear(D, V, rngs=nnx.Rngs(0)), optax.sgd(0.1), loss_of)

    rng = np.random.default_rng(0)
    batches = []
    for _ in range(3):
        mask = rng.random((B, T)) < 0.6
        mask[:, 0], mask[0, 1] = True, False
        x, y = rng.normal(size=(B, T, D)), rng.integers(0, V, (B, T))
        batches.append({"x": x, "y": y, "mask": mask.astype(np.float32)})
    return compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches)


@pytest.mark.parametrize("name", some(CASES, ("all for kept, bounded", "all for selected", "rows first")))
def test_the_mean_that_is_wrong_is_named(name: str) -> None:
    case = CASES[name]
    report = check(case, case.wrong)
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None, report
    assert case.said in cause.explanation


@pytest.mark.parametrize("name", some(CASES, ("rows first",)))
def test_a_right_mean_is_a_match(name: str) -> None:
    report = check(CASES[name], CASES[name].right)
    assert report.verdict == "match", report
