"""The search for an edit of torch's operations, or for two, with which they give what the JAX side gives."""

import contextlib
import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare.diagnosis.held_out import EXPLAINED, MARGIN
from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure import arrangement, exchanges, insertion, masks, operands, reductions, removal
from compare.diagnosis.structure.edit import END, SILENT, Context, Edit, Generator, Kind, end_node
from compare.diagnosis.structure.graph import FAILURES, Compute
from compare.diagnosis.structure.norm_order import norms_moved
from compare.diagnosis.structure.recording import Recorded, edited, recorded
from compare.numerics.distance import distance
from compare.step.observation import Port
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found

if TYPE_CHECKING:
    import torch

DIFFERENT = 4
"""Numbers that a tensor must have, all different, for an edit of it to be proved."""


@dataclass
class Budget:
    """What the search may cost, over all that a check explains."""

    seconds: float = 10.0
    edits: int = 200_000
    spent: float = 0.0
    tried: int = 0
    _since: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Begin to measure."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Count what has been used since it began."""
        self.spent += time.monotonic() - self._since

    def left(self, share: float = 1.0) -> bool:
        """Tell whether a share of it is left, for one more edit."""
        self.tried += 1
        used = self.spent + time.monotonic() - self._since
        return used < share * self.seconds and self.tried < self.edits


class Tried(NamedTuple):
    """An edit, and how far it leaves torch from the JAX side: 1 is near enough."""

    edit: Edit
    apart: float


GENERATORS: tuple[Generator, ...] = (
    *removal.GENERATORS,
    *arrangement.GENERATORS,
    *masks.GENERATORS,
    *reductions.GENERATORS,
    *exchanges.GENERATORS,
    *operands.GENERATORS,
    *insertion.GENERATORS,
)


class Surroundings(NamedTuple):
    """What is known around a divergence."""

    given: Collection[Port]
    """Torch's inputs and outputs of modules at which the JAX side has torch's values."""
    budget: Budget
    """What the search may cost."""
    outputs: Callable[[], list[tuple[Port, np.ndarray]]] = list
    """Gives what the JAX side's whole model gives by itself, in torch's layout, by torch's ports."""


@dataclass
class _Step:
    """A step of the torch side as a graph, open where the value that differs comes from, and what JAX gives there."""

    context: Context
    ports: Mapping[Port, int]
    end: int
    target: np.ndarray
    limit: float

    def leaves(self, edits: Sequence[Edit]) -> float:
        """Give how far torch is from the JAX side with edits: 1 is near enough."""
        try:
            given = self.context.graph.evaluate(self.context.nodes, changes(edits), self.end)
        except FAILURES:
            return np.inf
        return apart(_array(given), self.target) / self.limit


def _step(found: Found, rerun: Rerun, given: Collection[Port], target: np.ndarray) -> _Step | None:
    """Record a step; None where the value that differs is not in its graph."""
    try:
        step = recorded(rerun)
    except FAILURES:
        return None
    graph, ports = step.graph, step.ports
    value = _value(found, step)
    if value is None or distance(_array(graph.values[value]), found.pairing.torch_array(step.seen)) != 0:
        return None  # tensors were overwritten behind the graph's back
    end = found.pairing.ports
    before = list(itertools.takewhile(lambda port: end is None or port != end[0], ports))
    nodes = graph.cone(value, {ports[port] for port in before if port in given})
    last = graph.add(graph.values[value], len(graph.nodes))
    graph.nodes.append(end_node(len(graph.nodes), value, last))
    modules = dict(rerun.model.named_modules())
    earlier = {port: ports[port] for port in before}
    context = Context(graph, [*nodes, graph.nodes[-1]], earlier, step.parameters, modules)
    return _Step(context, ports, last, np.asarray(target, np.float64), found.limit)


def _value(found: Found, step: Recorded) -> int | None:
    """Say which value of the graph differs."""
    if found.pairing.ports is not None:
        return step.ports.get(found.pairing.ports[0])
    loss = step.seen.loss
    if found.divergence.stage != "loss" or loss is None:
        return None
    same = [n for n, value in enumerate(step.graph.values) if value.data_ptr() == loss.data_ptr()]
    return same[-1] if same else None


class StructureSearch:
    """Looks for the edits with which torch gives what the JAX side gives.

    Args:
        found: Where the sides differ; `found.target` is what the JAX side gives.
        rerun: The torch side's step.
        surroundings: What is known around it.
        held_out: Other steps of torch, and what the JAX side gives there: an edit must hold at these too.

    """

    def __init__(
        self,
        found: Found,
        rerun: Rerun,
        surroundings: Surroundings,
        held_out: Iterable[tuple[Rerun, np.ndarray]] = (),
    ) -> None:
        assert found.target is not None
        self.found, self.rerun, self.held_out = found, rerun, held_out
        self.given, self.budget, self.outputs = surroundings
        self.target = np.asarray(found.target, np.float64)
        self.here: _Step
        self.tried: list[Tried] = []

    def one(self) -> Cause | None:
        """Find one edit; None where nothing fits, or nothing would be proved."""
        return self._within_budget(self._one)

    def norms(self) -> Cause | None:
        """Find norms before the layers for norms behind the sums, or the reverse."""
        return self._within_budget(self._norms)

    def two(self) -> Cause | None:
        """Find two edits, after `one` has found none."""
        return self._within_budget(lambda: self._told(itertools.islice(self._pairs(), 3)))

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
        here = _step(self.found, self.rerun, self.given, self.target)
        if here is None:
            return None
        self.here, graph = here, here.context.graph
        for edit in norms_moved(graph):
            ends = [(here.ports.get(port), array) for port, array in self.outputs()]
            left = [self._of_model(edit, end, array) for end, array in ends if end is not None]
            if left and max(left) <= MARGIN * self.found.limit:
                return told([[edit]], max(left))
        return None

    def _of_model(self, edit: Edit, end: int, target: np.ndarray) -> float:
        graph = self.here.context.graph
        try:
            return apart(_array(graph.evaluate(graph.nodes, changes([edit]), end)), target)
        except FAILURES:
            return np.inf

    def _one(self) -> Cause | None:
        if not hasattr(self, "here"):
            return None
        here = self.here
        self.tried = [Tried(edit, here.leaves([edit])) for edit in _listed(here.context) if self.budget.left(0.5)]
        return self._told([[each.edit] for each in self.tried if each.apart <= 1] or self._later())

    def _told(self, fitting: Iterable[list[Edit]]) -> Cause | None:
        proved = self._proved(self._different(fitting))
        return told(proved, self.here.leaves(proved[0]) * self.found.limit) if proved else None

    def _pairs(self) -> Iterator[list[Edit]]:
        """Try two edits at a time: first those that bring torch nearest by themselves."""
        usual = [each.edit for each in self.tried if each.edit.kind in _USUAL][:USUAL]
        for first, second in itertools.combinations(usual, 2):
            if not self.budget.left(0.75):
                break
            if _apart_in_place(first, second) and self.here.leaves([first, second]) <= 1:
                yield [first, second]
        near = sorted((each for each in self.tried if np.isfinite(each.apart)), key=lambda each: each.apart)
        every = [each.edit for each in self.tried]
        for nearest, second in itertools.product(near[:NEAREST], every):
            if not self.budget.left():
                return
            if _apart_in_place(nearest.edit, second) and self.here.leaves([nearest.edit, second]) <= 1:
                yield [nearest.edit, second]

    def _later(self) -> list[list[Edit]]:
        """Find what the JAX side gives among what torch computes only later."""
        graph, end = self.here.context.graph, self.here.context.nodes[-1]
        for number, value in enumerate(graph.values[: self.here.end]):
            if tuple(value.shape) == self.target.shape and apart(_array(value), self.target) <= self.found.limit:
                names = Context(graph, [end], self.here.ports, self.here.context.parameters)
                own, name = names.named(end.inputs[0][1]), names.named(number)

                def compute(operation: Any, number: int = number) -> Any:
                    return operation.value(number)

                does = f"has {name} at this place, which torch computes later; torch has {own}"
                fix = f"take {own} at this place, and compute {name} where torch does"
                return [[Edit(Kind.MOVED, ((end.number, compute),), does, fix)]]
        return []

    def _different(self, fitting: Iterable[list[Edit]]) -> list[list[Edit]]:
        """Keep one of those that compute the same whatever goes in."""
        kept: list[tuple[list[Edit], np.ndarray | None]] = []
        for edits in fitting:
            array = self._elsewhere(edits)
            if not any(_same(array, other) for _, other in kept):
                kept.append((edits, array))
        return [edits for edits, _ in kept]

    def _elsewhere(self, edits: Sequence[Edit]) -> np.ndarray | None:
        """Compute what is edited from other values than the step's."""
        context = self.here.context
        graph, nodes = context.graph, context.nodes
        made = {number for node in nodes for number in node.outputs}
        used = {number for node in nodes for _, number in node.inputs}
        used |= {number for number in context.ports.values() if number not in made}
        moved = {number: _moved(graph.values[number], number) for number in used - made}
        try:
            return _array(graph.evaluate(nodes, changes(edits), self.here.end, moved))
        except FAILURES:
            return None

    def _proved(self, fitting: Sequence[list[Edit]]) -> list[list[Edit]]:
        """Keep what holds in a run of the whole step, and at other steps.

        A tensor proves an edit if it has numbers enough, all different, and one other step does not contradict it. A
        scalar, or a tensor that is constant, needs two other steps at which the sides differ.
        """
        left = [edits for edits in fitting if self._confirmed(edits)]
        needed = 2 if len(np.unique(self.target[np.isfinite(self.target)].ravel()[:100_000])) < DIFFERENT else 0
        asked = agreed = 0
        for rerun, target in self.held_out:
            if not left or (agreed >= max(needed, 1)):
                break
            step = _step(self.found, rerun, self.given, target)
            asked += 1
            if step is None or len(step.context.graph.nodes) != len(self.here.context.graph.nodes):
                continue  # another way through the program
            before = step.leaves([])
            near = max(MARGIN, EXPLAINED * before)
            left = [edits for edits in left if step.leaves(edits) <= near]
            agreed += before > MARGIN * near
        return left if agreed >= needed else []

    def _confirmed(self, edits: Sequence[Edit]) -> bool:
        """Run the whole step with the edits."""
        if any(self.here.context.graph.nodes[number].name == END for number in changes(edits)):
            return True  # nothing that torch calls is edited
        try:
            seen = edited(self.rerun, changes(edits), self.here.context.graph)
            array = np.asarray(self.found.pairing.torch_array(seen), np.float64)
        except FAILURES:
            return False
        return apart(array, self.target) <= self.found.limit


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Give the distance of what is finite; infinity where something is so on one side only."""
    finite = np.isfinite(theirs)
    if ours.shape != theirs.shape or not np.array_equal(np.isfinite(ours), finite):
        return np.inf
    return distance(ours, theirs) if finite.all() else distance(ours[finite], theirs[finite])


def changes(edits: Sequence[Edit]) -> dict[int, Compute]:
    """Give what is computed in the place of operations, by number."""
    return dict(pair for edit in edits for pair in edit.at)


NEAREST = 200
"""First edits of two: those that bring torch nearest."""

USUAL = 300
"""Of the usual edits, so many are tried in all pairs."""

_USUAL = set(Kind) - {Kind.OPERAND, Kind.ADDED, Kind.SCALE, Kind.TWICE}


def _apart_in_place(one: Edit, other: Edit) -> bool:
    return {number for number, _ in one.at}.isdisjoint(number for number, _ in other.at)


def _listed(context: Context) -> Iterator[Edit]:
    """List edits, the likeliest first. An operation of a form that nobody has foreseen has none.

    What is called in a loop, or in a function that is called twice, is edited at one of its calls, and at all.
    """
    for generator in GENERATORS:
        by_site: dict[tuple[int, ...], list[list[Edit]]] = {}
        for node in context.nodes:
            if not node.frozen and (node.name not in SILENT or generator in _AT_THE_END):
                found: list[Edit] = []
                with contextlib.suppress(*FAILURES):
                    found.extend(generator(context, node))
                by_site.setdefault(node.site, []).append(found)
                yield from found
        for site, calls in by_site.items():
            if site and len(calls) > 1 and len({len(found) for found in calls}) == 1:
                yield from map(_everywhere, zip(*calls, strict=True))


_AT_THE_END = (*operands.GENERATORS, *insertion.GENERATORS)


def _everywhere(edits: Sequence[Edit]) -> Edit:
    """Make the same edit at all calls of one site."""
    at = tuple(pair for edit in edits for pair in edit.at)
    return dataclasses.replace(edits[0], at=at, does=f"{edits[0].does}, and so each of {len(edits)} times")


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _moved(tensor: "torch.Tensor", seed: int) -> "torch.Tensor":
    """Give other numbers of the same size; booleans and integers stay as they are."""
    import torch

    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
    finite = torch.isfinite(tensor)
    return torch.where(finite, tensor + noise * (tensor[finite].std(correction=0) if finite.any() else 1), tensor)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and distance(a, b) < SAME


SAME = 1e-9
"""Two edits of which results are nearer than this compute the same."""


def told(fitting: Sequence[Sequence[Edit]], apart: float) -> Cause:
    """Describe a cause; where several different edits fit, all of them."""
    first, *others = fitting
    name = " and ".join(dict.fromkeys(edit.kind for edit in first))
    does = " or ".join(", and ".join(edit.does for edit in edits) for edits in (first, *others[:2]))
    both = "; on this batch these are the same" if others else ""
    fix = "; or ".join("; ".join(edit.fix for edit in edits) for edits in (first, *others[:2]))
    explanation = f"{name}: the JAX side {does}{both}. With that on the torch side the difference is {apart:.1e}"
    return Cause(name, explanation, fix)
