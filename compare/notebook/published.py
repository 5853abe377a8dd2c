"""Compares the losses that the notebook's author printed with the range of many reproduced runs.

The author's runs were not seeded, so that they cannot be repeated digit for digit. Many runs of the ports, each with
its own data and weights, show the range of such runs; the published losses must be within it.
"""

import csv
import functools
import importlib.resources
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.device import on, resolve
from compare.errors import InputError
from compare.notebook.comparison import VARIANTS

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
"""Version of what the command's JSON holds."""

_COLUMNS = dict(
    zip(VARIANTS, ("numpy_manual", "torch_manual", "torch_autograd", "torch_module", "torch_adam"), strict=True)
)


@dataclass(frozen=True)
class Reproduction:
    """One cell's published losses among reproduced ones."""

    cell: str
    printed: np.ndarray
    """The author's losses of the first steps, shape `(steps,)`."""
    losses: np.ndarray
    """The reproduced ones, shape `(seeds, steps)`."""

    @property
    def ranks(self) -> np.ndarray:
        """The share of seeds whose loss is below the published one, of shape `(steps,)`."""
        ranks: np.ndarray = (self.losses < self.printed).mean(axis=0)
        return ranks

    @property
    def ok(self) -> bool:
        """Whether all is well: the same as `inside`."""
        return self.inside

    @property
    def inside(self) -> bool:
        """Whether every published loss is within the range of the reproduced ones."""
        low, high = self.losses.min(axis=0), self.losses.max(axis=0)
        return bool(np.all((low <= self.printed) & (self.printed <= high)))

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "cell": self.cell,
            "seeds": len(self.losses),
            "inside": self.inside,
            "printed": self.printed.tolist(),
            "ranks": self.ranks.tolist(),
            "low": self.losses.min(axis=0).tolist(),
            "high": self.losses.max(axis=0).tolist(),
        }


def printed(cell: str) -> np.ndarray:
    """The losses that the author printed for a cell, float64 of shape `(steps,)`: 47 to 61 steps."""
    text = importlib.resources.files("compare").joinpath("data/published_losses.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return np.array([float(row[_COLUMNS[cell]]) for row in rows if row[_COLUMNS[cell]]])


def reproduce(cell: str, *, seeds: int = 256, device: str = "auto") -> Reproduction:
    """Run a cell's port over `seeds` seeds, as one compiled program, for as many steps as were published.

    Raises:
        InputError: For an unknown cell or device, or fewer than 2 seeds.

    """
    if cell not in VARIANTS:
        raise InputError(f"cell must be one of {', '.join(VARIANTS)}, not {cell!r}")
    if seeds < 2:
        raise InputError(f"seeds must be at least 2, not {seeds}")
    device = resolve(device)
    import jax

    import jaxnet

    program = importlib.import_module(f"jaxnet.{'manual' if cell == 'numpy' else cell}")
    draw = jaxnet.initial.torch_linear if cell in ("module", "adam") else jaxnet.initial.standard_normal
    published = printed(cell)

    @functools.partial(jax.jit, static_argnames="steps")
    def trajectories(keys: jax.Array, steps: int) -> jax.Array:
        return jax.vmap(lambda key: program.scan(*program.start(draw(key)), steps)[1])(keys)

    with on(device):
        # A key for each cell: with one key for all, five cells would be judged on the same 256 draws.
        keys = jax.random.split(jax.random.key(VARIANTS.index(cell)), seeds)
        return Reproduction(cell, published, np.asarray(trajectories(keys, len(published))))


def show(reproductions: list[Reproduction], console: "Console") -> None:
    """Print a table of rank ranges, and what they mean."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("cell", style="bold")
    for heading in ("losses", "seeds", "lowest rank", "highest rank"):
        table.add_column(heading, justify="right")
    table.add_column("published losses are")
    for cell in reproductions:
        table.add_row(
            cell.cell,
            str(len(cell.printed)),
            str(len(cell.losses)),
            f"{cell.ranks.min():.3f}",
            f"{cell.ranks.max():.3f}",
            "[green]✓ inside the range[/]" if cell.inside else "[bold red]✗ outside the range[/]",
        )
    console.print(table)
    console.print(
        "\nA rank is the share of reproduced trajectories whose loss at that step is below\nthe published one.",
        style="dim",
        highlight=False,
    )
