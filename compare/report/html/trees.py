"""Both models' modules side by side, with the map of their weights between them."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from compare.report.html.parts import short
from compare.verdict.quantity import FACTOR

if TYPE_CHECKING:
    from compare.report.findings import Findings

_UNFOLDED, _OUTLINED = 40, 400
"""Rows of a tree up to which it is shown in full, and up to which all its modules are; what differs always is."""

_PORT = re.compile(r"^(.*?)(?: \(call \d+\))? output(?: .*)?$")
"""What a module gives, as the forward stage names it."""

_STAGES = ("forward", "loss", "gradient", "update", "parameters", "buffers")


@dataclass
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


def trees(report: "Findings") -> Iterator[str]:
    """Give the section; the script draws the lines between the two trees."""
    weights = report.weights or [(each.torch, each.jax) for each in report.quantities if each.stage == "parameters"]
    if not weights and not any(report.modules):
        return
    columns = []
    for side, run, kinds, separator in (
        (0, report.torch, report.modules[0], "."),
        (1, report.jax, report.modules[1], "/"),
    ):
        names: dict[str, list[int]] = {}
        for number, link in enumerate(weights):
            names.setdefault(link[side], []).append(number)
        root = _tree(kinds, names, separator)
        states = _states(report, side, names)
        first = "" if report.divergence is None else (report.divergence.torch, report.divergence.jax)[side]
        rows = len(kinds) + len(names)
        head = f'<h3>{escape(run.side)} <small class="kind">{escape(root.kind)}</small></h3>'
        drawn = "".join(_rows(root, states, first, rows))
        columns.append(f'<div class="tree" data-side="{side}">{head}{drawn}</div>')
    yield (
        '<section><h2>Modules and weights, side by side</h2><p class="dim">A line joins the two names of one weight. '
        f"✓ agrees; ✗ differs by more than rounding explains; ○ has nothing to be held against. {_shown(report)}</p>"
        f'<div class="trees"><svg aria-hidden="true"></svg>{"".join(columns)}</div></section>'
    )


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


def _shown(report: "Findings") -> str:
    if report.divergence is None:
        return "The number beside it is the float64 difference, at the step where rounding explains least of it."
    return (
        f"It is how things stand at the first divergence, step {report.divergence.step}, {report.divergence.stage}: "
        "what comes of it later in that step is left out. The number beside it is the float64 difference."
    )


def _states(report: "Findings", side: int, weights: Iterable[str]) -> dict[str, _State]:
    """Tell of each module by its path, and of each weight by its name, how far apart it is.

    After the first divergence everything differs, and a picture of that would not show where it began.
    """
    found = {name: _State(None, 0.0) for name in weights}
    divergence = report.divergence
    for quantity in report.quantities:
        if divergence is None:
            step = int(np.argmax(quantity.ratio))
        elif _STAGES.index(quantity.stage) <= _STAGES.index(divergence.stage):
            step = divergence.step
        elif quantity.stage in ("parameters", "buffers") and divergence.step:
            step = divergence.step - 1
        else:
            continue
        if step >= len(quantity.error64):
            continue
        new = _State(quantity.error64[step], float(quantity.ratio[step]))
        for name in _subjects(quantity.stage, (quantity.torch, quantity.jax)[side]):
            old = found.get(name)
            if old is None or old.error64 is None or new.ratio > old.ratio:
                found[name] = new
    for each in (divergence, *report.others):
        if each and each.stage == "parameters" and (name := (each.torch, each.jax)[side]) in found:
            found[name] = _State(each.error64, math.inf)  # as they were converted, before any step
    return found


def _subjects(stage: str, name: str) -> list[str]:
    """Name the modules or the weights that a quantity is of."""
    if stage != "forward":
        return name.split(" + ")
    port = _PORT.match(name)
    if port is None:
        return []
    return ["" if port[1] == "the model" else port[1]]


def _rows(node: _Node, states: Mapping[str, _State], first: str, size: int) -> Iterator[str]:
    for name, links in node.tensors.items():
        label = name[len(node.path) + 1 :] if node.path else name
        joined = " ".join(map(str, links))
        yield f'<div class="row tensor" data-links="{joined}">{_label(label, "", name, states, first)}</div>'
    for child in node.children.values():
        if not child.kind and not child.tensors:  # a list of modules, which computes nothing itself
            for grandchild in child.children.values():
                grandchild.label = (
                    f"{child.label}{grandchild.path[len(child.path) : len(child.path) + 1]}{grandchild.label}"
                )
            yield from _rows(child, states, first, size)
            continue
        label = _label(child.label, child.kind, child.path, states, first)
        inside = "".join(_rows(child, states, first, size))
        if inside:
            opened = " open" if size <= (_UNFOLDED if child.tensors else _OUTLINED) or "✗" in inside else ""
            yield f'<details{opened}><summary class="row">{label}</summary><div class="inside">{inside}</div></details>'
        else:
            yield f'<div class="row leaf">{label}</div>'


def _label(label: str, kind: str, name: str, states: Mapping[str, _State], first: str) -> str:
    state = states.get(name)
    if state is None:
        sign = '<span class="sign" title="not compared">○</span>' if kind else ""
    else:
        look, mark, word = ("mismatch", "✗", "differs") if state.ratio > FACTOR else ("match", "✓", "agrees")
        error = "" if state.error64 is None else short(state.error64, 0)
        sign = f'<span class="sign {look}" title="{word}"><span class="error">{error}</span> {mark}</span>'
    here = ' <em class="here">first divergence</em>' if name and name == first else ""
    what = f' <small class="kind">{escape(kind)}</small>' if kind else ""
    return f"<span><code>{escape(label)}</code>{what}{here}</span>{sign}"
