"""Takes both sides through the same steps in both precisions, and compares everything that they compute."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment.pairings import Alignment, NotCompared, Pairing, Read, shown
from compare.errors import InputError
from compare.step.observation import Observation, Stream, to_numpy
from compare.step.stage import Stage
from compare.verdict.ratio import Quantity


class Streams(NamedTuple):
    """Start four runs of the same steps, in this order: the first one draws the random numbers."""

    torch32: Callable[[], Stream]
    torch64: Callable[[], Stream]
    jax64: Callable[[], Stream]
    jax32: Callable[[], Stream]


_TOGETHER = (Streams._fields,)

_IN_PAIRS = (("torch64", "jax64"), ("torch64", "torch32"), ("jax64", "jax32"))

_WEIGHED: Mapping[tuple[str, str], Callable[..., None]] = {
    ("torch32", "torch64"): Quantity.add_torch,
    ("jax64", "torch64"): Quantity.add_difference,
    ("jax32", "jax64"): Quantity.add_jax,
}
"""How each pair of runs is compared."""

_ERRORS: Mapping[tuple[str, str], str] = {
    ("torch32", "torch64"): "error_torch",
    ("jax64", "torch64"): "error64",
    ("jax32", "jax64"): "error_jax",
}
"""Where the distance of each pair of runs is kept."""

_OTHER_STEPS = "the two sides run it at different steps"

_AFTER_UPDATE = (Stage.UPDATE, Stage.PARAMETERS, Stage.BUFFERS, Stage.STATE)
"""Stages that the second half of a step shows."""


class Followed(NamedTuple):
    """What following both sides found."""

    pairings: list[Pairing]
    """In order of computation within a step."""
    quantities: list[Quantity]
    """One for each pairing."""
    losses: dict[str, np.ndarray]
    """Of each stream, shape `(steps,)`."""
    not_compared: list[NotCompared]
    still: frozenset[str] = frozenset()
    """Torch's parameters whose gradient is exactly zero at every step, whether or not it is compared."""
    at_other_steps: tuple[str, ...] = ()
    """The modules that the two sides run at different steps, by torch's paths."""

    def quantity(self, pairing: Pairing) -> Quantity:
        """Return what was weighed of a pairing."""
        return next(q for each, q in zip(self.pairings, self.quantities, strict=True) if each is pairing)

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return max((len(quantity.error64) for quantity in self.quantities), default=0)


SoFar = Callable[[], Followed | None]

Align = Callable[[int, Observation, Observation], Alignment]


class _Following:
    """The runs in progress. Each step is compared at once, and only distances are kept."""

    def __init__(self, align: Align) -> None:
        self.align = align
        self.pairs: dict[int, list[tuple[Pairing, Quantity]]] = {}
        """For each half of a step, once it was seen."""
        self.not_compared: list[NotCompared] = []
        self.losses: dict[str, list[float | None]] = {name: [] for name in Streams._fields}
        self.learning: dict[str, bool] = {}
        """Of each gradient of torch's, whether it was anything but zero so far."""

    def found(self) -> Followed | None:
        """Return the result of the steps that all runs have taken; None before the first."""
        steps = min(map(len, self.losses.values()))
        if not steps:
            return None
        losses = {name: np.array([x for x in seen[:steps] if x is not None]) for name, seen in self.losses.items()}
        still = frozenset(name for name, moves in self.learning.items() if not moves)
        # A step may update a critic before it runs the actor.
        in_order = sorted((pair for half in (0, 1) for pair in self.pairs[half]), key=lambda pair: pair[0].rank)

        def never(pairing: Pairing, quantity: Quantity) -> bool:
            """Tell whether the two sides run it at different steps, so that it was never compared."""
            return pairing.stage == Stage.FORWARD and not pairing.decides and len(quantity.missing) >= steps

        pairings, quantities = zip(*(pair for pair in in_order if not never(*pair)), strict=True)
        left = [pair[0] for pair in in_order if never(*pair)]
        not_compared = [*self.not_compared, *(NotCompared("torch", pairing.torch, _OTHER_STEPS) for pairing in left)]
        modules = tuple(sorted({pairing.ports[0].path for pairing in left if pairing.ports}))
        return Followed(list(pairings), _cut(quantities, steps), losses, not_compared, still, modules)

    def step(self, number: int, running: Mapping[str, Stream]) -> None:
        """Take some of the runs a step further, half by half."""
        losses: dict[str, float | None] = {}
        for half in (0, 1):
            seen: dict[str, Observation] = {}
            left = [names for names in _WEIGHED if {*names} <= running.keys()]
            for name, stream in running.items():
                seen[name] = next(stream)
                if half == 0:
                    loss = seen[name].loss
                    losses[name] = None if loss is None else float(to_numpy(loss))
                    if name == "torch64":
                        for parameter, each in seen[name].gradients.items():
                            self.learning[parameter] = self.learning.get(parameter, False) or bool(to_numpy(each).any())
                if half not in self.pairs and {"torch64", "jax64"} <= seen.keys():
                    self._pair(half, seen["torch64"], seen["jax64"])
                # As soon as both runs of a pair have taken this half, they are compared, and tensors that no later
                # pair needs are freed.
                for names in [names for names in left if half in self.pairs and {*names} <= seen.keys()]:
                    self._weigh(half, names, seen)
                    left.remove(names)
                    for each in {*names}.difference(*left):
                        del seen[each]
        # Only now, after both halves: `found` counts the steps by their losses, and must not see half a step.
        for name, value in losses.items():
            self.losses[name][number:] = [value]

    def _pair(self, half: int, torch64: Observation, jax64: Observation) -> None:
        pairings, not_compared = self.align(half, torch64, jax64)
        self.pairs[half] = [
            (
                each,
                Quantity(
                    each.stage,
                    each.torch,
                    each.jax,
                    each.decides,
                    subjects=(each.subjects(0), each.subjects(1)),
                    rounds_alone=not each.after_update,
                ),
            )
            for each in pairings
        ]
        self.not_compared += not_compared

    def _weigh(self, half: int, names: tuple[str, str], seen: Mapping[str, Observation]) -> None:
        for pairing, quantity in self.pairs[half]:
            arrays = [shown(reader(pairing, name), seen[name]) for name in names]
            differs = sum(array is None for array in arrays) == 1
            if differs and names == ("jax64", "torch64"):
                if pairing.stage == Stage.GRADIENT:
                    # Accumulated in torch's loop, a gradient reaches the optimizer at every second step; behind
                    # optax.MultiSteps at each. What the optimizers make of them decides.
                    quantity.decides = False
                # It is none that one side runs both branches and chooses, where the other runs one of them.
                differs = pairing.stage != Stage.FORWARD or pairing.decides
            if any(array is None for array in arrays):
                quantity.add_absent(_ERRORS[names], differs=differs)
                continue
            if pairing.operands and "torch64" in names:
                arrays.append(pairing.operands(seen["torch64"]))
            _WEIGHED[names](quantity, *arrays)

    def finite(self, step: int) -> bool:
        """Return whether all losses so far are finite; raise InputError where one is not on both sides at once."""
        known = {name: seen[step] for name, seen in self.losses.items() if len(seen) > step}
        finite = {name: loss is None or np.isfinite(loss) for name, loss in known.items()}
        for dtype in ("float64", "float32"):
            if not any(finite.get(side + dtype[-2:], True) for side in ("torch", "jax")):
                raise InputError(
                    f"the loss is not finite at step {step}, in {dtype} on both sides: "
                    "the steps from there on would prove nothing. Lower the learning rate, or take fewer steps"
                )
        return all(finite.values())


def reader(pairing: Pairing, run: str) -> Read:
    """What reads a pairing's tensor from what a run shows: "torch32", "torch", "jax64" and so on."""
    return pairing.torch_array if run.startswith("torch") else pairing.jax_array


def follow(
    streams: Streams,
    align: Align,
    steps: int,
    progress: Callable[[str, int, int, SoFar], None] = lambda _doing, _done, _steps, _so_far: None,
    *,
    in_pairs: bool = False,
) -> Followed:
    """Take all runs through `steps` steps, and compare each step at once.

    Args:
        streams: The four runs.
        align: Pairs the first step of the torch side and of the JAX side, in float64, half by half: it takes the half,
            0 or 1, and what each side shows in it.
        steps: How many. There are fewer where a loss stops being finite on one side.
        progress: Called before every step, with what is done, the number of steps that were taken and that of all, and
            with what gives all that the steps before it found.
        in_pairs: Whether only the two runs that are compared exist at a time; the float64 runs are then taken twice.

    Raises:
        InputError: Where the loss overflows on both sides.

    """
    following = _Following(align)
    groups = _IN_PAIRS if in_pairs else _TOGETHER
    for number, group in enumerate(groups):
        running = {name: getattr(streams, name)() for name in group}
        for step in range(steps):
            of = f"step {step + 1} of {steps}" + (f", in {group[0]} and {group[1]}" if in_pairs else "")
            progress(of, number * steps + step, len(groups) * steps, following.found)
            following.step(step, running)
            if not following.finite(step):
                steps = step + 1
                break
    found = following.found()
    assert found is not None
    return found


def _cut(quantities: Iterable[Quantity], steps: int) -> list[Quantity]:
    """Copy what was weighed in the first steps: another step, or its noise, may be half done."""
    per_step = ("error_torch", "error_jax", "cancellation")
    measured = ("noise", "tables", "between32", "spread32")
    return _linked(
        [
            dataclasses.replace(
                quantity,
                error64=quantity.decisive64[:steps],
                **{name: getattr(quantity, name)[:steps] for name in per_step},
                **{name: getattr(quantity, name) if len(getattr(quantity, name)) == steps else [] for name in measured},
            )
            for quantity in quantities
        ]
    )


def _linked(quantities: list[Quantity]) -> list[Quantity]:
    # A parameter inherits the lost digits of its updates: see `Quantity.ratio`.
    updates = {quantity.torch: quantity for quantity in quantities if quantity.stage == Stage.UPDATE}
    for quantity in quantities:
        if quantity.stage == Stage.PARAMETERS:
            quantity.update = updates.get(quantity.torch)
    return quantities


def weigh_noise(followed: Followed, moved: Sequence[Stream], side: str) -> None:
    """Measure what float64 rounding does to one side, by runs that are moved by some, each in its own way.

    Where a gradient is zero in exact arithmetic, as that of a bias that feeds BatchNorm, it is nothing but rounding,
    and Adam makes whole steps of it, in float64 as in float32. Rounding does not shrink there, and these runs say how
    large it is: as far as any two of them come apart.

    Args:
        followed: What following both sides has found, to which this is added.
        moved: The runs.
        side: Which one's they are, "torch" or "jax".

    """
    _weigh_moved(followed, moved, side, "noise", *(["torch_noise"] if side == "torch" else []))


def weigh_torch32(followed: Followed, moved: Sequence[Stream]) -> None:
    """Measure what float32 rounding does to the torch side: the arguments are those of `weigh_noise`.

    In one order of summation, a sum of signs that cancels is exactly zero, and in another it is a residue. Adam makes a
    whole step of the residue, and that step is far larger in float32 than in float64.
    """
    _weigh_moved(followed, moved, "torch", "torch_noise")


def weigh_tables(followed: Followed, moved: Sequence[Stream], side: str) -> None:
    """Measure what the float32 rounding of one side's tables does: the arguments are those of `weigh_noise`."""
    _weigh_moved(followed, moved, side, "tables")


def _weigh_moved(followed: Followed, moved: Sequence[Stream], side: str, *measures: str) -> None:
    """Compare runs of one side that are each moved in its own way; `measures` are the fields of what is measured."""

    def add(quantity: Quantity, step: int, one: np.ndarray, other: np.ndarray) -> None:
        for measure in measures:
            quantity.add_moved(getattr(quantity, measure), step, one, other)

    _weigh_pairs(followed, {f"{side} {number}": run for number, run in enumerate(moved)}, add)


def weigh_float32(followed: Followed, torch32: Stream, jax32: Stream) -> None:
    """Compare both sides in float32, for places where one float64 run is another program."""

    def add(quantity: Quantity, step: int, torch: np.ndarray, jax: np.ndarray) -> None:
        del step
        quantity.add_between32(jax, torch)

    _weigh_pairs(followed, {"torch": torch32, "jax": jax32}, add)


def weigh_spread32(followed: Followed, moved: Sequence[Stream], lowest: float) -> None:
    """Measure what the rounding of float32, or of a lower precision in it, does to the JAX side's float32 program.

    Args:
        followed: What following both sides has found, to which this is added.
        moved: Float32 runs of the JAX side, each moved in its own way.
        lowest: The machine epsilon by which they were moved.

    """
    for quantity in followed.quantities:
        quantity.lowest = lowest
    _weigh_pairs(followed, {f"jax {number}": run for number, run in enumerate(moved)}, Quantity.add_spread32)


def _weigh_pairs(
    followed: Followed, runs: Mapping[str, Stream], add: Callable[[Quantity, int, np.ndarray, np.ndarray], None]
) -> None:
    """Take runs through all steps that were followed, and compare each pair of them."""
    pairs = list(zip(followed.pairings, followed.quantities, strict=True))
    for number, seen in enumerate(itertools.islice(zip(*runs.values(), strict=False), 2 * followed.steps)):
        for pairing, quantity in pairs:
            # A run shows each step in two halves: the even observations are the first halves. The second ones show the
            # stages of `_AFTER_UPDATE`.
            if (pairing.stage in _AFTER_UPDATE) == number % 2:
                computed = [shown(reader(pairing, run), one) for run, one in zip(runs, seen, strict=True)]
                for one, other in itertools.combinations([array for array in computed if array is not None], 2):
                    add(quantity, number // 2, one, other)
                # Where no run computes the quantity, a distance of 0 keeps one entry for each step. Otherwise the
                # entries of later steps would move to earlier places in the list.
                if all(array is None for array in computed):
                    add(quantity, number // 2, np.zeros(1), np.zeros(1))
