"""A training step as its user wrote it: right ports match, and faults of the step are caught, placed and explained."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from in_ci import some
from programs.averages import ema, warm_up
from programs.by_hand import BY_HAND, ByHand, printed
from programs.common import Pair, TorchNet, drawn
from programs.ensembles import devices
from programs.faults import FAULTS, PROGRAMS, Fault
from programs.loops import pmapped
from programs.noise import noisy
from programs.written import loaded, written

import compare
from compare.mending.syntax import applied

RIGHT = ("ema", "accumulation", "gan", "clipped_in_chain", "equinox_step", "haiku_state", "pmapped")
FAST = ("warm_up: per step", "haiku_state: no nesterov")
"""The right programs and the faults that are run in CI."""


def checked(pair: Pair, **settings: Any) -> compare.Report:
    original, port = compare.TorchProgram(pair.original), compare.JaxProgram(pair.port)
    return compare.check(original, port, pair.batches, steps=6, device="cpu", **settings)


def needs_devices(program: Any) -> None:
    if program in (devices, pmapped) and len(jax.devices()) < 2:
        pytest.skip("needs two devices: XLA_FLAGS=--xla_force_host_platform_device_count=2")


@pytest.mark.parametrize("program", some(PROGRAMS, RIGHT, lambda program: program.__name__))
def test_right_programs_match(program: Any) -> None:
    needs_devices(program)
    report = checked(program())
    assert report.verdict == "match", str(report)
    assert {"loss", "parameters", "update", "gradient"} <= {quantity.stage for quantity in report.quantities}


def named(fault: Fault) -> str:
    return f"{fault.program.__name__}: {fault.name}"


@pytest.mark.parametrize("fault", some(FAULTS, FAST, named))
def test_faults_are_placed_and_explained_and_their_fixes_mend_them(fault: Fault, tmp_path: Path) -> None:
    needs_devices(fault.program)
    source = written(fault)
    report = checked(loaded(source, tmp_path / "faulty.py", fault.program.__name__))
    assert report.verdict == "mismatch"
    first = report.divergence
    assert first is not None
    assert (first.stage, first.torch.startswith(fault.place)) == (fault.stage, True), first.headline
    cause = first.cause
    if not fault.cause:
        assert cause is None, cause
        return
    assert cause is not None, str(report)
    assert fault.cause.lower() in cause.name.lower(), cause
    mended = changed(source, report, BY_HAND.get(named(fault)))
    if mended is not None:
        after = checked(loaded(mended, tmp_path / "mended.py", fault.program.__name__))
        assert after.verdict == "match", f"{cause.fix}\n{after}"


def changed(source: str, report: compare.Report, by_hand: ByHand | None) -> str | None:
    """Mend a port as the report says: by its patch, or by hand where it has none."""
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None
    if by_hand is None:
        return applied(source, report.edits) if report.edits else None
    assert not report.edits  # of what has a patch, nothing is to be mended by hand
    assert by_hand.says in cause.fix
    for old, new in by_hand.changes:
        assert old in source, old
        source = source.replace(old, new.replace("{fix}", printed(cause.fix)) if "{fix}" in new else new)
    return source


@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_averages_over_devices_are_told_from_sums(*, check_vma: bool) -> None:
    needs_devices(devices)
    assert checked(devices(check_vma=check_vma)).verdict == "match"
    report = checked(devices("summed over devices", check_vma=check_vma))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.fix == "gradients = jax.tree.map(lambda leaf: leaf / 2, gradients)"


def test_the_users_generators_are_left_as_they_were() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    checked(warm_up())
    after = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


@pytest.mark.slow
def test_random_numbers_and_tables_are_weighed_as_in_a_model() -> None:
    right = checked(noisy())
    assert right.verdict == "precision", str(right)
    assert [note.name for note in right.notes] == ["numbers rounded to float32"]
    idle = checked(noisy("idle"))
    assert idle.verdict == "precision", str(idle)
    assert any("a draw without effect" in each.reason for each in idle.not_compared)
    rate = checked(noisy("rate"))
    # The scales are within the module on the torch side, and before it on the other: what it takes is no finding.
    assert rate.divergence is not None
    assert rate.divergence.stage == "loss", str(rate)
    assert rate.divergence.cause is not None
    assert "torch has p=0.5, and the JAX side computes what torch would with 0.4" in rate.divergence.cause.explanation
    assert not rate.others  # the probability with which the mask is drawn is the same finding
    same = checked(noisy("same key"))
    assert same.verdict == "mismatch"
    assert same.divergence is not None
    assert same.divergence.cause is not None
    assert same.divergence.cause.name == "random key used twice"


def refused(original: Any, port: Any, batches: Any, message: str) -> None:
    with pytest.raises(compare.InputError, match=message):
        compare.check(original, port, batches, steps=2, device="cpu")


def test_what_cannot_be_compared_is_refused() -> None:
    pair = ema()
    original, port = compare.TorchProgram(pair.original), compare.JaxProgram(pair.port)
    refused(original, compare.Jax(lambda params, x: x, {}), pair.batches, "pass a compare.JaxProgram, not a Jax")
    refused(original, port, [], "batches must be a list")
    refused(compare.TorchProgram(lambda: None), port, pair.batches, r"must return \(state, step\)")  # type: ignore[arg-type,return-value]
    refused(original, compare.JaxProgram(lambda: None), pair.batches, r"must return \(state, step\)")  # type: ignore[arg-type,return-value]

    def of_batch() -> Any:
        return {"model": TorchNet()}, lambda batch: batch

    refused(
        compare.TorchProgram(of_batch), port, pair.batches, r"step\(state, batch\), but it is defined with \(batch\)"
    )
    refused(original, compare.JaxProgram(of_batch), pair.batches, r"step\(state, batch\), but it is defined with")
    with pytest.raises(compare.InputError, match="a function without arguments"):
        compare.TorchProgram(TorchNet())


def test_what_a_function_returned_in_place_of_a_pair_is_said_part_by_part() -> None:
    """That it returned a tuple where a tuple is wanted says nothing."""
    pair = ema()
    original, port = compare.TorchProgram(pair.original), compare.JaxProgram(pair.port)

    def shown_alone(state: Any, batch: Any) -> Any:
        new, shown = pair.port()[1](state, batch)
        return new, shown["loss"]

    turned = compare.JaxProgram(lambda: pair.port()[::-1])
    refused(original, turned, pair.batches, r"returned \(function, dict\)$")
    swapped = compare.TorchProgram(lambda: pair.original()[::-1])
    refused(swapped, port, pair.batches, r"returned \(function, dict\)$")
    alone = compare.JaxProgram(lambda: (pair.port()[0], shown_alone))
    refused(original, alone, pair.batches, r"'loss': loss}, but returned \(dict, scalar\)")


def test_a_state_that_the_step_changes_in_structure_is_refused() -> None:
    pair = warm_up()

    def port() -> Any:
        state, step = pair.port()

        def grown(state: Any, batch: Any) -> Any:
            after, shown = step({key: value for key, value in state.items() if key != "new"}, batch)
            return {**after, "new": jax.numpy.zeros(2)}, shown

        return state, grown

    original = compare.TorchProgram(pair.original)
    refused(
        original,
        compare.JaxProgram(port),
        drawn(x=(5,), y=(3,)),
        "a state with another structure than the state that it takes",
    )
