"""The notebook's five comparisons: `compare.notebook.run("adam")`.

Both sides get the same data and weights and go through the same steps together, each in float32 and in float64. After
each step everything that the two sides computed is compared: loss, gradients, updates, weights and optimizer state.
"""

import dataclasses
import importlib
from functools import partial
from typing import Any

import numpy as np

from compare.alignment.pairings import Alignment, Pairing
from compare.alignment.training import align_training
from compare.device import on, resolve, taking_turns
from compare.errors import InputError
from compare.notebook import bias_correction as causes
from compare.notebook import reference
from compare.notebook.problem import Problem, draw
from compare.notebook.programs import JaxSide, NumPySide, Program, Side, TorchSide, altered, with_updates
from compare.report.findings import Run, settings
from compare.report.progress import Progress, Show, ignore
from compare.report.report import Report
from compare.step.observation import Observation, Stream, halves, to_numpy
from compare.step.stage import Stage
from compare.verdict.divergence import Divergence
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Align, SoFar, Streams, follow
from compare.verdict.ratio import FACTOR, Quantity
from compare.weights.links import Link
from compare.weights.units import View

VARIANTS = ("numpy", "manual", "autograd", "module", "adam")
"""One for each cell of the notebook."""

_TRANSPOSED = View(axes=(1, 0))

_BY_HAND = [Link("w1", "w1", jax_view=_TRANSPOSED), Link("w2", "w2", jax_view=_TRANSPOSED)]

_MODEL = [
    Link("0.weight", "layers/0/kernel", jax_view=_TRANSPOSED),
    Link("0.bias", "layers/0/bias"),
    Link("2.weight", "layers/2/kernel", jax_view=_TRANSPOSED),
    Link("2.bias", "layers/2/bias"),
]

_LINKS = {"numpy": _BY_HAND, "manual": _BY_HAND, "autograd": _BY_HAND, "module": _MODEL, "adam": _MODEL}

_NAMES = {"0.weight": "w1", "0.bias": "b1", "2.weight": "w2", "2.bias": "b2", "w1": "w1", "w2": "w2"}
"""What the problem calls each weight of the torch side; `torch.nn` has them transposed."""


def run(
    variant: str,
    *,
    steps: int = 100,
    seed: int = 0,
    problem: Problem | None = None,
    learning_rate: float | None = None,
    device: str = "auto",
    torch: Program | None = None,
    jax: Program | None = None,
    progress: Show = ignore,
) -> Report:
    """Compare one variant of the notebook with its port.

    Args:
        variant: One of `VARIANTS`.
        steps: The number of steps, at least 1.
        seed: The seed of the data and the weights.
        problem: Data and weights to use instead of those that `seed` gives.
        learning_rate: The learning rate of both sides, instead of the notebook's.
        device: "auto" (a GPU if both frameworks see one), "cpu" or "cuda".
        torch: A program to use instead of `torchnet`'s; `altered(torchnet.adam, optimizer=...)` makes one.
        jax: A program to use instead of `jaxnet`'s.
        progress: Called with a `compare.Progress` before every step; `print` shows it.

    Returns:
        The report. Its times are those of one float32 training run of each side, without compilation.

    Raises:
        InputError: For an unknown variant or device, a bad number of steps, seed or learning rate, a problem without
            the biases that the variant has (or with biases that it does not have), and a loss that overflows on both
            sides.

    """
    # Most of its lines describe its arguments: users read them here.
    _refuse(variant, steps, learning_rate)
    biases = _LINKS[variant] is _MODEL
    problem = problem or draw(seed, biases=biases)
    if torch is not None and variant == "numpy":
        raise InputError("variant 'numpy' has NumPy in torch's place: it takes no torch program")
    if biases != (problem.b1 is not None):
        raise InputError(f"variant {variant!r} has {'' if biases else 'no '}biases, unlike the problem given")
    device = resolve(device)
    cell = "manual" if variant == "numpy" else variant
    expected = reference.VARIANTS[cell]
    expected = expected._replace(learning_rate=learning_rate or expected.learning_rate)
    third = NumPySide(expected, like_torch=biases)
    sides: tuple[Side, Side] = (
        third if variant == "numpy" else TorchSide(torch or _program("torchnet", cell, learning_rate), device),
        JaxSide(jax or _program("jaxnet", cell, learning_rate)),
    )

    def stepping(doing: str, done: int, of: int, _: SoFar) -> None:
        progress(Progress(f"{variant}: {doing}", done, of))

    with on(device), taking_turns():
        followed = follow(_streams(*sides, problem, _LINKS[variant]), _aligned(_LINKS[variant]), steps, stepping)
        losses = followed.losses
        timing = partial(_timed, variant, problem, steps, progress)
        runs = [timing(side, losses[f"{key}64"]) for side, key in zip(sides, ("torch", "jax"), strict=True)]
        first = first_divergence(followed)
        divergence = first and first.divergence
        if divergence and third not in sides:
            opinion = _opinion(sides, third, problem, divergence, _LINKS[variant])
            divergence = dataclasses.replace(divergence, opinion=opinion)
        stepped = [losses["torch32"], losses["jax32"]]
        divergence = divergence or _trained_otherwise(runs, stepped, followed.quantities[0])
        notes = []
        if variant == "adam" and jax is None:
            notes = causes.bias_correction(problem, expected.learning_rate)
    found = settings(steps, device) | {"seed": seed}
    return Report(variant, runs[0], runs[1], followed.quantities, divergence, notes, found)


def _refuse(variant: str, steps: int, learning_rate: float | None) -> None:
    if variant not in VARIANTS:
        raise InputError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps must be a positive whole number, not {steps!r}")
    if learning_rate is not None and not (np.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be a positive number, not {learning_rate!r}")


def _timed(variant: str, problem: Problem, steps: int, progress: Show, side: Side, losses64: np.ndarray) -> Run:
    progress(Progress(f"{variant}: timing {side.name}", steps, steps))
    trained, seconds = side.train(problem, steps)
    return Run(side.name, trained, losses64, seconds)


def _streams(torch: Side, jax: Side, problem: Problem, links: list[Link]) -> Streams:
    """Start both sides in both precisions, from the problem's weights."""
    ours = {link.torch: getattr(problem, _NAMES[link.torch]) for link in links}
    ours = {name: array.T if "." in name else array for name, array in ours.items()}
    theirs = {link.jax: link.jax_view(ours[link.torch]) if jax.name == "jax" else ours[link.torch] for link in links}

    def stream(side: Side, weights: dict[str, np.ndarray], dtype: str) -> Stream:
        weights = {name: array.astype(dtype) for name, array in weights.items()}
        for seen in with_updates(side.observe(problem, dtype), weights):
            yield from halves(seen)

    return Streams(
        partial(stream, torch, ours, "float32"),
        partial(stream, torch, ours, "float64"),
        partial(stream, jax, theirs, "float64"),
        partial(stream, jax, theirs, "float32"),
    )


def _program(package: str, cell: str, learning_rate: float | None) -> Program:
    program: Any = importlib.import_module(f"{package}.{cell}")
    if learning_rate is None:
        return program
    if cell != "adam":
        return altered(program, learning_rate=learning_rate)
    if package == "torchnet":
        import torch

        return altered(program, optimizer=lambda params: torch.optim.Adam(params, learning_rate))
    import optax

    return altered(program, optimizer=optax.adam(learning_rate))


def _aligned(links: list[Link]) -> Align:
    def align(_half: int, torch: Observation, jax: Observation) -> Alignment:
        pairings, not_compared = align_training(links, torch, jax, {})
        # The NumPy reference names its optimizer's state like torch, and the JAX program does not.
        shared = [_state(name) for name in torch.optimizer if name in jax.optimizer]
        return Alignment([*pairings, *shared], not_compared)

    return align


def _state(name: str) -> Pairing:
    def read(observation: Observation) -> np.ndarray:
        return to_numpy(observation.optimizer[name])

    return Pairing(Stage.UPDATE, name, name, read, read)


def _trained_otherwise(runs: list[Run], stepped: list[np.ndarray], loss: Quantity) -> Divergence | None:
    """Where a side's training run is not the steps that were compared: longer, shorter, or with other losses."""
    for run, losses, errors in zip(runs, stepped, (loss.error_torch, loss.error_jax), strict=True):
        step, error = min(len(run.losses32), len(losses)), np.inf
        what = f"has {len(run.losses32)} losses, where {len(losses)} steps were compared"
        if len(run.losses32) == len(losses):
            apart = Quantity(Stage.LOSS, "loss", "loss", error_torch=errors, cancellation=loss.cancellation)
            difference = np.abs(run.losses32.astype(np.float64) - losses) / np.abs(losses)
            wrong = difference > FACTOR * apart.rounding
            if not wrong.any():
                continue
            step = int(np.argmax(wrong))
            error, what = float(difference[step]), "differs from its own steps one by one: it is not deterministic"
        opinion = f"the {run.side} side's training run {what}"
        fair = errors[min(step, len(errors) - 1)]
        return Divergence(step, Stage.LOSS, "loss", "loss", error, fair, fair, opinion=opinion)
    return None


def _opinion(
    sides: tuple[Side, Side], third: NumPySide, problem: Problem, divergence: Divergence, links: list[Link]
) -> str:
    """Ask the reference which side is wrong."""
    agrees = []
    for torch, jax, partners in (
        (sides[0], third, [Link(link.torch, link.torch) for link in links]),
        (third, sides[1], links),
    ):
        followed = follow(_streams(torch, jax, problem, partners), _aligned(partners), divergence.step + 1)
        agrees.append(first_divergence(followed) is None)
    if agrees == [True, False]:
        return f"the NumPy reference agrees with {sides[0].name}: look for the bug on the {sides[1].name} side"
    if agrees == [False, True]:
        return f"the NumPy reference agrees with {sides[1].name}: look for the bug on the {sides[0].name} side"
    return "the NumPy reference agrees with neither side"
