"""Looks for the change of one or two of torch's calls that explains what the JAX side gives."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from compare.diagnosis.changes import (
    Changed,
    are_short,
    are_terms,
    combined,
    either,
    in_turns,
    in_words,
    is_one_expression,
    leaves_nothing,
    shortened,
    together,
)
from compare.diagnosis.conventions.reductions import MEAN_OR_SUM
from compare.diagnosis.conventions.settings import CONSTANT
from compare.diagnosis.counterfactuals import Counterfactual, left_out, told_of
from compare.diagnosis.experiment import Experiment, HeldOutExperiment, rerun_at, seen_with
from compare.diagnosis.held_out import EXACTLY, EXPLAINED, MARGIN, STEPS, Evidence, Fit, HeldOut, equations
from compare.diagnosis.place import Place
from compare.diagnosis.related import equations_of, farthest, related_cause, unlike
from compare.diagnosis.rewriting import Call, Rerun
from compare.diagnosis.structure.edit import WHOLE
from compare.diagnosis.structure.step import is_whole
from compare.diagnosis.whole_loss import is_term
from compare.numerics.distance import EPSILON32, ULPS, distance
from compare.numerics.fitting import fitted
from compare.numerics.relations import Kind, is_simple, relation
from compare.step.observation import Port, to_numpy
from compare.step.stage import Stage
from compare.verdict.divergence import Cause, Detail, DetailKind, Part
from compare.verdict.first_difference import Found
from compare.verdict.fix import Code, of_a_term, written

if TYPE_CHECKING:
    import torch

RUNS = 200
"""Of the torch side's step, at most, for changes without a free number, and again for all others."""

CLEAR = 1e-4
"""How far below a difference the rounding of tables must be for a cause to be seen beside it."""


class Search:
    """The search for the cause of one divergence in what a model or a loss computes."""

    def __init__(
        self,
        found: Found,
        rerun: Rerun,
        place: Place,
        held_out: Iterable[HeldOut],
        tables: float = 0.0,
        *,
        beside_tables: bool = False,
    ) -> None:
        assert found.target is not None
        self.tables, self.beside_tables = tables, beside_tables
        """How far tables in float32 may move what the model gives, on either side, and whether they do: a number is
        then known to a few digits."""
        self.found, self.target, self.place = found, found.target, place
        self.step = Experiment(found, rerun, found.target)
        self.limit = found.limit
        self.ours = self.step.observe({})
        self.evidence = Evidence(self._elsewhere(held_out), found.limit)
        self.runs = 0
        self.tried: list[tuple[float, list[Counterfactual], float | None]] = []
        self.confirmed: list[Changed] = []
        """What was changed in the cause that was found."""
        self.multiple: float | None = None
        """By what torch's value is to be multiplied, if a factor was found."""

    @cached_property
    def candidates(self) -> list[Counterfactual]:
        """What may be otherwise."""
        every = self.step.candidates()
        if self.ours is not None and is_whole(self.ours) and is_whole(self.target):
            return [each for each in every if each.call.name in WHOLE]
        return every

    @property
    def differs(self) -> bool:
        """Whether torch, run again, differs from the JAX side at the place."""
        return self.ours is not None and distance(self.ours, self.target) > self.limit

    @property
    def agrees(self) -> bool:
        """Whether it agrees with the JAX side there; what is not finite agrees with nothing."""
        return self.ours is not None and distance(self.ours, self.target) <= self.limit

    def is_far_beyond(self, limit: float) -> bool:
        """Tell whether a wider limit, which allows for tables in float32, is still far below the difference."""
        return self.limit < limit and self.ours is not None and limit < CLEAR * distance(self.ours, self.target)

    def exact(self) -> Cause | None:
        """Find a change without a free number that brings torch to what the JAX side gives, here and elsewhere."""
        cause = self._first(self._alone(lambda each: each.of is None))
        self.runs = 0
        return cause

    def settings(self) -> Cause | None:
        """Find another value of a function's setting that does."""
        return self._first(self._alone(lambda each: each.of is not None and each.name != CONSTANT))

    def factor(self) -> Cause | None:
        """Find a simple factor, such as 1/2, of the whole array: it belongs to no single operation."""
        return self._of_factor if self._of_factor and not self._changes_sign else None

    def sign(self) -> Cause | None:
        """Find a negative one. It may be one operation: an absolute value changes the sign of negative numbers."""
        return self._of_factor

    @cached_property
    def _of_factor(self) -> Cause | None:
        cause = None if self.ours is None or self.ours.shape != self.target.shape else self._related(self.ours)
        return cause if cause and cause.name.endswith(Kind.FACTOR) and cause.code else None

    @property
    def _changes_sign(self) -> bool:
        return self.ours is not None and bool((self.ours * self.target < 0).any())

    def constants(self) -> Cause | None:
        """Find another constant that a sum, a product or a power has.

        Several may explain the same, as 2 * x / 8 does with 4 or with 4 * x: a base and a divisor of its exponent do.
        What a user writes is a short number, so that those which need a long one are left out beside it.
        """
        # Any number to the power of 0 is 1: that fits whatever does not depend on it.
        every = self._alone(lambda each: each.name == CONSTANT)
        meant = (each for each in every if not any(group[0].call.name == "pow" and not n for group, n in each[0]))
        found = _of_all_calls(list(self._fitting(meant)))
        short = [each for each in found if are_short(each[0])]
        # One expression may have a long number, such as 1 / sqrt(96). That two are wrong by the same one is a
        # coincidence: two factors of 0.7071 are one of 0.5.
        alone = [each for each in found if all(is_one_expression(*changed) for changed in each[0])]
        causes = [self._cause(changed, apart) for changed, apart in short or alone]
        self.confirmed = (short or alone)[0][0] if causes else []
        return either(causes) if causes else None

    @property
    def is_short(self) -> bool:
        """Whether the numbers of the cause are such as a user writes."""
        return are_short(self.confirmed)

    def two(self) -> Cause | None:
        """Find two changes that do."""
        return self._first(self._two())

    def _first(self, fitting: Iterator[tuple[list[Changed], float]]) -> Cause | None:
        for changed, apart in self._fitting(fitting):
            self.confirmed = changed
            return self._cause(changed, apart)
        return None

    def _fitting(self, fitting: Iterator[tuple[list[Changed], float]]) -> Iterator[tuple[list[Changed], float]]:
        """Of changes that fit, give those that what they were not fitted to confirms."""
        assert self.ours is not None
        for changed, apart in fitting:
            free = sum(value is not None for _, value in changed)
            count = equations(self.ours, self.target, self.limit)
            left = EXPLAINED if are_short(changed) else EXACTLY
            fit = Fit(distance(self.ours, self.target), apart * self.limit, count, free, left)
            if self.step.determines(changed) and self.evidence.confirms(changed, fit):
                yield self._with_effect(changed), apart

    def _with_effect(self, changed: list[Changed]) -> list[Changed]:
        """Leave out the expressions whose change does nothing at the place: that they are otherwise is not proved."""
        for position, (whole, value) in enumerate(changed):
            for site in dict.fromkeys(each.call.site for each in whole):
                group = changed[position][0]
                fewer = [each for each in group if each.call.site != site]
                if not fewer or len(fewer) == len(group):
                    continue
                without = [*changed[:position], (fewer, value), *changed[position + 1 :]]
                given, other = (self.step.observe(combined(each)) for each in (changed, without))
                if given is not None and other is not None and distance(given, other) <= self.limit:
                    changed = without
        return changed

    def explains(self, outputs: Sequence[tuple[Port, np.ndarray]], *, everywhere: bool = False) -> bool:
        """Tell whether with the cause, or with it at every call of its lines, torch's whole model gives these values.

        They are those that the JAX side's own model gives.
        """
        seen = seen_with(self.step.rerun, self.confirmed, everywhere=True) if everywhere else self._with_cause
        if seen is None or any(port not in seen for port, _ in outputs):
            return False
        ours = [(np.array(to_numpy(seen[port]), np.float64), theirs) for port, theirs in outputs]
        limit = max(MARGIN * self.limit, self.tables)
        return all(a.shape == b.shape and distance(a, b) <= limit for a, b in ours)

    @cached_property
    def _with_cause(self) -> "Mapping[Port, torch.Tensor] | None":
        return seen_with(self.step.rerun, self.confirmed)

    def related(self) -> tuple[Cause | None, tuple[Detail, ...]]:
        """Say how the JAX side's result comes from torch's, or else where they differ most."""
        ours, theirs = self.ours, self.target
        if ours is None:
            return None, ()
        if cause := unlike(ours, theirs, gradient=self.found.divergence.stage == Stage.GRADIENT):
            fewer = self.is_data and ours.shape[1:] == theirs.shape[1:]
            return dataclasses.replace(cause, fix=_BATCHES) if fewer else cause, ()
        if cause := self._related(ours):
            return cause, ()
        return None, (Detail(DetailKind.VALUES, farthest(ours, theirs)),)

    def _related(self, ours: np.ndarray) -> Cause | None:
        # With `momentum=None` torch takes 1/n of the n-th batch. A factor that explains one step is then true of that
        # step alone.
        path = self.found.pairing.torch.rpartition(".")[0]
        if self.found.divergence.stage == Stage.BUFFERS and self.step.rerun.averages_all(path):
            return None  # each step has another factor
        # Batches are float32, and so is what the user's code has done to them before: float32's rounding is allowed
        # there.
        limit = max(self.limit, ULPS * EPSILON32) if self.is_data else self.limit
        how = relation(ours, self.target, limit)
        if how is None:
            return None
        left = EXACTLY if how.kind is Kind.FACTOR and not is_simple(how.number) else EXPLAINED
        fit = Fit(distance(ours, self.target), limit, equations_of(how, ours), how.free, left)
        if not self.evidence.confirms(how, fit):
            return None
        self.multiple = how.number if how.kind is Kind.FACTOR else None
        to_jax = self.found.pairing.to_jax
        as_jax = to_jax is None or np.array_equal(to_jax(self.target), self.target)
        ports = self.found.pairing.ports
        cause = related_cause(how, self.found.divergence.torch, ports[0] if ports else None, as_jax=as_jax)
        if self.is_data or self.found.divergence.stage == Stage.GRADIENT:  # a gradient is not mended where it is
            return dataclasses.replace(cause, fix=_BATCHES if self.is_data else "", code=())
        return cause

    @property
    def is_data(self) -> bool:
        """Whether what differs is what the model is given."""
        ports = self.found.pairing.ports
        return ports is not None and ports[0][:3] == ("", 0, "input")

    def _elsewhere(self, held_out: Iterable[HeldOut]) -> Iterator[Callable[[object], float | None]]:
        """Make held-out steps, leaving out what is this step once more, as data that no weight changes."""
        for other in itertools.islice(held_out, STEPS):
            step = HeldOutExperiment(
                self.found, rerun_at(self.found, other.run, other.batch, other.draws), other.target
            )
            ours = step.observe({})
            if ours is not None and self.ours is not None and distance(ours, self.ours) > self.limit:
                yield step.measure  # type: ignore[misc]

    def _alone(self, meant: Callable[[Counterfactual], bool]) -> Iterator[tuple[list[Changed], float]]:
        """Try each of these changes alone, and give those that leave only rounding."""
        candidates = [each for each in self.candidates if meant(each)]
        for group in (*in_turns(together(candidates)), *in_turns([each] for each in candidates)):
            if are_terms(group, self.step.observe, self.ours):
                apart, value = self._try([], group)
                if apart <= 1:
                    yield [(group, value)], apart
                elif np.isfinite(apart):
                    self.tried.append((apart, group, value))

    def _two(self) -> Iterator[tuple[list[Changed], float]]:
        """Try each change with another one, and give those that leave only rounding."""
        # By how far each brought torch by itself: half of a double mistake usually removes part of the difference. What
        # does nothing alone is left out, since fits cost many runs, and a fitted first change: two could fit too much.
        own = None if self.ours is None else distance(self.ours, self.target) / self.limit
        tried = [each for each in self.tried if each[0] != own]
        for (_, one, at), (_, other, _) in itertools.permutations(sorted(tried, key=lambda each: each[0]), 2):
            if self.runs > RUNS:
                break
            # A mean for a sum, and a constant that makes up for it: they are no change but for what is between them.
            undone = (one[0].name, other[0].name) == (MEAN_OR_SUM, CONSTANT)
            if one[0].name == other[0].name or one[0].of is not None or undone:
                continue
            apart, value = self._try([(one, at)], other)
            if apart <= 1:
                yield [(one, at), (other, value)], apart

    def _try(self, others: list[Changed], group: list[Counterfactual]) -> tuple[float, float | None]:
        """Give how far the torch side is from the JAX side's with something changed, and the value that was fitted."""

        def run(value: float | None) -> np.ndarray | None:
            self.runs += 1
            return None if self.runs > RUNS else self.step.observe(combined([*others, (group, value)]))

        def apart(given: np.ndarray | None) -> float:
            return np.inf if given is None else distance(given, self.target) / self.limit

        first = group[0]
        if first.of is None:
            return apart(run(None)), None
        if self.ours is None or self.ours.shape != self.target.shape:
            return np.inf, None  # no number changes a shape
        assert first.value is not None
        found, value = fitted(first.value, run, self.target, apart)
        if self.beside_tables and value is not None:
            value = shortened(value)
            found = apart(run(value))
        return found, value

    def _takes_what_is_there(self, call: Call) -> bool:
        """Tell whether the JAX side has at this place what a call of torch's takes: nothing comes behind the call."""
        given = np.asarray(to_numpy(call.input))
        return given.shape == self.target.shape and distance(given, self.target) <= MARGIN * self.limit

    def _cause(self, changed: Sequence[Changed], apart: float) -> Cause:
        firsts = [(told_of(group), value) for group, value in changed]
        name = " and ".join(each.name for each, _ in firsts)
        parts = []
        fixes: list[str | Code] = []
        for each, value in firsts:
            fix = "compute this term as torch does" if leaves_nothing(each, value) else each.fix(each.call, self.place)
            if isinstance(fix, Code):
                fix = (self._takes_what_is_there(each.call) and left_out(fix)) or dataclasses.replace(fix, wrong=value)
            if isinstance(fix, Code) and fix.whole and is_term(self.step.rerun, each.call):
                fix = dataclasses.replace(fix, whole=False)
                shown = of_a_term(fix)
            else:
                shown = fix if isinstance(fix, str) else written(fix) if fix else ""
            fixes += [fix] if fix else []
            code = fix if isinstance(fix, Code) else None
            parts.append(Part(each.name, in_words(each, value), shown, code))
        says = ", and ".join(part.description for part in parts)
        return Cause(
            name,
            f"{name}: {says}. With this change on the torch side, the difference is {apart * self.limit:.1e}",
            "; ".join(dict.fromkeys(part.fix for part in parts if part.fix)),
            ", ".join(dict.fromkeys(each.source for each, _ in firsts)),
            tuple(fix for fix in fixes if not isinstance(fix, str)),
            tuple(parts),
        )


def _of_all_calls(found: list[tuple[list[Changed], float]]) -> list[tuple[list[Changed], float]]:
    """Leave out a change of some calls where one of these and more calls fits: one line makes them all."""
    calls = [{each.number for group, _ in changed for each in group} for changed, _ in found]
    return [each for each, own in zip(found, calls, strict=True) if not any(own < others for others in calls)]


_BATCHES = "give both sides the same batches: see batch="
