"""A target that follows the weights at the beginning of the step on one side, and at its end on the other."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import nnx
from in_ci import first
from programs.common import FlaxNet, TorchNet, drawn

import compare

TAU = 0.05


def original(*, early: bool, every: int, same: bool, how: str) -> Any:
    model, target = TorchNet(), TorchNet()
    target.load_state_dict(model.state_dict())
    if not same:  # as from a checkpoint
        with torch.no_grad():
            for weight in target.parameters():
                weight.mul_(0.9)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    count = 0

    def follow() -> None:
        if how == "state_dict":
            target.load_state_dict(model.state_dict())
            return
        with torch.no_grad():
            for old, new in zip(target.parameters(), model.parameters(), strict=True):
                if how == "data":
                    old.data = (1 - TAU) * old.data + TAU * new.data
                else:
                    old.lerp_(new, TAU)

    def step(state: Any, batch: Any) -> Any:
        nonlocal count
        if early and count % every == 0:
            follow()
        with torch.no_grad():
            wanted = batch["y"] + 0.9 * target(batch["x"])
        loss = torch.nn.functional.mse_loss(model(batch["x"]), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not early and count % every == 0:
            follow()
        count += 1
        return {"loss": loss}

    return {"model": model, "target": target, "optimizer": optimizer}, step


def port(*, early: bool, every: int, copies: bool) -> Any:
    model, target = FlaxNet(nnx.Rngs(0)), FlaxNet(nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        model, target, count = state["model"], state["target"], state["count"]

        def follow() -> None:
            share = 1.0 if copies else TAU
            old, new = nnx.state(target, nnx.Param), nnx.state(model, nnx.Param)
            followed = optax.incremental_update(new, old, share)
            nnx.update(target, jax.tree.map(lambda a, b: jnp.where(count % every == 0, a, b), followed, old))

        if early:
            follow()
        wanted = batch["y"] + 0.9 * target(batch["x"])
        loss, gradients = nnx.value_and_grad(lambda net: jnp.mean((net(batch["x"]) - wanted) ** 2))(model)
        state["optimizer"].update(model, gradients)
        if not early:
            follow()
        return {**state, "count": count + 1}, {"loss": loss}

    return {"model": model, "target": target, "optimizer": optimizer, "count": jnp.zeros((), jnp.int32)}, step


@pytest.mark.parametrize(
    ("how", "every", "early", "same"),
    first(
        [
            ("lerp", 1, False, True),
            ("data", 1, True, True),
            ("state_dict", 3, True, False),
            ("lerp", 1, False, False),
            ("lerp", 1, True, False),
            ("state_dict", 3, False, True),
        ],
        3,
    ),
)
def test_the_other_end_of_the_step_is_the_cause(how: str, every: int, early: bool, same: bool) -> None:
    def check(at_first: bool) -> compare.Report:
        return compare.check(
            compare.TorchProgram(partial(original, early=early, every=every, same=same, how=how)),
            compare.JaxProgram(partial(port, early=at_first, every=every, copies=how == "state_dict")),
            drawn(x=(5,), y=(3,), count=5),
            quick=True,
        )

    assert check(early).verdict == compare.Verdict.MATCH
    report = check(not early)
    assert report.verdict == compare.Verdict.MISMATCH
    found = report.divergence
    assert found is not None
    assert found.cause is not None, report
    assert not report.others, report
    assert found.torch.startswith("target")
    what = "copied" if how == "state_dict" else "average"
    assert found.cause.name == f"{what} {'after' if early else 'before'} the update"
