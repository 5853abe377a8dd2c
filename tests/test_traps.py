"""The trap catalogue: some of every stage in `make test`, all of it in `make test-all`. `make traps` scores it."""

import pytest
from in_ci import some

from benchmarks.traps.examine import CATALOGUE, STAGES, outcome
from benchmarks.traps.trap import Trap

FIRST = {next(trap.name for trap in CATALOGUE if trap.stage == stage) for stage in STAGES}
TIES = {"abs at zero", "hardtanh at its bounds", "relu at zero by maximum"}
"""What a check that allows for too much rounding is the first to miss."""


@pytest.mark.always
@pytest.mark.parametrize("trap", some(CATALOGUE, FIRST | TIES, lambda trap: trap.name))
def test_trap(trap: Trap) -> None:
    found = outcome(trap)
    assert not found.false_alarm
    assert found.caught, found.said
    assert found.placed, found.said
    assert found.explained, found.said


def test_there_are_enough() -> None:
    assert len(CATALOGUE) >= 80
    assert len({trap.name for trap in CATALOGUE}) == len(CATALOGUE)
