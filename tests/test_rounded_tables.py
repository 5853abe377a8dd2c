"""Tables that a model keeps and rounds to integers in each call: what rounds to another integer is no rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare

THIRDS = np.arange(1, 7, dtype=np.float32) / 3
"""In float32, three times each is a whole number. In float64, three times the same numbers is more or less."""


class Original(torch.nn.Module):
    def __init__(self, *, kept: bool) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)
        if kept:
            self.register_buffer("table", torch.from_numpy(THIRDS.copy()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.get_buffer("table") if hasattr(self, "table") else torch.arange(1, 7) / 3
        return self.last(torch.nn.functional.gelu(self.first(x) / (3 * table).long()))


class Port(nnx.Module):
    def __init__(self, *, kept: bool, approximate: bool) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.table = nnx.Variable(jnp.asarray(THIRDS)) if kept else None
        self.approximate = approximate

    def __call__(self, x: jax.Array) -> jax.Array:
        table = self.table[...] if self.table is not None else jnp.arange(1, 7) / 3
        divided = self.first(x) / (3 * table).astype(jnp.int32)
        return self.last(jax.nn.gelu(divided, approximate=self.approximate))


def batches() -> list[Any]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)) for _ in range(2)]


def loss(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def checked(*, torch_keeps: bool, jax_keeps: bool, approximate: bool) -> compare.Report:
    torch.manual_seed(0)
    original = compare.Torch(Original(kept=torch_keeps), loss, lambda p: torch.optim.SGD(p, 0.1))
    port = Port(kept=jax_keeps, approximate=approximate)
    return compare.check(original, compare.Flax(port, loss, optax.sgd(0.1)), batches())


@pytest.mark.parametrize(("torch_keeps", "jax_keeps"), [(True, True), (True, False), (False, True)])
def test_a_right_port_matches(torch_keeps: bool, jax_keeps: bool) -> None:
    assert checked(torch_keeps=torch_keeps, jax_keeps=jax_keeps, approximate=False).verdict == compare.Verdict.MATCH


@pytest.mark.parametrize(("torch_keeps", "jax_keeps"), [(True, False), (False, True)])
def test_a_fault_behind_the_table_is_no_rounding(torch_keeps: bool, jax_keeps: bool) -> None:
    found(checked(torch_keeps=torch_keeps, jax_keeps=jax_keeps, approximate=True))


def found(report: compare.Report) -> None:
    assert report.verdict == compare.Verdict.MISMATCH
    assert report.divergence
    assert report.divergence.expected64 < 1e-12
    assert report.divergence.cause
    assert report.divergence.cause.name == "activation"


@pytest.mark.parametrize("approximate", [False, True])
def test_a_table_in_the_state_of_a_program(approximate: bool) -> None:
    def of_torch() -> Any:
        model = Original(kept=True)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(state: Any, batch: Any) -> Any:
            optimizer.zero_grad()
            value = loss(model(batch[0]), batch[1])
            value.backward()
            optimizer.step()
            return {"loss": value}

        return {"model": model, "optimizer": optimizer}, step

    def of_jax() -> Any:
        model = Port(kept=True, approximate=approximate)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            def of_model(model: Port) -> Any:
                return loss(model(batch[0]), batch[1])

            value, gradients = nnx.value_and_grad(of_model)(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": value}

        return {"model": model, "optimizer": nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)}, step

    report = compare.check(compare.TorchProgram(of_torch), compare.JaxProgram(of_jax), batches())
    if approximate:
        found(report)
    else:
        assert report.verdict == compare.Verdict.MATCH


def test_a_literal_of_python_is_a_constant_like_any() -> None:
    """`jnp.select` begins with a literal False."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 4)

    class Selected(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return torch.where(y > 0, 2 * y, y)

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            y = self.layer(x)
            return jnp.select([y > 0], [2 * y], y)

    batches = [(np.random.default_rng(0).normal(size=(5, 3)), None)]
    report = compare.check(compare.Torch(Selected()), compare.Flax(Port()), batches)
    assert report.ok, str(report)
