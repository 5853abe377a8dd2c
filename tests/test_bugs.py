"""An error in the search for a cause takes neither the report nor its findings, and is no "no cause found"."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare import bugs


@pytest.fixture(autouse=True)
def bugs_raise() -> None:
    """Not here: they are kept, as for users."""


def pair(epsilon: float = 1e-3, rate: float = 0.1) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    original = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    rngs = nnx.Rngs(0)
    port = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, epsilon=epsilon, rngs=rngs))
    return (
        compare.Torch(original, torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(port, lambda output, target: jnp.mean((output - target) ** 2), optax.sgd(rate)),
        [(rng.normal(size=(5, 3)), rng.normal(size=(5, 4)))],
    )


def fails(*args: Any, **kwargs: Any) -> Any:
    raise KeyError("eps")


@pytest.mark.parametrize(
    ("broken", "doing"),
    [
        ("compare.comparison.model_search.explain", "the search for the cause at 1"),
        ("compare.comparison.model_check.independent", "looking for independent differences"),
        ("compare.comparison.common_runs.weigh_noise", "measuring the effect of rounding"),
        ("compare.comparison.common_check.wrongly_converted", "comparing the port's own weights"),
    ],
)
def test_the_report_stands(broken: str, doing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, fails)
    report = compare.check(*pair(), device="cpu")
    assert report.headline.startswith("mismatch at step 0, forward, 1")
    assert [(bug.doing, bug.error) for bug in report.bugs] == [(doing, "KeyError: 'eps'")] * len(report.bugs)
    assert f"{doing} failed: KeyError: 'eps'" in " ".join(str(report).split())
    assert "in fails" in json.loads(report.to_json())["reports"][0]["bugs"][0]["traceback"]
    assert doing in report.to_markdown()
    assert "search for causes is incomplete" in report.to_html()


def test_a_match_says_that_float32_was_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compare.comparison.common_check.weigh_float32_program", fails)
    report = compare.check(*pair(1e-5), device="cpu", quick=True)
    assert report.verdict == "match"
    assert "but for its float32 program: checking it failed, by an error of netparity" in report.headline


def test_a_search_that_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from compare.comparison import model_search
    from compare.diagnosis.explain import explain

    def first_fails(found: Any, *args: Any) -> Any:
        return fails() if found.divergence.stage == "forward" else explain(found, *args)

    monkeypatch.setattr(model_search, "explain", first_fails)
    report = compare.check(*pair(rate=0.2), device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is None
    assert [other.cause and other.cause.name for other in report.others] == ["learning rate"]
    assert len(report.bugs) == 1


def test_without_an_error_there_is_none() -> None:
    report = compare.check(*pair(), device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.bugs == []
    assert "incomplete" not in str(report)


def test_what_torch_refuses_is_no_bug_and_a_wrong_table_is_one() -> None:
    from compare.diagnosis.rewriting import Call, _rewritten
    from compare.errors import NotApplicable

    call = Call("add", torch.add, (torch.zeros(2), torch.zeros(3)), {}, signature=None)  # type: ignore[arg-type]
    with bugs.collected() as found:
        for rewrite in (lambda call: call.function(*call.args), lambda call: dict[str, Any]()["eps"]):
            with pytest.raises(NotApplicable, match=r"^add: "):
                _rewritten(rewrite, call)
    assert [bug.error for bug in found] == ["KeyError: 'eps'"]


def test_outside_of_a_check_it_is_raised() -> None:
    with pytest.raises(KeyError, match="eps"):
        bugs.attempt("something", fails)
    assert bugs.attempt("something", lambda: 3) == 3
