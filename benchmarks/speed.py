"""Microseconds per training step: each port, its original, and the floor under both.

The floor is the two large matrix products of a step alone, `x @ w1` and `grad_h.T @ x`, in whichever library and
orientation does them fastest. All are timed in turn, round by round, in one process, so that a slow spell of the
machine hits all of them. Run it with `make benchmark` or `python benchmarks/speed.py`.
"""

import argparse
import functools
import shutil
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import compare
import jaxnet
import torchnet
from compare.notebook import reference

STEPS = 100
WITHOUT_BIASES = ("numpy", "manual", "autograd")
Timed = dict[str, Callable[[], Any]]


def floors(problem: compare.Problem) -> Timed:
    """Give the two large products, in each library and in either orientation of the weights."""
    x, w1 = problem.x, problem.w1
    grad_h = np.random.default_rng(1).standard_normal((x.shape[0], w1.shape[1]), dtype=np.float32)

    def numpy_products() -> None:
        for _ in range(STEPS):
            x.dot(w1)
            x.T.dot(grad_h)

    tensors = [torch.from_numpy(np.array(array)) for array in (x, w1, grad_h)]

    def torch_products() -> None:
        x, w1, grad_h = tensors
        for _ in range(STEPS):
            x.mm(w1)
            x.t().mm(grad_h)

    def torch_products_transposed() -> None:
        x, w1, grad_h = tensors
        w1_t = w1.t().contiguous()
        for _ in range(STEPS):
            x.mm(w1_t.t())
            grad_h.t().mm(x)

    @jax.jit
    def scanned(w1_t: jax.Array, grad_h: jax.Array, x: jax.Array) -> Any:
        # Each product's result goes into the next iteration, so that none can be left out.
        def body(carry: Any, _: None) -> Any:
            w1_t, grad_h = carry
            return (grad_h.T @ x, x @ w1_t.T), None

        return jax.lax.scan(body, (w1_t, grad_h), length=STEPS)[0]

    arrays = [jnp.array(array) for array in (w1.T, grad_h, x)]
    return {
        "numpy": numpy_products,
        "torch": torch_products,
        "torch, transposed": torch_products_transposed,
        "jax": lambda: jax.block_until_ready(scanned(*arrays)),
    }


def compiled(variant: str, problem: compare.Problem) -> Callable[[], Any] | None:
    """Give the original under `torch.compile`, or None where no C++ compiler is there for it."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return None
    program: ModuleType = getattr(torchnet, variant)
    step = torch.compile(program.step)
    arguments = program.start(problem)
    step(*arguments)  # makes the optimizer's state
    weights, initial = _weights(arguments), _weights(program.start(problem))
    state: dict[Any, Any] = next((a.state for a in arguments if isinstance(a, torch.optim.Optimizer)), {})

    def train() -> None:
        # The same objects each time: torch.compile compiles again for a new optimizer.
        with torch.no_grad():
            for weight, value in zip(weights, initial, strict=True):
                weight.copy_(value)
            for slots in state.values():
                for tensor in slots.values():
                    tensor.zero_()
        for _ in range(STEPS):
            step(*arguments)

    return train


def _weights(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    """List the weights among what a step of `torchnet` takes."""
    model = next((argument for argument in arguments if isinstance(argument, torch.nn.Module)), None)
    return list(model.parameters()) if model else list(arguments[2:])


def port_run(port: ModuleType, arguments: tuple[Any, ...]) -> None:
    """Run a port's compiled trajectory to its end."""
    jax.block_until_ready(port.scan(*arguments, STEPS))


def programs() -> Timed:
    """Give everything that is timed, by name."""
    timed: Timed = {}
    for variant in compare.notebook.VARIANTS:
        cell = "manual" if variant == "numpy" else variant
        problem = compare.draw(0, biases=variant not in WITHOUT_BIASES)
        port, original = getattr(jaxnet, cell), getattr(torchnet, cell)
        timed[f"{variant} jax"] = functools.partial(port_run, port, port.start(problem))
        timed[f"{variant} torch"] = functools.partial(original.train, problem, STEPS)
        if variant != "numpy" and (fused := compiled(cell, problem)):
            timed[f"{variant} torch.compile"] = fused
        timed[f"{variant} numpy"] = functools.partial(
            reference.train, problem, STEPS, variant=reference.VARIANTS[cell], dtype=np.float32
        )
    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of which the median is taken (15)")
    rounds = parser.parse_args().rounds
    problem = compare.draw(0, biases=False)
    timed = {f"floor {name}": run for name, run in floors(problem).items()} | programs()
    for run in timed.values():
        run()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, run in timed.items():
            # The threads of the library before spin for up to 0.1 s after their last work: let them fall asleep,
            # and then this library's wake up.
            time.sleep(0.15)
            run()
            run()
            for _ in range(3):
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
    show({name: float(np.median(times)) / STEPS * 1e6 for name, times in seconds.items()}, rounds)


def show(micros: dict[str, float], rounds: int) -> None:
    """Print the table that docs/speed.md has."""
    floor_name = min((name for name in micros if name.startswith("floor")), key=micros.__getitem__)
    floor = micros[floor_name]
    table = Table(
        title=f"microseconds per step, medians of {rounds} rounds of 3 runs of {STEPS} steps", title_justify="left"
    )
    columns = ("jax", "torch", "torch.compile", "numpy")
    for heading in ("variant", *columns, "torch / jax", "jax / floor"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for variant in compare.notebook.VARIANTS:
        jax_time = micros[f"{variant} jax"]
        cells = [micros.get(f"{variant} {column}") for column in columns]
        table.add_row(
            variant,
            *("" if cell is None else f"{cell:.0f}" for cell in cells),
            f"{micros[f'{variant} torch'] / jax_time:.2f}",
            f"{jax_time / floor:.2f}",
        )
    console = Console(width=90)
    console.print(table)
    console.print(f"floor, the two large products alone: {floor:.0f} ({floor_name.removeprefix('floor ')})")
    console.print(", ".join(f"{name} {time:.0f}" for name, time in micros.items() if name.startswith("floor")))


if __name__ == "__main__":
    main()
