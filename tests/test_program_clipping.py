"""A gradient that the port clips to another norm: no schedule, although a rate at each step explains it as well."""

from functools import partial
from typing import Any

import numpy as np
import optax
import pytest
import torch
from programs.regression import clipped, original, port

import compare


@pytest.mark.parametrize(
    ("counted", "rate", "cause"),
    [
        (lambda updates: updates["kernel"], 0.1, ""),
        (lambda updates: updates, optax.piecewise_constant_schedule(0.1, {1: 0.5, 3: 0.5}), "schedule"),
    ],
    ids=["norm", "schedule"],
)
def test_another_norm_is_no_schedule(counted: Any, rate: Any, cause: str) -> None:
    rng = np.random.default_rng(0)
    # Every second batch is so near that its gradient is not clipped.
    sizes = (9.0, 0.1, 9.0, 0.1)
    batches = [{"x": rng.normal(size=(6, 4)), "y": size * rng.normal(size=(6, 3))} for size in sizes]
    ours = original(lambda model: torch.optim.SGD(model.parameters(), 0.1), largest=1.0)
    theirs = port(optax.chain(clipped(1.0, counted), optax.sgd(rate)))
    sides = compare.TorchProgram(ours), compare.JaxProgram(theirs)
    report = compare.check(*sides, batches, steps=4, device="cpu", quick=True)
    assert report.divergence is not None
    name = report.divergence.cause.name if report.divergence.cause else ""
    assert name == cause, str(report)


def one_by_one(model: torch.nn.Linear, largest: float) -> None:
    for parameter in model.parameters():
        torch.nn.utils.clip_grad_norm_([parameter], largest)


def scaled(model: torch.nn.Linear) -> None:
    assert model.bias.grad is not None
    model.bias.grad.mul_(30.0)


@pytest.mark.parametrize(
    ("change", "transform"),
    [
        (partial(one_by_one, largest=0.5), optax.clip_by_global_norm(0.5)),
        (scaled, optax.identity()),
    ],
    ids=["clipped one by one", "scaled"],
)
def test_a_change_of_gradients_that_is_no_clipping_is_said_as_such(change: Any, transform: Any) -> None:
    """Torch clips, if not all gradients at once; and the rates of both sides are equal."""
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": 9 * rng.normal(size=(6, 3))} for _ in range(3)]

    ours = original(lambda model: torch.optim.SGD(model.parameters(), 0.1), change=change)
    theirs = port(optax.chain(transform, optax.sgd(0.1)))
    report = compare.check(compare.TorchProgram(ours), compare.JaxProgram(theirs), batches, device="cpu", quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "changed gradients"
    assert report.others == []
