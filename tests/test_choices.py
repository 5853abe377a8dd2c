"""Where the user's code chooses, as by jnp.where, it is noted which sides were taken; what a library does is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from compare.jax_side.choices import Choice, Choices, add_choices, one_sided
from compare.jax_side.lift import lift
from compare.jax_side.replay import replaying
from compare.torch_side.control import ControlledRun

X = np.linspace(-1, 1, 6)


def taken(function: Any, *, replayed: bool) -> list[str]:
    """Run a function and its gradient as a step is run, and give what is said of its choices."""
    chosen: dict[Choice, np.ndarray] = {}
    with jax.enable_x64(True):
        compute = replaying(function, (), [], []) if replayed else function

        def step(x: Any) -> Any:
            choices = Choices()
            shown = lift(lambda x: jax.value_and_grad(compute)(x), [], None, choices)(x)
            return shown, choices.made

        _, made = jax.jit(step)(jnp.asarray(X))
        add_choices(chosen, made)
    return [line.partition(" at ")[0] for line in one_sided(chosen)]


@pytest.mark.parametrize("replayed", [True, False])
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: jnp.where(x > 5, 0.0, x).sum(), ["jnp.where"]),
        (lambda x: jnp.where(x > 0, 0.0, x).sum(), []),
        (lambda x: jnp.clip(x, -9, 0.5).sum(), ["jnp.clip"]),
        (lambda x: jnp.clip(x, -0.5, 0.5).sum(), []),
        (lambda x: jnp.minimum(x, 7).sum(), ["jnp.maximum or jnp.minimum"]),
        (lambda x: jax.nn.relu6(x).sum(), ["relu6"]),
        (lambda x: jnp.nan_to_num(x).sum(), ["jnp.nan_to_num"]),
        (lambda x: jax.lax.cond(x.mean() > 9, lambda: 2.0, lambda: 1.0) * x.sum(), ["jax.lax.cond"]),
        (lambda x: jax.jit(lambda y: jnp.where(y > 5, 0.0, y))(x).sum(), ["jnp.where"]),
        # What a library chooses is its own affair.
        (lambda x: jax.nn.log_softmax(x).sum() + jax.nn.relu(x).sum() + jax.nn.logsumexp(x), []),
        (lambda x: jax.nn.softplus(x + 100).sum() + jnp.linalg.norm(x), []),
    ],
)
def test_a_side_that_is_never_taken_is_named(function: Any, said: list[str], replayed: bool) -> None:
    assert taken(function, replayed=replayed) == said


def test_so_is_what_torch_chooses() -> None:
    x = torch.linspace(-1, 1, 6, requires_grad=True)
    with ControlledRun() as run:
        y = x.clamp(-9, 0.5) + torch.where(x > 5, x, 0 * x) + x.masked_fill(x > 0, 0.0) + torch.relu(x)
        torch.nn.functional.normalize(y, dim=0).sum().backward()
    missed = [what.rpartition(": ")[2] for what, met in run.reached.items() if not met]
    assert missed == ["no element is below its bound", "its condition is never true"]
