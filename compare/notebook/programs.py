"""The notebook's programs as sides of a comparison: each shows, in either precision, what every step computes."""

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from compare.jax_side.record import names
from compare.notebook import reference
from compare.notebook.problem import Problem
from compare.step.observation import Observation, Stream, to_numpy


class Program(Protocol):
    """What each file of `torchnet` and of `jaxnet` is, and what may be given in its place."""

    @property
    def start(self) -> Callable[..., Any]: ...  # noqa: D102
    @property
    def step(self) -> Callable[..., Any]: ...  # noqa: D102
    @property
    def train(self) -> Callable[..., Any]: ...  # noqa: D102


class Altered(NamedTuple):
    """A program with changed settings."""

    start: Callable[..., Any]
    """Returns the first arguments of `step`, from a `Problem`."""
    step: Callable[..., Any]
    """Computes one step, and returns everything in it."""
    train: Callable[..., Any]
    """Returns a whole trajectory: losses of shape `(steps,)` and the final weights."""


def altered(program: Program, **settings: Any) -> Altered:
    """Change settings of a program, such as `learning_rate` or `optimizer`, wherever it takes them.

    Args:
        program: A module of `torchnet` or of `jaxnet`, or anything with their `start`, `step` and `train`.
        settings: New values, by the names of the three functions' optional parameters. A setting that none of them
            takes is ignored.

    Returns:
        The program, for `compare.notebook.run(..., torch=...)` or `jax=...`.

    """

    def with_settings(part: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(part).parameters.values()
        takes = {parameter.name for parameter in parameters if parameter.default is not parameter.empty}
        return functools.partial(part, **{name: value for name, value in settings.items() if name in takes})

    return Altered(with_settings(program.start), with_settings(program.step), with_settings(program.train))


class Side(Protocol):
    """A program that can be followed step by step, and timed over a whole run."""

    @property
    def name(self) -> str:
        """What to call this side in a report."""

    def observe(self, problem: Problem, dtype: str) -> Stream:
        """Show step after step, without end."""

    def train(self, problem: Problem, steps: int) -> tuple[np.ndarray, float]:
        """Run a whole float32 training: its losses, of shape `(steps,)`, and its seconds without compilation."""


def _timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    began = time.perf_counter()
    return run(), time.perf_counter() - began


class TorchSide:
    """A program of `torchnet`, or anything like it."""

    name = "torch"

    def __init__(self, program: Program, device: str) -> None:
        self.program = program
        self.device = device

    def observe(self, problem: Problem, dtype: str) -> Stream:  # noqa: D102
        import torch

        arguments = self.program.start(problem, dtype=getattr(torch, dtype), device=self.device)
        while True:
            step = self.program.step(*arguments)
            slots = {
                f"{slot}/{name}": tensor for name, slots in step.optimizer.items() for slot, tensor in slots.items()
            }
            yield Observation(step.loss, step.gradients, parameters=step.weights, optimizer=slots)

    def train(self, problem: Problem, steps: int) -> tuple[np.ndarray, float]:  # noqa: D102
        return _timed(lambda: self.program.train(problem, steps, device=self.device).losses.cpu().numpy())


class JaxSide:
    """A program of `jaxnet`, or anything like it."""

    name = "jax"

    def __init__(self, program: Program) -> None:
        self.program = program

    def observe(self, problem: Problem, dtype: str) -> Stream:  # noqa: D102
        import jax

        # Entered anew for each step: between two steps the other side, or the other precision, has its turn.
        def precision() -> Any:
            return jax.enable_x64(dtype == "float64")

        with precision():
            state, x, y = self.program.start(problem.astype(dtype), dtype=dtype)
        named: list[list[str]] = []
        # Each step is started before the one ahead of it is weighed: JAX computes it meanwhile.
        with precision():
            started = self.program.step(state, x, y)
        while True:
            loss, gradients, state = started
            with precision():
                started = self.program.step(state, x, y)
            trees = (gradients, state.weights, state.optimizer)
            named = named or [names(tree) for tree in trees]
            arrays = [dict(zip(of, jax.tree.leaves(tree), strict=True)) for of, tree in zip(named, trees, strict=True)]
            yield Observation(loss, arrays[0], parameters=arrays[1], optimizer=arrays[2])

    def train(self, problem: Problem, steps: int) -> tuple[np.ndarray, float]:  # noqa: D102
        self.program.train(problem, steps)  # compiles
        return _timed(lambda: np.asarray(self.program.train(problem, steps).losses))


class NumPySide:
    """The reference; with `like_torch`, its weights have the names and the orientation of `torch.nn`."""

    name = "numpy"
    _NAMES: ClassVar = {"w1": "0.weight", "b1": "0.bias", "w2": "2.weight", "b2": "2.bias"}

    def __init__(self, variant: reference.Variant, *, like_torch: bool) -> None:
        self.variant = variant
        self.like_torch = like_torch

    def observe(self, problem: Problem, dtype: str) -> Stream:  # noqa: D102
        def renamed(arrays: reference.Arrays) -> dict[str, np.ndarray]:
            return {self._NAMES[name]: array.T for name, array in arrays.items()} if self.like_torch else arrays

        x, y, weights = reference.start(problem, np.dtype(dtype).type)
        optimizer: dict[str, reference.Arrays] = {}
        while True:
            with np.errstate(over="ignore", invalid="ignore"):
                loss, gradients, weights, optimizer = reference.step(x, y, weights, optimizer, self.variant)
            slots = {
                f"{slot}/{name}": value
                for slot in next(iter(optimizer.values()), {})
                for name, value in renamed({name: kept[slot] for name, kept in optimizer.items()}).items()
            }
            yield Observation(loss, renamed(gradients), parameters=renamed(weights), optimizer=slots)

    def train(self, problem: Problem, steps: int) -> tuple[np.ndarray, float]:  # noqa: D102
        return _timed(lambda: reference.train(problem, steps, variant=self.variant, dtype=np.float32).losses)


def with_updates(stream: Stream, weights: Mapping[str, np.ndarray]) -> Stream:
    """Show also what each step adds to the weights, which were `weights` before the first."""
    for seen in stream:
        # A copy of what the next step may overwrite, as torch's does its weights; JAX's arrays are read-only.
        arrays = {name: to_numpy(value) for name, value in seen.parameters.items()}
        after = {name: array.copy() if array.flags.writeable else array for name, array in arrays.items()}
        updates = {name: value - weights[name] for name, value in after.items() if name in weights}
        yield seen._replace(updates=updates, parameters=after)
        weights = after
