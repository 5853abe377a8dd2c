"""CleanRL's PPO on Atari, `ppo_atari_envpool.py`, and its JAX twin: a rollout's advantages and updates, as they stand.

`python -m benchmarks.wild.cleanrl_ppo path/to/cleanrl`. The rollout stands aside: a batch has what it stores. The JAX
script has no clipped value loss, so that torch's is switched off.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

import compare
from benchmarks.wild.script import Script

ENVS, STEPS = 2, 8

STORED = ("obs", "actions", "logprobs", "dones", "values", "rewards")


def settings(names: dict[str, Any], **more: Any) -> Any:
    """Make a script's settings, those that it computes too."""
    args = names["Args"](num_envs=ENVS, num_steps=STEPS, num_minibatches=2, update_epochs=2, **more)
    args.batch_size, args.minibatch_size, args.num_iterations = ENVS * STEPS, ENVS * STEPS // 2, 10
    return args


def environment() -> Any:
    """Give what a script asks of its environment."""
    box = SimpleNamespace(shape=(4, 84, 84), sample=lambda: np.zeros((4, 84, 84), np.float32))
    return SimpleNamespace(single_observation_space=box, single_action_space=SimpleNamespace(n=3, shape=()))


def original(script: Script) -> Any:
    """Make the torch side."""
    make = script.part("agent = ", "# ALGO Logic")
    parts = [
        script.part("if args.anneal_lr", "for step"),
        script.part("# bootstrap value", "y_pred"),
    ]

    def build() -> Any:
        names = script.definitions()
        names |= {"envs": environment(), "device": "cpu", "args": settings(names, clip_vloss=False), "iteration": 0}
        exec(make, names)

        def step(state: Any, batch: Any) -> Any:
            names.update(batch, iteration=names["iteration"] + 1)
            for part in parts:
                exec(part, names)
            return {name: names[name] for name in ("loss", "v_loss", "pg_loss", "entropy_loss")}

        return {name: names[name] for name in ("agent", "optimizer")}, step

    return build


def port(script: Script) -> Any:
    """Make the JAX side."""
    parts = [script.part("def linear_schedule", "# ALGO Logic"), script.part("storage = Storage", "# TRY NOT", 1)]

    def build() -> Any:
        import jax

        names = script.definitions()
        keys = jax.random.split(jax.random.PRNGKey(1), 4)
        names |= dict(zip(("key", "network_key", "actor_key", "critic_key"), keys, strict=True))
        # Flax asks `key in params` since, which a dataclass of its own does not answer.
        names["AgentParams"].__contains__ = lambda *_: False
        names |= {"envs": environment(), "args": settings(names), "writer": mock.MagicMock()}
        for part in parts:
            exec(part, names)
        empty = names["storage"]

        def step(state: Any, batch: Any) -> Any:
            stored = empty.replace(**{name: batch[name] for name in STORED})
            storage = names["compute_gae"](state["agent"], batch["next_obs"], batch["next_done"], stored)
            after, loss, pg_loss, v_loss, entropy, _, key = names["update_ppo"](state["agent"], storage, state["key"])
            shown = {"loss": loss, "v_loss": v_loss, "pg_loss": pg_loss, "entropy_loss": entropy}
            return {"agent": after, "key": key}, shown

        return {"agent": names["agent_state"], "key": names["key"]}, step

    return build


def batches(count: int = 3) -> list[dict[str, Any]]:
    """Draw rollouts."""
    rng, shape = np.random.default_rng(0), (STEPS, ENVS)
    return [
        {
            "obs": rng.uniform(0, 255, (*shape, 4, 84, 84)),
            "actions": rng.integers(0, 3, shape),
            "logprobs": np.log(1 / 3) + 0.05 * rng.normal(size=shape),
            "dones": (rng.random(shape) < 0.1).astype(np.float32),
            "values": rng.normal(size=shape),
            "rewards": rng.normal(size=shape),
            "next_obs": rng.uniform(0, 255, (ENVS, 4, 84, 84)),
            "next_done": np.zeros(ENVS, np.float32),
        }
        for _ in range(count)
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1]) / "cleanrl"
    ours = original(Script(folder / "ppo_atari_envpool.py"))
    theirs = port(Script(folder / "ppo_atari_envpool_xla_jax.py"))
    report = compare.check(compare.TorchProgram(ours), compare.JaxProgram(theirs), batches(), steps=3, name="ppo")
    sys.stdout.write(f"{report}\n")
