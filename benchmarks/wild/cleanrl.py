"""CleanRL's torch scripts and their JAX twins, one against the other: no line of a training step is changed.

`git clone https://github.com/vwxyzjn/cleanrl`, then `python -m benchmarks.wild.cleanrl path/to/cleanrl dqn`. What
stands aside is the simulator: the replay buffer gives the batch of the step, and the loggers keep nothing.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

import compare
from benchmarks.wild.script import Script


class Taken:
    """An array that a script takes from its replay buffer: a tensor with `.numpy()`, which stays what it is."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def flatten(self) -> "Taken":
        return Taken(self._array.reshape(-1))

    def numpy(self) -> Any:
        return self._array


class OldNumpy:
    """`jax.numpy` with the names that `clip` had for its bounds when the scripts were written."""

    def __getattr__(self, name: str) -> Any:
        import jax.numpy as jnp

        return getattr(jnp, name)

    def clip(self, x: Any, *bounds: Any, a_min: Any = None, a_max: Any = None) -> Any:
        import jax.numpy as jnp

        return jnp.clip(x, *(bounds or (a_min, a_max)))


def spaces(*, discrete: bool) -> Any:
    """Give what a script asks of its environment."""
    box = {"low": np.full(2, -1.0, np.float32), "high": np.full(2, 1.0, np.float32)}
    action = SimpleNamespace(n=3, shape=()) if discrete else SimpleNamespace(shape=(2,), **box)
    action.sample = lambda: np.zeros((1, 2), np.float32)
    return SimpleNamespace(
        single_observation_space=SimpleNamespace(shape=(4,)), single_action_space=action, action_space=action
    )


def program(script: Script, jax: bool, state: dict[str, str], parts: Any, arguments: Any, *, discrete: bool) -> Any:
    """Make a `build` of a script.

    Args:
        script: The script.
        jax: Whether it is the JAX one.
        state: The names of its variables that a step changes, by their names in the state that is compared.
        parts: What makes things, and the body of the loop.
        arguments: Its settings that are others than its defaults.
        discrete: Whether actions are numbers of a choice.

    """

    def build() -> Any:
        names = script.definitions()
        envs, device = spaces(discrete=discrete), "cpu"
        args = names["Args"](**arguments)
        names |= {"envs": envs, "device": device, "args": args, "writer": mock.MagicMock(), "global_step": 0}
        names |= {"start_time": 0.0, "obs": np.zeros((1, 4), np.float32), "print": lambda *_: None}
        if jax:
            keys = __import__("jax").random.split(__import__("jax").random.PRNGKey(1), 5)
            names |= dict(zip(("key", "q_key", "actor_key", "qf1_key", "qf2_key"), keys, strict=True))
            names["jnp"] = OldNumpy()
        for part in parts[:-1]:
            exec(part, names)

        def step(held: Any, batch: Any) -> Any:
            wrap = Taken if jax else lambda value: value
            data = SimpleNamespace(**{name: wrap(value) for name, value in batch.items()})
            names.update({**({own: held[name] for name, own in state.items()} if jax else {}), "args": args})
            names.update(rb=SimpleNamespace(sample=lambda _: data), global_step=names["global_step"] + 1)
            exec(parts[-1], names)
            shown = {
                name: names[own]
                for name, own in (("loss", "loss"), ("loss", "qf1_loss"), ("loss", "qf1_loss_value"))
                if own in names
            }
            after = {name: names[own] for name, own in state.items()}
            return (after, shown) if jax else shown

        return {name: names[own] for name, own in state.items()}, step

    return build


def batches(*, discrete: bool, count: int = 4, size: int = 16) -> list[dict[str, Any]]:
    """Draw batches of a replay buffer."""
    rng = np.random.default_rng(0)
    actions: Any = (lambda: rng.integers(0, 3, (size, 1))) if discrete else (lambda: rng.uniform(-1, 1, (size, 2)))
    return [
        {
            "observations": rng.normal(size=(size, 4)),
            "actions": actions(),
            "next_observations": rng.normal(size=(size, 4)),
            "rewards": rng.normal(size=(size, 1)),
            "dones": (rng.random((size, 1)) < 0.2).astype(np.float32),
        }
        for _ in range(count)
    ]


OFTEN: dict[str, Any] = {"learning_starts": 0}


def pair(root: Path, name: str) -> Any:
    """Give both sides of a script, and its batches."""
    torch, jax = Script(root / "cleanrl" / f"{name}.py"), Script(root / "cleanrl" / f"{name}_jax.py")
    discrete = name in ("dqn", "c51")
    body = ("if global_step > args.learning_starts", "if args.save_model")
    if discrete:
        arguments = {**OFTEN, "train_frequency": 1, "target_network_frequency": 2, "batch_size": 16}
        ours = [torch.part("q_network = ", "rb = "), torch.part(*body)]
        theirs = [jax.part("q_network = ", "rb = "), jax.part("@jax.jit", "start_time"), jax.part(*body)]
        states = (
            {"q_network": "q_network", "target_network": "target_network", "optimizer": "optimizer"},
            {"q": "q_state"},
        )
    else:
        arguments = {**OFTEN, "batch_size": 16}
        ours = [torch.part("actor = ", "envs.single"), torch.part(*body)]
        theirs = [jax.part("actor = ", "start_time"), jax.part(*body)]
        models = ["actor", "qf1", "qf2"] if name.startswith("td3") else ["actor", "qf1"]
        own = {**{m: m for m in models}, **{f"{m}_target": f"{m}_target" for m in models[1:]}}
        own |= {"actor_target": "target_actor", "q_optimizer": "q_optimizer", "actor_optimizer": "actor_optimizer"}
        states = own, {m: f"{m}_state" for m in models} | ({"key": "key"} if name.startswith("td3") else {})
    original = program(torch, False, states[0], ours, arguments, discrete=discrete)
    port = program(jax, True, states[1], theirs, arguments, discrete=discrete)
    return compare.TorchProgram(original), compare.JaxProgram(port), batches(discrete=discrete)


if __name__ == "__main__":
    for script in sys.argv[2:]:
        report = compare.check(*pair(Path(sys.argv[1]), script), steps=6, name=script)
        sys.stdout.write(f"{report}\n")
