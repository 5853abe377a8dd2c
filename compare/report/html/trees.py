"""The page's two trees of modules, and which weight of one is which of the other: rows that the template writes."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare.report.html.origin import first_names
from compare.step.stage import Stage
from compare.verdict.ratio import FACTOR

if TYPE_CHECKING:
    from compare.report.findings import Findings

_UNFOLDED, _OUTLINED = 40, 400
"""The largest numbers of rows for which a tree is fully unfolded, or down to its modules. Differences are always
unfolded."""


@dataclass(frozen=True)
class _State:
    """How far apart something is, and whether rounding explains it."""

    error64: float | None
    """None of a weight that is as it was copied."""
    ratio: float


@dataclass
class _Node:
    """One module of a tree."""

    label: str
    path: str
    kind: str = ""
    children: dict[str, "_Node"] = field(default_factory=dict)
    tensors: dict[str, list[int]] = field(default_factory=dict)
    """Each tensor's full name, with the numbers of its links."""


@dataclass(frozen=True)
class Row:
    """A module or a tensor in a tree."""

    label: str
    kind: str
    """The class of a module; "" of a tensor."""
    state: _State | None
    """None where nothing was compared."""
    first: bool
    """Whether it is the first divergence."""
    links: Sequence[int] = ()
    """The numbers of a tensor's links: a line joins the two rows that share one."""
    inside: Sequence["Row"] = ()
    """The rows of a module's tensors and modules."""
    open: bool = False

    @property
    def differs(self) -> bool:
        """Whether it differs by more than rounding explains."""
        return self.state is not None and self.state.ratio > FACTOR


class Column(NamedTuple):
    """The tree of one side."""

    side: str
    kind: str
    """The class of the whole model."""
    rows: Sequence[Row]


def trees(report: "Findings") -> list[Column]:
    """Return one column a side; none if the models have no modules and no weights."""
    weights = report.weights or [(each.torch, each.jax) for each in report.quantities if each.stage == Stage.PARAMETERS]
    if not weights and not any(report.modules):
        return []
    columns = []
    for side, run, kinds, separator in (
        (0, report.torch, report.modules[0], "."),
        (1, report.jax, report.modules[1], "/"),
    ):
        names: dict[str, list[int]] = {}
        for number, link in enumerate(weights):
            names.setdefault(link[side], []).append(number)
        root = _tree(kinds, names, separator)
        tree = _Tree(_states(report, side, names), first_names(report)[side], len(kinds) + len(names))
        columns.append(Column(run.side, root.kind, list(tree.rows(root))))
    return columns


SHOWN = 16
"""The largest number of rows for which a section of trees is unfolded."""


def size(rows: Sequence[Row]) -> int:
    """Count the rows of a tree that are to be seen as it is unfolded at first."""
    return sum(1 + (size(row.inside) if row.open else 0) for row in rows)


_ORDER = {stage: number for number, stage in enumerate(Stage)}


def _tree(kinds: Mapping[str, str], names: Mapping[str, list[int]], separator: str) -> _Node:
    root = _Node("", "", kinds.get("", ""))

    def node(path: str) -> _Node:
        at, parts = root, path.split(separator) if path else []
        for depth, part in enumerate(parts, 1):
            at = at.children.setdefault(part, _Node(part, separator.join(parts[:depth])))
        return at

    for path, kind in kinds.items():
        node(path).kind = kind
    for name, links in names.items():
        whole, _, _ = name.partition("[")
        node(whole.rpartition(separator)[0]).tensors[name] = links
    return root


def _states(report: "Findings", side: int, weights: Iterable[str]) -> dict[str, _State]:
    """Return the state of each module, by its path, and of each weight, by its name.

    After the first divergence everything differs, and a picture of that would not show where it began: what is
    computed later in that step is left out.
    """
    found = {name: _State(None, 0.0) for name in weights}
    divergence = report.divergence
    for quantity in report.quantities:
        if divergence is None:
            step = int(np.argmax(quantity.ratio))
        elif _ORDER[Stage(quantity.stage)] <= _ORDER[Stage(divergence.stage)]:
            step = divergence.step
        # What the step before has left is what this step started from.
        elif quantity.stage in (Stage.PARAMETERS, Stage.BUFFERS) and divergence.step:
            step = divergence.step - 1
        else:
            continue
        if step >= len(quantity.error64):
            continue
        new = _State(quantity.error64[step], float(quantity.ratio[step]))
        for name in quantity.subjects[side]:
            old = found.get(name)
            if old is None or old.error64 is None or new.ratio > old.ratio:
                found[name] = new
    for each in (divergence, *report.others):
        if each and each.stage == Stage.PARAMETERS and (name := (each.torch, each.jax)[side]) in found:
            found[name] = _State(each.error64, math.inf)  # as they were converted, before any step
    return found


class _Tree(NamedTuple):
    """What the rows of one tree need to know."""

    states: Mapping[str, _State]
    first: str
    """The name of the first divergence."""
    size: int
    """How many rows there are."""

    def rows(self, node: _Node) -> Iterator[Row]:
        """Yield the rows inside a module: its tensors, then its modules."""
        for name, links in node.tensors.items():
            label = name[len(node.path) + 1 :] if node.path else name
            yield self._row(label, "", name, links=links)
        for child in node.children.values():
            if not child.kind and not child.tensors:  # a list of modules, which computes nothing itself
                yield from self._of_list(child)
                continue
            inside = list(self.rows(child))
            small = self.size <= (_UNFOLDED if child.tensors else _OUTLINED)
            opened = small or any(row.differs or row.open for row in inside)
            yield self._row(child.label, child.kind, child.path, inside=inside, open=bool(inside) and opened)

    def _of_list(self, child: _Node) -> Iterator[Row]:
        """Yield the modules of a list without a row for the list itself: "layers.0"."""
        for inner in child.children.values():
            separator = inner.path[len(child.path) : len(child.path) + 1]
            inner.label = f"{child.label}{separator}{inner.label}"
        yield from self.rows(child)

    def _row(self, label: str, kind: str, name: str, **more: Any) -> Row:
        return Row(label, kind, self.states.get(name), bool(name) and name == self.first, **more)
