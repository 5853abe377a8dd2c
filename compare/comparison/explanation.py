"""Finds the cause of each divergence, and describes both layers with their settings if a layer differs."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from compare import bugs
from compare.comparison.exchanged import exchanged_output
from compare.comparison.followers import without_followers
from compare.comparison.from_torch import FromTorch
from compare.comparison.held_out import HeldOutSteps
from compare.comparison.independent import Independent
from compare.comparison.lines import holders, lines_of, values_of, with_counts
from compare.comparison.mapped_pair import MappedPair
from compare.comparison.places import layers_between
from compare.comparison.runs import Runs
from compare.comparison.surplus import cut_off
from compare.comparison.trained_alone import trained_alone, updated_alone
from compare.comparison.untied import untied
from compare.diagnosis.conventions.variants import MODE
from compare.diagnosis.experiment import rerun_at
from compare.diagnosis.explain import explain
from compare.diagnosis.held import explains_held
from compare.diagnosis.held_out import MARGIN
from compare.diagnosis.optimizers.explain import Explained, explain_update
from compare.diagnosis.place import Place, place_of
from compare.diagnosis.searched import Explains, Searched, Values
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.edit import OF_THE_MODEL, Kind
from compare.diagnosis.structure.surroundings import Gradients, Shown, Surroundings
from compare.diagnosis.structure.written import is_same_slip
from compare.jax_side.from_data import FromData, computed_from_data
from compare.jax_side.run import JaxRun
from compare.numerics.relations import Relation, relation
from compare.step.arguments import settings
from compare.step.batch import Batch
from compare.step.observation import Observation, Port, to_numpy
from compare.step.stage import Stage
from compare.verdict.divergence import AT_EACH_CALL, SEARCH_ENDED, Detail, DetailKind, Divergence, with_search_ended
from compare.verdict.first_difference import Found, together
from compare.verdict.fix import Code
from compare.weights.links import to_jax


class Causes(NamedTuple):
    """Divergences with what is known of their causes."""

    divergences: list[Divergence]
    """The first in the followed runs, and the independent ones."""
    rounding: bool
    """Whether the optimizers differ only by a learning rate that was rounded to float32."""


def explained(
    runs: Runs, first: Found, alone: Independent, jax: JaxRun, from_torch: FromTorch, budget: Budget
) -> Causes:
    """Look for the cause of each divergence: the first in the followed runs, and the independent ones.

    `budget` is what the search for causes of structure may cost.
    """
    # The first divergence was found in free runs. If it is also an independent difference, its target,
    # computed from torch's values, is the better one: nothing that came before is in it.
    others = [each for each in alone.found if each.pairing is not first.pairing]
    if same := [each for each in alone.found if each.pairing is first.pairing]:
        alike = first._replace(target=same[0].target, carried=same[0].carried, limit=same[0].limit)
        first = same[0]._replace(follows=False) if same[0].known else alike
    elif first.pairing.stage == Stage.UPDATE:
        others = [each for each in others if each.pairing.stage != Stage.UPDATE]
    search = _Search(runs, jax, from_torch, budget)
    partners = {each.ports[0].path: each.ports[1].path for each in from_torch.forward if each.ports}
    divergences, rounding, slips = list[Divergence](), False, list[Code]()
    left = [first, *others]
    while left:
        each = left.pop(0)
        if each.follows:
            continue
        doing = f"the search for the cause at {each.divergence.torch}"
        found, searched = each.divergence, Searched()
        if found.stage == Stage.UPDATE:
            known = bugs.attempt(doing, partial(explain_update, alone.evidence, runs.torch_run)) or Explained()
            if known.cause is None and alone.evidence is not None:
                trained = alone.evidence.parameter_names
                cause = updated_alone(runs.pair.torch, trained, found, jax.side.name)
                known = dataclasses.replace(known, cause=cause)
            found, rounding = dataclasses.replace(found, cause=known.cause, details=known.details), known.rounding
        else:
            attempt = bugs.attempt(doing, partial(search.with_cause, each, left))
            with_cause, searched = attempt or (found, searched)
            # A cause that explains the whole model says more than the order of two of its modules.
            if not each.known or (with_cause.cause and with_cause.cause.name in OF_THE_MODEL):
                found = with_cause
            if _is_of_one_gradient(found, searched):
                found = with_search_ended(found)
            left = [other for other in left if not _follows(other, each, searched)]
        codes = found.cause.code if found.cause else ()
        if any(is_same_slip(code, other) for code in codes for other in slips):
            continue  # a sum that was left out is missing wherever the port goes on with its variable
        slips += codes
        if AT_EACH_CALL in searched.details:  # it explains what was found before in the forward pass as well
            divergences = [other for other in divergences if other.stage != Stage.FORWARD]
        lines, values = lines_of(runs.pair, each.pairing, codes, each.before), values_of(runs.pair, codes, partners)
        divergences.append(dataclasses.replace(found, lines=tuple(lines), values=values))
        if found.cause and found.cause.name == MODE:  # what the norm keeps follows from its mode
            left = [other for other in left if not _kept_by(other.divergence, found.torch)]
        if found.cause and (searched.whole or found.cause.name in OF_THE_MODEL):
            # The rest of the forward pass is explained with it.
            left = [other for other in left if other.divergence.stage != Stage.FORWARD]
    divergences = without_followers(divergences, lambda each: each.cause is None)
    divergences = _with_end(divergences) if runs.pair.torch.loss is not None else divergences
    return Causes(with_counts(runs.pair, divergences), rounding)


def _with_end(found: Sequence[Divergence]) -> list[Divergence]:
    """Say so where gradients were not looked at: those of a model that differs without a cause differ with it."""
    unexplained = [
        n for n, each in enumerate(found) if each.cause is None and each.stage in (Stage.FORWARD, Stage.LOSS)
    ]
    said = any(SEARCH_ENDED in each.details for each in found)
    last = unexplained[-1] if unexplained and not said else None
    return [with_search_ended(each) if number == last else each for number, each in enumerate(found)]


def _follows(other: Found, found: Found, searched: Searched) -> bool:
    """Tell whether a difference inside the model is another one's, seen at another place, as before each of two heads.

    Each module is given torch's input: what is computed once for several of them then differs before each.
    """
    ports, one, two = other.pairing.ports, found.divergence, other.divergence
    if ports is None or other.carried is None or one.step != two.step or found.pairing.ports is None:
        return False
    same = found.carried is not None and np.array_equal(found.carried, other.carried)
    return (same and math.isclose(one.error64, two.error64)) or searched.explains([(ports[0], other.carried)])


def _is_of_one_gradient(found: Divergence, searched: Searched) -> bool:
    """Tell whether a cause is a relation of one parameter's gradients: those of the others are not looked at."""
    if found.stage != Stage.GRADIENT or found.cause is None or found.cause.name == Kind.STOPPED:
        return False
    return not (searched.changed or searched.edited)


def _kept_by(found: Divergence, module: str) -> bool:
    """Tell whether it is a buffer of a module."""
    return found.stage == Stage.BUFFERS and found.torch.rpartition(".")[0] == module


class _Search:
    """The searches for the causes of all divergences of one comparison of models."""

    def __init__(self, runs: Runs, jax: JaxRun, from_torch: FromTorch, budget: Budget) -> None:
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
        if found.target is None or stage == Stage.LOSS:
            jax.load(to_jax(pair.links, run.arrays(), jax.arrays()))
            seen = jax.step(batch, draws)
            if stage == Stage.LOSS:
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


def _step_of_torch(runs: Runs, step: int) -> Observation:
    return next(itertools.islice(runs.stepper.whole(runs.torch_run("float64")), step, None))


def _outputs(
    pair: MappedPair,
    from_torch: FromTorch,
    jax: JaxRun,
    arrays: Mapping[str, np.ndarray],
    step: Callable[[], Observation],
) -> list[tuple[Port, np.ndarray]]:
    """Give what the JAX side's model gives by itself from torch's weights, in torch's layout, by torch's ports."""
    jax.load(to_jax(pair.links, arrays, jax.arrays()))
    seen = step()
    return [(each.ports[0], each.jax_array(seen)) for each in from_torch.forward if each.ports and each.decides]


def _both_layers(pair: MappedPair, found: Found) -> list[Detail]:
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


def _place(pair: MappedPair, found: Found) -> Place:
    """Give the layers of the JAX side that run where the two sides begin to differ, the culprit first."""
    order = list(pair.jax_modules)
    if order == [""] and (held := holders(pair)):  # no module of a pure function is seen to run
        return place_of(held[0], held)
    classes = [pair.jax_modules[path].cls for path in layers_between(found, order) if path in pair.jax_modules]
    return place_of(pair.jax_modules[order[0]].cls if order else None, classes)
