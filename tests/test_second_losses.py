"""A step with two losses and two optimizers: what is wrong in the second loss is named, whether it is shown or not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import first
from programs.common import FlaxNet, TorchNet

import compare


def original(*, shown: bool) -> Any:
    torch.manual_seed(0)
    actor, critic = TorchNet(4, 3), TorchNet(4, 1)
    of_actor, of_critic = (torch.optim.Adam(net.parameters(), 1e-3) for net in (actor, critic))

    def step(state: Any, batch: Any) -> Any:
        del state
        chosen = actor(batch["x"]).log_softmax(-1).gather(1, batch["action"][:, None])[:, 0]
        gain = (batch["returns"] - critic(batch["x"])[:, 0]).detach()
        loss = -(chosen * gain).mean()
        of_actor.zero_grad()
        loss.backward()
        of_actor.step()
        error = 0.5 * torch.nn.functional.mse_loss(critic(batch["x"])[:, 0], batch["returns"])
        of_critic.zero_grad()
        error.backward()
        of_critic.step()
        # Numbers, as training loops give them to a log.
        return {"loss": loss.item(), "error": error.item()} if shown else {"loss": loss}

    return {"actor": actor, "critic": critic, "of_actor": of_actor, "of_critic": of_critic}, step


def port(error_of: Any, *, shown: bool) -> Any:
    actor, critic = FlaxNet(nnx.Rngs(0), 4, 3), FlaxNet(nnx.Rngs(1), 4, 1)
    of_actor, of_critic = (nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param) for net in (actor, critic))

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        actor, critic = state["actor"], state["critic"]
        gain = jax.lax.stop_gradient(batch["returns"] - critic(batch["x"])[:, 0])

        def loss_of(actor: Any) -> jax.Array:
            log = jax.nn.log_softmax(actor(batch["x"]))
            return -(jnp.take_along_axis(log, batch["action"][:, None], 1)[:, 0] * gain).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(actor)
        state["of_actor"].update(actor, gradients)
        error, gradients = nnx.value_and_grad(lambda critic: error_of(critic(batch["x"]), batch))(critic)
        state["of_critic"].update(critic, gradients)
        return state, {"loss": loss, "error": error} if shown else {"loss": loss}

    return {"actor": actor, "critic": critic, "of_actor": of_actor, "of_critic": of_critic}, step


def checked(error_of: Any, *, shown: bool) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [
        {
            "x": rng.normal(size=(5, 4)),
            "action": rng.integers(0, 3, 5),
            "returns": rng.normal(size=5),
            "old": rng.normal(size=5),
        }
        for _ in range(3)
    ]
    ours = compare.TorchProgram(lambda: original(shown=shown))
    return compare.check(ours, compare.JaxProgram(lambda: port(error_of, shown=shown)), batches)


WRONG = {
    "half": (lambda v, b: jnp.square(v[:, 0] - b["returns"]).mean(), "leaves out mul by 0.5"),
    "operand": (lambda v, b: 0.5 * jnp.square(v[:, 0] - b["old"]).mean(), "takes batch['old'] for mse_loss"),
    "broadcast": (lambda v, b: 0.5 * jnp.square(v - b["returns"]).mean(), "broadcasts (N,) against (N, 1)"),
    "another": (lambda v, b: 0.5 * jnp.abs(v[:, 0] - b["returns"]).mean(), "computes torch's l1_loss"),
}
CASES = [("half", False), ("operand", True), *((name, shown) for name in WRONG for shown in (True, False))]


@pytest.mark.parametrize(("name", "shown"), first(list(dict.fromkeys(CASES))))
@pytest.mark.slow
def test_what_is_wrong_in_the_second_loss_is_named(name: str, *, shown: bool) -> None:
    error_of, said = WRONG[name]
    report = checked(error_of, shown=shown)
    assert report.divergence is not None
    assert report.divergence.stage == ("shown" if shown else "gradient")
    cause = report.divergence.cause
    assert cause is not None, str(report)
    assert said in cause.explanation
    assert not report.others, str(report)


def test_a_right_second_loss_is_a_match() -> None:
    report = checked(lambda v, b: 0.5 * jnp.square(v[:, 0] - b["returns"]).mean(), shown=True)
    assert report.verdict == "match", str(report)
