"""Flax models of transformers 4.57.6 that differ from their PyTorch originals, as tests/pairs builds them.

`python -m benchmarks.wild.transformers mistral`, or another name of `DIFFERENT`; `--corrected` after it undoes the
difference. The library is installed with the development tools, so that there is nothing to fetch.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

import compare

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from pairs import transformers_pairs
from pairs.transformers_pairs import IGNORED, SPECS

SPECS["mistral_without_window"] = SPECS["mistral"]._replace(
    sizes={**SPECS["mistral"].sizes, "sliding_window": None}, torch_sizes={"sliding_window": 1}
)
SPECS["bert_padding_counted"] = SPECS["bert"]._replace(torch_sizes={"pad_token_id": None})

DIFFERENT = ("mistral", "mistral_without_window", "marian", "dinov2", "whisper", "bert_padding_counted")

WEIGHTS = {"marian": {r"model\.(encoder|decoder)\.embed_positions\.weight": None}}
"""Tables of PyTorch that are weights there, and constants of the program in Flax."""


def share_marians_positions(model: Any) -> None:
    """Give Flax PyTorch's table of positions, rounded to float32: that is no fault, and would hide what is one."""
    module: Any = importlib.import_module("transformers.models.marian.modeling_flax_marian")
    table = model.model.encoder.embed_positions.weight.detach().numpy()
    module.create_sinusoidal_positions = lambda *_: table


def pair(name: str, *, corrected: bool = False) -> Any:
    """Give both sides of a name of `DIFFERENT`, and its batches."""
    original, port, batches = transformers_pairs.pair(name, corrected=corrected)
    if name == "marian":
        share_marians_positions(original.model)
    if name == "bert_padding_counted":  # each padded position has a target too
        batches = [(inputs, np.where(target == IGNORED, 7, target)) for inputs, target in batches]
    return original, port, batches


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DIFFERENT)
    parser.add_argument("--corrected", action="store_true", help="undo the difference, on whichever side is simpler")
    arguments = parser.parse_args()
    both = pair(arguments.name, corrected=arguments.corrected)
    report = compare.check(*both, steps=3, weights=WEIGHTS.get(arguments.name), name=arguments.name)
    sys.stdout.write(f"{report}\n")
