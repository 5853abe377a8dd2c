"""What a check costs beside training both sides alone in both precisions, from 1 to 25 million parameters.

    python benchmarks/cost.py [--sizes small medium large] [--steps 10] [--rounds 3]

The table shows time and peak memory, the medians over the rounds. The second ratio is that of a check with all
questions to one with `--quick`, in CPU time, which other programs on the machine hardly change. The third and fourth
are those of the same step as a program to the check of model, loss and optimizer, in CPU time too. Each measurement is
a process of its own. The four trainings run one after another in one process.
"""

import argparse
import functools
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch
from flax import nnx
from rich.console import Console
from rich.table import Table

import compare


class Size(NamedTuple):
    width: int
    layers: int
    steps: int = 10


SIZES = {"small": Size(128, 5), "medium": Size(256, 6), "large": Size(512, 8)}
"""About 1, 5 and 25 million parameters."""

HEADS, LENGTH, BATCH, VOCABULARY = 4, 64, 8, 64


class TorchBlock(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(width)
        self.attention = torch.nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.norm2 = torch.nn.LayerNorm(width)
        self.fc1 = torch.nn.Linear(width, 4 * width)
        self.fc2 = torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        result: torch.Tensor = x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm2(x))))
        return result


class TorchModel(torch.nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, size.width)
        self.blocks = torch.nn.ModuleList(TorchBlock(size.width) for _ in range(size.layers))
        self.head = torch.nn.Linear(size.width, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(x)
        return result


class FlaxBlock(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.fc1 = nnx.Linear(width, 4 * width, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x)), approximate=False))


class FlaxModel(nnx.Module):
    def __init__(self, size: Size) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(VOCABULARY, size.width, rngs=rngs)
        self.blocks = nnx.List([FlaxBlock(size.width, rngs) for _ in range(size.layers)])
        self.head = nnx.Linear(size.width, VOCABULARY, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(0, VOCABULARY, (BATCH, LENGTH)) for _ in range(2)) for _ in range(count)]  # type: ignore[misc]


def torch_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def jax_loss(logits: Any, target: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def torch_adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 1e-4, weight_decay=1e-2)


OPTAX_ADAM = optax.adamw(1e-4, weight_decay=1e-2)


def train_torch(size: Size, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = TorchModel(size).to(dtype)
    optimizer = torch_adam(model.parameters())
    for tokens, target in batches(size.steps):
        optimizer.zero_grad()
        loss = torch_loss(model(torch.from_numpy(tokens)), torch.from_numpy(target))
        loss.backward()
        optimizer.step()
        loss.item()


def train_jax(size: Size, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        graph, params = nnx.split(FlaxModel(size))
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        state = OPTAX_ADAM.init(params)

        def step(params: Any, state: Any, tokens: Any, target: Any) -> Any:
            def compute(params: Any) -> Any:
                return jax_loss(nnx.merge(graph, params)(tokens), target)

            loss, gradients = jax.value_and_grad(compute)(params)
            updates, state = OPTAX_ADAM.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        compiled = jax.jit(step, donate_argnums=(0, 1))
        for tokens, target in batches(size.steps):
            params, state, loss = compiled(params, state, tokens, target)
            loss.block_until_ready()


def four_trainings(size: Size) -> None:
    for run in (
        lambda: train_torch(size, torch.float32),
        lambda: train_torch(size, torch.float64),
        lambda: train_jax(size, "float32"),
        lambda: train_jax(size, "float64"),
    ):
        run()
        gc.collect()


def check(size: Size, *, quick: bool = False) -> None:
    torch.manual_seed(0)
    report = compare.check(
        compare.Torch(TorchModel(size), torch_loss, torch_adam),
        compare.Flax(FlaxModel(size), jax_loss, OPTAX_ADAM),
        batches(size.steps),
        device="cpu",
        quick=quick,
    )
    assert report.ok, str(report)


def torch_program(size: Size) -> Any:
    torch.manual_seed(0)
    model = TorchModel(size)
    optimizer = torch_adam(model.parameters())

    def step(state: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        loss = torch_loss(model(batch["tokens"]), batch["target"])
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def jax_program(size: Size) -> Any:
    model = FlaxModel(size)
    optimizer = nnx.Optimizer(model, OPTAX_ADAM, wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def compute(model: FlaxModel) -> Any:
            return jax_loss(model(batch["tokens"]), batch["target"])

        loss, gradients = nnx.value_and_grad(compute)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def check_program(size: Size, *, quick: bool = False) -> None:
    report = compare.check(
        compare.TorchProgram(functools.partial(torch_program, size)),
        compare.JaxProgram(functools.partial(jax_program, size)),
        [{"tokens": tokens, "target": target} for tokens, target in batches(size.steps)],
        device="cpu",
        quick=quick,
    )
    assert report.ok, str(report)


WORK: dict[str, Callable[[Size], None]] = {
    "trainings": four_trainings,
    "check": check,
    "quick": functools.partial(check, quick=True),
    "program": check_program,
    "quick program": functools.partial(check_program, quick=True),
}


def measure(work: str, size: Size) -> dict[str, float]:
    """Run one piece of work in a process of its own: seconds without the imports, and peak memory in MiB."""
    command = [sys.executable, __file__, "--work", work, "--size", json.dumps(size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        began, processor = time.perf_counter(), time.process_time()
        WORK[options.work](Size(*options.size))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        print(json.dumps({"seconds": seconds, "processor": processor, "mebibytes": peak}))
        return
    columns = ("trainings", "check", "ratio", "with --quick", "ratio", "as a program", "with --quick")
    table = Table("parameters", *columns, "trainings' memory", "check's", "ratio")
    for name in options.sizes:
        size = SIZES[name]._replace(steps=options.steps)
        count = sum(parameter.numel() for parameter in TorchModel(size).parameters())
        rounds = [tuple(measure(work, size) for work in WORK) for _ in range(options.rounds)]
        alone, checked, quick, program, quick_program = (
            {key: median(each[key] for each in work) for key in work[0]} for work in zip(*rounds, strict=True)
        )
        table.add_row(
            f"{count / 1e6:.1f} M",
            f"{alone['seconds']:.1f} s",
            f"{checked['seconds']:.1f} s",
            f"{checked['seconds'] / alone['seconds']:.2f}",
            f"{quick['seconds']:.1f} s",
            f"{checked['processor'] / quick['processor']:.2f}",
            f"{program['processor'] / checked['processor']:.2f}",
            f"{quick_program['processor'] / quick['processor']:.2f}",
            f"{alone['mebibytes']:.0f} MiB",
            f"{checked['mebibytes']:.0f} MiB",
            f"{checked['mebibytes'] / alone['mebibytes']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
