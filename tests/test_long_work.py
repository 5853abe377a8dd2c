"""Long work says what it is doing, and Ctrl-C stops it at once, with what was found up to then."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from in_ci import first

from compare.report.progress import Progress

SOON = 5.0
"""Seconds, on a slow machine."""

PAIR = """
import pathlib, jax.numpy as jnp, numpy as np, optax, torch, compare
from flax import nnx

calls = []

def stuck(output, target):
    calls.append(None)
    if len(calls) == 10:
        pathlib.Path("stuck").touch()
        np.linalg.svd(np.ones((3000, 3000)))  # Python sees no signal before this ends
    return torch.nn.functional.mse_loss(output, target)

def pair(loss=stuck):
    torch.manual_seed(0)
    batches = [(np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32))]
    return (
        compare.Torch(torch.nn.Linear(3, 2), loss, lambda p: torch.optim.SGD(p, 1e-2)),
        compare.Flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), lambda o, t: jnp.mean((o - t) ** 2), optax.sgd(2e-2)),
        batches,
        {"steps": 50, "device": "cpu"},
    )
"""

NOTEBOOK = """
import os, pathlib, time
from compare.command_line import commands
from compare.command_line.main import main

def run(variant, **settings):
    if variant == "adam":
        pathlib.Path("stuck").touch()
        time.sleep(600)
    return right(variant, **settings)

right, commands.run = commands.run, run
status = main(["--variant", "manual", "--variant", "adam", "--steps", "2", "--html", "out.html"])
os._exit(status)
"""


@pytest.mark.parametrize(
    ("command", "printed", "stopped"),
    first(
        [
            (
                ["-m", "compare", "check", "slow_pair:pair", "--json", "out.json", "--plot", "out.png"],
                r"✗ slow_pair:pair, the first \d of 50 steps: mismatch at step 0, update",
                r"stopped at: step \d of 50; no file is written",
            ),
            (["-c", NOTEBOOK], r"manual .*✓ match", r"stopped at: .*; no file is written"),
        ]
    ),
    ids=["check", "notebook"],
)
def test_ctrl_c(command: list[str], printed: str, stopped: str, tmp_path: Path) -> None:
    (tmp_path / "slow_pair.py").write_text(PAIR)
    terminal, stderr = pty.openpty()
    # A child ignores what its parent does, as in a background job: the tests' own handler is not handed on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8"
    )
    signal.signal(signal.SIGINT, before)
    os.close(stderr)
    shown: list[bytes] = []
    reader = threading.Thread(target=_read, args=(terminal, shown))
    reader.start()
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "stuck").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        took = time.monotonic() - sent
    finally:
        process.kill()
        process.communicate()
    reader.join()
    os.close(terminal)
    err = b"".join(shown).decode()
    assert process.returncode == 130, err
    assert took < SOON
    assert re.search(printed, out)
    assert re.search(stopped, err)
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"slow_pair.py", "stuck"}
    if "check" in command:  # what is being done was shown, since stderr is a terminal
        assert "mapping the weights" in err
        assert re.search(r"step \d of 50", err)


def _read(terminal: int, shown: list[bytes]) -> None:
    """Read all that is written to a terminal; it raises when the other end is closed."""
    try:
        while True:
            shown.append(os.read(terminal, 65536))
    except OSError:
        pass


def test_check_tells_what_it_is_doing() -> None:
    import torch

    import compare

    space: dict[str, Any] = {}
    exec(PAIR, space)
    seen: list[Progress] = []
    found = []

    def show(progress: Progress) -> None:
        seen.append(progress)
        found.append(progress.found())

    report = compare.check(*space["pair"](torch.nn.functional.mse_loss)[:3], steps=3, device="cpu", progress=show)
    assert [str(progress) for progress in seen] == [
        "mapping the weights",
        "tracing and compiling step 1 of 3",
        "step 2 of 3",
        "step 3 of 3",
        "measuring the effect of rounding",
        "looking for independent differences",
        "looking for the cause at weight",
    ]
    assert [(progress.done, progress.steps) for progress in seen[1:4]] == [(0, 3), (1, 3), (2, 3)]
    assert found[:2] == [None, None]
    partial = found[3]
    assert partial is not None
    assert partial.divergence is not None
    assert report.divergence is not None
    assert len(partial.torch.losses32) == 2
    assert (partial.divergence.step, partial.divergence.torch) == (report.divergence.step, report.divergence.torch)
    assert partial.divergence.cause is None
    assert report.divergence.cause is not None
