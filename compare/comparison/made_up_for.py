"""Finds inputs and outputs of a port's modules that differ from torch's, and that its step makes up for later.

Torch's model may give the log_softmax of its logits, and the port's gives the logits, of which its loss takes the
log_softmax. Where nothing else differs, the two programs are the same. Where something does, such as another term of
the loss, the module is no finding either.

It is told by values that the port's step has right all the same. Torch's step is taken with the port's value in the
place of the module's own. If one of these values is then another one, torch makes something else of the port's value
than the port does: the rest of the port is made for it. Where torch cannot go on from the port's value at all, it is
told by a value that changes where the module's own is moved a little.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.suggested_edits import Placed, Reach, Steps, placed
from compare.comparison.weighing import apart, computed
from compare.diagnosis.held import holding
from compare.diagnosis.steps.edit import Edit
from compare.errors import InputError, InternalError
from compare.step.observation import Observation, Port, to_numpy
from compare.step.stage import COMPUTED
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR

FAILURES = (RuntimeError, InputError, InternalError)
"""What is raised where torch cannot take a step with another value."""

NUDGE = 1e-2
"""By how much torch's own value is moved, relative to itself."""

CHANGED = 1e-6
"""By how much a value must change, relative to itself, to count as another one."""


def without_made_up_for(followed: Followed, steps: Steps) -> Followed:
    """Leave out the first differences as long as each is of a module and a later part makes up for it."""
    known = set[tuple[str, str, str]]()
    while first := first_divergence(followed):
        pairing = first.pairing
        # A module whose output is made up for at one call is right at its other calls. What uses them may be wrong.
        module = pairing.ports and (pairing.ports[0].path, pairing.ports[0].kind, pairing.ports[0].leaf)
        if module not in known and not _is_made_up_for(followed, steps, pairing, first.divergence.step):
            break
        known |= {module} if module else set()
        pairs = zip(followed.pairings, followed.quantities, strict=True)
        left = [(each, quantity) for each, quantity in pairs if each is not pairing]
        followed = followed._replace(pairings=[each for each, _ in left], quantities=[each for _, each in left])
    return followed


def next_place(followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach) -> Placed | None:
    """Find the first place that differs with edits in force, but for those that the port makes up for."""
    left_out: set[int] = set()
    while place := placed(followed, steps, edits, reach, left_out):
        # Without edits, these have been left out already.
        if not edits or not _is_made_up_for(followed, steps, place.found.pairing, reach.step, edits):
            return place
        left_out.add(place.number)
    return None


def _is_made_up_for(followed: Followed, steps: Steps, pairing: Pairing, step: int, edits: Sequence[Edit] = ()) -> bool:
    """Tell whether a difference of a module at a step is one that the port makes up for, with edits in force."""
    if pairing.ports is None or pairing.decides:
        return False
    _, torch, jax = next(itertools.islice(steps.both(edits), step, None))
    value, read = computed(pairing.jax_array, jax), computed(pairing.torch_array, torch)
    if value is None or read is None:
        return False
    own = to_numpy(torch.forward[pairing.ports[0]])  # which is read in another shape, or with its axes in another order
    same = read.shape == value.shape and np.array_equal(np.ravel(read), np.ravel(own))

    def given(value: np.ndarray) -> Observation:
        assert pairing.ports is not None
        place = Edit("", "", "", during=_Given(pairing.ports[0], value, step).during)
        return next(itertools.islice(steps.both([*edits, place]), step, None))[1]

    for other in (*([value.reshape(own.shape)] if same else []), own * (1 - NUDGE)):
        try:
            moved = given(other)
        except FAILURES:  # torch cannot go on from it, as from logits where probabilities are meant
            continue
        return any(_witnesses(followed, pairing, step, (torch, jax), moved))
    return False


def _witnesses(
    followed: Followed, pairing: Pairing, step: int, seen: tuple[Observation, Observation], moved: Observation
) -> Iterator[bool]:
    """Tell of each later value on which both sides agree at a step whether torch has another one once it is moved."""
    torch, jax = seen
    for each in itertools.dropwhile(lambda each: each is not pairing, followed.pairings):
        if each is pairing or each.stage not in COMPUTED:
            continue
        arrays = (each.torch_array, torch), (each.jax_array, jax), (each.torch_array, moved)
        ours, theirs, after = (computed(read, observation) for read, observation in arrays)
        if ours is None or theirs is None or after is None or not ours.shape == theirs.shape == after.shape:
            continue
        limit = FACTOR * float(followed.quantity(each).expected[step])
        yield apart(each, torch, ours, theirs) <= limit and apart(each, torch, ours, after) > max(CHANGED, limit)


@dataclasses.dataclass(frozen=True)
class _Given:
    """Puts a value in the place of what a module takes or gives at one step."""

    port: Port
    value: np.ndarray
    step: int

    @contextlib.contextmanager
    def during(self, run: TorchProgramRun) -> Iterator[None]:
        import torch

        if run.taken != self.step:
            yield
            return
        # A view of an array with channels last would have its strides, with which some kernels of torch's crash.
        value = torch.tensor(np.ascontiguousarray(self.value))
        # All that is differentiated may come from it alone.
        with holding(run.model, {self.port: value.requires_grad_(value.is_floating_point())}):
            yield
