"""A step of the torch side as a graph, reduced to the operations that a difference can come from."""

import copy
import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure.edit import Context, Edit, end_node
from compare.diagnosis.structure.graph import FAILURES, Compute, Graph, Node
from compare.diagnosis.structure.recording import Recorded, recorded
from compare.jax_side.from_data import FromData
from compare.numerics.distance import distance, norm
from compare.step.observation import Port
from compare.step.stage import Stage
from compare.verdict.first_difference import Found

if TYPE_CHECKING:
    import torch


_UNREAD = FromData()

EXACT = 1 / 4
"""The share of what rounding may explain that an edit may leave: it has no free number, and so it is right or not.

Right edits leave 0.03 at most: measured on the faults of tests/structure. What leaves more replaces a quotient that is
nearly one, or another number by one that is near it.
"""


@dataclass
class Step:
    """A step of the torch side as a graph, open where the value that differs comes from, and what JAX gives there."""

    context: Context
    ports: Mapping[Port, int]
    end: int
    target: np.ndarray
    limit: float
    made: tuple[Edit, ...] = ()
    """Edits that its values have in them already: see `having`."""

    @functools.cached_property
    def _behind(self) -> dict[int, frozenset[int]]:
        """The numbers of the operations that depend on each operation, with its own."""
        found: dict[int, frozenset[int]] = {}
        for node in reversed(self.context.nodes):
            users = (user.number for number in node.outputs for user in self.context.users.get(number, ()))
            found[node.number] = frozenset((node.number,)).union(*(found[user] for user in users if user in found))
        return found

    def _changed(self, edits: Sequence[Edit]) -> "dict[int, torch.Tensor]":
        numbers = tuple(number for edit in edits for number, _ in edit.at)
        # An edit that is made already may read what comes before it, besides the operands of its operation.
        first = min(numbers, default=len(self.context.graph.nodes))
        numbers += tuple(number for edit in self.made for number, _ in edit.at if number > first)
        nodes = self._depending(numbers)
        return self.context.graph.changed(nodes, changes([*self.made, *edits]), {})

    def _depending(self, numbers: tuple[int, ...]) -> list[Node]:
        """List the operations that depend on some, in order; most edits are of the same few."""
        if numbers not in self._known:
            behind = frozenset[int]().union(*(self._behind.get(number, ()) for number in numbers))
            self._known[numbers] = [node for node in self.context.nodes if node.number in behind]
        return self._known[numbers]

    @functools.cached_property
    def _known(self) -> dict[tuple[int, ...], list[Node]]:
        return {}

    @functools.cached_property
    def _size(self) -> float:
        """The norm of the target, where it is finite; otherwise 0."""
        size = norm(self.target)
        return size if np.isfinite(size) else 0.0

    def leaves(self, edits: Sequence[Edit]) -> float:
        """Give how far torch is from the JAX side with edits: 1 is near enough."""
        try:
            given = self._changed(edits).get(self.end, self.context.graph.values[self.end])
        except FAILURES:
            return np.inf
        ours = array_of(given)
        if ours.shape != self.target.shape:
            return np.inf
        # What `apart` gives, without what it looks at first: this is asked for a hundred thousand times.
        difference = norm(ours - self.target) if self._size else np.nan
        return (difference / self._size if np.isfinite(difference) else apart(ours, self.target)) / self.limit

    def having(self, edit: Edit) -> Self | None:
        """Return the same step with an edit made, so that one more costs only what it changes; None where it fails."""
        graph = self.context.graph
        try:
            fresh = self._changed([edit])
        except FAILURES:
            return None
        other = copy.copy(self)
        other.context = copy.copy(self.context)
        other.context.graph = replace(graph, values=[fresh.get(n, value) for n, value in enumerate(graph.values)])
        other.made = (*self.made, edit)
        return other


def opened(
    found: Found,
    rerun: Rerun,
    given: Collection[Port],
    target: np.ndarray,
    theirs: FromData = _UNREAD,
    *,
    written_out: bool = False,
) -> Step | None:
    """Record a step, with losses `written_out` or not; None where the value that differs is not in its graph."""
    try:
        step = recorded(rerun, written_out=written_out)
    except FAILURES:
        return None
    graph, ports = step.graph, step.ports
    value = _value(found, step)
    if value is None or distance(array_of(graph.values[value]), found.pairing.torch_array(step.seen)) != 0:
        return None  # tensors were overwritten by something that the graph does not see
    graph = graph.on_cpu()
    end = found.pairing.ports
    before = list(itertools.takewhile(lambda port: end is None or port != end[0], ports))
    # Where the JAX side has torch's values, nothing that comes before can be the cause.
    nodes = graph.cone(value, {ports[port] for port in before if port in given})
    last = graph.add(graph.values[value], len(graph.nodes))
    graph.nodes.append(end_node(len(graph.nodes), value, last))
    modules = dict(rerun.model.named_modules())
    earlier = {port: ports[port] for port in before}
    context = Context(
        graph,
        [*nodes, graph.nodes[-1]],
        earlier,
        step.parameters,
        modules,
        theirs,
        end and end[0],
        step.names,
        step.given,
    )
    return Step(context, ports, last, np.asarray(target, np.float64), EXACT * found.limit)


def _value(found: Found, step: Recorded) -> int | None:
    """Say which value of the graph differs."""
    if found.pairing.ports is not None:
        return step.ports.get(found.pairing.ports[0])
    stage, given = found.divergence.stage, step.seen.loss
    if stage == Stage.SHOWN:
        given = step.seen.shown.get(found.pairing.torch)
    if stage not in (Stage.LOSS, Stage.SHOWN) or given is None:
        return None
    return max(numbers_of(step.graph, given), default=None)


def numbers_of(graph: Graph, given: "torch.Tensor") -> list[int]:
    """List the values of a graph that are what a step gives: a tensor, or the number that `loss.item()` made of it."""
    same = [n for n, value in enumerate(graph.values) if value.data_ptr() == given.data_ptr()]
    if same or given.numel() != 1:
        return same
    computed = [n for n in graph.made_by if graph.values[n].numel() == 1 and graph.values[n].is_floating_point()]
    return [n for n in computed if graph.values[n].item() == given.item()]


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Give the distance of what is finite; infinity where something is so on one side only."""
    finite = np.isfinite(theirs)
    if ours.shape != theirs.shape or not np.array_equal(np.isfinite(ours), finite):
        return np.inf
    # Masked scores are -inf on both sides, at the same places.
    return distance(ours, theirs) if finite.all() else distance(ours[finite], theirs[finite])


def is_whole(array: np.ndarray) -> bool:
    """Tell whether all numbers are whole: indices, masks, counts."""
    return bool(np.array_equal(array, np.round(array)))


def changes(edits: Sequence[Edit]) -> dict[int, Compute]:
    """Give what is computed in the place of operations, by number."""
    return dict(pair for edit in edits for pair in edit.at)


def array_of(tensor: "torch.Tensor") -> np.ndarray:
    """Give a tensor as float64."""
    return tensor.detach().cpu().double().numpy()


def moved(tensor: "torch.Tensor", seed: int, scale: float = 1.0) -> "torch.Tensor":
    """Give other numbers, of `scale` times the same size; booleans and integers stay as they are."""
    import torch

    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(seed)
    # Noise of the tensor's own size, so that signs change and ties break.
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
    finite = torch.isfinite(tensor)
    return torch.where(
        finite, tensor + scale * noise * (tensor[finite].std(correction=0) if finite.any() else 1), tensor
    )


def way(step: Step) -> list[str]:
    """Name the operations up to the value that differs. What follows may be others, such as an update that is due."""
    *nodes, _ = step.context.nodes
    return [node.name for node in step.context.graph.nodes[: nodes[-1].number + 1]] if nodes else []
