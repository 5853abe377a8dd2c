"""Searches one edit of torch's operations, or two, with which they give what the JAX side gives."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from compare.diagnosis.held_out import EXPLAINED, MARGIN
from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure.decompositions import LOSSES
from compare.diagnosis.structure.edit import DIFFERENT, END, ROUNDING, WHOLE, Context, Edit, Kind, of_compared
from compare.diagnosis.structure.editing import edited, operations
from compare.diagnosis.structure.elsewhere import Elsewhere
from compare.diagnosis.structure.graph import FAILURES, Operation
from compare.diagnosis.structure.listing import at_all_calls, listed
from compare.diagnosis.structure.norm_order import norms_moved
from compare.diagnosis.structure.pairs import Tried, fitting_pairs
from compare.diagnosis.structure.recording import Operations
from compare.diagnosis.structure.step import Step, apart, array_of, changes, is_whole, opened, way
from compare.diagnosis.structure.surroundings import Shown, Surroundings
from compare.diagnosis.structure.told import told, with_equal_terms, worth_telling
from compare.step.observation import Observation, Port
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found


class StructureSearch:
    """Looks for the edits with which torch gives what the JAX side gives.

    Args:
        found: Where the sides differ; `found.target` is what the JAX side gives.
        rerun: The torch side's step.
        surroundings: What is known around it.
        held_out: Other steps of torch, and what the JAX side gives there: an edit must hold at these too.
        written_out: Whether losses are edited as the operations of which they consist.

    """

    def __init__(
        self,
        found: Found,
        rerun: Rerun,
        surroundings: Surroundings,
        held_out: Iterable[tuple[Rerun, np.ndarray]] = (),
        *,
        written_out: bool = False,
    ) -> None:
        assert found.target is not None
        self.written_out = written_out
        self.found, self.rerun, self.held_out = found, rerun, iter(held_out)
        self._made, self._refuted = list[Step](), False
        self.given, self.budget, self.outputs = surroundings[:3]
        self.theirs, self.shown, self.tables = surroundings.theirs, surroundings.shown, surroundings.tables
        self.later, self.others = surroundings.later, surroundings.others
        self.target = np.asarray(found.target, np.float64)
        self.here: Step
        self.tried: list[Tried] = []
        self.cause: Sequence[Edit] = ()
        """The edits of the cause that was found."""

    def one(self) -> Cause | None:
        """Find one edit; None where nothing fits, or nothing would be proved."""
        return self._within_budget(self._one)

    def norms(self) -> Cause | None:
        """Find norms before the layers for norms behind the sums, or the reverse."""
        return self._within_budget(self._norms)

    def two(self) -> Cause | None:
        """Find two edits, after `one` has found none."""
        if not self.tried:
            return None
        # Of one sort all that fit are compared; another sort is tried only where none of them is proved.
        sorts = fitting_pairs(self.here, self.tried, self.budget)
        causes = (self._told(itertools.islice(pairs, FITTING)) for pairs in sorts)
        return self._within_budget(lambda: next((cause for cause in causes if cause), None))

    def _within_budget(self, search: Callable[[], Cause | None]) -> Cause | None:
        import torch

        self.budget.start()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return search()
        finally:
            self.budget.stop()

    def _norms(self) -> Cause | None:
        if (here := self._opened(self.rerun, self.target)) is None:
            return None
        self.here, near = here, MARGIN * self.found.limit
        moves = list(norms_moved(here.context.graph))
        ends = [(here.ports.get(port), array) for port, array in self.outputs()] if moves else []
        known = [(end, array) for end, array in ends if end is not None]
        # A norm that moves changes everything behind it. No single place proves that, but the outputs of the model do:
        # those that differ without it.
        if all(self._of_model([], end, array) <= near for end, array in known):
            return None
        for edit in moves:
            left = [self._of_model([edit], end, array) for end, array in known]
            if max(left) <= near:
                self.cause = [edit]
                return told([[edit]], max(left))
        return None

    def opened(self) -> Step | None:
        """Give the part of the step that is searched; None where it cannot be recorded."""
        return getattr(self, "here", None) or self._opened(self.rerun, self.target)

    def explains(self, outputs: Sequence[tuple[Port, np.ndarray]], *, everywhere: bool = False) -> bool:
        """Tell whether with the cause, or with it at every call of its lines, torch's whole model gives these values.

        They are those that the JAX side's own model gives.
        """
        ends = [(self.here.ports.get(port), array) for port, array in outputs]
        limit = max(MARGIN * self.found.limit, self.tables)
        edits = self._everywhere(self.cause, in_one_module=True) if everywhere else self.cause
        return all(end is not None and self._of_model(edits, end, array) <= limit for end, array in ends)

    def explains_held(self, values: Sequence[tuple[Port, np.ndarray]]) -> bool:
        """Tell whether torch has these values with the cause, where its modules give what they do without it."""
        own, every = self.cause, self._everywhere(self.cause, in_one_module=True)
        return self.explains(values) or any(all(self._held(e, *each) for each in values) for e in (own, every))

    def _held(self, edits: Sequence[Edit], port: Port, target: np.ndarray) -> bool:
        """Tell whether torch has a value with edits, from what all modules give without them.

        What the JAX side uses outside of its modules too, such as a loop's state, carries a difference past them.
        """
        graph, ports = self.here.context.graph, self.here.ports
        if (end := ports.get(port)) is None:
            return False
        held = {number for each, number in ports.items() if each in self.given and each.kind == "output"} - {end}
        if port.kind == "output":
            held |= {number for each, number in ports.items() if each[:2] == port[:2] and each.kind == "input"}
        last, made, own = self.here.context.nodes[-1], changes(edits), self.found.pairing.ports
        try:
            nodes = [node for node in graph.nodes if held.isdisjoint(node.outputs)]
            given = graph.evaluate(nodes, made, end)
            if last.number in made and own and own[0]._replace(call=port.call) == port:  # the place at another call
                given = made[last.number](Operation(last, (given,), {}, graph.values.__getitem__))
        except FAILURES:
            return False
        return apart(array_of(given), target) <= max(MARGIN * self.found.limit, self.tables)

    def operations(self) -> Operations:
        """Name the operations that the cause edits; nothing where it is another edit at each step, or edits none."""
        graph = self.here.context.graph
        made = operations(changes(self.cause), graph)
        once = self.written_out or any(edit.again for edit in self.cause) or any(name == END for _, name in made)
        return {} if once else made

    def at_all_calls(self) -> Operations:
        """Name the operations that the cause edits if it is made at every call of its lines; nothing if it is so."""
        own = self.operations()
        made = operations(changes(self._everywhere(self.cause)), self.here.context.graph) if own else {}
        return {} if made.keys() == own.keys() else made

    def _everywhere(self, edits: Sequence[Edit], *, in_one_module: bool = False) -> list[Edit]:
        """Give edits at every call of their lines."""
        context = self.here.context
        graph = context.graph
        whole = Context(graph, graph.nodes, self.here.ports, context.parameters, context.modules, context.theirs)
        return [at_all_calls(edit, whole, in_one_module=in_one_module) for edit in edits]

    def _of_model(self, edits: Sequence[Edit], end: int, target: np.ndarray) -> float:
        graph = self.here.context.graph
        try:
            return apart(array_of(graph.evaluate(graph.nodes, changes(edits), end)), target)
        except FAILURES:
            return np.inf

    def _opened(self, rerun: Rerun, target: np.ndarray) -> Step | None:
        return opened(self.found, rerun, self.given, target, self.theirs(rerun.batch), written_out=self.written_out)

    @property
    def has_losses(self) -> bool:
        """Whether the difference may come from within one of torch's losses."""
        return hasattr(self, "here") and any(node.name in LOSSES for node in self.here.context.nodes)

    def _one(self) -> Cause | None:
        here = self._opened(self.rerun, self.target) if self.written_out else getattr(self, "here", None)
        if here is None:
            return None
        self.here = here
        # Every edit is evaluated on the recorded values of a few operations, which takes a millisecond, and
        # not by running the model again. Only what fits is confirmed by a run: `_confirmed`.
        edits = (edit for edit in listed(here.context) if self._proves(edit))
        within = itertools.takewhile(lambda _: self.budget.left(0.5), edits)
        self.tried = [Tried(edit, here.leaves([edit])) for edit in within]
        return self._told([[each.edit] for each in self.tried if each.apart <= 1] or self._later())

    @cached_property
    def _elsewhere(self) -> "Elsewhere":
        return Elsewhere(self.here)

    def _proves(self, edit: Edit) -> bool:
        """Tell whether an edit could be proved: of real numbers that were rounded or compared, most of them fit."""
        graph = self.here.context.graph
        nodes = [graph.nodes[number] for number, _ in edit.at]
        # What is added to whole numbers may be real, and is compared or rounded behind them all the same.
        return all(
            node.name == END
            or (node.name in WHOLE and edit.kind != Kind.ADDED and not of_compared(node, edit))
            or not any(graph.values[n].is_floating_point() for n in (of_compared(node, edit) or node.outputs))
            or any(n in self._real for n in node.outputs)
            for node in nodes
        )

    @cached_property
    def _real(self) -> frozenset[int]:
        """The values that change the result as real numbers, and not only as what they are rounded to or compared."""
        context, end = self.here.context, self.here.end
        graph = context.graph
        if is_whole(self.target) and is_whole(array_of(graph.values[end])):
            return frozenset()
        found = {end}
        for node in reversed(context.nodes):  # in order of computation
            real = any(n in found and graph.values[n].is_floating_point() for n in node.outputs)
            if real and node.name not in ROUNDING:
                found |= {number for _, number in node.inputs if graph.values[number].is_floating_point()}
        return frozenset(found)

    def _told(self, fitting: Iterable[list[Edit]]) -> Cause | None:
        elsewhere, meant = self._elsewhere, (edits for edits in fitting if any(edit.does for edit in edits))
        told_of = [each for each in meant if not elsewhere.is_level(each) and elsewhere.is_determined(each)]
        # Of what computes the same, an operation says more than numbers, and a table more than what is computed of it.
        told_of.sort(key=lambda edits: (any(edit.again for edit in edits), edits[0].kind != Kind.TABLE))
        most = self._explaining_most(told_of)
        ways = (most, told_of) if len(most) < len(told_of) else (most,)
        proved = worth_telling(next(filter(None, (self._proved(elsewhere.different(each)) for each in ways)), []))
        self.cause = proved[0] if proved else ()
        said = [with_equal_terms(edits, self.here.context) for edits in proved]
        return told(said, self.here.leaves(proved[0]) * self.here.limit) if proved else None

    def _explaining_most(self, fitting: list[list[Edit]]) -> list[list[Edit]]:
        """Keep the edits that explain most of what differs elsewhere: of a state that is zero, any factor fits."""
        if len(fitting) < 2 or not self.others:
            return fitting
        every = [self._everywhere(edits, in_one_module=True) for edits in fitting]
        counts = [sum(self._held(edits, *other) for other in self.others) for edits in every]
        return [edits for edits, count in zip(fitting, counts, strict=True) if count == max(counts)]

    def _later(self) -> list[list[Edit]]:
        """Find what the JAX side gives among what torch computes only later, or uses only later."""
        graph, end = self.here.context.graph, self.here.context.nodes[-1]
        for number, value in enumerate(graph.values[: self.here.end]):
            if tuple(value.shape) == self.target.shape and apart(array_of(value), self.target) <= self.found.limit:
                names = replace(self.here.context, nodes=[end], ports=self.here.ports)
                own, name = names.named(end.inputs[0][1]), names.named(number)

                def compute(operation: Any, number: int = number) -> Any:
                    return operation.value(number)

                late = graph.made_by.get(number, -1) > end.number
                does = f"has {name} at this place{', which torch computes later' * late}; torch has {own}"
                fix = f"take {own} at this place{f', and compute {name} where torch does' * late}"
                return [[Edit(Kind.MOVED if late else Kind.OPERAND, ((end.number, compute),), does, fix)]]
        return []

    def _proved(self, groups: Sequence[list[list[Edit]]]) -> list[list[Edit]]:
        """Keep of each group the first that holds at other steps, if it holds in a run of the whole step too.

        A tensor proves an edit if it has numbers enough, all different, and one other step does not contradict it. A
        scalar, or a tensor that is constant, needs two other steps at which the sides differ.
        """
        left, agreed = [list(group) for group in groups], 0
        needed = 2 if len(np.unique(self.target[np.isfinite(self.target)].ravel()[:100_000])) < DIFFERENT else 0
        for step in self._others():
            if not left or (agreed >= max(needed, 1)):
                break
            before = step.leaves([])
            near = max(MARGIN, EXPLAINED * before)
            # What computes the same on this batch may not do so on another one.
            holding = ([e for e in group if step.leaves(self._again(e, step.context)) <= near] for group in left)
            left = [group for group in holding if group]
            agreed += before > MARGIN * near
        return self._run(left) if agreed >= needed and not self._refuted else []

    def _others(self) -> Iterator[Step]:
        """Yield the held-out steps that take the same way through the program; each is made once for all edits."""
        yield from self._made
        for rerun, target in self.held_out:
            step = self._opened(rerun, target)
            if step is not None and way(step) == way(self.here):
                self._made.append(step)
                yield step
            elif step is not None and step.leaves([]) > MARGIN**2:
                self._refuted = True  # the two differ there as well, and no edit of this step explains it
                return

    def _again(self, edits: Sequence[Edit], context: Context) -> list[Edit]:
        """Make the same edits at another step; what cannot be made there changes nothing."""
        here, there = self.here.context.nodes[-1].number, context.nodes[-1].number
        made = [edit.moved(here, there) if edit.again is None else edit.again(context) for edit in edits]
        return [edit for edit in made if edit is not None]

    def _run(self, groups: Sequence[list[list[Edit]]]) -> list[list[Edit]]:
        """Give of each group the way to write an edit that holds in a run of the whole step, and explains most of it.

        What computes the same in this part of the step may not do so before it: the 0.5 of one term of a loss, which
        the step shows, and the 0.5 by which the loss multiplies this term.
        """
        ran: list[list[tuple[int, list[Edit]]]] = []
        for group in groups:
            ran.append([])
            for edits in group[:CONFIRMED]:
                if (count := self._agreeing(edits)) is not None:
                    ran[-1].append((count, edits))
                    if not self.shown:
                        break
        most = max((count for own in ran for count, _ in own), default=0)
        best = ([edits for count, edits in own if count == most] for own in ran)
        return [own[0] for own in best if own]

    @cached_property
    def _undisputed(self) -> "list[Shown]":
        """What agrees later in the step although the place differs: an edit that changes it is not the port's."""
        seen = edited(self.rerun, {}, self.here.context.graph) if self.later else Observation()
        return [each for each in self.later if each.agrees(seen)]

    def _agreeing(self, edits: Sequence[Edit]) -> int | None:
        """Run the whole step with the edits: None if the place differs, else how many values that it shows agree."""
        graph = self.here.context.graph
        at_the_end = any(graph.nodes[number].name == END for number in changes(edits))
        try:
            if at_the_end:  # nothing that torch calls is edited
                return sum(shown.agrees(edited(self.rerun, {}, graph)) for shown in self.shown)
            # The run goes on behind the place, on a GPU too, where what is edited may be an index out of range.
            graph.evaluate(graph.nodes, changes(edits), self.here.end)
            undisputed = self._undisputed  # before the run with the edits: each run overwrites the state of the last
            seen = edited(self.rerun, changes(edits), graph)
            array = np.asarray(self.found.pairing.torch_array(seen), np.float64)
            if apart(array, self.target) > self.found.limit or not all(each.agrees(seen) for each in undisputed):
                return None
            return sum(shown.agrees(seen) for shown in self.shown)
        except FAILURES:
            return None


FITTING = 6
"""Of pairs that fit, so many are looked for: several may be ways to write the same, and the plainest is told."""

CONFIRMED = 4
"""Ways to write one edit that are tried in a run of the whole step, which takes as long as a step."""
