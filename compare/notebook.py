"""The notebook's five comparisons: `compare.notebook.run("adam")`.

Both sides get the same data and weights and go through the same steps together, each in float32 and in float64.
After each step everything that the two computed is weighed: loss, gradients, updates, weights and optimizer state.
"""

import dataclasses
import importlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from compare import causes, reference
from compare.device import on, resolve, taking_turns
from compare.problem import InputError, Problem, draw
from compare.report import Divergence, Report, Run
from compare.sides import JaxSide, NumPySide, Observation, Program, Side, TorchSide, altered
from compare.verdict import FACTOR, Quantity

VARIANTS = ("numpy", "manual", "autograd", "module", "adam")
"""One for each cell of the notebook."""


class Pair(NamedTuple):
    """A weight on both sides."""

    torch: str
    jax: str
    transposed: bool
    """Whether a matrix of one side is the transpose of the other's."""
    initial: Callable[[Problem], Any]
    """What it starts from, oriented as on the torch side."""


_BY_HAND = [
    Pair("w1", "w1", True, lambda problem: problem.w1),
    Pair("w2", "w2", True, lambda problem: problem.w2),
]
_MODEL = [
    Pair("0.weight", "layers.0.kernel", True, lambda problem: problem.w1.T),
    Pair("0.bias", "layers.0.bias", False, lambda problem: problem.b1),
    Pair("2.weight", "layers.2.kernel", True, lambda problem: problem.w2.T),
    Pair("2.bias", "layers.2.bias", False, lambda problem: problem.b2),
]
_PAIRS = {"numpy": _BY_HAND, "manual": _BY_HAND, "autograd": _BY_HAND, "module": _MODEL, "adam": _MODEL}

_ADAM = {"{}.exp_avg": "0.mu.{}", "{}.exp_avg_sq": "0.nu.{}", "{}.step": "0.count"}
"""For each tensor that `torch.optim.Adam` keeps for a weight, its partner in `optax.adam`'s state."""


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
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Compare one variant of the notebook with its port.

    Args:
        variant: One of `VARIANTS`.
        steps: How many, at least 1.
        seed: Of the data and the weights.
        problem: Data and weights to use in place of those that `seed` gives.
        learning_rate: Of both sides, in place of the notebook's.
        device: "auto" (a GPU where both frameworks see one), "cpu" or "cuda".
        torch: A program in place of `torchnet`'s; `altered(torchnet.adam, optimizer=...)` makes one.
        jax: A program in place of `jaxnet`'s.
        progress: Called after every step.

    Returns:
        The report. Its times are of one float32 training run a side, without compilation.

    Raises:
        InputError: For an unknown variant or device, a bad number of steps, seed or learning rate, a problem
            without the biases that the variant has (or with biases that it has not), and a loss that
            overflows on both sides.

    """
    if variant not in VARIANTS:
        raise InputError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps must be a positive whole number, not {steps!r}")
    if learning_rate is not None and not (np.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be a positive number, not {learning_rate!r}")
    biases = _PAIRS[variant] is _MODEL
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

    with on(device), taking_turns():
        quantities, losses32, losses64 = follow(*sides, problem, steps, _PAIRS[variant], _ADAM, progress)
        trained = [side.train(problem, steps) for side in sides]
        runs = [
            Run(side.name, losses, every64, seconds)
            for side, (losses, seconds), every64 in zip(sides, trained, losses64, strict=True)
        ]
        divergence = _first(quantities)
        if divergence and third not in sides:
            opinion = _opinion(sides, third, problem, divergence, _PAIRS[variant])
            divergence = dataclasses.replace(divergence, opinion=opinion)
        divergence = divergence or _trained_otherwise(runs, losses32, quantities[0])
        notes = []
        if variant == "adam" and jax is None:
            notes = causes.bias_correction(problem, expected.learning_rate)
    return Report(variant, runs[0], runs[1], quantities, divergence, notes, _settings(steps, seed, device))


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


def follow(
    torch: Side,
    jax: Side,
    problem: Problem,
    steps: int,
    pairs: list[Pair],
    slots: dict[str, str],
    progress: Callable[[], None] = lambda: None,
) -> tuple[list[Quantity], list[np.ndarray], list[np.ndarray]]:
    """Take both sides through `steps` steps in both precisions, and weigh each.

    Returns:
        The quantities in order of computation, and each side's losses, of shape `(steps,)`, in float32 and in
        float64. All are shorter where a loss stops being finite on one side.

    Raises:
        InputError: Where the loss overflows on both sides, or a weight or an optimizer state has no partner.

    """
    quantities: dict[tuple[str, str], Quantity] = {}

    def weigh(
        stage: str, name: str, partner: str, values: list[np.ndarray], operands: np.ndarray | None = None
    ) -> None:
        quantities.setdefault((stage, name), Quantity(stage, name, partner)).add(values, operands)

    losses: list[list[np.ndarray]] = [[], [], [], []]
    streams = [side.observe(problem, dtype) for side in (torch, jax) for dtype in _DTYPES]
    streams[2:] = map(_ahead, streams[2:])
    weights = {pair: [pair.initial(problem).astype(dtype) for dtype in 2 * _DTYPES] for pair in pairs}
    state: list[Pair] = []
    for step in range(steps):
        seen = [next(stream) for stream in streams]
        loss = [np.asarray(observation.loss) for observation in seen]
        state = state or _partners(seen, pairs, slots)
        weigh("loss", "loss", "loss", loss)
        for pair in pairs:
            weigh("gradient", pair.torch, pair.jax, _aligned(pair, [o.gradients for o in seen]))
        for pair in state:
            weigh("update", pair.torch, pair.jax, _aligned(pair, [o.optimizer for o in seen]))
        before, weights = weights, {pair: _aligned(pair, [o.weights for o in seen]) for pair in pairs}
        for pair in pairs:
            updates = [after - earlier for after, earlier in zip(weights[pair], before[pair], strict=True)]
            weigh("update", pair.torch, pair.jax, updates, operands=weights[pair][1])
        for pair in pairs:
            weigh("parameters", pair.torch, pair.jax, weights[pair])
        for every, value in zip(losses, loss, strict=True):
            every.append(value)
        progress()
        if not _finite(step, loss):
            break
    arrays = [np.array(every) for every in losses]
    return list(quantities.values()), arrays[0::2], arrays[1::2]


_DTYPES = ("float32", "float64")


def _ahead(stream: Iterator[Observation]) -> Iterator[Observation]:
    """Start each step before the one before it is weighed: JAX computes it in the meantime."""
    coming = next(stream)
    while True:
        seen, coming = coming, next(stream)
        yield seen


def _partners(seen: list[Observation], pairs: list[Pair], slots: dict[str, str]) -> list[Pair]:
    """Pair the optimizers' states; check that nothing on either side is without a partner."""
    torch, jax = seen[0], seen[2]
    state = [
        Pair(ours.format(pair.torch), theirs.format(pair.jax), pair.transposed, pair.initial)
        for ours, theirs in (slots.items() if torch.optimizer or jax.optimizer else ())
        for pair in pairs
    ]
    for field, partners in (("gradients", pairs), ("weights", pairs), ("optimizer", state)):
        for side, observation, named in (("torch", torch, "torch"), ("jax", jax, "jax")):
            known, found = {getattr(pair, named) for pair in partners}, set(getattr(observation, field))
            if known != found:
                raise InputError(
                    f"{field} of the {side} side: "
                    + "; ".join(
                        f"{', '.join(sorted(names))} {what}"
                        for names, what in ((found - known, "without a partner"), (known - found, "missing"))
                        if names
                    )
                )
    return state


def _aligned(pair: Pair, arrays: list[dict[str, Any]]) -> list[np.ndarray]:
    """Pick a pair out of what both sides show in both precisions, all oriented as on the torch side."""
    torch = [np.asarray(array[pair.torch]) for array in arrays[:2]]
    jax = [np.asarray(array[pair.jax]) for array in arrays[2:]]
    return torch + [array.T if pair.transposed else array for array in jax]


def _finite(step: int, losses: list[np.ndarray]) -> bool:
    """Tell whether all losses are finite; raise InputError where one is not on both sides at once."""
    torch32, torch64, jax32, jax64 = (bool(np.isfinite(loss)) for loss in losses)
    for dtype, torch, jax in (("float64", torch64, jax64), ("float32", torch32, jax32)):
        if not torch and not jax:
            raise InputError(
                f"the loss is not finite at step {step}, in {dtype} on both sides: "
                "the steps from there on would prove nothing. Lower the learning rate, or take fewer steps"
            )
    return torch32 and torch64 and jax32 and jax64


def _first(quantities: list[Quantity]) -> Divergence | None:
    """The first divergence, in order of computation."""
    mismatched = ((int(np.argmax(wrong)), q) for q in quantities if (wrong := q.ratio > FACTOR).any())
    step, first = min(mismatched, key=lambda found: found[0], default=(0, None))
    if first is None:
        return None
    return Divergence(step, first.stage, first.torch, first.jax, first.error64[step], first.error_torch[step])


def _trained_otherwise(runs: list[Run], stepped: list[np.ndarray], loss: Quantity) -> Divergence | None:
    """Where a side's training run is not the steps that were compared: longer, shorter, or with other losses."""
    for run, losses, errors in zip(runs, stepped, (loss.error_torch, loss.error_jax), strict=True):
        step, error = min(len(run.losses32), len(losses)), np.inf
        what = f"has {len(run.losses32)} losses, where {len(losses)} steps were compared"
        if len(run.losses32) == len(losses):
            apart = Quantity("loss", "loss", "loss", error_torch=errors, cancellation=loss.cancellation)
            difference = np.abs(run.losses32.astype(np.float64) - losses) / np.abs(losses)
            wrong = difference > FACTOR * apart.rounding
            if not wrong.any():
                continue
            step = int(np.argmax(wrong))
            error, what = float(difference[step]), "differs from its own steps one by one: it is not deterministic"
        opinion = f"the {run.side} side's training run {what}"
        return Divergence(step, "loss", "loss", "loss", error, errors[min(step, len(errors) - 1)], opinion=opinion)
    return None


def _opinion(
    sides: tuple[Side, Side], third: NumPySide, problem: Problem, divergence: Divergence, pairs: list[Pair]
) -> str:
    """Ask the reference which side is wrong."""
    agrees = []
    for torch, jax, partners in (
        (sides[0], third, [pair._replace(jax=pair.torch, transposed=False) for pair in pairs]),
        (third, sides[1], pairs),
    ):
        same_slots = {slot: slot for slot in _ADAM} if jax is third else _ADAM
        quantities, _, _ = follow(torch, jax, problem, divergence.step + 1, partners, same_slots)
        agrees.append(_first(quantities) is None)
    if agrees == [True, False]:
        return f"the NumPy reference agrees with {sides[0].name}: look for the bug on the {sides[1].name} side"
    if agrees == [False, True]:
        return f"the NumPy reference agrees with {sides[1].name}: look for the bug on the {sides[0].name} side"
    return "the NumPy reference agrees with neither side"


def _settings(steps: int, seed: int, device: str) -> dict[str, Any]:
    packages = ("torch", "jax", "flax", "optax", "numpy")
    return {
        "steps": steps,
        "seed": seed,
        "device": device,
        "float32_matmul_precision": "highest",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }
