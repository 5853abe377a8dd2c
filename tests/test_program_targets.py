"""What a step computes before the module that runs last, from what another one gave: a target of its loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from in_ci import first
from programs.written import loaded

import compare
from compare.mending.syntax import applied

PORT = """
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
from flax import nnx

SHARE, RATE = 0.6, 0.2


def followed(old, new, rate):
    return jax.tree.map(lambda a, b: (1 - rate) * a + rate * b, old, new)


def program():
    net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    start = {"net": net, "slow": nnx.clone(net), "optimizer": nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)}

    @nnx.jit
    def step(state, batch):
        wanted = jnp.clip(batch["reward"], -1.0, 1.0) + SHARE * jnp.max(state["slow"](batch["next"]), axis=1)

        def loss_of(net):
            return jnp.mean(optax.huber_loss(net(batch["x"])[:, 0], wanted))

        loss, gradients = nnx.value_and_grad(loss_of)(state["net"])
        state["optimizer"].update(state["net"], gradients)
        old, new = (nnx.state(state[name], nnx.Param) for name in ("slow", "net"))
        nnx.update(state["slow"], followed(old, new, RATE))
        return state, {"loss": loss}

    return SimpleNamespace(port=(start, step))
"""


def original() -> Any:
    net, slow = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    slow.load_state_dict(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(_: Any, batch: Any) -> Any:
        with torch.no_grad():
            wanted = batch["reward"].clamp(-1, 1) + 0.6 * slow(batch["next"]).max(1).values
        loss = torch.nn.functional.smooth_l1_loss(net(batch["x"])[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(slow.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 0.2)
        return {"loss": loss}

    return {"net": net, "slow": slow, "optimizer": optimizer}, step


def checked(source: str, file: Path) -> compare.Report:
    from programs.common import drawn

    sides = compare.TorchProgram(original), compare.JaxProgram(lambda: loaded(source, file, "program").port)
    return compare.check(*sides, drawn(x=(4,), next=(4,), reward=()), steps=4, device="cpu", quick=True)


@pytest.mark.parametrize(
    ("wrong", "causes"),
    first(
        [
            ({}, []),
            ({"SHARE, RATE = 0.6, 0.2": "SHARE, RATE = 0.5, 0.04"}, ["constant", "average's decay"]),
            ({"SHARE, RATE = 0.6, 0.2": "SHARE, RATE = 0.7, 0.2"}, ["constant"]),
            ({"-1.0, 1.0": "-0.5, 0.5"}, ["bounds"]),
            ({"-1.0, 1.0": "max=0.5, min=-0.5"}, ["bounds"]),
        ],
    ),
)
def test_a_target_of_the_loss(wrong: dict[str, str], causes: list[str], tmp_path: Path) -> None:
    source = PORT
    for old, new in wrong.items():
        source = source.replace(old, new)
    report = checked(source, tmp_path / "a_port.py")
    assert [group.name for group in report.groups] == causes, str(report)
    if causes:
        assert checked(applied(source, report.edits), tmp_path / "a_mended_port.py").verdict == "match"


def test_a_target_that_follows_before_the_update(tmp_path: Path) -> None:
    """It stays as it is in the first step, since it starts as a copy: no share of torch's change."""
    update = '        state["optimizer"].update(state["net"], gradients)\n'
    follow = PORT[PORT.index("        old, new") : PORT.index("        return state, {")]
    report = checked(PORT.replace(follow, "").replace(update, follow + update), tmp_path / "a_port.py")
    assert report.divergence is not None
    assert (report.divergence.stage, report.divergence.torch) == ("state", "slow.weight")
    assert not report.bugs
