"""Fixes of a training step run: put into the port as they are printed, they make it match."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import nnx
from in_ci import first
from programs.by_hand import printed
from programs.common import FlaxNet, TorchNet, drawn

import compare

PORT = """
model = FlaxNet(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, {optimizer}, wrt=nnx.Param)

@nnx.jit
def step(state, batch):
    count = state["count"]
    loss_fn = lambda model: jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
    loss, gradients = nnx.value_and_grad(loss_fn)(state["model"])
    {gradients}
    state["optimizer"].update(state["model"], gradients)
    old, new = nnx.state(state["average"], nnx.Param), nnx.state(state["model"], nnx.Param)
    nnx.update(state["average"], {average})
    return {{**state, "count": count + 1}}, {{"loss": loss}}

built = {{"model": model, "average": nnx.clone(model), "optimizer": optimizer, "count": jnp.zeros((), jnp.int32)}}, step
"""

BATCHES = drawn(x=(5,), y=(3,))
SGD = "optax.sgd(0.1, momentum=0.9)"
CLIPPED = "gradients = optax.tree.scale(jnp.minimum(1.0, 0.5 / (optax.tree.norm(gradients) + 1e-6)), gradients)"
AVERAGED = "optax.incremental_update(new, old, step_size=0.1)"
COPIED = "jax.tree.map(lambda new, old: jnp.where(count % 2 == 0, new, old), new, old)"


def original(*, by_value: bool = False, every: int = 0) -> Any:
    """Make torch's program, which clips and averages; with `every`, it copies the weights at some steps."""
    model = TorchNet()
    average, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    count = 0

    def step(_: Any, batch: Any) -> Any:
        nonlocal count
        loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        if by_value:
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.05)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        for old, new in zip(average.parameters(), model.parameters(), strict=True):
            if not every or count % every == 0:
                old.data.lerp_(new.data, 1.0 if every else 0.1)
        count += 1
        return {"loss": loss}

    return {"model": model, "average": average, "optimizer": optimizer}, step


def checked(parts: dict[str, str], **given: Any) -> compare.Report:
    def port() -> Any:
        names = {"FlaxNet": FlaxNet, "jax": jax, "jnp": jnp, "nnx": nnx, "optax": optax}
        exec(PORT.format(**{"optimizer": SGD, "gradients": CLIPPED, "average": AVERAGED, **parts}), names)
        return names["built"]

    sides = compare.TorchProgram(lambda: original(**given)), compare.JaxProgram(port)
    return compare.check(*sides, BATCHES, steps=4, device="cpu", quick=True)


@pytest.mark.parametrize(
    ("part", "wrong", "cause", "given"),
    first(
        [
            ("gradients", "pass", "clipping", {}),
            ("gradients", CLIPPED.replace(" + 1e-6", ""), "clipping without 1e-6", {}),
            ("gradients", f"{CLIPPED}; gradients = optax.tree.scale(2.0, gradients)", "gradient scale", {}),
            ("gradients", f"{CLIPPED}; gradients = optax.tree.scale(-1.0, gradients)", "gradient sign", {}),
            ("average", AVERAGED.replace("0.1", "0.01"), "average's decay", {}),
            ("average", AVERAGED.replace("0.1", "0.9"), "decay exchanged", {}),
            ("average", "new", "average copied", {}),
            ("average", "old", "average not updated", {}),
            ("average", AVERAGED.replace("0.1", "jnp.where(count == 2, 0.3, 0.1)"), "average's decay", {}),
            ("average", "new", "copied at other steps", {"every": 2}),
            ("gradients", "pass", "clipping", {"by_value": True}),
        ],
        3,
    ),
)
def test_the_fix_makes_the_port_match(part: str, wrong: str, cause: str, given: dict[str, Any]) -> None:
    faulty = {"average": AVERAGED if not given.get("every") else COPIED, part: wrong}
    report = checked(faulty, **given)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == cause
    fix = printed(str(report.divergence.cause.fix))
    if "a step_size that changes" in str(report.divergence.cause.fix):
        fix = fix.replace("step_size", "0.1")  # the rates that follow are all of them 0.1
    if fix.startswith("optax.chain"):  # the optimizer's call is to be changed, whose arguments stay
        mended = faulty | {"optimizer": fix.replace("optax.sgd(...)", SGD)}
    else:
        before = f"{wrong}; " if "scale" in cause or "sign" in cause else ""
        mended = faulty | {part: f"{before}gradients = {fix}" if part == "gradients" else fix}
    assert checked(mended, **given).verdict == "match", fix
