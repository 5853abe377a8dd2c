"""Dishonest, broken and vacuous ports are no plain match, and their honest twins are: one of each group, small.

`python -m benchmarks.honesty` tries all of them.
"""

from collections.abc import Iterator

import jax
import pytest
from honesty.bases import NET, TOKENS, Base
from honesty.corpus import CORPUS, Kind, dishonest, honest, is_plain_match
from in_ci import some

import compare

_CHOSEN = {
    "foreign: backward": "nothing is proved, the JAX side calls pure_callback",
    "foreign: optimizer": "nothing is proved, the JAX side calls pure_callback",
    "precision: gradient": "in float32, where this is another program",
    "noise: both_rates": "mismatch",
    "noise: noisy_output": "mismatch",
    "not finite: not_a_number": "NaN on both sides",
    "nothing compared: constant_output": "the outputs depend on nothing",
    "recorded: outputs": "from other weights and batches",
    "one step: one_step": "match in 1 step: momentum and schedule not reached; up to step 1: from there on the",
    "one step: schedule": "schedule",
    "not exercised: full_mask": "match",
    "not exercised: clipping": "match",
    "fresh: zero_gate": "from other weights and batches",
    "as given: no_rate": "match without any update",
    "as given: evaluation": "match in evaluation mode",
    "sizes: same_size": "with another batch size",
    "closure: own_targets": "from other weights and batches",
    "batch=: from_the_batch": "from other weights and batches",
    "traced: not_traced": "match where the port is traced by JAX, which <lambda>",
    "later: late": "match",
    "later: late_update": "match up to step 10: from there on the optimizers alone differ, first at ",
    "sizes: large_batches": "match",
    "sizes: backward_size": "with another batch size",
    "sizes: length": "match at this length: with 4 in place of 5 along axis 1",
    "guards: clamp": "match",
    "guards: torch_clamp": "match",
    "precision: tiny_gradient": "but for what float32 rounding hides: there the port has other operations, first mul",
    "left out: unpaired": "which weights= leaves out",
    "left out: only_forward": "match of forward alone",
    "batch=: counting_batch": "with a batch= that keeps something from call to call",
    "program: narrow_gradient": "in float32, where this is another program",
    "program: same_size": "with another batch size",
    "program: late_rate": "match up to step 15: from there on the two programs differ, first at ",
    "program: constant_loss": "every gradient is zero",
}
"""What the headline of a dishonest port says, by its kind."""


_IN_CI = (
    *("foreign: backward", "precision: gradient", "one step: schedule", "fresh: zero_gate"),
    *("sizes: same_size", "not exercised: clipping", "not finite: not_a_number"),
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    jax.clear_caches()


@pytest.mark.parametrize(
    "kind", some((kind for kind in CORPUS if kind.name in _CHOSEN), _IN_CI, lambda kind: kind.name)
)
def test_a_dishonest_port_is_no_plain_match_and_its_twin_is(kind: Kind) -> None:
    base = kind.bases[0]
    found, twin = dishonest(kind, base), honest(kind, base)
    assert not is_plain_match(found)
    assert not isinstance(found, compare.InputError), found
    assert _CHOSEN[kind.name] in found.headline
    assert not isinstance(twin, compare.InputError), twin
    assert twin.verdict == "match", twin.headline


def test_every_chosen_kind_is_in_the_corpus() -> None:
    assert _CHOSEN.keys() <= {kind.name for kind in CORPUS}
    assert sum(len(kind.bases) for kind in CORPUS) >= 80


@pytest.mark.parametrize("base", [NET, TOKENS], ids=lambda base: base.name)
def test_quick_leaves_the_second_question_out_and_says_so(base: Base) -> None:
    report = compare.check(base.original(), base.port(), base.batches(), quick=True)
    assert report.headline.startswith("match without the second question")
    assert report.ok
