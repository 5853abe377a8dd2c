"""How often a printed cause is false, over random networks with one fault each.

    python -m benchmarks.random_causes [--examples 150] [--unknown 60] [--seed 0] [--processes 1] [--json FILE]

A cause is true if its name is one of the planted fault: `networks.faults.CAUSES`. Of faults that no table knows every
cause is false. All that a report prints is judged, the first divergence and whatever differs besides.
"""

import argparse
import json
import sys
from collections import defaultdict
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

from networks import check, effect, faults, names_the_fault, specifications, unknown_faults
from networks.faults import POWER


def drawn(examples: int, number: int, strategy: Any) -> list[Any]:
    """Draw programs, each with a fault of the strategy's."""
    found: dict[str, Any] = {}

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        specification = data.draw(specifications())
        fault = data.draw(strategy(specification))
        found[repr((specification, fault))] = specification, fault

    collect()
    return list(found.values())


def outcome(program: tuple[Any, Any]) -> dict[str, Any]:
    """Compare one program with its faulty port, and judge each cause that is printed."""
    specification, fault = program
    found: dict[str, Any] = {"fault": fault.kind, "program": repr(program)}
    try:
        if effect(specification, fault) <= POWER:
            return found
        report = check(specification, fault.specification)
    except Exception as error:  # noqa: BLE001 - it is shown at the end, and the others are compared all the same
        return found | {"error": repr(error)}
    first = report.divergence
    causes = [each.cause for each in (first, *report.others) if each is not None and each.cause is not None]
    return found | {
        "caught": report.verdict == compare.Verdict.MISMATCH,
        "explained": bool(first and first.cause and names_the_fault(first.cause.name, fault.kind)),
        "printed": len(causes),
        "false": [f"{each.name}: {each.explanation}" for each in causes if not names_the_fault(each.name, fault.kind)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=150)
    parser.add_argument("--unknown", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    programs = drawn(arguments.examples, arguments.seed, faults) if arguments.examples else []
    programs += drawn(arguments.unknown, arguments.seed, unknown_faults) if arguments.unknown else []
    programs = [programs[i] for i in np.random.default_rng(arguments.seed).permutation(len(programs))]
    console, outcomes = Console(), []
    running = spread(outcome, programs, arguments.processes)
    for found in track(running, console=Console(stderr=True), total=len(programs)):
        outcomes.append(found)
        if arguments.json:
            arguments.json.write_text("\n".join(map(json.dumps, outcomes)))
    tried = [each for each in outcomes if "caught" in each]
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in sorted(tried, key=lambda each: each["fault"]):
        kinds[each["fault"]].append(each)
    table = Table(box=None, pad_edge=False)
    for heading in ("fault", "tried", "caught", "first explained", "causes printed", "false"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for kind, of in (*kinds.items(), ("all", tried)):
        sums = (sum(each[what] for each in of) for what in ("caught", "explained", "printed"))
        table.add_row(kind, str(len(of)), *map(str, sums), str(sum(len(each["false"]) for each in of)))
    console.print(table)
    for each in tried:
        for cause in each["false"]:
            console.print(f"{each['fault']}: {cause}", style="dim")
    for each in outcomes:
        if "error" in each:
            console.print(f"{each['error']}, in {each['program']}", style="red")


if __name__ == "__main__":
    main()
