"""Optimizers that make their own learning rate, and have None in the place of one, as Adafactor has."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.rates import has_rate, rate_of

RNG = np.random.default_rng(5)
BATCHES = [(RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2))) for _ in range(3)]


class Decaying(torch.optim.Optimizer):
    """SGD whose rate is 0.2 over a power of the number of the step."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": None, "power": 0.5})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state["step"] = state.get("step", 0) + 1
                param.add_(param.grad, alpha=-0.2 * state["step"] ** -group["power"])


def port(power: float) -> compare.Flax:
    decaying = optax.scale_by_schedule(lambda count: -0.2 * (count + 1.0) ** -power)
    return compare.Flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), lambda y, target: jnp.mean((y - target) ** 2), decaying)


@pytest.mark.parametrize("power", [0.5, 0.75])
def test_an_optimizer_without_a_rate_is_compared_and_searched(power: float) -> None:
    report = compare.check(
        compare.Torch(torch.nn.Linear(3, 2), torch.nn.MSELoss(), Decaying), port(power), BATCHES, quick=True
    )
    assert report.verdict == ("match" if power == 0.5 else "mismatch")
    if report.divergence is not None:
        assert report.divergence.cause is not None
        assert report.divergence.cause.name == "power"


def test_a_program_with_such_an_optimizer_is_compared() -> None:
    def original() -> Any:
        model = torch.nn.Linear(3, 2)
        optimizer = Decaying(model.parameters())

        def step(_: Any, batch: Any) -> Any:
            loss = torch.nn.functional.mse_loss(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def ported() -> Any:
        side = port(0.75)
        optimizer = nnx.Optimizer(side.model, side.optimizer, wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss_fn = nnx.value_and_grad(lambda model: jnp.mean((model(batch[0]) - batch[1]) ** 2))
            loss, gradients = loss_fn(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": side.model, "optimizer": optimizer}, step

    program = compare.TorchProgram(original)
    assert TorchProgramRun(program, "float32", "cpu").rates() == {"optimizer": [0.0]}
    report = compare.check(program, compare.JaxProgram(ported), BATCHES, quick=True)
    assert report.verdict == "mismatch"


@pytest.mark.parametrize(
    ("group", "rate"), [({}, None), ({"lr": None}, None), ({"lr": 0.0}, 0.0), ({"lr": torch.tensor(0.5)}, 0.5)]
)
def test_the_rate_of_a_group(group: dict[str, Any], rate: float | None) -> None:
    assert has_rate(group) == (rate is not None)
    assert rate_of(group) == (rate or 0.0)
