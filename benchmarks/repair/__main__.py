"""How often `netparity check --fix` alone ends in a match: wrong ports as files, with one to four faults each.

    python -m benchmarks.repair [--examples 100] [--seed 0] [--only PORT] [--single] [--in-process]
        [--processes N] [--json FILE]

Each example is a right port with some of its text exchanged. `--single` plants each fault by itself.
"""

import argparse
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import compare
from benchmarks.parts import spread
from compare.command_line.repair import Checked, Repair
from compare.command_line.user_function import arguments_of

ROOT = Path(__file__).parents[2]
PORTS = Path(__file__).parent / "ports"
MOST = 4
"""Faults of one example."""


class Example(NamedTuple):
    port: str
    faults: tuple[str, ...]


def right(port: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """Give the text of a right port, and its faults."""
    text, _, faults = (PORTS / f"{port}.py").read_text(encoding="utf-8").partition("\n\nFAULTS = ")
    return text, eval(faults)


def wrong(example: Example) -> str | None:
    """Plant faults; None where one leaves nothing of another's place."""
    text, faults = right(example.port)
    for name in example.faults:
        before, after = faults[name]
        if text.count(before) != 1:
            return None
        text = text.replace(before, after)
    return text


def chosen(count: int, seed: int, ports: list[str]) -> Iterator[Example]:
    """Draw examples: the ports in turn, with one to four faults in turn."""
    rng, given = np.random.default_rng(seed), 0
    while given < count:
        port = ports[given % len(ports)]
        names = list(right(port)[1])
        size = 1 + (given // len(ports)) % MOST
        example = Example(port, tuple(str(name) for name in rng.permutation(names)[:size]))
        if wrong(example) is not None:
            given += 1
            yield example


def single(ports: list[str]) -> Iterator[Example]:
    for port in ports:
        yield Example(port, ())
        for name in right(port)[1]:
            yield Example(port, (name,))


def tried(example: Example) -> dict[str, Any]:
    """Mend one example by the command, and say what came of it."""
    text = wrong(example)
    assert text is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "my_port.py"
        file.write_text(text, encoding="utf-8")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "netparity", "check", "my_port.py:pair", "--fix", "--quiet"],
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        seconds = time.monotonic() - began
        after = file.read_text(encoding="utf-8")
    rounds = [int(number) for number in re.findall(r"^round (\d+):", done.stdout, re.MULTILINE)]
    verdict = re.findall(r"^[✓≈✗] my_port.py:pair: (\w+)", done.stdout, re.MULTILINE)
    return {
        "port": example.port,
        "faults": example.faults,
        "verdict": verdict[-1] if verdict else f"status {done.returncode}",
        "rounds": max(rounds, default=0),
        "changed": after != text,
        "seconds": round(seconds, 1),
        "printed": done.stdout + done.stderr,
    }


def in_process(example: Example) -> dict[str, Any]:
    """Mend one example by the same rounds, with checks in this process and the file imported anew for each."""
    text = wrong(example)
    assert text is not None
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "my_port.py"
        file.write_text(text, encoding="utf-8")
        began = time.monotonic()
        last = Repair(lambda: checked(file), said.append).run()
        seconds = time.monotonic() - began
        after = file.read_text(encoding="utf-8")
    rounds = {line.partition(":")[0] for line in said if line.startswith("round")}
    return {
        "port": example.port,
        "faults": example.faults,
        "verdict": last.report["verdict"] if last.report else f"status {last.status}",
        "rounds": len(rounds),
        "changed": after != text,
        "seconds": round(seconds, 1),
        "printed": "\n".join([*said, last.text]),
    }


def checked(file: Path) -> Checked:
    """Check a file as `netparity check` does."""
    sys.modules.pop(file.stem, None)
    linecache.checkcache()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - of the port's own code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            report = compare.check(**{"name": f"{file.name}:pair", **arguments_of(f"{file}:pair"), "device": "cpu"})
        except compare.InputError as error:
            return Checked(2, str(error), None)
    content = json.loads(report.to_json())["reports"][0]
    return Checked(int(not report.ok), str(report), content)


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
