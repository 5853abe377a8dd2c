"""The `parity` fixture, as a user's test suite sees it."""

from typing import Any

import pytest

pytest_plugins = ["pytester"]

PORT = """
import jax.numpy as jnp, numpy as np, optax, pytest, torch, compare
from flax import nnx

def sides(rate=1e-2, dtype=None):
    torch.manual_seed(0)
    return (
        compare.Torch(torch.nn.Linear(3, 2), torch.nn.functional.mse_loss, lambda p: torch.optim.SGD(p, 1e-2)),
        compare.Flax(nnx.Linear(3, 2, dtype=dtype, rngs=nnx.Rngs(0)), lambda o, t: jnp.mean((o - t) ** 2), optax.sgd(rate)),
        [(np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32))],
    )

def test_right(parity):
    assert parity(*sides(), steps=2).verdict == "match"

def test_wrong(parity):
    parity(*sides(rate=2e-2), steps=2)

def test_precision(parity):
    parity(*sides(dtype=jnp.bfloat16))

def test_nothing(parity):
    parity(*sides()[:2], [])

def test_other():
    pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(PORT)
    pytester.makeini("[pytest]\nparity_device = cpu\n")
    return pytester


def test_a_mismatch_fails_with_its_report(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("--junit-xml=out.xml", "--parity-report=reports", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*mismatch at step 0, update*",
            "*learning_rate=0.01*",
            "*nothing was compared: *",
            "parity: 3 checks of * tensors: 1 match, 1 precision, 1 mismatch",
        ]
    )
    assert "pytest_plugin.py" not in result.stdout.str()
    assert len(list((suite.path / "reports").glob("*.json"))) == 3
    assert 'name="parity_verdict" value="mismatch"' in (suite.path / "out.xml").read_text()


def test_strict_and_selection(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("--parity-strict", "-m", "parity", "-k", "precision or right or other")
    result.assert_outcomes(passed=1, failed=1, deselected=3)
    result.stdout.fnmatch_lines(["*bfloat16 on the flax side*"])


def test_loads_no_framework(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\n\ndef test_it():\n    assert 'torch' not in sys.modules and 'jax' not in sys.modules\n"
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_fixture_is_there(parity: Any) -> None:
    assert callable(parity)
