"""Ports with something changed, for tests of whether the comparison notices; devices and compiler of all tests."""

import importlib.metadata
import os
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from in_ci import Stopwatch, mark_long

import compare
import jaxnet

# XLA reads its flags when JAX starts its devices: two of them, for the programs that run on several.
FLAGS = ["--xla_force_host_platform_device_count=2"]
if importlib.metadata.version("jaxlib").startswith("0.10.") and shutil.which("nvidia-smi") is None:
    # Tests compile thousands of small programs and run each a few times: a compiler that does less saves half of
    # their time. `make test-all`, `make test-oldest` and `make test-newest` set the flags, to compile as users do.
    # XLA stops at a flag that it does not know, so only the pinned version gets them.
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_backend_optimization_level=0"]
    FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# Several processes test at once: each that used all cores would wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Port = Callable[..., Any]


def pytest_configure(config: pytest.Config) -> None:
    """Measure the tests if `make long` asks for it: in the process that collects the results of all others."""
    if "MEASURE" in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_long(items)


def stepped(start: Port, step: Port) -> compare.Altered:
    """A port out of its start and its step: `train` is the steps one by one."""

    def train(problem: Any, steps: int, **settings: Any) -> jaxnet.Trajectory:
        state, x, y = start(problem, **settings)
        losses = []
        for _ in range(steps):
            loss, _gradients, state = step(state, x, y)
            losses.append(loss)
        return jaxnet.Trajectory(jnp.stack(losses), {})

    return compare.Altered(start, step, train)


@pytest.fixture(autouse=True)
def no_job_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that are tested in CI must not write to the summary of its job."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.fixture(autouse=True)
def bugs_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors in the search for a cause, which a user's report lists, fail the test that meets them."""

    def report(doing: str, error: BaseException) -> None:
        raise RuntimeError(f"{doing} failed") from error

    monkeypatch.setattr("compare.bugs.report", report)


@pytest.fixture(name="stepped")
def stepped_fixture() -> Port:
    return stepped


@pytest.fixture
def replaced_loss() -> Port:
    """Gives a port with another loss function: `replaced_loss(jaxnet.module, loss_fn)`."""

    def replaced(program: Any, loss_fn: Port) -> compare.Altered:
        optimizer = (
            jaxnet.adam.adam if program is jaxnet.adam else optax.sgd(1e-4 if program is jaxnet.module else 1e-6)
        )

        @jax.jit
        def step(state: jaxnet.State, x: jax.Array, y: jax.Array) -> jaxnet.Step:
            loss, gradients = jax.value_and_grad(loss_fn)(state.weights, x, y)
            kept = state.optimizer or optimizer.init(state.weights)
            updates, kept = optimizer.update(gradients, kept, state.weights)
            weights = optax.apply_updates(state.weights, updates)
            return jaxnet.Step(loss, gradients, jaxnet.State(weights, kept if state.optimizer else ()))

        return stepped(program.start, step)

    return replaced
