"""An average of a model's parameters in a dictionary with their names, as training scripts keep it."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet

import compare

DECAY = 0.9


def original() -> Any:
    torch.manual_seed(0)
    model = TorchNet(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shadow = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def step(state: Any, batch: Any) -> Any:
        loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                state["shadow"][name].mul_(DECAY).add_(parameter, alpha=1 - DECAY)
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer, "shadow": shadow}, step


def port(decay: float) -> Any:
    model = FlaxNet(nnx.Rngs(0), 4, 3)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def of_model(model: Any) -> Any:
            return ((model(batch["x"]) - batch["y"]) ** 2).mean()

        loss, gradients = nnx.value_and_grad(of_model)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        old, new = (nnx.state(state[name], nnx.Param) for name in ("shadow", "model"))
        nnx.update(state["shadow"], jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new))
        return state, {"loss": loss}

    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    return {"model": model, "optimizer": optimizer, "shadow": nnx.clone(model)}, step


def checked(decay: float) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(5, 4)), "y": rng.normal(size=(5, 3))} for _ in range(3)]
    sides = compare.TorchProgram(original), compare.JaxProgram(lambda: port(decay))
    return compare.check(*sides, [{name: each.astype(np.float32) for name, each in batch.items()} for batch in batches])


def test_it_is_paired_as_the_model_is() -> None:
    assert checked(DECAY).verdict == compare.Verdict.MATCH


def test_another_decay_is_named() -> None:
    report = checked(0.99)
    assert report.divergence
    assert report.divergence.cause
    assert report.divergence.cause.name == "average's decay"


def test_a_key_must_not_name_what_a_module_has() -> None:
    def twice() -> Any:
        state, step = original()
        return {**state, "model.fc1.weight": torch.zeros(1)}, step

    with pytest.raises(compare.InputError, match="twice: give the key with a dot another name"):
        compare.check(
            compare.TorchProgram(twice), compare.JaxProgram(lambda: port(DECAY)), [{"x": np.zeros((5, 4), "f")}]
        )
