"""Steps of both sides from the same values, at which a hypothesis that was found at one step is tried."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.alignment.pairings import shown
from compare.comparison.from_torch import FromTorch
from compare.comparison.model_runs import ModelRuns
from compare.diagnosis.held_out import HeldOut
from compare.errors import InputError, InternalError, Signal
from compare.jax_side.run import JaxRun
from compare.step.batch import Batch, mapped
from compare.step.draws import Draw
from compare.step.observation import Observation
from compare.torch_side.run import TorchRun
from compare.verdict.first_difference import Found
from compare.weights.links import to_jax


class HeldOutSteps:
    """Steps of a pair to which nothing was fitted. All that differs at one step is tried at the same ones.

    Args:
        runs: Of the pair.
        from_torch: The run of which each part starts from torch's values.
        jax: The run that goes on from its own values.

    """

    def __init__(self, runs: ModelRuns, from_torch: FromTorch, jax: JaxRun) -> None:
        self._runs, self._from_torch, self._jax = runs, from_torch, jax
        self._of: tuple[int, bool] | None = None
        self._more: Iterator[_Taken] = iter(())
        self._taken: list[_Taken] = []

    def of(self, found: Found, *, from_torch: bool) -> Iterator[HeldOut]:
        """Yield the step before a divergence, at which the sides agreed, and then steps with other weights and batches.

        Args:
            found: The divergence.
            from_torch: Whether a run showed it in which each part starts from torch's values. Otherwise what comes
                before is the same on both sides.

        """
        key = found.divergence.step, from_torch
        if key != self._of:  # only those of one step are kept, for each holds a model
            self._of, self._more, self._taken = key, self._take(*key), []
        more, taken, missing = self._more, self._taken, 0
        for number in itertools.count():
            if number == len(taken):
                taken.append(next(more))
            run, batch, draws, seen = taken[number]
            if (target := shown(found.pairing.jax_array, seen)) is not None:
                yield HeldOut(run, batch, draws, target)
            elif (missing := missing + 1) == MISSING:
                return

    def _take(self, step: int, from_torch: bool) -> Iterator["_Taken"]:
        pair, stepper = self._runs.pair, self._runs.stepper
        for run, number, seed in _starts(self._runs, step):
            batch, draws = pair.batches[number % len(pair.batches)], stepper.draws[number]
            if seed:
                batch = other_batch(batch, seed, only=len(pair.batches) == 1)
            arrays = run.arrays()
            try:
                shown = _observed(run, batch, draws) if from_torch or seed == TURNED else Observation()
                if from_torch:
                    self._from_torch.load(arrays)
                    seen = self._from_torch.step(shown, batch, draws)
                else:
                    self._jax.load(to_jax(pair.links, arrays, self._jax.arrays()))
                    seen = self._jax.step(batch, draws)
            except (InputError, InternalError, Signal):
                if seed != TURNED:
                    raise
                continue  # the user's code, or torch, refuses numbers of other signs, such as labels
            # The next step overwrites the memory of the buffers. What follows an update is looked for elsewhere.
            kept = {name: np.array(array) for name, array in seen.buffers.items()}
            seen = seen._replace(buffers=kept, parameters={}, updates={}, optimizer={})
            yield _Taken(run.starting_here(), batch, draws, seen)


class _Taken(NamedTuple):
    run: TorchRun
    batch: Batch
    draws: Sequence[Draw]
    seen: Observation
    """Of the JAX side."""


def _starts(runs: ModelRuns, step: int) -> Iterator[tuple[TorchRun, int, int]]:
    """Start torch before other steps: one that agreed, and each batch in turn with weights that are moved by a seed."""
    if step:
        run = runs.torch_run("float64")
        for _ in itertools.islice(runs.stepper.whole(run), step - 1):
            pass
        yield run, step - 1, 0
    for seed in itertools.count(1):
        run = runs.torch_run("float64")
        run.spread(seed)
        yield run, (step + seed) % len(runs.stepper.draws), seed


MISSING = 12
"""So many steps that do not compute what differs, as one that takes another branch, are the last ones."""

TURNED = 1
"""The seed for which the real numbers of a batch have other signs."""


def other_batch(batch: Batch, seed: int, *, only: bool) -> Batch:
    """Make another batch of one, from some of its examples; the real numbers of the `only` one are moved too.

    Of the first seed, half of the real numbers change their sign: targets that are all far above what the model gives
    are far below it then.
    """
    moved = _moved(batch, seed, turned=seed == TURNED) if only or seed == TURNED else batch
    return _chosen(moved, last=bool(seed % 2))


def _moved(batch: Batch, seed: int, *, turned: bool) -> Batch:
    """Make another batch: real numbers shrink, each by its own factor, or turn; flags, integers and counts stay."""
    generator = np.random.default_rng(seed)

    def moved(array: Any) -> Any:
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or np.isin(array, (0, 1)).all():
            return array
        if turned:
            whole = np.array_equal(array, np.round(array))
            return array if whole else np.asarray(array * generator.choice((-1, 1), array.shape), array.dtype)
        # Towards zero, so that inputs stay in their range: pixels in [0, 1], probabilities, ages.
        return np.asarray(array * generator.uniform(0.8, 1.0, array.shape), array.dtype)

    return Batch(mapped(batch.inputs, moved), mapped(batch.target, moved))


def _chosen(batch: Batch, *, last: bool) -> Batch:
    """Make another batch of some of the examples, each more than once: it has other labels, masks and paddings.

    A count of one batch, such as of the labels that are not ignored, gives a factor that holds for no other batch.
    What is to be ignored is the lowest value as a rule: -100, a padding of 0, False. So the examples are those with
    most of it, or with least. They stay in order, as sorted lengths must.
    """
    arrays: list[np.ndarray] = []
    for part in (batch.target, batch.inputs):
        mapped(part, lambda leaf: arrays.append(leaf) if isinstance(leaf, np.ndarray) and leaf.ndim else None)
    size = len(arrays[0]) if arrays else 0
    if size < _EXAMPLES:
        return batch
    lowest = np.zeros(size)
    for array in arrays:
        if len(array) == size and array.size and (array.dtype.kind in "iub" or np.isin(array, (0, 1)).all()):
            lowest += (array == array.min()).reshape(size, -1).mean(1)
    order = np.argsort(lowest, kind="stable")
    # One of the others stays: what is counted must be there, or a cause that is about it says nothing of the batch.
    half = [order[0], *order[size // 2 + 1 :]] if last else [*order[: (size - 1) // 2], order[-1]]
    rows = np.sort(np.resize(half, size))

    def taken(array: Any) -> Any:
        fits = isinstance(array, np.ndarray) and array.ndim and len(array) == size
        return array[rows] if fits else array

    return Batch(mapped(batch.inputs, taken), mapped(batch.target, taken))


_EXAMPLES = 4
"""With fewer, half of them would be a single number, and its norm would be only rounding error."""


def _observed(run: TorchRun, batch: Batch, draws: Sequence[Draw]) -> Observation:
    """See a step of torch's without its update, and leave the run as it was before."""
    import torch

    before = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
    with run.around(), run.controlled(draws):
        seen = run.without_update().step(batch)
    with torch.no_grad():
        for name, tensor in run.model.state_dict().items():
            tensor.copy_(before[name])
    return seen
