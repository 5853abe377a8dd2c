"""Finds inputs and outputs of a port's modules that differ from torch's, and that its step makes up for later.

Torch's model may give the log_softmax of its logits, and the port's gives the logits, of which its loss takes the
log_softmax. Where nothing else differs, the two programs are the same. Where something does, such as another term of
the loss, the module is no finding either.

It is told by values that the port's step has right all the same. Torch's step is taken with the port's value in the
place of the module's own. If one of these values is then another one, torch makes something else of the port's value
than the port does: the rest of the port is made for it.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.suggested_edits import Steps
from compare.comparison.weighing import apart, computed
from compare.diagnosis.held import holding
from compare.diagnosis.steps.edit import Edit
from compare.errors import InputError, InternalError
from compare.step.observation import Observation, Port
from compare.step.stage import Stage
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR

CHANGED = 1e-6
"""By how much a value must change, relative to itself, to count as another one."""


def without_made_up_for(followed: Followed, steps: Steps) -> Followed:
    """Leave out the first differences as long as each is of a module and a later part makes up for it."""
    while first := first_divergence(followed):
        pairing, step = first.pairing, first.divergence.step
        if pairing.ports is None or pairing.decides:
            break
        _, torch, jax = next(itertools.islice(steps.both([]), step, None))
        value = computed(pairing.jax_array, jax)
        if value is None or not any(_witnesses(followed, steps, pairing, step, value, torch)):
            break
        pairs = zip(followed.pairings, followed.quantities, strict=True)
        left = [(each, quantity) for each, quantity in pairs if each is not pairing]
        followed = followed._replace(pairings=[each for each, _ in left], quantities=[each for _, each in left])
    return followed


def _witnesses(
    followed: Followed, steps: Steps, pairing: Pairing, step: int, value: np.ndarray, torch: Observation
) -> Iterator[bool]:
    """Tell of each later value that agrees at a step whether torch has another one with the port's value in place."""
    assert pairing.ports is not None
    place = Edit("", "", "", during=_Given(pairing.ports[0], value, step).during)
    try:
        _, moved, _ = next(itertools.islice(steps.both([place]), step, None))
    except (RuntimeError, InputError, InternalError):
        # Torch cannot go on from it, as from logits where probabilities are meant, and the port has the right loss.
        pairs = zip(followed.pairings, followed.quantities, strict=True)
        known = [quantity.ratio[step] <= FACTOR for each, quantity in pairs if each.stage in (Stage.LOSS, Stage.SHOWN)]
        yield bool(known) and all(known)
        return
    later = itertools.dropwhile(lambda each: each is not pairing, followed.pairings)
    for each in later:
        if each is pairing or each.stage not in (Stage.FORWARD, Stage.LOSS, Stage.SHOWN):
            continue
        before, after = computed(each.torch_array, torch), computed(each.torch_array, moved)
        quantity = followed.quantity(each)
        if before is not None and after is not None and before.shape == after.shape:
            limit = max(CHANGED, FACTOR * float(quantity.expected[step]))
            yield bool(quantity.ratio[step] <= FACTOR) and apart(each, torch, before, after) > limit


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
        with holding(run.model, {self.port: torch.tensor(np.ascontiguousarray(self.value))}):
            yield
