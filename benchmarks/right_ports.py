"""How many right ports with something benign in them are called wrong, and how many of their faults are missed.

    python -m benchmarks.right_ports [--examples 100] [--seed 0] [--processes 1]

Each is drawn by `tests/right_ports.py`, and checked as it is, with a fault in its table, and with a fault elsewhere.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import compare

from .parts import spread

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from right_ports import FAULT, check, draw

WHAT = ("right", "in the table", "elsewhere")


class Item(NamedTuple):
    seed: int
    what: str
    """Of `WHAT`: where the fault is."""


class Outcome(NamedTuple):
    item: Item
    verdict: str
    expected: bool
    text: str


def outcome(item: Item) -> Outcome:
    """Check one port, for its verdict alone."""
    from compare.comparison.model_check import ModelCheck

    def verdict_alone(self: Any, followed: Any, found: compare.Report) -> Any:
        """Look for no causes."""
        return found.divergence, [], []

    setattr(ModelCheck, "_causes", verdict_alone)  # noqa: B010 - to a method, mypy lets nothing be assigned
    drawn = draw(item.seed)
    report = check(drawn, FAULT * (item.what == WHAT[1]), FAULT * (item.what == WHAT[2]))
    return Outcome(item, str(report.verdict), report.ok == (item.what == WHAT[0]), f"{drawn}: {report.headline}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.examples)
    found = []
    for each in spread(outcome, [Item(seed, what) for seed in seeds for what in WHAT], arguments.processes):
        found.append(each)
        print(f"{each.verdict:9} {'' if each.expected else '(wrong)'} {each.item.what}: {each.text}", flush=True)
    for what in WHAT:
        print(f"{what}: {dict(Counter(each.verdict for each in found if each.item.what == what))}")
    return int(not all(each.expected for each in found))


if __name__ == "__main__":
    sys.exit(main())
