"""Prints the table of `netparity shapes`: one row for each layer, up to the first that differs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compare.report.places import listed
from compare.step.places import Source
from compare.weights.layers import KINDS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call of a layer."""

    name: str
    kind: str
    """The name of its class."""
    shape: Shape | None
    """Of what it gives; None if that is not known, as where it raised an error."""
    source: Source | None = None
    """The line that calls it."""
    times: int = 1
    """The number of calls of the layer that this represents."""
    inside: bool = False
    """Whether it runs inside a transformation of JAX, such as a scan, out of which no shapes come."""
    raised: bool = False
    """Whether it raised an error."""


@dataclass(frozen=True)
class Row:
    """A layer of one side next to its partner on the other."""

    torch: Call | None
    jax: Call | None
    not_comparable: str = ""
    """Why the shapes of partners say nothing, as where one is called once per time step."""

    @property
    def compared(self) -> tuple[Shape, Shape] | None:
        """The shapes of both sides; None where there are none to compare."""
        if self.not_comparable or self.torch is None or self.jax is None:
            return None
        shapes = self.torch.shape, self.jax.shape
        return None if shapes[0] is None or shapes[1] is None else (shapes[0], shapes[1])

    @property
    def differs(self) -> bool:
        """Whether both give something, and of sizes that no order of axes explains."""
        return self.compared is not None and not alike(*self.compared)

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, whose output may be padded and cut off later."""
        return self.torch is not None and KINDS.get(self.torch.kind) == "conv"

    @property
    def agrees_but_for(self) -> str:
        """What differs of shapes that agree: the "order" of axes, or how they are "joined"; else ""."""
        if self.compared is None or self.differs or self.compared[0] == self.compared[1]:
            return ""
        return "order" if sorted(self.compared[0]) == sorted(self.compared[1]) else "joined"

    @property
    def raised(self) -> bool:
        """Whether the layer raised an error, on either side."""
        return any(call is not None and call.raised for call in (self.torch, self.jax))


@dataclass(frozen=True)
class Shapes:
    """What `netparity shapes` found."""

    name: str
    sides: tuple[str, str]
    rows: Sequence[Row]
    """In order of execution, up to the first that differs and is not undone."""
    errors: Sequence[str]
    """What either side raised; what it had computed before is shown."""

    @property
    def first(self) -> Row | None:
        """The first row of which the shapes differ, if the next does not undo it."""
        last = next((row for row in reversed(self.rows) if row.compared), None)
        return next((row for row in self.rows if row.differs), None) if last and last.differs else None

    @property
    def ok(self) -> bool:
        """Whether all shapes agree, and both sides run through."""
        return self.first is None and not self.errors


def up_to_first(rows: Sequence[Row], *, ran: bool) -> Sequence[Row]:
    """Give the rows up to the first that differs.

    A convolution that differs is undone where the next row agrees: it is padded on one side, and cut off behind it.
    Where both sides `ran` through, and all that differ are undone, all rows are given.
    """
    compared = [row for row in rows if row.compared]
    differ = [one for one in compared if one.differs]
    next_differs = any(one.differs and other.differs for one, other in pairwise(compared))
    if ran and differ and not (next_differs or compared[-1].differs) and all(each.is_convolution for each in differ):
        return rows
    end = next((number + 1 for number, row in enumerate(rows) if row.differs), len(rows))
    return rows[:end]


def alike(torch: Shape, jax: Shape) -> bool:
    """Return whether two shapes may be equal up to the order of axes and to axes that are joined."""
    return sorted(torch) == sorted(jax) or math.prod(torch) == math.prod(jax)


def show(shapes: Shapes, console: Console) -> None:
    """Print the table, what either side raised, and the first difference with its lines."""
    out = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in (shapes.sides[0], "gives", shapes.sides[1], "gives", ""):
        out.add_column(heading, overflow="fold")
    for row in shapes.rows:
        cells = [text for call in (row.torch, row.jax) for text in _cells(call)]
        out.add_row(*map(Text, cells), _sign(row))
    console.print(out)
    for error in shapes.errors:
        console.print(Text(f"\n{error}", style="bold red"))
    first = shapes.first
    if first is not None and first.torch is not None and first.jax is not None:
        console.print(
            Text(
                f"\n✗ {shapes.name}: the shapes first differ at {first.torch.name}: {first.torch.shape} in torch, "
                f"{first.jax.shape} on the JAX side",
                style="bold red",
            )
        )
        for side, call in zip(shapes.sides, (first.torch, first.jax), strict=True):
            if call.source is not None:
                console.print(Text(f"  {side} at  {call.source}  {call.source.text}"))
    elif shapes.ok:
        console.print(Text(f"\n✓ {shapes.name}: {_agreement(shapes.rows)}", style="green"))


def _agreement(rows: Sequence[Row]) -> str:
    """Say what agrees: by name, where axes are in another order and what could not be compared."""
    said = ["all shapes agree"]
    if other := [row.torch.name for row in rows if row.torch and row.differs]:
        said = [f"all shapes agree but those of {listed(dict.fromkeys(other), '.')}, behind which they agree again"]
    for names, what in (
        (
            [row.torch.name for row in rows if row.torch and row.agrees_but_for == "order"],
            "the order of axes differs at",
        ),
        ([row.torch.name for row in rows if row.torch and row.agrees_but_for == "joined"], "axes are joined at"),
        ([row.torch.name for row in rows if row.torch and row.not_comparable], "not comparable:"),
    ):
        if names:
            said.append(f"{what} {listed(dict.fromkeys(names), '.')}")
    return "; ".join(said)


def _sign(row: Row) -> Text:
    if row.not_comparable:
        return Text(f"not comparable ({row.not_comparable})", style="dim")
    if row.differs or row.raised:
        return Text("✗", style="bold red")
    return Text("" if row.compared is None else "✓", style="green")


def _cells(call: Call | None) -> tuple[str, str]:
    if call is None:
        return "", ""
    shape = "" if call.shape is None else str(call.shape)
    shape = "an error" if call.raised else f"{call.times} calls {shape}".rstrip() if call.times > 1 else shape
    return f"{call.name} {call.kind}".strip(), shape
