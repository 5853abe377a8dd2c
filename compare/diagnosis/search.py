"""Why two sides differ: what the JAX side does otherwise is done on the torch side, and the difference goes."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare.diagnosis.counterfactuals import FUNCTIONS, JOINING, Counterfactual, counterfactuals, other_operands
from compare.diagnosis.optimizers.explain import explain_update
from compare.diagnosis.optimizers.update import Updates
from compare.diagnosis.rewriting import Call, Rerun, Rewrite, Window
from compare.errors import InputError, NondeterministicError
from compare.numerics.distance import EPSILON32, ULPS, distance
from compare.numerics.fitting import fitted
from compare.numerics.relations import nice, relation
from compare.step.batch import Batch
from compare.step.draws import Draw
from compare.torch_side.run import TorchRun
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found

RUNS = 200
"""Of the torch side's step, at most, to explain one divergence."""


def explain(
    found: Found, run: TorchRun, batch: Batch, draws: Sequence[Draw], layer: str, rates: Sequence[float]
) -> tuple[Cause | None, tuple[str, ...]]:
    """Look for the cause of a divergence.

    Args:
        found: The divergence. `found.target` is what the JAX side gives from the torch side's values.
        run: The torch side in float64, before the step at which the two differ.
        batch: The step's.
        draws: Its random numbers.
        layer: What the JAX side calls the layer that is the culprit, "nnx.LayerNorm"; "" if it is none.
        rates: The learning rates of torch's steps, up to this one.

    Returns:
        The cause, and what else is known, where no cause is.

    """
    if not np.isfinite(found.limit):  # in float32 only one side is finite: anything would be near enough
        return None, ()
    stage = found.divergence.stage
    if stage == "update" and found.update:
        return explain_update(Updates(run, batch, draws, found.update, first=len(rates) == 1), rates), ()
    if stage in ("update", "parameters"):
        return None, ()
    run.optimizer = None
    if stage in ("forward", "buffers"):
        run.loss = None
    search = _Search(found, Rerun(run, batch, draws, _window(found), FUNCTIONS | JOINING.keys()), layer)
    if cause := search.cause():
        return cause, ()
    return search.related()


_RELATIONS = {
    "transposed": ("transposed", "exchange the axes on the JAX side, as torch has them"),
    "flipped": ("reversed", "reverse the axis on the JAX side"),
    "rolled": ("shifted", "shift the JAX side's by one, as torch has it"),
    "blocks": ("order", "take the parts in torch's order"),
    "another order": ("order", "split and merge the axis in torch's order"),
    "reshaped": ("reshaped", "reshape as torch does"),
    "torch *": ("factor", "take the factor out on the JAX side, or put it in: see what torch multiplies by"),
    "torch +": ("offset", "take the offset out on the JAX side, or put it in"),
    "elements zero": ("mask", "take out what makes these elements zero on the JAX side"),
    "zero": ("zero", "take out what makes it zero on the JAX side"),
}
"""What to call a relation of two arrays, and what to do about it, by words that it contains."""


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
        candidates += [] if gradient else other_operands(calls)
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

    def related(self) -> tuple[Cause | None, tuple[str, ...]]:
        """Say how the JAX side's result comes from torch's, or else where they are farthest apart."""
        ours, theirs = self._observe({}), self.target
        if ours is None:
            return None, ()
        place = f"{self.found.divergence.torch}: the JAX side gives"
        if ours.shape != theirs.shape:
            shapes = f"torch gives shape {ours.shape}, the JAX side {theirs.shape}"
            same_batch = ours.shape[:1] == theirs.shape[:1]
            fix = "compare the layer's settings, which are above" if same_batch else "give both sides the same examples"
            return Cause("shape", f"shape: {shapes}", fix, "docs/report.md"), ()
        if lost := int((~np.isfinite(theirs) & np.isfinite(ours)).sum()):
            return (
                Cause(
                    "not a number",
                    f"not a number: {lost} of {theirs.size} elements are NaN or infinite on the JAX side alone",
                    "where a function is unsafe at some inputs, jnp.where must guard its input as well as its output",
                    "https://docs.jax.dev/en/latest/faq.html#gradients-contain-nan-where-using-where",
                ),
                (),
            )
        # Data comes in float32, and what was done to it was done in float32.
        is_data = self.found.pairing.ports is not None and self.found.pairing.ports[0][:3] == ("", 0, "input")
        how = relation(ours, theirs, max(self.found.limit, ULPS * EPSILON32) if is_data else self.found.limit)
        if how and (ours.size > 1 or nice(how)):
            name, fix = next(each for words, each in _RELATIONS.items() if words in how)
            if is_data:
                name, fix = f"input {name}", "give both sides the same batches: see batch="
            return Cause(name, f"{name}: {place} {how}", fix, "docs/report.md"), ()
        if not ours.ndim:
            return None, (f"torch gives {ours:.6g}, the JAX side {theirs:.6g}",)
        where = np.unravel_index(int(np.argmax(np.abs(ours - theirs))), ours.shape)
        at = ", ".join(map(str, where))
        return None, (f"farthest apart at [{at}]: torch gives {ours[where]:.6g}, the JAX side {theirs[where]:.6g}",)

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
        return np.array(seen, np.float64)

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
    if "training" in shown:
        shown["evaluating"] = not shown["training"]
    if isinstance(padding := shown.get("padding"), int | tuple | list) and "weight" in shown:
        sizes = [padding] * (shown["weight"].ndim - 2) if isinstance(padding, int) else padding
        shown["pads"] = tuple((size, size) for size in sizes)
    return each.fix.format(layer or f"the JAX side's {each.call.name}", **shown)
