"""Why two sides differ: what the JAX side does otherwise is done on the torch side, and the difference goes."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare.batch import Batch
from compare.counterfactuals import FUNCTIONS, Counterfactual, counterfactuals
from compare.draws import Draw, NondeterministicError
from compare.engine import Found
from compare.fitting import fitted
from compare.optimizer_causes import Updates, explain_update
from compare.problem import InputError
from compare.report import Cause
from compare.rewriting import Call, Rerun, Rewrite, Window
from compare.torch_side import TorchRun
from compare.verdict import distance

RUNS = 200
"""Of the torch side's step, at most, to explain one divergence."""


def explain(
    found: Found, run: TorchRun, batch: Batch, draws: Sequence[Draw], layer: str, rates: Sequence[float]
) -> Cause | None:
    """Look for the cause of a divergence.

    Args:
        found: The divergence. `found.target` is what the JAX side gives from the torch side's values.
        run: The torch side in float64, before the step at which the two differ.
        batch: The step's.
        draws: Its random numbers.
        layer: What the JAX side calls the layer that is the culprit, "nnx.LayerNorm"; "" if it is none.
        rates: The learning rates of torch's steps, up to this one.

    """
    stage = found.divergence.stage
    if stage == "update" and found.update:
        return explain_update(Updates(run, batch, draws, found.update, first=len(rates) == 1), rates)
    if stage in ("update", "parameters"):
        return None
    run.optimizer = None
    if stage in ("forward", "buffers"):
        run.loss = None
    return _Search(found, Rerun(run, batch, draws, _window(found), FUNCTIONS), layer).cause()


class _Search:
    """The search for the cause of one divergence in what a model or a loss computes."""

    def __init__(self, found: Found, rerun: Rerun, layer: str) -> None:
        assert found.target is not None
        self.found, self.target, self.rerun, self.layer = found, found.target, rerun, layer
        self.runs = 0

    def cause(self) -> Cause | None:
        """Find what brings the torch side to what the JAX side gives, to rounding."""
        gradient = self.found.divergence.stage == "gradient"
        calls = self._calls()
        as_it_is = self._observe({})
        if as_it_is is None or distance(as_it_is, self.target) <= self.found.limit:
            return None  # it does not differ by itself
        candidates = list(counterfactuals(calls, gradient=gradient))
        tried: list[tuple[float, list[Counterfactual], float | None]] = []
        for group in (*_together(candidates), *([each] for each in candidates)):
            apart, value = self._try({}, group)
            if apart <= 1:
                return self._told([(group, value)], apart)
            if np.isfinite(apart):
                tried.append((apart, group, value))
        for (_, one, at), (_, other, _) in itertools.permutations(sorted(tried, key=lambda each: each[0]), 2):
            if self.runs > RUNS:
                break
            if one[0].name == other[0].name or one[0].of is not None:
                continue
            apart, value = self._try({each.number: _rewrite(each, at) for each in one}, other)
            if apart <= 1:
                return self._told([(one, at), (other, value)], apart)
        return None

    def _calls(self) -> list[Call]:
        calls = self.rerun.calls()
        if self.found.divergence.stage == "buffers":
            path = self.found.pairing.torch.rpartition(".")[0]
            return [call if call.module == path else dataclasses.replace(call, name="") for call in calls]
        return calls

    def _try(self, others: Mapping[int, Rewrite], group: Sequence[Counterfactual]) -> tuple[float, float | None]:
        """Give how far the torch side is from the JAX side's with something changed, and the value that was fitted."""
        first = group[0]

        def run(value: float | None) -> np.ndarray | None:
            self.runs += 1
            if self.runs > RUNS:
                return None
            return self._observe(_both(others, {each.number: _rewrite(each, value) for each in group}))

        def apart(given: np.ndarray | None) -> float:
            return np.inf if given is None else distance(given, self.target) / self.found.limit

        if first.of is None:
            return apart(run(None)), None
        assert first.value is not None
        return fitted(first.value, run, self.target, apart)

    def _observe(self, rewrites: Mapping[int, Rewrite]) -> np.ndarray | None:
        """Run the step; None where a rewrite does not apply."""
        try:
            seen = self.found.pairing.torch_array(self.rerun(rewrites))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, NondeterministicError, InputError):
            return None
        return np.array(seen, np.float64) if seen.shape == self.target.shape else None

    def _told(self, changed: Sequence[tuple[list[Counterfactual], float | None]], apart: float) -> Cause:
        firsts = [(group[0], value) for group, value in changed]
        name = " and ".join(each.name for each, _ in firsts)
        says = ", and ".join(_says(each, value) for each, value in firsts)
        return Cause(
            name,
            f"{name}: {says}. With that on the torch side the difference is {apart * self.found.limit:.1e}",
            "; ".join(_fix(each, self.layer) for each, _ in firsts),
            ", ".join(dict.fromkeys(each.source for each, _ in firsts)),
        )


def _both(others: Mapping[int, Rewrite], rewrites: Mapping[int, Rewrite]) -> dict[int, Rewrite]:
    """Rewrite calls in two ways, one within the other where it is the same call."""

    def nested(outer: Rewrite, inner: Rewrite) -> Rewrite:
        return lambda call: outer(dataclasses.replace(call, within=inner))

    nest = {number: nested(rewrite, others[number]) for number, rewrite in rewrites.items() if number in others}
    return {**others, **rewrites, **nest}


def _window(found: Found) -> Window:
    """Give the part of the step in which a divergence arises."""
    stage = found.divergence.stage
    ports = found.pairing.ports
    if ports is not None:
        return Window(found.before.ports[0] if found.before and found.before.ports else None, ports[0])
    if stage == "loss" and found.before and found.before.ports:
        return Window(found.before.ports[0])
    return Window()


def _together(candidates: Sequence[Counterfactual]) -> Iterator[list[Counterfactual]]:
    """Group what is the same change of several calls."""

    def kind(each: Counterfactual) -> tuple[str, str, float | None]:
        return each.name, each.jax_does, each.value

    for _, group in itertools.groupby(sorted(candidates, key=lambda each: str(kind(each))), kind):
        members = list(group)
        if len(members) > 1:
            yield members


def _rewrite(each: Counterfactual, value: float | None) -> Rewrite:
    return each.rewrite if each.of is None or value is None else each.of(value)


def _says(each: Counterfactual, value: float | None) -> str:
    if each.of is None:
        return f"the JAX side {each.jax_does}"
    return f"torch has {each.jax_does}={each.value:g}, and the JAX side computes what torch would with {value:g}"


def _fix(each: Counterfactual, layer: str) -> str:
    arguments = {name: value for name, value in each.call.arguments.items() if isinstance(name, str)}
    shown: dict[str, Any] = {"function": each.call.name, **arguments}
    return each.fix.format(layer or f"the JAX side's {each.call.name}", **shown)
