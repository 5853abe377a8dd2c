"""A model that JAX traces in float32 alone: whatever reads its program reads the one that it can be traced to."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen

import compare
from compare.errors import told
from compare.jax_side.from_data import computed_from_data
from compare.jax_side.run import JaxRun
from compare.step.batch import Batch

TIMES, WIDTH = 4, 3
TABLE = np.float32(0.7) ** np.arange(WIDTH, dtype=np.float32)
RNG = np.random.default_rng(3)
BATCHES = [(RNG.normal(size=(6, TIMES, WIDTH)), RNG.normal(size=(6, 2))) for _ in range(2)]


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.head = torch.nn.BatchNorm1d(WIDTH), torch.nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x[:, 0])
        for each in x.unbind(1):
            total = torch.tanh(total + each * torch.from_numpy(TABLE).to(x))
        return self.head(self.bn(total).relu())


class Port(linen.Module):
    """Its carry is a float32 whatever it is given, as that of Linen's recurrent cells."""

    slope: float = 0.0

    @linen.compact
    def __call__(self, x: Any) -> Any:
        def step(total: Any, each: Any) -> Any:
            return jnp.tanh(total + each * TABLE), None

        total, _ = jax.lax.scan(step, jnp.zeros((len(x), WIDTH), jnp.float32), x.swapaxes(0, 1))
        normed = linen.BatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False, name="bn")(total)
        return linen.Dense(2, name="head")(linen.leaky_relu(normed, self.slope))


def port(slope: float) -> compare.Flax:
    module = Port(slope)
    variables = module.init(jax.random.key(0), jnp.ones((6, TIMES, WIDTH)))
    return compare.Flax((module, variables), lambda y, target: jnp.mean((y - target) ** 2), optax.sgd(0.1))


def test_a_wrong_port_has_a_cause_and_no_error_of_netparity() -> None:
    """`bugs_raise` of the conftest fails it otherwise."""
    original = compare.Torch(Original(), torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1))
    report = compare.check(original, port(0.2), BATCHES, quick=True)
    assert report.verdict == "mismatch"
    (pinned,) = (each for each in report.pinned if "traced in float32" in each)
    assert "float32[6,3] but" in pinned
    assert not pinned.endswith(":")


def test_programs_that_are_read_are_traced_as_the_step_is() -> None:
    batch = Batch(*BATCHES[0])
    run = JaxRun(port(0.0), "float64", training=True)
    run.load(run.arrays())
    run.step(batch)
    assert not any("float64" in str(aval.dtype) for aval in run.program(batch, ()).out_avals)
    assert any("test_traced_in_float32.py" in each for each in run.named_constants())
    values = [value.array for value in computed_from_data(run, batch).values]
    assert any(each.shape == TABLE.shape and np.allclose(each, TABLE) for each in values)
    seen = run.forward(batch)
    assert {str(value.dtype) for value in seen.values()} == {"float64"}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("", ""),
        ("it is\n  odd.\n\nDo this.", "it is odd"),
        ("types differ:\n\n  * one has\n    two\n  * three has four\n\nChange it.", "types differ: one has two"),
        ("types differ:\n\n  * one has two;\n  * three\n\nChange it.", "types differ: one has two"),
        ("types differ:", "types differ:"),
    ],
)
def test_an_error_is_told_in_a_sentence(message: str, text: str) -> None:
    assert told(TypeError(message)) == text
