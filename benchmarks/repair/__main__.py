"""How often `netparity check --fix` alone ends in a match: wrong ports as files, with one to four faults each.

    python -m benchmarks.repair [--examples 100] [--seed 0] [--only PORT] [--single] [--in-process]
        [--processes N] [--json FILE]

Each example is a right port with some of its text exchanged. `--single` plants each fault by itself.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from benchmarks.parts import spread
from benchmarks.repair.examples import MOST, PORTS, chosen, in_process, single, tried


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.repair", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append")
    parser.add_argument("--single", action="store_true")
    parser.add_argument("--in-process", action="store_true", help="imported anew, without a process for each check")
    parser.add_argument("--processes", type=int, default=1, help="so many at a time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ports = options.only or sorted(path.stem for path in PORTS.glob("[a-z]*.py"))
    outcomes = []
    examples = list(single(ports) if options.single else chosen(options.examples, options.seed, ports))
    for last in spread(in_process if options.in_process else tried, examples, options.processes):
        outcomes.append(last)
        print(f"{last['port']}: {', '.join(last['faults']) or 'right'}: {last['verdict']}", end="")
        print(f", {last['rounds']} rounds, {last['seconds']} s", flush=True)
        if options.json:
            options.json.write_text(json.dumps(outcomes, indent=1), encoding="utf-8")
    # A fault that changes nothing by more than rounding, with these batches, is none here.
    silent = [each for each in outcomes if each["verdict"] == "match" and not each["rounds"]]
    planted = [each for each in outcomes if each["faults"] and each not in silent]
    mended = [each for each in planted if each["verdict"] == "match"]
    print(f"\n{len(mended)} of {len(planted)} end in match; rounds: {dict(Counter(e['rounds'] for e in mended))}")
    for size in range(1, MOST + 1):
        of = [each for each in planted if len(each["faults"]) == size]
        if of:
            print(f"{size} faults: {sum(each in mended for each in of)} of {len(of)}")
    worse = [each for each in planted if each["verdict"].startswith("status")]
    print(f"faults without an effect: {sum(bool(each['faults']) for each in silent)}")
    print(f"files that could no longer be compared: {len(worse)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
