"""Known differences that a user accepts, stages that are chosen, and shapes before any weight is mapped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import torch
from flax import nnx
from rich.console import Console
from torch import nn

import compare
from compare.command_line.accepting import accepted
from compare.command_line.main import main
from compare.comparison.shapes_by_layer import shapes_by_layer
from compare.report.text import show

VARIANCE = {"buffers: *.running_var": "we keep the biased variance"}


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(self.fc(x))


class Port(nnx.Module):
    def __init__(self, width: int = 6, epsilon: float = 1e-5) -> None:
        rngs = nnx.Rngs(0)
        self.fc = nnx.Linear(4, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.fc(x))


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def pair(**settings: Any) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 6)))]
    return compare.Torch(Original(), nn.MSELoss()), compare.Flax(Port(**settings), mse), batches


def test_what_is_accepted_decides_nothing_and_is_listed() -> None:
    report = compare.check(*pair(), accept={**VARIANCE, "loss: other": "long ago"})
    assert (report.verdict, report.headline) == ("match", "match, 1 accepted")
    assert [(each.what, each.places) for each in report.accepted] == [
        ("buffers: *.running_var", ("norm.running_var",)),
        ("loss: other", ()),
    ]
    said = " ".join(str(report).split())
    assert "buffers: *.running_var (norm.running_var): we keep the biased variance" in said
    assert "loss: other applies to nothing" in said
    found = json.loads(report.to_json())["reports"][0]["accepted"]
    assert [entry["applies"] for entry in found] == [True, False]


def test_without_it_the_same_pair_is_a_mismatch() -> None:
    assert compare.check(*pair()).verdict == "mismatch"


def test_another_difference_is_still_found_and_placed() -> None:
    report = compare.check(*pair(epsilon=1e-3), accept=VARIANCE)
    assert report.divergence
    assert (report.verdict, report.divergence.torch) == ("mismatch", "norm")
    assert not any("running_var" in each.torch for each in report.others)


def test_what_follows_must_be_named_too() -> None:
    """An epsilon that is accepted goes on into the loss and the gradients: nothing proves that it is all there is."""
    report = compare.check(*pair(epsilon=1e-3), accept=VARIANCE | {"forward: *": "another epsilon"})
    assert report.divergence
    assert report.divergence.stage == "loss"


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        ({"buffers: *": ""}, "must be the reason"),
        ({"bufers: *": "a slip"}, "no stage is called 'bufers'"),
        (["buffers: *"], "must be a dict"),
        ({"*": "all of it"}, "nothing is left to decide"),
    ],
)
def test_entries_that_say_nothing(accept: Any, message: str) -> None:
    with pytest.raises(compare.InputError, match=message):
        compare.check(*pair(), accept=accept)


def test_entries_of_the_project_and_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.netparity.accept]\n"loss: a" = "old"\n"loss: b" = "older"\n')
    (tmp_path / "below").mkdir()
    assert accepted(tmp_path / "below", ["loss: a=new"]) == {"loss: a": "new", "loss: b": "older"}
    with pytest.raises(compare.InputError, match="stage: name=reason"):
        accepted(tmp_path, ["loss: a"])


def test_stages() -> None:
    report = compare.check(*pair(), stages="forward")
    assert report.verdict == "match"
    assert {quantity.stage for quantity in report.quantities} == {"forward"}
    assert report.settings["stages"] == ["forward"]
    with pytest.raises(compare.InputError, match="stages must be some of"):
        compare.check(*pair(), stages=["backward"])


def test_stages_that_need_no_optimizer_run_none() -> None:
    original, port, batches = pair()

    def broken(params: Any) -> Any:
        raise AssertionError("this is not called")

    sides = compare.Torch(original.model, original.loss, broken), compare.Flax(port.model, mse, optax.sgd(1.0))
    report = compare.check(*sides, batches, stages=["loss", "gradient"])
    assert {quantity.stage for quantity in report.quantities} == {"loss", "gradient"}


def test_shapes() -> None:
    assert shapes_by_layer(*pair()).ok
    found = shapes_by_layer(*pair(width=5))
    first = found.first
    assert first
    assert first.torch
    assert first.jax
    assert (first.torch.name, first.torch.shape, first.jax.shape) == ("fc", (8, 6), (8, 5))
    assert first.jax.source
    assert first.jax.source.text == "return self.norm(self.fc(x))"
    assert found.rows[-1] is first  # what follows is not compared


def test_shapes_up_to_an_error_of_the_port() -> None:
    class Wrong(Port):
        def __call__(self, x: Any) -> Any:
            return self.norm(self.fc(x) @ x)

    original, _, batches = pair()
    found = shapes_by_layer(original, compare.Flax(Wrong(), mse), batches)
    assert not found.ok
    assert [row.torch.name for row in found.rows if row.torch and row.jax] == ["fc"]
    assert "the flax model raised TypeError" in found.errors[0]


PAIR = """
import numpy as np, torch, compare
from flax import nnx

def pair():
    port = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    return compare.Torch(torch.nn.Linear(2, 3)), compare.Flax(port), [(np.ones((4, 2)), None)]
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PAIR)
    return "mine.py:pair"


def test_a_match_is_one_line(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", written, "--device", "cpu"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "✓ mine.py:pair: match: 2 tensors over 1 step (forward 2)"
    assert not any("farthest" in line for line in rest)  # what is below is what the match does not cover, and what ran
    assert main(["check", written, "--device", "cpu", "--verbose"]) == 0
    assert "largest ratio at" in capsys.readouterr().out


def test_verbose_names_all_that_is_not_compared() -> None:
    original = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(5)))
    port = nnx.Sequential(*(nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(5)))
    report = compare.check(compare.Torch(original.eval()), compare.Flax(port), [(np.ones((4, 3)), None)], quick=True)
    printed = {}
    for verbose in (None, True):
        console = Console(width=300, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            show([report], console, verbose=verbose)
        printed[verbose] = capture.get()
    assert "0.num_batches_tracked and 4 more" in printed[None]
    names = ", ".join(f"{number}.num_batches_tracked" for number in range(5))
    assert names in printed[True]


def test_json_on_standard_output_is_alone_there(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", written, "--device", "cpu", "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["reports"][0]["verdict"] == "match"
    assert "mine.py:pair: match" in printed.err


def test_shapes_by_the_command(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shapes", written, "--device", "cpu"]) == 0
    assert "✓ mine.py:pair: all shapes agree" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert "shapes" in printed
    assert "stages" in printed
