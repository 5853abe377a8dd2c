"""What importing each package loads, and that nothing outside the repository is read."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import compare

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


def test_importing_the_package_loads_little_of_it() -> None:
    code = "import sys, compare; print(len([name for name in sys.modules if name.partition('.')[0] == 'compare']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 15


def test_every_public_name_is_there() -> None:
    assert all(getattr(compare, name) is not None for name in compare.__all__)
    assert {*compare.__all__} <= {*dir(compare)}
    with pytest.raises(AttributeError, match="has no attribute 'chekc'"):
        compare.chekc  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert compare.__version__ == importlib.metadata.version("netparity")


def test_files_are_short_enough_to_read_at_once() -> None:
    files = [
        path for package in ("compare", "netparity", "jaxnet", "torchnet") for path in ROOT.glob(f"{package}/**/*.py")
    ]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf8").splitlines()) for path in files}
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_nothing_reads_outside_the_repository() -> None:
    outside = "/".join(("..", "shared"))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert tracked
    for name in tracked:
        assert outside.encode() not in (ROOT / name).read_bytes(), name
