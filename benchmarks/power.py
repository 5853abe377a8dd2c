"""How many planted faults the check catches in right ports, and why it misses the others.

    python benchmarks/power.py [--faults 20] [--steps 3] [--seed 0] [--json FILE] [NAME ...]

The pairs are those of tests/pairs and tests/programs. Names choose some: "resnet", "recurrent.lstm_in_nnx", "bert".
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import compare

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the pairs, which the tests share

from pairs import recurrent, resnet, scanned, transformer
from pairs.transformers_pairs import pair as of_transformers
from programs.faults import PROGRAMS


def program(make: Callable[[], Any]) -> Any:
    pair = make()
    return compare.TorchProgram(pair.original), compare.JaxProgram(pair.port), pair.batches


PAIRS: dict[str, Callable[[], Any]] = {
    "resnet.in_nnx": resnet.in_nnx,
    "resnet.in_linen": resnet.in_linen,
    "transformer.in_nnx": transformer.in_nnx,
    "transformer.in_linen": transformer.in_linen,
    "transformer.in_nnx, evaluation": partial(transformer.in_nnx, training=False),
    "recurrent.lstm_in_nnx": recurrent.lstm_in_nnx,
    "recurrent.lstm_in_linen": recurrent.lstm_in_linen,
    "recurrent.lstm_in_equinox": recurrent.lstm_in_equinox,
    "recurrent.gru_in_nnx": recurrent.gru_in_nnx,
    "recurrent.gru_in_linen": recurrent.gru_in_linen,
    "scanned.in_nnx": scanned.in_nnx,
    "scanned.in_linen": scanned.in_linen,
    "scanned.in_equinox": scanned.in_equinox,
    "scanned.in_haiku": scanned.in_haiku,
    **{f"transformers {name}": partial(of_transformers, name) for name in ("gpt2", "bert", "t5", "vit")},
    **{f"program {make.__name__}": partial(program, make) for make in PROGRAMS},
}


def measured(names: list[str], arguments: argparse.Namespace) -> Iterator[compare.Power]:
    for name in track(names, console=Console(stderr=True)):
        power = compare.power(
            *PAIRS[name](), steps=arguments.steps, faults=arguments.faults, seed=arguments.seed, name=name
        )
        jax.clear_caches()
        yield power


def show(found: list[compare.Power], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("pair", "planted", "caught", "missed", "no fault", "share"):
        table.add_column(heading, justify="left" if heading == "pair" else "right")
    for name, powers in [*((power.name, [power]) for power in found), ("all", found)]:
        parts = [[each for power in powers for each in getattr(power, part)] for part in _PARTS]
        planted, caught, missed, none = map(len, parts)
        table.add_row(name, *map(str, (planted, caught, missed, none)), f"{caught / max(caught + missed, 1):.1%}")
    console.print(table)
    for part in ("missed", "equivalent"):
        console.print(f"\n{part}:")
        for power in found:
            for each in getattr(power, part):
                console.print(f"  {power.name}: {each.fault} ({each.where}): {each.explanation}", soft_wrap=True)


_PARTS = ("outcomes", "caught", "missed", "equivalent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = [name for name in PAIRS if not arguments.names or any(part in name for part in arguments.names)]
    found = []
    for power in measured(names, arguments):
        found.append(power)
        if arguments.json:
            arguments.json.write_text(json.dumps([each.to_dict() for each in found], indent=1))
    show(found, Console())


if __name__ == "__main__":
    main()
