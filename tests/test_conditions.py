"""Conditions in the Python code of a torch step that no step of the check decides otherwise."""

from typing import Any

import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet

import compare
from compare.torch_side.branches import Branches


def original(start: float, most: float, every: int, *, clips: bool) -> Any:
    torch.manual_seed(0)
    model, steps = TorchNet(4, 3), 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def plain(_: Any, batch: Any) -> Any:
        loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        if clips and len(batch["x"]) < 1:
            raise ValueError
        optimizer.step()
        return {"loss": loss}

    @torch.enable_grad()
    def auxiliary(_: Any, batch: Any) -> Any:
        nonlocal steps
        loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        if steps > start:
            loss = loss + model.fc1.weight.square().sum()
        steps += 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    def skipped(_: Any, batch: Any) -> Any:
        nonlocal steps
        loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
        if (
            norm.item() < most and torch.isfinite(norm)  # as mixed precision asks
        ):
            for _ in range(1):
                optimizer.step()
        steps += 1
        if steps % every == 0:
            optimizer.step()
        return {"loss": loss}

    chosen = plain if clips else skipped if every else auxiliary
    return {"model": model, "optimizer": optimizer}, chosen


def port() -> Any:
    model = FlaxNet(nnx.Rngs(0), 4, 3)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def of_model(model: Any) -> Any:
            return ((model(batch["x"]) - batch["y"]) ** 2).mean()

        loss, gradients = nnx.value_and_grad(of_model)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": model, "optimizer": nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)}, step


def checked(start: float = 0, most: float = 0, every: int = 0, *, clips: bool = False) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(5, 4)), "y": rng.normal(size=(5, 3))} for _ in range(3)]
    sides = compare.TorchProgram(lambda: original(start, most, every, clips=clips)), compare.JaxProgram(port)
    return compare.check(*sides, [{name: each.astype(np.float32) for name, each in batch.items()} for batch in batches])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"clips": True}, []),
        ({"start": 1000}, ["torch's `if steps > start` at test_conditions.py"]),
        (
            {"most": 1e6, "every": 1000},
            ["< most and torch.isfinite(norm)` at test_conditions.py", "every"],
        ),
    ],
)
def test_it_is_listed(given: Any, says: list[str]) -> None:
    report = checked(**given)
    assert report.verdict == compare.Verdict.MATCH
    found = [line for line in report.unexercised if "`if " in line]
    assert len(found) == len(says)
    assert all(part in line for part, line in zip(says, found, strict=True)), found


def test_a_condition_that_some_steps_decide_otherwise_is_compared() -> None:
    assert checked(most=1e6, every=2).verdict == compare.Verdict.MISMATCH


class Queue(torch.nn.Module):
    """A queue whose position wraps around, as of MoCo's keys."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.position = size, 0

    def add(self, count: int) -> float:
        self.position = (self.position + count) % self.size
        return min(0.999, (1 + self.position) / (10 + self.position))


@pytest.mark.parametrize(("size", "says"), [(5, []), (500, ["`(self.position + count) % self.size`", "`min(0.999,"])])
def test_so_is_a_remainder_that_never_wraps_and_a_bound_that_nothing_reaches(size: int, says: list[str]) -> None:
    queue, decays = Queue(size), list[float]()

    def step() -> None:
        decays.append(queue.add(2))

    branches = Branches(step, [queue])
    with branches.watching():
        for _ in range(4):
            step()
    found = branches.one_sided()
    # The position is at most 4 in a queue of 5, and the decay below 0.999 all the same.
    assert found[-1].startswith("torch's `min(0.999,")
    assert len(found) == (2 if says else 1)
    assert all(part in line for part, line in zip(says, found, strict=False)), found
    assert decays[0] == (1 + 2) / (10 + 2)
