"""Looks for the cause of a difference of two models: see `compare.diagnosis.explain`."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np

from compare import bugs
from compare.comparison.exchanged import exchanged_output
from compare.comparison.from_torch import FromTorch
from compare.comparison.held_out import HeldOutSteps
from compare.comparison.lines import holders
from compare.comparison.model_pair import ModelPair
from compare.comparison.model_runs import ModelRuns
from compare.comparison.places import layers_between
from compare.comparison.surplus import cut_off
from compare.comparison.trained_alone import trained_alone
from compare.comparison.untied import untied
from compare.diagnosis.experiment import rerun_at
from compare.diagnosis.explain import explain
from compare.diagnosis.held import explains_held
from compare.diagnosis.held_out import MARGIN
from compare.diagnosis.place import Place, place_of
from compare.diagnosis.searched import Explains, Searched, Values
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.surroundings import Gradients, Shown, Surroundings
from compare.jax_side.from_data import FromData, computed_from_data
from compare.jax_side.run import JaxRun
from compare.numerics.relations import Relation, relation
from compare.step.arguments import settings
from compare.step.batch import Batch
from compare.step.observation import Observation, Port, to_numpy
from compare.step.stage import Stage
from compare.verdict.divergence import Detail, DetailKind, Divergence
from compare.verdict.first_difference import Found, together
from compare.weights.links import to_jax


class ModelSearch:
    """The searches for the causes of all divergences of one comparison of models."""

    def __init__(self, runs: ModelRuns, jax: JaxRun, from_torch: FromTorch, budget: Budget) -> None:
        self._runs, self._jax, self._from_torch, self._budget = runs, jax, from_torch, budget
        self._held_out = HeldOutSteps(runs, from_torch, jax)
        self._data: list[tuple[Batch, FromData]] = []

    def with_cause(self, found: Found, left: Sequence[Found]) -> tuple[Divergence, Searched]:
        """Look for the cause of a divergence; give too what it explains of the others that are `left`."""
        runs, jax, pair, step = self._runs, self._jax, self._runs.pair, found.divergence.step
        run = runs.torch_run("float64")
        # Torch's run is taken to the step at which the two differ, with the recorded random numbers.
        for _ in itertools.islice(runs.stepper.whole(run), step):
            pass
        if cause := exchanged_output(runs, found) or trained_alone(pair.torch, jax, found.divergence):
            return dataclasses.replace(found.divergence, cause=cause), Searched()
        batch, draws = pair.batches[step % len(pair.batches)], runs.stepper.draws[step]
        elsewhere = self._held_out.of(found, from_torch=found.target is not None)
        gradients, later = None, list[Shown]()
        stage = found.pairing.stage
        if found.target is None or stage == Stage.LOSS or _is_output(found):
            jax.load(to_jax(pair.links, run.arrays(), jax.arrays()))
            seen = jax.step(batch, draws)
            if stage == Stage.LOSS or _is_output(found):
                pairings = self._from_torch.gradients
                later = [Shown(each.torch_array, each.jax_array(seen), found.limit) for each in pairings]
            if found.target is None:  # what comes before is the same on both sides
                found = found._replace(target=found.pairing.jax_array(seen))
                if stage == Stage.GRADIENT:
                    if cause := untied(run.model, pair.links, found, partial(_step_of_torch, runs, step), seen):
                        return dataclasses.replace(found.divergence, cause=cause), Searched()
                    # One stop changes the gradients of all parameters before it: all of them are what proves it.
                    every = together(found, self._from_torch.gradients, seen)
                    gradients = Gradients(every, self._held_out.of(every, from_torch=False))
        own_step = partial(jax.step, batch, draws)
        outputs = cache(partial(_outputs, pair, self._from_torch, jax, run.arrays(), own_step))
        given = self._from_torch.ports
        surroundings = Surroundings(
            given,
            self._budget,
            outputs,
            gradients,
            self._from_data,
            tables=self._from_torch.tables,
            later=later,
            others=_inside(left, step),
        )
        place = _place(pair, found)._replace(cut=self._cut_off(found))
        searched = explain(found, run, batch, draws, place, elsewhere, surroundings)
        if searched.changed and found.pairing.ports is not None:
            rerun, limit = rerun_at(found, run, batch, draws), max(MARGIN * found.limit, self._from_torch.tables)
            held = partial(explains_held, rerun, searched.changed, given, limit)
            searched = searched._replace(explains=partial(_either, searched.explains, held))
        if self._is_refuted(found, left, searched):
            searched = Searched()
        details = _both_layers(pair, found)
        known = dataclasses.replace(found.divergence, cause=searched.cause, details=(*details, *searched.details))
        return known, searched

    def _is_refuted(self, found: Found, left: Sequence[Found], searched: Searched) -> bool:
        """Tell whether a cause says how a module's input comes from torch's, and its other calls differ in another way.

        In the first turn of a loop a state may be zero: the whole input is then one term of it, or a mask of it.
        """
        ports, step = found.pairing.ports, found.divergence.step
        if searched.cause is None or searched.changed or searched.edited is not None or ports is None:
            return False
        seen = _step_of_torch(self._runs, step).forward

        def how(port: Port, target: np.ndarray) -> Relation | None:
            ours = np.array(to_numpy(seen[port]), np.float64)
            limit = max(found.limit, self._from_torch.tables)
            return relation(ours, target, limit) if ours.shape == target.shape else None

        others = [(port, target) for port, target in _inside(left, step) if port[:1] == ports[0][:1] and port in seen]
        if found.target is None or ports[0] not in seen or not others:
            return False
        own = how(ports[0], found.target)
        return own is not None and not all(_are_alike(own, how(port, target)) for port, target in others)

    def _cut_off(self, found: Found) -> tuple[tuple[int, int], ...]:
        """Give how much torch cuts off of an output that has another shape on the JAX side."""
        if found.pairing.ports is None or found.pairing.to_jax or found.target is None:
            return ()
        step, deciding = found.divergence.step, [each for each in self._from_torch.forward if each.decides]
        seen, deciding = _step_of_torch(self._runs, step), [*deciding, *self._from_torch.gradients]
        return cut_off(self._runs, found.pairing, step, found.target.shape, deciding, seen)

    def _from_data(self, batch: Batch) -> FromData:
        """Read what the JAX side computes of a batch; nothing where that cannot be read."""
        for known, data in self._data:
            if known is batch:
                return data
        doing = "reading the JAX side's tables"
        found = bugs.attempt(doing, lambda: computed_from_data(self._runs.pair.jax_run("float64"), batch))
        self._data.append((batch, found or FromData()))
        return self._data[-1][1]


def _is_output(found: Found) -> bool:
    """Tell whether an output of the whole model differs."""
    ports = found.pairing.ports
    return ports is not None and (ports[0].path, ports[0].kind) == ("", "output")


def _are_alike(one: Relation, other: Relation | None) -> bool:
    if other is None or not math.isclose(one.number, other.number, rel_tol=1e-9):
        return False
    return dataclasses.replace(one, number=0.0) == dataclasses.replace(other, number=0.0)


def _inside(found: Sequence[Found], step: int) -> list[tuple[Port, np.ndarray]]:
    """Give the places inside the model at which the JAX side differs from torch's values in a step, and its values."""
    inside = [each for each in found if each.divergence.step == step and each.divergence.stage == Stage.FORWARD]
    return [(each.pairing.ports[0], each.carried) for each in inside if each.pairing.ports and each.carried is not None]


def _either(one: Explains, other: Explains, values: Values) -> bool:
    return one(values) or other(values)


def _step_of_torch(runs: ModelRuns, step: int) -> Observation:
    return next(itertools.islice(runs.stepper.whole(runs.torch_run("float64")), step, None))


def _outputs(
    pair: ModelPair,
    from_torch: FromTorch,
    jax: JaxRun,
    arrays: Mapping[str, np.ndarray],
    step: Callable[[], Observation],
) -> list[tuple[Port, np.ndarray]]:
    """Give what the JAX side's model gives by itself from torch's weights, in torch's layout, by torch's ports."""
    jax.load(to_jax(pair.links, arrays, jax.arrays()))
    seen = step()
    return [(each.ports[0], each.jax_array(seen)) for each in from_torch.forward if each.ports and each.decides]


def _both_layers(pair: ModelPair, found: Found) -> list[Detail]:
    """Describe both layers with their settings, where the culprit is a layer."""
    ports = found.pairing.ports
    if ports is None or found.divergence.modules is None:
        return []
    ours = dict(pair.torch.model.named_modules()).get(ports[0].path)
    theirs = pair.jax_modules.get(ports[1].path)
    if ours is None or theirs is None or theirs.cls is type(None):  # a function is no layer
        return []
    described = f"{theirs.cls.__name__}({', '.join(f'{name}={value}' for name, value in theirs.settings)})"
    return [
        Detail(DetailKind.LAYER, f"{type(ours).__name__}({ours.extra_repr()})", "torch", settings(ours)),
        Detail(DetailKind.LAYER, described, "jax", theirs.settings),
    ]


def _place(pair: ModelPair, found: Found) -> Place:
    """Give the layers of the JAX side that run where the two sides begin to differ, the culprit first."""
    order = list(pair.jax_modules)
    if order == [""] and (held := holders(pair)):  # no module of a pure function is seen to run
        return place_of(held[0], held)
    classes = [pair.jax_modules[path].cls for path in layers_between(found, order) if path in pair.jax_modules]
    return place_of(pair.jax_modules[order[0]].cls if order else None, classes)
