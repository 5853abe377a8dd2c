"""Which edits of torch's step are tried: what its loop and modules allow, and what the first difference suggests."""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.readings import cut_to_size, nearer_as_accumulated, nearer_reading
from compare.comparison.weighing import Residues, apart, computed
from compare.diagnosis.optimizers.explain import Explained
from compare.diagnosis.searched import Searched
from compare.diagnosis.steps import averages, early, followers, kept, loops, modules, scales, written
from compare.diagnosis.steps.copies import following
from compare.diagnosis.steps.edit import Difference, Edit, StateTensor
from compare.diagnosis.steps.library_calls import EDITS
from compare.numerics.distance import distance
from compare.step.observation import Observation, Port
from compare.step.stage import Stage
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.divergence import Divergence, Line
from compare.verdict.first_difference import Found, found_at
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR
from compare.weights.links import Parts


class Placed(NamedTuple):
    """A place at which two sides begin to differ, with edits in force."""

    found: Found
    agreeing: frozenset[Port]
    """Torch's inputs and outputs of modules before it, at which they agree."""
    number: int
    """Of the pairing, in order of computation."""
    shown: Sequence[tuple[Pairing, float]] = ()
    """What both steps show, each with the distance that rounding explains."""
    gradients: Sequence[tuple[Pairing, float]] = ()
    """Those of the step, likewise."""
    by_number: bool = False
    """Whether it is at a later call of a module that the two sides call at this step a different number of times: their
    calls are paired by number, and need not be the same."""


class Known(NamedTuple):
    """What a search has found, and the edit that makes it at all steps, where one does."""

    searched: Searched = Searched()
    edit: Edit | None = None
    wider: Edit | None = None
    """The same at all calls of its lines: what a module that runs twice does otherwise is one thing to mend."""


class Steps(Protocol):
    """Takes both sides through the steps of a comparison, in float64."""

    def update_explained(self, followed: Followed, pairing: Pairing, edits: Sequence[Edit]) -> Explained:
        """Find out why an optimizer updates otherwise, from all steps, each started from torch's values."""

    def both(self, edits: Sequence[Edit]) -> Iterator[tuple[TorchProgramRun, Observation, Observation]]:
        """Take the steps of both sides, torch's with edits; the run is given as it is after the step."""

    def from_torch(self, edits: Sequence[Edit]) -> Iterator[tuple[TorchProgramRun, Observation, Observation]]:
        """Take the steps of both sides, torch's with edits, each of the JAX side's from torch's weights before it."""

    def searched(self, place: Placed, edits: Sequence[Edit]) -> Known:
        """Look for the cause of what is computed at a place as in a model, with edits in force already."""

    def independent(self, followed: Followed, edits: Sequence[Edit], known: Sequence[Divergence]) -> list[Divergence]:
        """Give the differences that do not follow from those that are `known`, with edits in force."""

    def lines(self, pairing: Pairing, step: int, before: Pairing | None) -> list[Line]:
        """Give the lines of the JAX side that compute what differs at a step."""

    def updates_taken(self, followed: Followed, pairing: Pairing, edits: Sequence[Edit]) -> Edit | None:
        """Give the edit with which the optimizer of a pairing updates as the port's does, if there can be one."""

    def sizes(self) -> Collection[int]:
        """Give the sizes of the batches' first axes."""

    def start(self) -> Mapping[str, np.ndarray]:
        """Give the torch side's floating-point tensors from before the first step, by name."""

    def trained(self) -> Collection[str]:
        """Give the names of those that an optimizer of torch's trains."""

    def numbers(self) -> Collection[float]:
        """Give the numbers that are written into the JAX side's program."""


class Reach(NamedTuple):
    """How far two sides agree: the first step and quantity at which they do not."""

    step: int
    place: int


Taken = Iterator[tuple[TorchProgramRun, Observation, Observation]]
"""Steps of both sides; the run is torch's as it is after the step."""


def read(followed: Followed, edits: Sequence[Edit], taken: Taken) -> Taken:
    """Read the gradients of steps: with edits in force, as they are nearer to the JAX side's."""
    for run, torch, jax in taken:
        yield run, nearer_reading(followed.pairings, torch, jax) if edits else torch, jax


def is_accumulated(followed: Followed, steps: Steps, edits: Sequence[Edit], pairing: Pairing) -> bool:
    """Tell whether the JAX side's optimizer is given gradients as torch's backward pass leaves them.

    Not every step clips: one that does shows it.
    """
    taken = zip(range(followed.steps), steps.from_torch(edits), strict=False)
    model = pairing.torch.partition(".")[0]
    return any(model in nearer_as_accumulated(followed.pairings, torch, jax) for _, (_, torch, jax) in taken)


def suggested(followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach) -> Iterator[Edit]:
    """Give the edits to be tried at a place, with others in force already."""
    yield from EDITS
    loop = loops.Loop()
    run, torch, _ = next(steps.both([*edits, Edit("", "", "", during=lambda run: loop.watching(run))]))
    yield from loops.edits(run, loop, steps.sizes())
    yield from modules.edits(run)
    yield from _of_place(followed, steps, edits, reach)
    if followed.pairings[reach.place].after_update:
        yield from written.edits(run, steps.numbers(), torch.gradients, loop)


def of_early_weights(followed: Followed, steps: Steps, edits: Sequence[Edit]) -> Iterator[Edit]:
    """Give the edits with which tensors that the step uses follow the weights before the update, or after it."""
    if any(True for _ in following(steps.start(), steps.trained())):
        _, torch_history, jax_history = _histories(followed, steps, edits)
        yield from early.edits(torch_history, jax_history, steps.trained())


def _of_place(followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach) -> Iterator[Edit]:
    """Give the edits that what both sides have at this place suggests."""
    pairing = followed.pairings[reach.place]
    if pairing.stage == Stage.GRADIENT:
        _, torch, jax = next(itertools.islice(read(followed, edits, steps.both(edits)), reach.step, None))
        yield from _of_gradient(followed, reach, torch, jax, steps.sizes())
    elif pairing.stage in (Stage.STATE, Stage.BUFFERS):
        run, torch_history, jax_history = _histories(followed, steps, edits)
        before, after = torch_history[reach.step : reach.step + 2]
        tensors = {
            each.torch: StateTensor(before[name], after[name], jax_history[reach.step + 1][name], near)
            for each, near in _kept(followed, reach.step)
            if (name := each.torch) in before
        }
        if pairing.torch not in tensors:
            return
        this = tensors[pairing.torch]
        found = Difference(reach.step, pairing.stage, pairing.torch, this.torch, this.jax, this.near, tensors)
        known = [
            *averages.edits(found, torch_history, jax_history, run.trained),
            *followers.edits(found.name, torch_history, jax_history, run.trained),
            *early.edits(torch_history, jax_history, run.trained, found.name),
        ]
        yield from known
        if known:
            return
        # Torch leaves a tensor as it is where its own step does so, and not one with edits in force.
        run, as_written, _ = _histories(followed, steps, ())
        alone = [*kept.changed_alone(found, run, as_written, jax_history)]
        yield from alone or kept.edits(found, jax_history, kept.momenta(run))


def _of_gradient(
    followed: Followed, reach: Reach, torch: Observation, jax: Observation, sizes: Collection[int]
) -> Iterator[Edit]:
    def difference(place: int) -> Difference | None:
        pairing, quantity = followed.pairings[place], followed.quantities[place]
        ours, theirs = computed(pairing.torch_array, torch), computed(pairing.jax_array, jax)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return None
        near = FACTOR * float(quantity.expected[reach.step])
        return Difference(reach.step, pairing.stage, pairing.torch, ours, theirs, near)

    places = (place for place, pairing in enumerate(followed.pairings) if pairing.stage == Stage.GRADIENT)
    each = [one for place in places if (one := difference(place)) is not None]
    wrong = [one for one in each if distance(one.jax, one.torch) > one.near]
    equal = [one for one in each if distance(one.jax, one.torch) <= one.near and one.torch.any()]
    if (found := difference(reach.place)) is not None:
        yield from scales.edits(found, wrong, equal, sizes)


def _expected(followed: Followed, step: int, *stages: Stage) -> list[tuple[Pairing, float]]:
    pairs = zip(followed.pairings, followed.quantities, strict=True)
    return [(pair, float(each.expected[step])) for pair, each in pairs if pair.stage in stages]


def _kept(followed: Followed, step: int) -> Iterator[tuple[Pairing, float]]:
    """List the pairings of the state's tensors, each with the distance that rounding explains at a step."""
    for pairing, quantity in zip(followed.pairings, followed.quantities, strict=True):
        if pairing.stage in (Stage.PARAMETERS, Stage.BUFFERS, Stage.STATE):
            yield pairing, FACTOR * float(quantity.expected[step])


def _histories(
    followed: Followed, steps: Steps, edits: Sequence[Edit]
) -> tuple[TorchProgramRun, averages.History, averages.History]:
    """Give the state's tensors of both sides before the first step and after each, by torch's names.

    All are in the layout that is compared. Those that have more than what is compared are left out.
    """
    pairings, start = [pairing for pairing, _ in _kept(followed, 0)], steps.start()
    first, parts = {}, Parts(start)
    for pairing in pairings:
        if pairing.torch in parts:
            array = computed(pairing.torch_array, Observation(parameters=start, buffers=start, state=start))
            if array is not None and array.size == parts[pairing.torch].size:
                first[pairing.torch] = np.array(array)
    torch_history, jax_history = [first], [first]
    for _, taken in zip(range(followed.steps), steps.both(edits), strict=False):
        run, torch, jax = taken
        for history, seen, side in ((torch_history, torch, "torch_array"), (jax_history, jax, "jax_array")):
            arrays = {each.torch: computed(getattr(each, side), seen) for each in pairings if each.torch in first}
            history.append({name: np.array(array) for name, array in arrays.items() if array is not None})
    return run, torch_history, jax_history


def _by_number(pairing: Pairing, torch: Observation, jax: Observation) -> bool:
    if pairing.ports is None or not pairing.ports[0].call:
        return False
    seen = zip((torch, jax), pairing.ports, strict=True)
    most = {max((each.call for each in side.forward if each.path == port.path), default=-1) for side, port in seen}
    return len(most) > 1


def with_hidden(steps: Steps, edits: Sequence[Edit], edit: Edit) -> Edit:
    """Hide the parameters that no gradient reaches any more with an edit, with others in force already.

    Torch then leaves them as they are, and the port's optimizer may shrink them: that follows from the edit.
    """
    (_, before, _), (_, after, _) = next(steps.both(edits)), next(steps.both([*edits, edit]))
    reached = {name for name, gradient in before.gradients.items() if gradient.any()}
    left = {name for name, gradient in after.gradients.items() if gradient.any()}
    return dataclasses.replace(edit, hides=edit.hides | (reached - left))


def hidden_by(edits: Sequence[Edit]) -> frozenset[str]:
    """Name the parameters that edits leave out of what is compared."""
    return frozenset[str]().union(*(edit.hides for edit in edits))


def is_hidden(pairing: Pairing, hidden: frozenset[str]) -> bool:
    """Whether it is an update of these parameters, what comes of it, or what their optimizer remembers of them."""
    if pairing.stage not in (Stage.UPDATE, Stage.PARAMETERS):
        return False
    names = (pairing.link.torch,) if pairing.link else pairing.torch.split(" + ")
    plain = [name.partition("[")[0] for name in names]
    return any(name in hidden or name.rpartition(".")[0] in hidden for name in plain)


def placed(
    followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach, left_out: Collection[int] = ()
) -> Placed | None:
    """Find the first place that differs at the step of a reach, inside modules too, with edits in force.

    Places whose numbers are `left_out` are none.
    """
    step, agreeing, before, residues = reach.step, set[Port](), None, Residues()
    _, torch, jax = next(itertools.islice(read(followed, edits, steps.both(edits)), step, None))
    pairs, hidden = zip(followed.pairings, followed.quantities, strict=True), hidden_by(edits)
    for number, (pairing, quantity) in enumerate(itertools.islice(pairs, reach.place + 1)):
        ours, theirs = computed(pairing.torch_array, torch), computed(pairing.jax_array, jax)
        if ours is None or theirs is None or pairing.accepted or is_hidden(pairing, hidden) or number in left_out:
            continue
        if ours.shape != theirs.shape:  # the edits in force may have made them blocks of each other
            cut = cut_to_size(pairing, torch, jax)
            ours, theirs = cut.torch_array(torch), cut.jax_array(jax)
        far = apart(pairing, torch, ours, theirs)
        residue = bool(edits) and residues.has(pairing, quantity, step, ours, theirs)
        if far > FACTOR * float(quantity.expected[step]) and not residue:
            # The distances of the other steps are those without the edits, and are not read.
            errors = [*quantity.error64[:step], far, *quantity.error64[step + 1 :]]
            found = found_at(step, number, pairing, dataclasses.replace(quantity, error64=errors), before)
            shown = _expected(followed, step, Stage.LOSS, Stage.SHOWN)
            gradients = _expected(followed, step, Stage.GRADIENT)
            return Placed(found, frozenset(agreeing), number, shown, gradients, _by_number(pairing, torch, jax))
        before = pairing
        if pairing.ports is not None:
            agreeing.add(pairing.ports[0])
    return None


def placed_alone(followed: Followed, found: Found, agreeing: frozenset[Port]) -> Placed:
    """Describe a difference that steps show in which the JAX side has torch's values wherever it agrees."""
    gradients = _expected(followed, found.divergence.step, Stage.GRADIENT)
    return Placed(found, agreeing, found.divergence.number, gradients=gradients)
