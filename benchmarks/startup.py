"""The time of `python -m compare` as a whole process, over the time of importing the frameworks that it compares.

Asked: at most 4 times, and 2.5 times when its compiled programs are cached from an earlier run. The commands take
turns, so that a slow spell of the machine hits all of them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

IMPORTS = [sys.executable, "-c", "import torch, jax, flax.nnx, optax"]
COMPARE = [sys.executable, "-m", "compare", "--device", "cpu"]


def seconds(command: list[str], cache: str) -> float:
    """Run a command as a process of its own."""
    began = time.perf_counter()
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken (5)")
    rounds = parser.parse_args().rounds
    ratios: dict[str, list[float]] = {"nothing cached": [], "programs cached": []}
    imports: list[float] = []
    with tempfile.TemporaryDirectory() as warm:
        seconds(COMPARE, warm)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cold:
                imports.append(seconds(IMPORTS, warm))
                ratios["nothing cached"].append(seconds(COMPARE, cold) / imports[-1])
                ratios["programs cached"].append(seconds(COMPARE, warm) / imports[-1])
    print(f"imports alone: {statistics.median(imports):.2f} s (median of {rounds})")
    for name, values in ratios.items():
        print(f"python -m compare, {name}: {statistics.median(values):.2f} times that")


if __name__ == "__main__":
    main()
