"""Two and three traps at once in one model: the first is found first, and the printed fixes lead to a match.

    python -m benchmarks.traps.combined [--examples 200] [--seed 0] [--json FILE]

Each example sets two or three settings of a right port wrong. Its reports are followed as a user would: what the fix
of the first divergence names is set as the fix says, and the port is checked again.
"""

import argparse
import fnmatch
import itertools
import json
import re
import sys
import warnings
from collections.abc import Mapping
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

from .state import BatchNorm
from .training import clip_like_torch, clipped
from .trap import Pair

WIDTH, HIDDEN, CLASSES, COUNT = 8, 16, 4, 12
ROUNDS = 6
"""Reports that are followed at most; each mends one setting or more."""


class Slip(NamedTuple):
    """A setting of the port that is wrong, in order of computation."""

    wrong: Any
    right: Any
    stage: str
    place: str
    """Its name on the torch side, in which "*" is anything."""
    cause: str
    """A regular expression, which the name of the cause must contain."""
    fix: str
    """A regular expression for what the fix must contain: with a group, its text is the setting's value."""


SLIPS = {
    "conversion": Slip("transposed", "right", "parameters", "linear2.weight", "converted weight", "copy_weights"),
    "norm1 epsilon": Slip(1e-6, 1e-5, "forward", "norm1", "epsilon", r"nnx\.LayerNorm\(\.\.\..* epsilon=([^,)]+)"),
    "gelu": Slip(True, False, "forward", "between norm1 and linear2", "activation", r"gelu\(x, approximate=(\w+)\)"),
    "norm2 epsilon": Slip(1e-3, 1e-5, "forward", "norm2", "epsilon", r"BatchNorm\(\.\.\..* epsilon=([^,)]+)"),
    "slope": Slip(0.01, 0.2, "forward", "between norm2 and norm3", "slope", r"negative_slope=([^,)]+)"),
    "groups": Slip(2, 4, "forward", "norm3", "groups", r"num_groups=(\d+)"),
    "norm3 epsilon": Slip(1e-4, 1e-5, "forward", "norm3", "epsilon", r"nnx\.GroupNorm\(\.\.\..* epsilon=([^,)]+)"),
    "smoothing": Slip(0.0, 0.1, "loss", "loss", "label smoothing", r"smooth_labels\(labels, alpha=([^,)]+)\)"),
    "reduction": Slip("sum", "mean", "loss", "loss", "reduction", r'reduction="(\w+)"'),
    "clipping": Slip(None, 0.05, "update", "*", "clipping", r"clip_by_global_norm\(([^)]+)\)"),
    "learning_rate": Slip(2e-2, 1e-2, "update", "*", "learning rate", r"\Wlearning_rate=([^,)]+)"),
    "b1": Slip(0.8, 0.9, "update", "*", "first moment", r"\Wb1=([^,)]+)"),
    "b2": Slip(0.99, 0.999, "update", "*", "second moment", r"\Wb2=([^,)]+)"),
    "eps": Slip(1e-6, 1e-8, "update", "*", "epsilon", r"\Weps=([^,)]+)"),
    "weight_decay": Slip(1e-4, 1e-2, "update", "*", "weight decay", r"\Wweight_decay=([^,)]+)"),
    "momentum": Slip(0.99, 0.9, "buffers", "norm2.*", "momentum", r"momentum=([^,)]+)"),
}
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
        self.approximate, self.slope = settings["gelu"], settings["slope"]

    def __call__(self, x: Any) -> Any:
        x = jax.nn.gelu(self.norm1(self.linear1(x)), approximate=self.approximate)
        x = jax.nn.leaky_relu(self.norm2(self.linear2(x)), self.slope)
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
    clip = optax.identity() if settings["clipping"] is None else clip_like_torch(settings["clipping"])
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((COUNT, WIDTH), np.float32), rng.integers(0, CLASSES, COUNT)) for _ in range(2)]
    return Pair(
        compare.Torch(
            model,
            nn.CrossEntropyLoss(label_smoothing=0.1),
            lambda params: clipped(torch.optim.AdamW(params, 1e-2), 0.05),
        ),
        compare.Flax(port, loss, optax.chain(clip, adam)),
        batches,
    )


def followed(names: tuple[str, ...]) -> dict[str, Any]:
    """Set some settings wrong, and follow the reports until they say match, or say nothing that helps."""
    settings = RIGHT | {name: SLIPS[name].wrong for name in names}
    found: dict[str, Any] = {"slips": names, "first": None, "reports": 0, "match": False}
    for _ in range(ROUNDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = compare.check(*pair(settings), steps=3, device="cpu")
        found["reports"] += 1
        left = [name for name in SLIPS if settings[name] != RIGHT[name]]
        if report.ok:
            found["match"] = report.verdict == compare.Verdict.MATCH and not left
            break
        divergence = report.divergence
        assert divergence is not None
        said = {name: value for name in left if (value := _said(SLIPS[name], divergence)) is not None}
        if found["first"] is None:
            expected = SLIPS[left[0]]
            together = [name for name in left if SLIPS[name][2:4] == expected[2:4]]
            placed = divergence.stage == expected.stage and fnmatch.fnmatch(divergence.torch, expected.place)
            found["first"] = placed and set(said) == set(together) and all(said[name] == RIGHT[name] for name in said)
            found["said"] = "" if found["first"] else str(report)
        if not said:
            break
        settings |= said
    return found


def _said(slip: Slip, divergence: compare.Divergence) -> Any:
    """Give the value that a report's fix has for a setting; None if it does not name the setting."""
    cause = divergence.cause
    if cause is None or slip.stage != divergence.stage or not fnmatch.fnmatch(divergence.torch, slip.place):
        return None
    match = re.search(slip.fix, cause.fix)
    if match is None or not re.search(slip.cause, cause.name):
        return None
    if not match.groups():
        return slip.right
    text = match[1]
    if isinstance(slip.right, bool):
        return text == "True"
    return text if isinstance(slip.right, str) else type(slip.right)(float(text))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traps.combined",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    every = [names for size in (2, 3) for names in itertools.combinations(SLIPS, size)]
    chosen = [every[i] for i in rng.permutation(len(every))[: arguments.examples]]
    console, outcomes = Console(), []
    for number, names in enumerate(track(chosen, console=Console(stderr=True))):
        outcomes.append(followed(names))
        if number % 10 == 9:
            jax.clear_caches()
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
