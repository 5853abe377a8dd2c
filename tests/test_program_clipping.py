"""A gradient that the port clips to another norm: no schedule, although a rate at each step explains it as well."""

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
