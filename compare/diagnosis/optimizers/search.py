"""Searches for hypotheses that explain every step: as few as possible, with as few fitted numbers as possible."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compare.diagnosis.optimizers.accumulation import accumulations
from compare.diagnosis.optimizers.evidence import Evidence
from compare.diagnosis.optimizers.fit import Fit, Fitter, is_short
from compare.diagnosis.optimizers.gradients import GRADIENT_SCALE, other_gradients
from compare.diagnosis.optimizers.hypothesis import Hypothesis
from compare.diagnosis.optimizers.rates import fitted_rates, rates_of, short_rates
from compare.diagnosis.optimizers.settings import conventions, flags, numbers
from compare.diagnosis.optimizers.sums import halved_sums

SEVERAL = 3
"""Things at once, at most: with more of them, anything could be explained."""


@dataclass(frozen=True)
class Search:
    """What was found: one explanation, or several between which these steps cannot decide."""

    found: Fit | None = None
    undecided: tuple[Fit, ...] = ()


class Place(NamedTuple):
    """One result of one step."""

    step: int
    result: int
    is_state: bool


def hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """List everything that may be otherwise but the learning rate."""
    return [
        *other_gradients(evidence),
        *numbers(evidence),
        *flags(evidence),
        *conventions(evidence),
        *halved_sums(evidence),
        *accumulations(evidence),
    ]


class Searcher:
    """Tries hypotheses alone and together.

    Where an optimizer keeps state, the search has two parts. The state after a step tells what the gradient and the
    moments' settings must have been, whatever the learning rate is. What is left is looked for in the update.
    """

    def __init__(self, fitter: Fitter) -> None:
        self.fitter, self.evidence = fitter, fitter.evidence
        self._looked_at = self.evidence.differing[:3]
        every = hypotheses(self.evidence)
        self.order = {id(each): number for number, each in enumerate(every)}
        self._moved = {id(each): self._moves(each) for each in every}
        self.state_differs = any(r.differs and r.is_state for step in self.evidence.steps for r in step.results)
        self.of_state = [each for each in every if any(place.is_state for place in self._moved[id(each)])]
        moving = {id(each) for each in self.of_state}
        self.of_update = [each for each in every if id(each) not in moving]
        self._states: dict[int, list[Fit]] = {}

    def explained(self, size: int) -> Search:
        """Look for what explains everything, with that many hypotheses at once."""
        found: list[Fit] = []
        for of_state in range(size + 1):
            for state in self.state_fits(of_state):
                found += self._updates(state, size - of_state)
        # Occam's razor, in this order: fewer hypotheses (the caller asks for one, two, three), fewer fitted
        # numbers, shorter numbers. If several are left, nothing is claimed: the report lists them.
        found = [each for each in found if self._confirmed(each)]
        if not found:
            return Search()
        least = min(map(self._free, found))
        best = [each for each in found if self._free(each) == least]
        best = [each for each in best if not self._said_by_another(each, best)] or best
        if len(best) > 1:  # people write short numbers; a false explanation has no reason to give one
            best = [each for each in best if self._is_short(each)] or best
        return Search(best[0]) if len(best) == 1 else Search(None, tuple(best))

    def state_fits(self, size: int) -> list[Fit]:
        """Return what explains the state at every step, with that many hypotheses at once."""
        if size not in self._states:
            self._states[size] = list(self._state_fits(size))
        return self._states[size]

    def _state_fits(self, size: int) -> Iterator[Fit]:
        if not self.state_differs:
            yield from [Fit(())] if not size else []
            return
        # The moments after a step depend on the gradient and on the betas, and not on the learning rate,
        # epsilon or decoupled weight decay. So half of the hypotheses are decided by the state alone, before
        # the others are tried: 10 + 10 trials in place of 10 · 10 for two causes at once.
        if not size or any(self.state_fits(fewer) for fewer in range(1, size)):
            return
        for chosen in _combinations(self.of_state, size):
            if self._covers(chosen, state_only=True) and (fit := self.fitter.fit(chosen, state_only=True)):
                yield fit

    def _updates(self, state: Fit, size: int) -> Iterator[Fit]:
        """Yield what explains the updates in addition to the state; the learning rate counts as one thing."""
        for chosen in _combinations(self.of_update, size, state.hypotheses):
            if self._covers((*state.hypotheses, *chosen)) and (fit := self.fitter.fit(chosen, fixed=state)):
                yield fit
        for chosen in _combinations(self.of_update, size - 1, state.hypotheses) if size else ():
            if not self._covers((*state.hypotheses, *chosen), rated=True):
                continue
            fit = self.fitter.fit(chosen, fixed=state, rated=True)
            if fit and (rated := fitted_rates(self.fitter, fit)) and rates_of(self.evidence, rated).differ:
                yield rated

    def _moves(self, hypothesis: Hypothesis) -> set[Place]:
        """Return which results of the first steps that differ a hypothesis changes at all."""
        # At its start a hypothesis may be torch's own number, which changes nothing: it is moved by a tenth
        # to see its effect.
        fit = Fit((hypothesis,), (tuple(0.9 * number or 1e-3 for number in hypothesis.start),))
        moved: set[Place] = set()
        for step in self._looked_at:
            before, after = self.fitter.made(step, Fit(())), self.fitter.made(step, fit)
            if before is not None and after is not None:
                pairs = zip(before, after, step.results, strict=True)
                moved |= {Place(step.number, n, r.is_state) for n, (a, b, r) in enumerate(pairs) if (a != b).any()}
        return moved

    def _covers(self, chosen: Sequence[Hypothesis], *, state_only: bool = False, rated: bool = False) -> bool:
        """Return whether each result that differs is changed by one of some hypotheses, or by the learning rate."""
        moved: set[Place] = set().union(*(self._moved[id(each)] for each in chosen))
        for step in self._looked_at:
            for number, result in enumerate(step.results):
                place = Place(step.number, number, result.is_state)
                if result.differs and place not in moved and (result.is_state or not (state_only or rated)):
                    return False
        return True

    def _free(self, fit: Fit) -> int:
        return fit.free + rates_of(self.evidence, fit).free

    def _confirmed(self, fit: Fit) -> bool:
        """Return whether a fit explains more numbers than it was fitted to, by as many again and one."""
        explained = sum(r.jax.size for step in self.evidence.steps for r in step.results if r.differs)
        # k numbers can be fitted to any k values. Only what they explain beyond that is evidence, and at
        # least as much of it.
        return explained >= 2 * self._free(fit) + 1

    def _is_short(self, fit: Fit) -> bool:
        rates = rates_of(self.evidence, fit)
        return all(is_short(number) for number in fit.flat) and (not rates.differ or short_rates(rates))

    def _said_by_another(self, fit: Fit, others: Sequence[Fit]) -> bool:
        """Whether another fit is the same program: for plain SGD, a scaled gradient is a scaled learning rate."""
        names = {each.name for each in fit.hypotheses}
        if GRADIENT_SCALE in names:
            return any(GRADIENT_SCALE not in {each.name for each in other.hypotheses} for other in others)
        return False


def _combinations(
    every: Sequence[Hypothesis], size: int, beside: Sequence[Hypothesis] = ()
) -> Iterator[tuple[Hypothesis, ...]]:
    """Yield combinations in which no two things are done in the same place."""
    for chosen in itertools.combinations(every, size):
        together = (*beside, *chosen)
        places = [each.place for each in together if each.place]
        if len(places) == len(set(places)) and (len(together) == 1 or not any(each.alone for each in together)):
            yield chosen
