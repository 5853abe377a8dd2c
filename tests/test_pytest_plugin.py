"""The `parity` fixture, as a user's test suite sees it."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

pytest_plugins = ["pytester"]

FORMATS = (".json", ".html")
PORT = """
import jax.numpy as jnp, numpy as np, optax, pytest, torch, compare
from flax import nnx

def loss(output, target):
    return jnp.mean((output - target) ** 2)

def sides(r=1e-2, dtype=None):
    torch.manual_seed(0)
    return (
        compare.Torch(torch.nn.Linear(3, 2), torch.nn.functional.mse_loss, lambda p: torch.optim.SGD(p, 1e-2)),
        compare.Flax(nnx.Linear(3, 2, dtype=dtype, rngs=nnx.Rngs(0)), loss, optax.sgd(r)),
        [(np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32))],
    )

def test_right(parity):
    assert parity(*sides(), steps=2).verdict == "match"

def test_wrong(parity):
    parity(*sides(r=2e-2), steps=2)

def test_precision(parity):
    parity(*sides(dtype=jnp.bfloat16))

def test_nothing(parity):
    parity(*sides()[:2], [])

def test_other():
    pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_port=PORT)
    pytester.makepyprojecttoml(
        """
        [tool.pytest]
        strict = true
        filterwarnings = ["error"]
        parity_device = "cpu"
        """
    )
    return pytester


def test_a_mismatch_fails_with_its_report(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("--junit-xml=out.xml", "--parity-report=reports", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "mismatch at step 0, update, weight: learning rate",
            "  cause *lr=0.01*",
            "  fix *learning_rate=0.01*",
            "nothing compared: batches is empty*",
            "parity: 4 checks, * tensors: 1 match, 1 precision, 1 mismatch, 1 nothing compared; reports in *reports",
        ]
    )
    for noise in ("pytest_plugin.py", "During handling", "Traceback"):
        assert noise not in result.stdout.str()
    names = {f"test_port.py-test_{name}{suffix}" for name in ("right", "wrong", "precision") for suffix in FORMATS}
    assert {path.name for path in (suite.path / "reports").iterdir()} == names
    written = json.loads((suite.path / "reports" / "test_port.py-test_wrong.json").read_text(encoding="utf-8"))
    assert written["reports"][0]["verdict"] == "mismatch"
    properties = {
        case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")}
        for case in ElementTree.parse(suite.path / "out.xml").iter("testcase")
    }
    assert [properties[f"test_{name}"]["parity_verdict"] for name in ("right", "wrong", "precision", "nothing")] == [
        "match", "mismatch", "precision", "nothing compared",
    ]  # fmt: skip
    assert float(properties["test_wrong"]["parity_float64_update"] or 0) > 0.5
    assert properties["test_other"] == {}


@pytest.mark.slow
def test_what_is_accepted_is_named_and_what_applies_to_nothing_too(suite: pytest.Pytester) -> None:
    accepted = ("update: *=we train faster", "parameters: *=so do they", "loss: *=it follows", "buffers: x=long ago")
    # What follows in the next step's forward pass is not accepted.
    options = [option for each in accepted for option in ("--parity-accept", each)]
    result = suite.runpytest_subprocess("-k", "test_wrong", "-p", "no:cacheprovider", *options)
    result.assert_outcomes(failed=1, deselected=4)
    result.stdout.fnmatch_lines(
        [
            "parity: 1 check, * tensors: 1 mismatch; accepted: loss: [*], parameters: [*], update: [*]",
            "parity: accepting 'buffers: x' applies to nothing: no place that differs has this name",
        ]
    )
    # From torch's weights nothing differs there, and rows that are all equal are their own mirror image.
    assert "reversed" not in result.stdout.str()


@pytest.mark.slow
def test_strict_and_selection(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("--parity-strict", "-m", "parity", "-k", "precision or right or other")
    result.assert_outcomes(passed=1, failed=1, deselected=3)
    result.stdout.fnmatch_lines(["precision: the same mathematics, but bfloat16 on the flax side"])


@pytest.mark.slow
def test_under_xdist(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("-n", "2", "-m", "parity", "-k", "right or wrong", "--parity-report=reports")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["parity: 2 checks, * tensors: 1 match, 1 mismatch; reports in *reports"])
    assert len(list((suite.path / "reports").glob("*.html"))) == 2


def test_loads_little() -> None:
    heavy = ["torch", "jax", "flax", "optax", "rich", "matplotlib", "asyncio"]
    code = f"import sys, netparity.pytest_plugin; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
