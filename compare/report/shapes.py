"""What `netparity shapes` prints: one row a layer, up to the first that differs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compare.step.places import Source

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call of a layer."""

    name: str
    kind: str
    """The name of its class."""
    shape: Shape | None
    """Of what it gives; None if it gave nothing, since it raised an error."""
    source: Source | None = None
    """The line that calls it."""


@dataclass(frozen=True)
class Row:
    """A layer of one side, beside its partner on the other."""

    torch: Call | None
    jax: Call | None

    @property
    def differs(self) -> bool:
        """Whether both give something, and of sizes that no order of axes explains."""
        if self.torch is None or self.jax is None or self.torch.shape is None or self.jax.shape is None:
            return False
        return not alike(self.torch.shape, self.jax.shape)


@dataclass(frozen=True)
class Shapes:
    """What `netparity shapes` found."""

    name: str
    sides: tuple[str, str]
    rows: Sequence[Row]
    """In order of execution, up to the first that differs."""
    errors: Sequence[str]
    """What either side raised; what it had computed before is shown."""

    @property
    def first(self) -> Row | None:
        """The first row of which the shapes differ."""
        return next((row for row in self.rows if row.differs), None)

    @property
    def ok(self) -> bool:
        """Whether all shapes agree, and both sides run through."""
        return self.first is None and not self.errors


def alike(torch: Shape, jax: Shape) -> bool:
    """Tell whether two shapes may be the same but for the order of axes, and for axes that are joined."""
    return sorted(torch) == sorted(jax) or math.prod(torch) == math.prod(jax)


def show(shapes: Shapes, console: Console) -> None:
    """Print the table, what either side raised, and the first difference with its lines."""
    out = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in (shapes.sides[0], "gives", shapes.sides[1], "gives", ""):
        out.add_column(heading, overflow="fold")
    for row in shapes.rows:
        both = row.torch is not None and row.jax is not None
        sign = Text("✗", style="bold red") if row.differs else Text("✓" if both else "", style="green")
        cells = [text for call in (row.torch, row.jax) for text in _cells(call)]
        out.add_row(*map(Text, cells), sign)
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
        console.print(Text(f"\n✓ {shapes.name}: all shapes agree, but for the order of axes", style="green"))


def _cells(call: Call | None) -> tuple[str, str]:
    if call is None:
        return "", ""
    return f"{call.name} {call.kind}".strip(), "" if call.shape is None else str(call.shape)
