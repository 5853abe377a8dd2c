"""A count that a module of a program's state holds on both sides: a buffer of integers, and a variable."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import compare

WARM_UP = 40


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))


class Count(nnx.Variable[Any]):
    pass


class CountingPort(nnx.Module):
    def __init__(self, start: int) -> None:
        self.layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.steps = Count(jnp.array(start))


def original() -> Any:
    torch.manual_seed(0)
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        steps = model.get_buffer("steps")
        steps += 1
        loss = min(1.0, steps.item() / WARM_UP) * (model.layer(batch["x"]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port(start: int, warm_up: int) -> Any:
    model = CountingPort(start)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        state["model"].steps[...] += 1

        def of_model(model: Any) -> Any:
            return jnp.minimum(1.0, model.steps[...] / warm_up) * (model.layer(batch["x"]) ** 2).mean()

        loss, gradients = nnx.value_and_grad(of_model)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": model, "optimizer": nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)}, step


def checked(start: int = 0, warm_up: int = WARM_UP) -> compare.Report:
    batches = [{"x": np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)} for seed in range(3)]
    return compare.check(compare.TorchProgram(original), compare.JaxProgram(lambda: port(start, warm_up)), batches)


def test_a_right_port_matches() -> None:
    assert checked().verdict == compare.Verdict.MATCH


def test_another_start_is_said() -> None:
    report = checked(start=7)
    assert report.verdict == compare.Verdict.MATCH
    assert any("came with other values" in line and "steps" in line for line in report.limits), report.limits


def test_what_it_leads_to_is_one_finding() -> None:
    report = checked(warm_up=60)
    assert report.verdict == compare.Verdict.MISMATCH
    assert not report.others, str(report)
