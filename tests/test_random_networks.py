"""Any network, any optimizer, any seed: a right port is no mismatch, and one fault is found where it is.

`benchmarks/random_networks.py` runs a thousand of them and counts.
"""

import os

import jax
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from networks import check, effect, faults, specifications
from networks.faults import POWER
from networks.specification import Specification

import compare

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))

few = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def caches_emptied() -> None:
    """Each network is compiled for itself."""
    jax.clear_caches()


def checked(specification: Specification, port: Specification) -> compare.Report:
    """Compare the two; a program whose loss grows beyond float32 is none."""
    try:
        return check(specification, port)
    except compare.InputError as error:
        if "the loss is not finite" not in str(error):
            raise
        reject()


@few
@given(specifications())
def test_a_right_port_is_no_mismatch(specification: Specification) -> None:
    checked(specification, specification).raise_on_mismatch()


@few
@given(st.data())
def test_a_fault_is_found_where_it_is(data: st.DataObject) -> None:
    specification = data.draw(specifications())
    fault = data.draw(faults(specification))
    if effect(specification, fault) <= POWER:
        return
    report = checked(specification, fault.specification)
    assert report.divergence is not None, str(report)
    assert any(place.names(report.divergence) for place in fault.places), f"{fault.places}\n{report}"
