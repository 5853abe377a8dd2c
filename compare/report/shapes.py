"""What `netparity shapes` prints: one row a layer, up to the first that differs."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from compare.comparison.shapes_by_layer import Call, Shapes


def show(shapes: "Shapes", console: Console) -> None:
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


def _cells(call: "Call | None") -> tuple[str, str]:
    if call is None:
        return "", ""
    return f"{call.name} {call.kind}".strip(), "" if call.shape is None else str(call.shape)
