"""Faults of structure over 58 architectures: how many are caught, placed and explained.

    python benchmarks/structure.py [--second] [--only NAME] [--every N] [--two] [--show]

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

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from structure import ARCHITECTURES, SECOND, Architecture, check

import compare
from compare.diagnosis.structure.budget import Budget

SPENT: list[float] = []
"""Seconds that the searches of one check took, added up after each of them."""


def _timed() -> None:
    stop = Budget.stop

    def counted(self: Budget) -> None:
        stop(self)
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=int, default=1, help="take a sample: each n-th fault")
    parser.add_argument("--two", action="store_true")
    parser.add_argument("--second", action="store_true")
    parser.add_argument("--show", action="store_true")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    _timed()
    results: dict[str, int] = {}
    searches, checks, alarms = [], [], 0
    for number, architecture in enumerate(SECOND if chosen.second else ARCHITECTURES):
        if chosen.only not in architecture.name:
            continue
        every = architecture.two if chosen.two else [(fault,) for fault in architecture.faults]
        alarms += not check(architecture, frozenset()).ok
        for faults in map(frozenset, every[number % chosen.every :: chosen.every]):
            SPENT.clear()
            start = time.perf_counter()
            report = check(architecture, faults)
            checks.append(time.perf_counter() - start)
            searches.append(max(SPENT, default=0.0))
            result = judged(report, architecture, faults)
            results[result] = results.get(result, 0) + 1
            print(f"{result:7}{searches[-1]:6.1f}/{checks[-1]:5.1f} s  {report.headline}", flush=True)
            if chosen.show and result != "right":
                print("\n".join(str(report).splitlines()[-30:]))
    total = sum(results.values())
    print(f"{total} faults, {total - results.get('missed', 0)} caught, {results}, {alarms} false alarms, median search")
    print(f"{statistics.median(searches):.2f} s of a check of {statistics.median(checks):.2f} s")


if __name__ == "__main__":
    main()
