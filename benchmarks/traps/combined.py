"""Two and three traps at once in one model: the first is found first, and the printed fixes lead to a match.

    python -m benchmarks.traps.combined [--examples 200] [--seed 0] [--processes 1] [--json FILE]

Each example sets two or three settings of a right port wrong. Its reports are followed as a user would: the code of
the first divergence's fix is put into the port and run, and the port is checked again.
"""

import argparse
import fnmatch
import itertools
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch
from flax import nnx
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional

import compare
from compare.verdict.fix import Code

from ..parts import spread
from .fixes import MODULES, names_of
from .state import BatchNorm
from .training import clip_like_torch, clipped
from .trap import Pair

WIDTH, HIDDEN, CLASSES, COUNT = 8, 16, 4, 12
ROUNDS = 6
"""Reports that are followed at most; each mends one setting or more."""


Put = Callable[[Code], Any]
"""Gives a setting its value by what a fix says, as code that is run; None if the fix says something else."""


def keyword(call: str, name: str) -> Put:
    """Take a keyword argument of a call."""
    return lambda code: code.keywords.get(name) if code.call.endswith(call) else None


def of_x(code: Code) -> Any:
    """Take the expression as a function of x."""
    expression = str(code)
    return (lambda x: eval(expression, dict(MODULES), {"x": x})) if names_of(expression) == {"x"} else None


def whole_loss(code: Code) -> Any:
    """Take the expression as a loss of logits and labels."""
    expression = str(code)
    if names_of(expression) != {"logits", "labels"}:
        return None
    return lambda logits, labels: eval(expression, dict(MODULES), {"logits": logits, "labels": labels})


def first_of_chain(code: Code) -> Any:
    """Take what is to come before the optimizer."""
    return eval(code.arguments[0], dict(MODULES)) if code.call == "optax.chain" else None


def copied(code: Code) -> Any:
    """Take the advice to copy the weights."""
    return "right" if code.call == "compare.copy_weights" else None


class Slip(NamedTuple):
    """A setting of the port that is wrong, in order of computation."""

    wrong: Any
    right: Any
    stage: str
    place: str
    """Its name on the torch side, in which "*" is anything."""
    cause: str
    """A regular expression, which the name of the cause must contain."""
    put: Put


def tanh_gelu(x: Any) -> Any:
    return jax.nn.gelu(x, approximate=True)


def exact_gelu(x: Any) -> Any:
    return jax.nn.gelu(x, approximate=False)


SLIPS = {
    "conversion": Slip("transposed", "right", "parameters", "linear2.weight", "converted weight", copied),
    "norm1 epsilon": Slip(1e-6, 1e-5, "forward", "norm1", "epsilon", keyword("LayerNorm", "epsilon")),
    "gelu": Slip(tanh_gelu, exact_gelu, "forward", "between norm1 and linear2", "activation", of_x),
    "norm2 epsilon": Slip(1e-3, 1e-5, "forward", "norm2", "epsilon", keyword("BatchNorm", "epsilon")),
    "slope": Slip(jax.nn.leaky_relu, lambda x: jax.nn.leaky_relu(x, 0.2), "forward", "between norm2 and norm3",
                  "slope", of_x),
    "groups": Slip(2, 4, "forward", "norm3", "groups", keyword("GroupNorm", "num_groups")),
    "norm3 epsilon": Slip(1e-4, 1e-5, "forward", "norm3", "epsilon", keyword("GroupNorm", "epsilon")),
    "smoothing": Slip(0.0, 0.1, "loss", "loss", "label smoothing", whole_loss),
    "reduction": Slip("sum", "mean", "loss", "loss", "reduction", whole_loss),
    "clipping": Slip(optax.identity(), clip_like_torch(0.05), "update", "*", "clipping", first_of_chain),
    "learning_rate": Slip(2e-2, 1e-2, "update", "*", "learning rate", keyword("adamw", "learning_rate")),
    "b1": Slip(0.8, 0.9, "update", "*", "first moment", keyword("adamw", "b1")),
    "b2": Slip(0.99, 0.999, "update", "*", "second moment", keyword("adamw", "b2")),
    "eps": Slip(1e-6, 1e-8, "update", "*", "epsilon", keyword("adamw", "eps")),
    "weight_decay": Slip(1e-4, 1e-2, "update", "*", "weight decay", keyword("adamw", "weight_decay")),
    "momentum": Slip(0.99, 0.9, "buffers", "norm2.*", "momentum", keyword("BatchNorm", "momentum")),
}  # fmt: skip
RIGHT = {name: slip.right for name, slip in SLIPS.items()}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.norm1 = nn.Linear(WIDTH, HIDDEN), nn.LayerNorm(HIDDEN)
        self.linear2, self.norm2 = nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN)
        self.norm3, self.linear3 = nn.GroupNorm(4, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.norm1(self.linear1(x)))
        x = functional.leaky_relu(self.norm2(self.linear2(x)), 0.2)
        result: torch.Tensor = self.linear3(self.norm3(x))
        return result


class Port(nnx.Module):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        rngs = nnx.Rngs(0)
        self.linear1 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.norm1 = nnx.LayerNorm(HIDDEN, epsilon=settings["norm1 epsilon"], rngs=rngs)
        self.linear2 = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.norm2 = BatchNorm(HIDDEN, epsilon=settings["norm2 epsilon"], momentum=settings["momentum"], rngs=rngs)
        self.norm3 = nnx.GroupNorm(HIDDEN, num_groups=settings["groups"], epsilon=settings["norm3 epsilon"], rngs=rngs)
        self.linear3 = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)
        self.gelu, self.slope = settings["gelu"], settings["slope"]

    def __call__(self, x: Any) -> Any:
        x = self.gelu(self.norm1(self.linear1(x)))
        x = self.slope(self.norm2(self.linear2(x)))
        return self.linear3(self.norm3(x))


def pair(settings: Mapping[str, Any]) -> Pair:
    """Make the model and a port of it with some settings."""
    torch.manual_seed(0)
    model, port = Model(), Port(settings)
    compare.copy_weights(model, port)
    if settings["conversion"] == "transposed":
        port.linear2.kernel[...] = port.linear2.kernel[...].T

    def loss(logits: Any, labels: Any) -> Any:
        smooth = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), settings["smoothing"])
        losses = optax.softmax_cross_entropy(logits, smooth)
        return losses.sum() if settings["reduction"] == "sum" else losses.mean()

    adam = optax.adamw(
        *(settings[name] for name in ("learning_rate", "b1", "b2", "eps")), weight_decay=settings["weight_decay"]
    )
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((COUNT, WIDTH), np.float32), rng.integers(0, CLASSES, COUNT)) for _ in range(2)]
    return Pair(
        compare.Torch(
            model,
            nn.CrossEntropyLoss(label_smoothing=0.1),
            lambda params: clipped(torch.optim.AdamW(params, 1e-2), 0.05),
        ),
        compare.Flax(port, settings.get("loss", loss), optax.chain(settings["clipping"], adam)),
        batches,
    )


def followed(names: tuple[str, ...]) -> dict[str, Any]:
    """Set some settings wrong, and follow the reports until they say match, or say nothing that helps."""
    settings, left = RIGHT | {name: SLIPS[name].wrong for name in names}, [n for n in SLIPS if n in names]
    found: dict[str, Any] = {"slips": names, "first": None, "reports": 0, "match": False}
    for _ in range(ROUNDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = compare.check(*pair(settings), steps=3, device="cpu")
        found["reports"] += 1
        if report.ok:
            found["match"] = report.verdict == compare.Verdict.MATCH and not left
            break
        divergence = report.divergence
        assert divergence is not None
        said = {name: value for name in left if (value := _said(SLIPS[name], divergence)) is not None}
        if found["first"] is None:
            expected = SLIPS[left[0]] if left else None
            together = [name for name in left if expected and SLIPS[name][2:4] == expected[2:4]]
            placed = expected and divergence.stage == expected.stage
            placed = placed and expected and fnmatch.fnmatch(divergence.torch, expected.place)
            found["first"] = bool(placed) and set(said) == set(together)
            found["said"] = "" if found["first"] else str(report)
        if not said:
            break
        for name, value in said.items():  # a loss is written as a whole
            settings["loss" if SLIPS[name].put is whole_loss else name] = value
        left = [name for name in left if name not in said]
    return found


def _said(slip: Slip, divergence: compare.Divergence) -> Any:
    """Give the value that the code of a report's fix has for a setting; None if it says nothing of it."""
    cause = divergence.cause
    if cause is None or slip.stage != divergence.stage or not fnmatch.fnmatch(divergence.torch, slip.place):
        return None
    if not re.search(slip.cause, cause.name):
        return None
    return next((value for code in cause.code if (value := slip.put(code)) is not None), None)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traps.combined",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    every = [names for size in (2, 3) for names in itertools.combinations(SLIPS, size)]
    chosen = [every[i] for i in rng.permutation(len(every))[: arguments.examples]]
    console, outcomes = Console(), []
    running = spread(followed, chosen, arguments.processes)
    for each in track(running, console=Console(stderr=True), total=len(chosen)):
        outcomes.append(each)
        if arguments.json:
            arguments.json.write_text(json.dumps(outcomes, indent=1))
    for size in (2, 3):
        of = [each for each in outcomes if len(each["slips"]) == size]
        if of:
            first, match = (sum(bool(each[what]) for each in of) for what in ("first", "match"))
            console.print(
                f"{size} at once: {len(of)} examples, first and its cause right in {first}, {match} end in match"
            )
    for each in outcomes:
        if not (each["first"] and each["match"]):
            wanting = "first is wrong" if not each["first"] else "no match in the end"
            console.print(f"{' + '.join(each['slips'])}: {wanting}", style="dim")
    return int(not all(each["first"] for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
