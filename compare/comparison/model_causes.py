"""Finds the cause of each divergence, and describes both layers with their settings if a layer differs."""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import numpy as np

from compare import bugs
from compare.comparison.followers import without_followers
from compare.comparison.from_torch import FromTorch
from compare.comparison.gradients_behind import first_gradient, with_edits
from compare.comparison.lines import lines_of, values_of, with_counts
from compare.comparison.model_independent import Independent
from compare.comparison.model_runs import ModelRuns
from compare.comparison.model_search import ModelSearch
from compare.comparison.trained_alone import updated_alone
from compare.diagnosis.conventions.variants import MODE
from compare.diagnosis.optimizers.explain import Explained, explain_update
from compare.diagnosis.searched import Searched
from compare.diagnosis.steps.again import edit_of, edit_of_loss, wider_edit
from compare.diagnosis.steps.edit import Edit
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.edit import OF_THE_MODEL, Kind
from compare.diagnosis.structure.written import is_same_slip
from compare.jax_side.run import JaxRun
from compare.step.stage import COMPUTED, Stage
from compare.verdict.divergence import AT_EACH_CALL, Divergence, with_search_ended
from compare.verdict.first_difference import Found
from compare.verdict.fix import Code
from compare.verdict.following import Followed


class Causes(NamedTuple):
    """Divergences with what is known of their causes."""

    divergences: list[Divergence]
    """The first in the followed runs, and the independent ones."""
    rounding: bool
    """Whether the optimizers differ only by a learning rate that was rounded to float32."""


def explained(
    runs: ModelRuns,
    followed: Followed,
    first: Found,
    alone: Independent,
    jax: JaxRun,
    from_torch: FromTorch,
    budget: Budget,
) -> Causes:
    """Look for the cause of each divergence: the first in the followed runs, and the independent ones.

    Args:
        runs: Of the pair.
        followed: What following both sides has found.
        first: The first divergence of these.
        alone: The independent ones.
        jax: A run of the JAX side in float64 that is compiled already.
        from_torch: The run that has shown the independent ones.
        budget: What the search for causes of structure may cost.

    """
    return _Explaining(runs, followed, alone, jax, from_torch, budget).causes(first)


class _Explaining:
    """The explanation of all that differs in one comparison of models. The arguments are those of `explained`."""

    def __init__(
        self,
        runs: ModelRuns,
        followed: Followed,
        alone: Independent,
        jax: JaxRun,
        from_torch: FromTorch,
        budget: Budget,
    ) -> None:
        self._runs, self._followed, self._alone, self._jax = runs, followed, alone, jax
        self._from_torch, self._budget = from_torch, budget
        self._search = ModelSearch(runs, jax, from_torch, budget)
        self._partners = {each.ports[0].path: each.ports[1].path for each in from_torch.forward if each.ports}
        self._found: list[Divergence] = []
        self._left: list[Found] = []
        self._slips: list[Code] = []
        self._edits: list[Edit | None] = []
        """The causes of what is computed, as changes of torch's step; None for what has no cause that is such."""
        self._rounding = False

    def causes(self, first: Found) -> Causes:
        """Explain the first divergence, and the independent ones."""
        self._left = [*_first_of_all(first, self._alone)]
        while self._left:
            each = self._left.pop(0)
            if each.follows:
                continue
            if each.divergence.stage == Stage.UPDATE:
                self._add(each, self._with_cause_of_update(each.divergence), Searched())
            else:
                self._explain(each)
        self._found = without_followers(self._found, lambda each: each.cause is None)
        if self._runs.pair.torch.loss is not None:
            self._add_gradients()
        return Causes(with_counts(self._runs.pair, self._found), self._rounding)

    def _with_cause_of_update(self, found: Divergence) -> Divergence:
        evidence, runs = self._alone.evidence, self._runs
        known = bugs.attempt(_doing(found), partial(explain_update, evidence, runs.torch_run)) or Explained()
        if known.cause is None and evidence is not None:
            cause = updated_alone(runs.pair.torch, evidence.parameter_names, found, self._jax.side.name)
            known = dataclasses.replace(known, cause=cause)
        self._rounding = known.rounding
        return dataclasses.replace(found, cause=known.cause, details=known.details)

    def _explain(self, each: Found) -> None:
        found, searched = each.divergence, Searched()
        attempt = bugs.attempt(_doing(found), partial(self._search.with_cause, each, self._left))
        with_cause, searched = attempt or (found, searched)
        # A cause that explains the whole model says more than the order of two of its modules.
        if not each.known or (with_cause.cause and with_cause.cause.name in OF_THE_MODEL):
            found = with_cause
        if found.stage in (*COMPUTED, Stage.GRADIENT):
            self._edits.append(_edit(searched, found.stage) if found.cause and found is with_cause else None)
        self._left = [other for other in self._left if not _follows(other, each, searched)]
        self._add(each, found, searched)

    def _add(self, each: Found, found: Divergence, searched: Searched) -> None:
        """Add a finding, and leave out what is explained with it."""
        codes = found.cause.code if found.cause else ()
        if any(is_same_slip(code, other) for code in codes for other in self._slips):
            return  # a sum that was left out is missing wherever the port goes on with its variable
        self._slips += codes
        if AT_EACH_CALL in searched.details:  # it explains what was found before in the forward pass as well
            self._found = [other for other in self._found if other.stage != Stage.FORWARD]
        self._found.append(self._with_lines(each, found))
        if found.cause and found.cause.name == MODE:  # what the norm keeps follows from its mode
            self._left = [other for other in self._left if not _kept_by(other.divergence, found.torch)]
        if found.cause and (searched.whole or found.cause.name in OF_THE_MODEL):
            # The rest of the forward pass is explained with it.
            self._left = [other for other in self._left if other.divergence.stage != Stage.FORWARD]

    def _with_lines(self, each: Found, found: Divergence) -> Divergence:
        pair, codes = self._runs.pair, found.cause.code if found.cause else ()
        lines, values = lines_of(pair, each.pairing, codes, each.before), values_of(pair, codes, self._partners)
        return dataclasses.replace(found, lines=tuple(lines), values=values)

    def _add_gradients(self) -> None:
        """Look at the gradients behind what has its cause; where they cannot be looked at, say that more may differ."""
        if self._edits and not self._explain_gradients():
            last = max(n for n, each in enumerate(self._found) if each.stage in (*COMPUTED, Stage.GRADIENT))
            self._found[last] = with_search_ended(self._found[last])

    def _explain_gradients(self) -> bool:
        """Explain gradients that differ with the known causes on torch's side, and return whether all are looked at."""
        edits = [each for each in self._edits if each is not None]
        if len(edits) < len(self._edits) or self._alone.made_up_for:
            return False
        seen: set[int] = set()
        for _ in range(SEVERAL):
            runs = with_edits(self._runs, edits)
            behind = first_gradient(runs, self._followed, self._jax, edits)
            if (each := behind.found) is None:
                return behind.complete
            if each.divergence.number in seen:  # its cause holds at the step where it was found, and not at all steps
                return False
            seen.add(each.divergence.number)
            search = ModelSearch(runs, self._jax, self._from_torch, self._budget)
            attempt = bugs.attempt(_doing(each.divergence), partial(search.with_cause, each, ()))
            found, searched = attempt or (each.divergence, Searched())
            # With operations edited, or a number that was fitted, torch's step need not be the port's to the last
            # digit of its gradients.
            if found.cause is None and any(edit.of_operations or edit.free for edit in edits):
                return False
            end = next((n for n, other in enumerate(self._found) if other.stage == Stage.UPDATE), len(self._found))
            self._found.insert(end, self._with_lines(each, found))
            if (edit := _edit(searched, found.stage)) is None:  # a stop is proved by all gradients
                return found.cause is not None and found.cause.name == Kind.STOPPED
            edits.append(edit)
        return False


SEVERAL = 4
"""Gradients behind other differences that are explained in one comparison, at most."""


def _doing(found: Divergence) -> str:
    return f"the search for the cause at {found.torch}"


def _first_of_all(first: Found, alone: Independent) -> list[Found]:
    """Give the first divergence and the independent ones, each once.

    The first divergence was found in free runs. If it is also an independent difference, its target, computed from
    torch's values, is the better one: nothing that came before is in it.
    """
    others = [each for each in alone.found if each.pairing is not first.pairing]
    if same := [each for each in alone.found if each.pairing is first.pairing]:
        alike = first._replace(target=same[0].target, carried=same[0].carried, limit=same[0].limit)
        first = same[0]._replace(follows=False) if same[0].known else alike
    elif first.pairing.stage == Stage.UPDATE:
        others = [each for each in others if each.pairing.stage != Stage.UPDATE]
    return [first, *others]


def _edit(searched: Searched, stage: str) -> Edit | None:
    """Give what a search has found at a stage as a change of torch's step; None if it is none."""
    if stage == Stage.LOSS and searched.cause and searched.multiple is not None:
        return edit_of_loss(searched.cause, searched.multiple)
    wider = wider_edit(searched) if AT_EACH_CALL in searched.details else None
    return wider or edit_of(searched)


def _follows(other: Found, found: Found, searched: Searched) -> bool:
    """Tell whether a difference inside the model is another one's, seen at another place, as before each of two heads.

    Each module is given torch's input: what is computed once for several of them then differs before each.
    """
    ports, one, two = other.pairing.ports, found.divergence, other.divergence
    if ports is None or other.carried is None or one.step != two.step or found.pairing.ports is None:
        return False
    same = found.carried is not None and np.array_equal(found.carried, other.carried)
    return (same and math.isclose(one.error64, two.error64)) or searched.explains([(ports[0], other.carried)])


def _kept_by(found: Divergence, module: str) -> bool:
    """Tell whether it is a buffer of a module."""
    return found.stage == Stage.BUFFERS and found.torch.rpartition(".")[0] == module
