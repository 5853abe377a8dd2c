"""What importing each package loads, and that nothing outside the repository is read."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("package", "unloaded"),
    [
        ("jaxnet", ["torch"]),
        ("torchnet", ["jax", "flax", "optax"]),
        ("compare", ["torch", "jax", "flax", "optax"]),
    ],
)
def test_importing_loads_no_other_framework(package: str, unloaded: list[str]) -> None:
    code = f"import sys, {package}; print([name for name in {unloaded} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_nothing_reads_outside_the_repository() -> None:
    outside = "/".join(("..", "shared"))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert tracked
    for name in tracked:
        assert outside.encode() not in (ROOT / name).read_bytes(), name
