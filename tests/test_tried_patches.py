"""Patches are tried before they are printed: a line that two modules share may be right in one of them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import drawn, trained, trained_in_torch
from torch import nn
from torch.nn import functional

import compare
from compare.comparison.tried_patches import Trial
from compare.errors import UserCodeError
from compare.mending.in_memory import in_force
from compare.mending.leftover import unused_after
from compare.mending.patch import Patch
from compare.mending.syntax import Edit
from compare.step.observation import Observation
from compare.verdict.divergence import REFUTED
from compare.verdict.following import Followed


class Layer(nn.Module):
    def __init__(self, size: int, act: Any) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(size, size), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.linear(x))


class Port(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(size, size, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return jax.nn.relu(self.linear(x))


class Original(nn.Module):
    def __init__(self, *acts: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(6, act) for act in acts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Ported(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([Port(6, rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("acts", "shown"),
    [
        ((torch.tanh, torch.tanh), True),
        ((torch.relu, torch.tanh), False),
        ((torch.tanh, torch.relu), False),
    ],
    ids=["both are wrong", "the first is right", "the second is right"],
)
def test_a_shared_line_is_changed_where_all_that_share_it_are_wrong(acts: Any, shown: bool) -> None:
    torch.manual_seed(0)
    batches = [(each["x"], each["y"]) for each in drawn(size=8, x=(6,), y=(6,))]
    report = compare.check(
        compare.Torch(Original(*acts), nn.MSELoss(), lambda p: torch.optim.SGD(p, 0.1)),
        compare.Flax(Ported(nnx.Rngs(0)), lambda o, y: jnp.mean((o - y) ** 2), optax.sgd(0.1)),
        batches,
        device="cpu",
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "jnp.tanh" in report.divergence.cause.fix
    assert (report.groups[0].patch is not None) == shown
    assert (REFUTED in report.divergence.details) != shown


def original(rates: tuple[float, float]) -> Any:
    def build() -> Any:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        averages = {name: nn.Linear(4, 3) for name in ("fast", "slow")}
        state, step = trained_in_torch(
            model, torch.optim.SGD(model.parameters(), 0.1), lambda net, b: functional.mse_loss(net(b["x"]), b["y"])
        )

        def averaged(state: Any, batch: Any) -> Any:
            shown = step(state, batch)
            with torch.no_grad():
                for average, rate in zip(averages.values(), rates, strict=True):
                    for old, new in zip(average.parameters(), model.parameters(), strict=True):
                        old.lerp_(new, rate)
            return shown

        return {**state, **averages}, averaged

    return build


def ported() -> Any:
    rate, optimizer = 0.1, optax.sgd(0.1)

    def averaged(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda a, b: (1 - rate) * a + rate * b, old, new)

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            return jnp.mean((batch["x"] @ params["kernel"] + params["bias"] - batch["y"]) ** 2)

        loss, slopes = jax.value_and_grad(loss_of)(state["model"])
        updates, kept = optimizer.update(slopes, state["optimizer"])
        model = optax.apply_updates(state["model"], updates)
        averages = {name: averaged(state[name], model) for name in ("fast", "slow")}
        return {"model": model, "optimizer": kept, **averages}, {"loss": loss}

    params = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
    return {"model": params, "optimizer": optimizer.init(params), "fast": params, "slow": params}, step


@pytest.mark.parametrize(("slow", "shown"), [(0.2, True), (0.1, False)], ids=["both are wrong", "the other is right"])
def test_a_number_of_two_averages_is_changed_if_it_is_wrong_for_both(slow: float, shown: bool) -> None:
    report = compare.check(
        compare.TorchProgram(original((0.2, slow))),
        compare.JaxProgram(ported),
        drawn(size=6, x=(4,), y=(3,)),
        device="cpu",
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "average's decay"
    assert any(group.patch for group in report.groups) == shown


def added(x: int) -> int:
    return x + 1


def test_edits_are_in_force_for_a_while() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    at = text.index("x + 1")
    compiled = jax.jit(added)
    assert (added(2), int(compiled(2))) == (3, 3)
    with in_force([Edit(__file__, at, at + 5, "x + 10")]) as ready:
        assert ready
        assert (added(2), int(compiled(2))) == (12, 12)
    assert (added(2), int(compiled(2))) == (3, 3)
    np.testing.assert_array_equal(compiled(np.arange(2)), [1, 2])


PLAIN = "def twice(x):\n    return x + x  # é\n\n\ndef half(x):\n    return x / 2\n"


@pytest.mark.parametrize(
    "text", [PLAIN.replace("\n", "\r\n"), "\ufeff" + PLAIN], ids=["line ends of Windows", "a byte order mark"]
)
def test_edits_of_any_utf8_file_are_shown_and_run(text: str, tmp_path: Path) -> None:
    file = tmp_path / "port.py"
    file.write_bytes(text.encode())
    space: dict[str, Any] = {}
    exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), space)
    at = text.index("x / 2")
    edits = (Edit(str(file), at, at + 5, "x / 4"),)
    (change,) = Patch(edits).changes
    assert (change.line, change.removed, change.added) == (6, ("    return x / 2",), ("    return x / 4",))
    assert "+    return x / 4" in Patch(edits).diff
    with in_force(edits) as ready:
        assert ready
        assert space["half"](8) == 2
    assert space["half"](8) == 4
    assert unused_after(text, text.replace("x / 2", "4")) == []


def test_a_patch_with_which_the_port_fails_does_not_help() -> None:
    torch.manual_seed(0)
    batches = [(each["x"], each["y"]) for each in drawn(size=8, x=(6,), y=(6,))]
    report = compare.check(
        compare.Torch(Original(torch.tanh, torch.tanh), nn.MSELoss(), lambda p: torch.optim.SGD(p, 0.1)),
        compare.Flax(Ported(nnx.Rngs(0)), lambda o, y: jnp.mean((o - y) ** 2), optax.sgd(0.1)),
        batches,
        device="cpu",
    )
    (group,) = report.groups
    text = Path(__file__).read_text(encoding="utf-8")
    at = text.index("x + 1")

    def raised(error: Exception) -> bool | None:
        def step() -> Observation:
            raise UserCodeError("the JAX side", error)

        nothing = Followed([], [], {}, [])
        trial = Trial(nothing, Observation(), Observation(), step, lambda pairing: [])
        return trial.refuted([Edit(__file__, at, at + 5, "x + 2")], group, (), first=True)

    assert raised(TypeError("shapes do not fit")) is True
    # What a patch imports is not imported for the trial.
    assert raised(NameError("jnp")) is None


def decayed() -> Any:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    return trained_in_torch(model, optimizer, lambda net, batch: functional.mse_loss(net(batch["x"]), batch["y"]))


def decayed_port() -> Any:
    tx = optax.adamw(0.01, weight_decay=0.1)
    return trained(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), tx, lambda m, b: jnp.mean((m(b["x"]) - b["y"]) ** 2))


def test_a_patch_may_move_what_the_optimizer_keeps() -> None:
    """With a transformation before it, optax names Adam's moments by another place in the chain."""
    sides = compare.TorchProgram(decayed), compare.JaxProgram(decayed_port)
    report = compare.check(*sides, drawn(x=(4,), y=(3,)), device="cpu")
    assert report.divergence is not None
    assert REFUTED not in report.divergence.details, str(report)
    assert "add_decayed_weights" in "".join(edit.text for edit in report.edits)
