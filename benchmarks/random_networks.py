"""How often a right port is called wrong and a fault is missed or misplaced, over random networks.

    python -m benchmarks.random_networks [--examples 1000] [--seed 0] [--processes 2] [--right] [--json FILE]

Each example is a training program drawn at random, compared with its port, and with its port with one fault. With
`--right`, only the right ports are compared.
"""

import argparse
import functools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import track
from rich.table import Table

import compare

from .parts import spread

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from networks import check, effect, faults, overflows, specifications
from networks.faults import POWER


def drawn(examples: int, number: int) -> list[Any]:
    """Draw distinct programs, each with one fault."""
    found: dict[Any, Any] = {}

    @settings(
        max_examples=3 * examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        specification = data.draw(specifications())
        fault = data.draw(faults(specification))
        kinds = tuple(layer.kind for layer in specification.layers)
        found.setdefault((kinds, specification.optimizer.kind, specification.loss, fault.kind), (specification, fault))

    collect()
    order = np.random.default_rng(number).permutation(len(found))
    return [list(found.values())[i] for i in order[:examples]]


def outcome(program: tuple[Any, Any], *, right: bool = False) -> dict[str, Any] | None:
    """Compare one program, right and with its fault; None for one whose loss grows beyond float32."""
    try:
        return compared(*program, only_right=right)
    except Exception as error:  # noqa: BLE001 - it is shown at the end, and the others are compared all the same
        return {"error": repr(error), "program": repr(program)}


def compared(specification: Any, fault: Any, *, only_right: bool) -> dict[str, Any] | None:
    """Do so, with an exception for whatever no program may do."""
    try:
        right = check(specification, specification)
    except compare.InputError as error:
        if "the loss is not finite" not in str(error):
            raise
        return None
    found = {
        "right": "float32 overflow on the JAX side alone" if overflows(right) else str(right.verdict),
        "ratio": max(float(q.ratio.max()) for q in right.quantities if q.decides),
        "fault": fault.kind,
        "effect": 0.0 if only_right else effect(specification, fault),
        "program": repr((specification, fault)),
    }
    if found["effect"] > POWER and not overflows(right):
        wrong = check(specification, fault.specification)
        found["caught"] = wrong.verdict == compare.Verdict.MISMATCH
        found["placed"] = wrong.divergence is not None and any(p.names(wrong.divergence) for p in fault.places)
        found["wrong ratio"] = max(float(q.ratio.max()) for q in wrong.quantities if q.decides)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--right", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    outcomes = []
    programs = drawn(arguments.examples, arguments.seed)
    running = spread(functools.partial(outcome, right=arguments.right), programs, arguments.processes)
    for found in track(running, console=Console(stderr=True), total=len(programs)):
        if found is not None:
            outcomes.append(found)
        if arguments.json:
            arguments.json.write_text("\n".join(map(json.dumps, outcomes)))
    errors = [each for each in outcomes if "error" in each]
    outcomes = [each for each in outcomes if "error" not in each]
    verdicts = Counter(each["right"] for each in outcomes)
    console.print(f"{len(outcomes)} right ports: " + ", ".join(f"{count} {name}" for name, count in verdicts.items()))
    right = [each["ratio"] for each in outcomes if np.isfinite(each["ratio"])]
    quantiles = ", ".join(f"{share:.0%} {np.quantile(right, share):.2g}" for share in (0.5, 0.9, 0.99, 1.0))
    console.print(f"largest ratio of a right port: {quantiles}")
    if not arguments.right:
        show_faults(outcomes, console)
    for each in errors:
        console.print(f"{each['error']}, in {each['program']}", style="red")
    sys.exit(bool(errors))


def show_faults(outcomes: list[dict[str, Any]], console: Console) -> None:
    """Print how many faults of each kind were caught, and how many placed."""
    tried = [each for each in outcomes if "caught" in each]
    table = Table(box=None, pad_edge=False)
    for heading in ("fault", "tried", "caught", "placed"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for kind in [*sorted({each["fault"] for each in tried}), "all"]:
        of_kind = [each for each in tried if kind in (each["fault"], "all")]
        counts = (len(of_kind), sum(each["caught"] for each in of_kind), sum(each["placed"] for each in of_kind))
        table.add_row(kind, *map(str, counts))
    console.print(table)
    console.print(f"{len(outcomes) - len(tried)} faults are left out: they do nothing, or float32 overflows")
    smallest = min(each["wrong ratio"] for each in tried if each["caught"])
    console.print(f"smallest ratio of a fault that was caught: {smallest:.3g}")


if __name__ == "__main__":
    main()
