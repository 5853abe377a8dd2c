"""Large models are followed two runs at a time, which shows what four at a time do."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.comparison import common_runs as comparison
from compare.report.progress import Progress
from compare.torch_side.run import TorchRun


class Original(torch.nn.Module):
    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.norm, self.fc2 = torch.nn.Linear(8, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 4)
        self.dropout = torch.nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(self.dropout(torch.tanh(self.norm(self.fc1(x)))))
        return result


class Port(nnx.Module):
    def __init__(self, epsilon: float = 1e-5, rate: float = 0.0) -> None:
        rngs = nnx.Rngs(0)
        self.fc1, self.fc2 = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(6, epsilon=epsilon, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.fc2(self.dropout(jnp.tanh(self.norm(self.fc1(x)))))


def checked(
    port: Port, *, rate: float = 0.0, learning_rate: float = 0.1, factor: float = 1.0, **options: Any
) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((12, 8), np.float32), rng.standard_normal((12, 4), np.float32)) for _ in range(2)]
    return compare.check(
        compare.Torch(Original(rate), torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, learning_rate, 0.9)),
        compare.Flax(port, lambda o, t: jnp.mean((factor * (o - t)) ** 2), optax.sgd(learning_rate, 0.9)),
        batches,
        steps=4,
        device="cpu",
        **options,
    )


@pytest.fixture
def in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "IN_PAIRS", 0)


def shown(report: compare.Report) -> list[Any]:
    return [(q.stage, q.torch, q.jax, q.error64, q.error_torch, q.error_jax, q.noise) for q in report.quantities]


@pytest.mark.parametrize("changed", [pytest.param({}, marks=pytest.mark.slow), {"epsilon": 1e-6}])
def test_two_runs_at_a_time_show_what_four_do(changed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    four = checked(Port(**changed))
    monkeypatch.setattr(comparison, "IN_PAIRS", 0)
    two = checked(Port(**changed))
    assert shown(two) == shown(four)
    assert two.divergence == four.divergence
    for one, other in ((two.torch, four.torch), (two.jax, four.jax)):
        np.testing.assert_array_equal(one.losses32, other.losses32)
        np.testing.assert_array_equal(one.losses64, other.losses64)


@pytest.mark.usefixtures("in_pairs")
def test_what_is_drawn_in_float64_is_replayed_in_float32() -> None:
    report = checked(Port(rate=0.5), rate=0.5)
    assert report.divergence is None, str(report)
    assert not report.nondeterministic


@pytest.mark.usefixtures("in_pairs")
def test_a_loss_that_overflows_on_both_sides_is_refused() -> None:
    with pytest.raises(compare.InputError, match="the loss is not finite at step 2, in float32 on both sides"):
        checked(Port(), learning_rate=1e15)


@pytest.mark.usefixtures("in_pairs")
def test_a_loss_that_overflows_in_one_run_ends_all() -> None:
    report = checked(Port(), factor=1e25)
    assert report.divergence is not None
    assert report.divergence.torch == "loss"
    assert {len(quantity.error64) for quantity in report.quantities} == {1}
    assert {len(losses) for losses in (report.torch.losses32, report.jax.losses64)} == {1}


def test_a_step_that_is_half_done_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Progress] = []
    found: list[int | None] = []
    update = TorchRun.update

    def interrupted(run: TorchRun) -> Any:
        report = shown[-1].found()
        found.append(len(report.quantities[0].error64) if report else None)
        return update(run)

    monkeypatch.setattr(TorchRun, "update", interrupted)
    checked(Port(), progress=shown.append)
    assert found[:4] == [None, None, 1, 1]


@pytest.mark.usefixtures("in_pairs")
def test_what_was_found_up_to_then_is_what_all_runs_have_taken() -> None:
    seen: list[tuple[str, int | None]] = []

    def show(progress: Progress) -> None:
        found = progress.found()
        seen.append((str(progress), len(found.quantities[0].error64) if found else None))

    checked(Port(), progress=show)
    steps = [(doing, found) for doing, found in seen if "step" in doing]
    assert [found for _, found in steps] == [*[None] * 9, 1, 2, 3]
    assert steps[9][0] == "step 2 of 4, in jax64 and jax32"
