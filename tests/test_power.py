"""What `compare.power` says that the check would have noticed, and why it would not."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import first
from torch.nn import functional

import compare
from compare.command_line.main import main
from compare.report.power import Outcome, Why

Batches = list[Any]
Pair = tuple[compare.Torch, compare.Flax | compare.Jax, Batches]

RATE, DECAY, BOUNDARY = 1e-2, 0.5, 5


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(6, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.25)
        self.fc2 = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.drop(torch.relu(self.norm(self.fc1(x)))))


class BatchNorm(nnx.BatchNorm):
    """Keeps the running variance as torch does: divided by n - 1."""

    def __call__(self, x: Any) -> Any:  # type: ignore[override]
        kept = self.momentum * self.var[...]
        normalized = super().__call__(x)
        if not self.use_running_average:
            self.var[...] = kept + (self.var[...] - kept) * len(x) / (len(x) - 1)
        return normalized


class Port(nnx.Module):
    def __init__(self, epsilon: float = 1e-5, momentum: float = 0.9) -> None:
        rngs = nnx.Rngs(0)
        self.fc1 = nnx.Linear(6, 8, rngs=rngs)
        self.norm = BatchNorm(8, momentum=momentum, epsilon=epsilon, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.fc2 = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.fc2(self.drop(nnx.relu(self.norm(self.fc1(x)))))


def original(training: bool = True) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Original().train(training)


def torch_optimizer(params: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(params, RATE, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, BOUNDARY, DECAY)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return optimizer


def optax_optimizer(rate: float = RATE) -> optax.GradientTransformation:
    return optax.adamw(optax.exponential_decay(rate, BOUNDARY, DECAY, staircase=True), weight_decay=0.01)


def cross_entropy(logits: Any, target: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def pair(training: bool = True, batches: int = 3, port: nnx.Module | None = None, rate: float = RATE) -> Pair:
    rng = np.random.default_rng(0)
    data = [(rng.standard_normal((8, 6)).astype(np.float32), rng.integers(0, 3, 8)) for _ in range(batches)]
    return (
        compare.Torch(original(training), loss=functional.cross_entropy, optimizer=torch_optimizer),
        compare.Flax(port or Port(), loss=cross_entropy, optimizer=optax_optimizer(rate)),
        data,
    )


def of_kind(power: compare.Power, kind: str) -> Outcome:
    return next(outcome for outcome in power.outcomes if outcome.kind == kind)


@pytest.fixture(scope="module")
def trained() -> compare.Power:
    return compare.power(*pair(), steps=3, faults=13, name="mlp")


def test_what_is_caught(trained: compare.Power) -> None:
    places = {each.kind: (each.step, each.stage, each.place) for each in trained.caught}
    assert {each.kind for each in trained.outcomes} - set(places) == {"shifted schedule"}
    assert places["epsilon"] == (0, "forward", "norm")
    assert places["dropout rate"] == (0, "forward", "drop")
    assert places["learning rate"][:2] == (0, "update")
    assert places["loss"] == (0, "loss", "loss")
    assert places["stale buffer"][:2] == (0, "buffers")
    assert places["stopped gradient"][:2] == (0, "gradient")
    assert places["frozen parameter"][1] in ("update", "forward")
    assert places["order of batches"] == (0, "forward", "the model")
    assert trained.share == 12 / 13


@pytest.mark.parametrize(
    ("kind", "wrong"),
    first(
        [
            ("epsilon", lambda: pair(port=Port(epsilon=1e-4))),
            ("momentum", lambda: pair(port=Port(momentum=0.8991))),
            ("learning rate", lambda: pair(rate=RATE * (1 + 1e-5))),
        ]
    ),
)
def test_a_fault_in_the_original_is_as_one_in_the_port(
    kind: str, wrong: Callable[[], Pair], trained: compare.Power
) -> None:
    divergence = compare.check(*wrong(), steps=3).divergence
    assert divergence is not None
    planted = of_kind(trained, kind)
    assert (divergence.step, divergence.stage, divergence.torch) == (planted.step, planted.stage, planted.place)
    assert divergence.error64 == pytest.approx(planted.error64, rel=0.1)


@pytest.mark.slow
def test_as_many_steps_as_are_asked_for_are_enough(trained: compare.Power) -> None:
    missed = of_kind(trained, "shifted schedule")
    assert missed.why == Why.STEPS
    assert missed.explanation.endswith("the schedule's first change is not reached: take 5")
    caught = of_kind(compare.power(*pair(), steps=5, faults=13), "shifted schedule")
    assert caught.caught
    assert (caught.step, caught.stage) == (4, "update")


@pytest.mark.slow
def test_what_is_off_in_evaluation() -> None:
    power = compare.power(*pair(training=False), steps=1, faults=13)
    off = {each.kind: each.explanation for each in power.missed if each.why == Why.OFF}
    assert set(off) == {"momentum", "stale buffer", "dropout rate"}
    assert (
        off["dropout rate"]
        == "the model is in eval(), where the fault has no effect: in train() it shows at step 0, forward"
    )
    assert off["stale buffer"].endswith("in train() it shows at step 0, buffers")


@pytest.mark.slow
def test_one_batch_has_no_order() -> None:
    outcome = of_kind(compare.power(*pair(batches=1), steps=1, faults=13), "order of batches")
    assert (outcome.why, outcome.explanation) == (Why.UNREAD, "there is only one batch: give two")


class Lookup(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(1000, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embed(tokens)


def test_a_row_that_is_in_no_batch() -> None:
    port = compare.Jax(lambda params, tokens: params["embed"][tokens], {"embed": jnp.zeros((1000, 4))})
    power = compare.power(compare.Torch(Lookup()), port, [np.arange(5)], faults=3)
    outcome = of_kind(power, "weight")
    assert outcome.why == Why.UNREAD
    assert outcome.explanation.startswith("row ")
    assert outcome.explanation.endswith(" of embed.weight is in no batch")
    assert "learning rate" not in {each.kind for each in power.outcomes}  # there is none


def test_a_bias_before_a_normalization_is_none() -> None:
    """Without running statistics: the mean is taken off again at once, whatever was added."""

    def apply(params: Any, x: Any) -> Any:
        h = x @ params["fc"]["kernel"] + params["fc"]["bias"]
        h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
        return jnp.tanh(h)

    model = torch.nn.Sequential()
    model.add_module("fc", torch.nn.Linear(6, 8))
    model.add_module("norm", torch.nn.BatchNorm1d(8, track_running_stats=False))
    model.add_module("act", torch.nn.Tanh())
    params = {
        "fc": {"kernel": jnp.zeros((6, 8)), "bias": jnp.zeros(8)},
        "norm": {"scale": jnp.zeros(8), "bias": jnp.zeros(8)},
    }
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    power = compare.power(compare.Torch(model), compare.Jax(apply, params), [x], faults=100)
    outcome = next(each for each in power.outcomes if (each.kind, each.where) == ("bias left out", "linear in fc"))
    assert outcome.why == Why.EQUIVALENT
    assert outcome.explanation.startswith("in exact arithmetic it changes nothing")
    assert outcome in power.equivalent
    assert outcome not in power.missed


def test_what_is_the_same_function_is_no_fault() -> None:
    """A kernel of one point may be flipped."""
    port = compare.Jax(lambda params, x: jnp.einsum("nchw,oc->nohw", x, params["weight"][..., 0, 0]), {
        "weight": jnp.zeros((3, 2, 1, 1))
    })  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)
    model = torch.nn.Conv2d(2, 3, 1, bias=False)
    power = compare.power(compare.Torch(model), port, [x], weights={"weight": "weight"}, faults=100)
    outcome = of_kind(power, "flipped kernel")
    assert (outcome.why, outcome.explanation) == (Why.EQUIVALENT, "it is the same function, whatever goes into it")


class Drowned(torch.nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.fc = torch.nn.Linear(6, 6, bias=False)
        torch.nn.init.ones_(self.fc.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.share * self.fc(x)


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (1e-9, "it changes forward the model output by"),
        (1e-12, "no compared quantity changes in any digit of float64"),
    ],
)
def test_what_the_check_is_too_weak_for(share: float, told: str) -> None:
    port = compare.Jax(lambda params, x: x + share * (x @ params["fc"]), {"fc": jnp.zeros((6, 6))})
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    power = compare.power(compare.Torch(Drowned(share)), port, [x], weights={"fc.weight": "fc.T"}, faults=2)
    outcome = of_kind(power, "weight")
    assert outcome.why == Why.WEAK
    assert told in outcome.explanation
    assert outcome.explanation.endswith("times as large")


@pytest.mark.slow
def test_nothing_of_the_users_is_changed() -> None:
    torch_side, jax_side, batches = pair()
    before = copy.deepcopy(torch_side.model.state_dict())
    state, arrays = torch.random.get_rng_state(), copy.deepcopy(batches)
    compare.power(torch_side, jax_side, batches, steps=1, faults=6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in torch_side.model.state_dict().items())
    assert all(not module._forward_hooks for module in torch_side.model.modules())
    jax.tree.map(np.testing.assert_array_equal, arrays, batches)
    assert torch_side.model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    compare.check(torch_side, jax_side, batches, steps=1).raise_on_mismatch()


@pytest.mark.slow
def test_the_seed_chooses(trained: compare.Power) -> None:
    again, other = (compare.power(*pair(), steps=3, faults=3, seed=seed) for seed in (0, 1))
    assert again.outcomes == trained.outcomes[:3]
    assert [each.kind for each in other.outcomes] == [each.kind for each in again.outcomes]
    assert [each.where for each in other.outcomes] != [each.where for each in again.outcomes]


def test_progress() -> None:
    said: list[compare.Progress] = []
    compare.power(*pair(), steps=1, faults=2, progress=said.append)
    planted = [each for each in said if each.doing.startswith("planting: ")]
    assert [(each.done, each.steps) for each in planted] == [(0, 2), (1, 2)]
    assert planted[1].doing == "planting: epsilon: 1e-05 → 0.0001 (batch_norm in norm)"


def test_for_people_and_for_programs(trained: compare.Power) -> None:
    text = str(trained)
    assert "mlp: 12 of 13 faults caught in 3 steps" in text
    assert "epsilon: 1e-05 → 0.0001" in text
    assert "✓  step 0, forward: norm" in text
    assert max(map(len, text.splitlines())) <= 120
    found = json.loads(json.dumps(trained.to_dict()))
    assert (found["share"], found["steps"], found["seed"]) == (12 / 13, 3, 0)
    assert [each["why"] for each in found["outcomes"] if not each["caught"]] == ["steps"]


@pytest.mark.slow
def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["check", "pairs.scanned:in_linen", "--steps", "1", "--device", "cpu", "--json", str(tmp_path / "a.json")]
    assert main([*command, "--power"]) == 0
    printed = capsys.readouterr()
    assert "pairs.scanned:in_linen: match" in printed.out
    assert "faults caught in 1 step" in printed.out
    (report,) = json.loads((tmp_path / "a.json").read_text())["reports"]
    assert len(report["power"]["outcomes"]) == 20
    assert report["power"]["share"] > 0.8


def test_the_command_line_of_a_mismatch(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "pairs.recurrent:lstm_in_nnx_with_one_step"
    assert main(["check", wrong, "--steps", "1", "--device", "cpu", "--power"]) == 1
    assert "power is measured only when the port matches" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"faults": 0}, "faults must be a whole number of at least 1, not 0"),
        ({"faults": True}, "faults must be a whole number of at least 1, not True"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"steps": 0}, "steps must be a positive whole number, not 0"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(compare.InputError, match=message):
        compare.power(*pair(), **changed)


def test_a_port_that_is_wrong_as_it_is() -> None:
    with pytest.raises(compare.InputError, match="power is measured on a port that matches, and port does not"):
        compare.power(*pair(port=Port(epsilon=1e-3)), steps=1)
