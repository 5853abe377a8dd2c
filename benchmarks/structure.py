"""Faults of structure over 58 architectures: how many are caught, placed and explained.

    python -m benchmarks.structure [--second] [--only NAME] [--every N] [--two] [--show] [--processes N]

`--second` takes the 28 architectures that were written after the search, to try it on what it was not made for.

Each fault is planted by itself, or with `--two` two in one window. A cause is right if it names the fault, and false
if it names something else.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from .parts import spread

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from structure import ARCHITECTURES, SECOND, Architecture, check

import compare
from compare.diagnosis.structure.budget import Budget

SPENT: list[float] = []
"""Seconds that the searches of one check took, added up after each of them."""


_STOP = Budget.stop


def _timed() -> None:
    """Note from here on how long each search takes."""
    SPENT.clear()

    def counted(self: Budget) -> None:
        _STOP(self)
        SPENT.append(self.spent)

    Budget.stop = counted  # type: ignore[method-assign]


def judged(report: compare.Report, architecture: Architecture, faults: frozenset[str]) -> str:
    """Say whether what is said of the faults is right: of one fault the first cause, of two any for each."""
    causes = [each.cause for each in (report.divergence, *report.others) if each and each.cause]
    if not report.divergence:
        return "missed"
    said = [f"{cause.name}: {cause.explanation} {cause.fix}".lower() for cause in causes]
    named = {fault for fault in faults for text in said if any(w.lower() in text for w in architecture.faults[fault])}
    if not causes:
        return "none"
    return "right" if named == faults else "half" if named else "false"


class Item(NamedTuple):
    """A check: of the right port if there are no faults."""

    architecture: str
    second: bool
    faults: frozenset[str]


class Outcome(NamedTuple):
    item: Item
    result: str
    """Of the right port, "right" or "false alarm"."""
    search: float
    seconds: float
    headline: str
    text: str


def outcome(item: Item) -> Outcome:
    """Check one port, and judge what is said of it."""
    warnings.filterwarnings("ignore")
    _timed()
    architecture = next(each for each in (SECOND if item.second else ARCHITECTURES) if each.name == item.architecture)
    start = time.perf_counter()
    report = check(architecture, item.faults)
    seconds = time.perf_counter() - start
    result = judged(report, architecture, item.faults) if item.faults else "right" if report.ok else "false alarm"
    return Outcome(item, result, max(SPENT, default=0.0), seconds, report.headline, str(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=int, default=1, help="take a sample: each n-th fault")
    parser.add_argument("--two", action="store_true")
    parser.add_argument("--second", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    items: list[Item] = []
    for number, architecture in enumerate(SECOND if chosen.second else ARCHITECTURES):
        if chosen.only in architecture.name:
            every = architecture.two if chosen.two else [(fault,) for fault in architecture.faults]
            faults = ((), *every[number % chosen.every :: chosen.every])
            items += [Item(architecture.name, chosen.second, frozenset(each)) for each in faults]
    results: dict[str, int] = {}
    tried: list[Outcome] = []
    alarms = 0
    for each in spread(outcome, items, chosen.processes):
        if each.item.faults:
            tried.append(each)
            results[each.result] = results.get(each.result, 0) + 1
        alarms += each.result == "false alarm"
        if each.item.faults or each.result != "right":
            planted = "+".join((each.item.architecture, *sorted(each.item.faults)))
            print(f"{each.result:7}{each.search:6.1f}/{each.seconds:5.1f} s  {planted}: {each.headline}", flush=True)
        if chosen.show and each.result != "right":
            print("\n".join(each.text.splitlines()[-30:]))
    print(f"{len(tried)} faults, {len(tried) - results.get('missed', 0)} caught, {results}, {alarms} false alarms,")
    searches, checks = (statistics.median(times) for times in zip(*((e.search, e.seconds) for e in tried), strict=True))
    print(f"median search {searches:.2f} s of a check of {checks:.2f} s")


if __name__ == "__main__":
    main()
