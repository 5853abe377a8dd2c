"""The PyTorch and Flax models of transformers 4.57.6: a match over three steps, or a difference that is understood.

What differs, and in which line of theirs: docs/transformers.md.
"""

from collections.abc import Callable

import pytest

import compare

pytest.importorskip("transformers")

from pairs.transformers_pairs import SPECS, pair  # after the check that there is anything to import

pytestmark = pytest.mark.slow

Parity = Callable[..., compare.Report]

DIFFERENT = {"dinov2": "update", "marian": "gradient", "mistral": "forward", "whisper": "update"}
"""The stage at which a pair first differs."""

TABLES = ("gemma", "gptj", "llama", "marian", "mistral", "pegasus", "roformer", "xglm")
"""Their tables of positions are rounded to float32 when they are made, on one side or differently on the two."""


@pytest.mark.parametrize("name", sorted(SPECS.keys() - {*DIFFERENT, *TABLES}))
def test_match(name: str, parity: Parity) -> None:
    parity(*pair(name), steps=3, strict=True)


@pytest.mark.parametrize("name", sorted(DIFFERENT.keys() - {*TABLES}))
def test_difference(name: str, parity: Parity) -> None:
    divergence = compare.check(*pair(name), steps=3).divergence
    assert divergence is not None
    assert (divergence.step, divergence.stage) == (0, DIFFERENT[name])
    parity(*pair(name, corrected=True), steps=3, strict=True)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables(name: str, parity: Parity) -> None:
    report = parity(*pair(name, corrected=name in DIFFERENT), steps=3)
    assert report.verdict == "precision"
    assert report.notes[0].name == "numbers rounded to float32"
