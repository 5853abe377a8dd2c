"""Wrong ports as files, and the rounds of mending each; a module of its own, so that other processes can import it."""

import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import compare
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
