"""Optimizers that are stepped at other steps, and schedules that look as if they were."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.comparison import program_schedules
from compare.diagnosis.steps.followers import chosen
from compare.verdict.divergence import Divergence

BATCHES = [{"x": np.random.default_rng(number).normal(size=(5, 3))} for number in range(4)]

Taken = Callable[[Any], Any]


def even(count: Any) -> Any:
    return count % 2 == 0


def odd(count: Any) -> Any:
    return count % 2 == 1


def every(count: Any) -> Any:
    return count >= 0


def programs(ours: Taken, theirs: Taken, rate: Any, warm: Callable[[int], float] | None = None) -> Any:
    """Make two programs that use the model once more after its update, as an actor's loss does a critic."""

    def original() -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm or (lambda _: 1.0))
        count = 0

        def step(state: Any, batch: Any) -> Any:
            nonlocal count
            loss = model(batch["x"]).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            if ours(count):
                optimizer.step()
                scheduler.step()
            count += 1
            return {"loss": loss, "after": model(batch["x"]).pow(4).mean()}

        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}, step

    def port() -> Any:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            parts = state["model"], state["optimizer"]
            loss, grads = nnx.value_and_grad(lambda model: jnp.mean(model(batch["x"]) ** 2))(parts[0])
            before = jax.tree.map(jnp.asarray, [nnx.state(part) for part in parts])
            parts[1].update(parts[0], grads)
            taken = theirs(state["count"])
            for part, was in zip(parts, before, strict=True):
                nnx.update(part, jax.tree.map(lambda new, old: jnp.where(taken, new, old), nnx.state(part), was))
            after = jnp.mean(parts[0](batch["x"]) ** 4)
            return {**state, "count": state["count"] + 1}, {"loss": loss, "after": after}

        return {"model": model, "optimizer": optimizer, "count": jnp.zeros((), jnp.int32)}, step

    return compare.TorchProgram(original), compare.JaxProgram(port), BATCHES


def found(*given: Any, **keywords: Any) -> Divergence:
    divergence = compare.check(*programs(*given, **keywords), device="cpu").divergence
    assert divergence is not None
    return divergence


def test_a_warm_up_from_zero_is_a_schedule_and_no_missing_update() -> None:
    behind = found(every, every, optax.linear_schedule(0.0, 0.1, 4), warm=lambda n: min(1.0, (n + 1) / 4))
    assert behind.cause is not None
    assert behind.cause.name == "schedule"
    assert "linear_schedule(0.025, 0.1, 3)" in str(behind.cause.fix)


@pytest.mark.parametrize(
    ("ours", "theirs", "mended"),
    [(every, even, "every step"), (even, every, "count % 2 == 0"), (odd, every, "optax.MultiSteps")],
)
def test_updates_at_other_steps(ours: Taken, theirs: Taken, mended: str) -> None:
    cause = found(ours, theirs, 0.1).cause
    assert cause is not None
    assert cause.name == "update at other steps"
    assert mended in str(cause.fix)


@pytest.mark.slow
def test_updates_at_other_steps_are_no_cause_where_something_else_differs_too() -> None:
    assert (
        found(every, lambda count: count > 0, lambda count: 0.1 / (1 + count) ** 2, warm=lambda n: 1 + n).cause is None
    )


def test_no_remainder_by_one() -> None:
    assert chosen([0, 1, 2], 3) == "new at every step"
    assert "count % 2" in chosen([0, 2], 4)


def test_further_steps_are_taken_even_if_the_first_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_schedules, "SECONDS", -1.0)

    def limits(last: float, steps: int) -> str:
        warm = optax.linear_schedule(0.025, last, steps)
        report = compare.check(
            *programs(every, every, warm, warm=lambda n: min(1.0, (n + 1) / 4)), steps=3, device="cpu"
        )
        assert report.verdict == "match", str(report)
        return " ".join(report.limits)

    assert "up to step 4" in limits(0.15, 5)
    assert "up to step" not in limits(0.1, 3)
