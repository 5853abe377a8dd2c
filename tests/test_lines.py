"""The user's lines, on both sides, that a finding comes from, and where they are shown."""

import inspect
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import compare
from compare.command_line import interruptible
from compare.jax_side import made as jax_made
from compare.report.annotations import annotations
from compare.report.progress import Progress
from compare.step.assigned import made_in
from compare.torch_side import made as torch_made


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> Any:
        return nn.functional.gelu(self.norm(self.fc(x)))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return nnx.gelu(self.norm(self.fc(x)))


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).sum()


@pytest.fixture(scope="module")
def report() -> compare.Report:
    """Compare a port with a wrong epsilon, activation, loss and learning rate."""
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(5, 3)), rng.normal(size=(5, 4))) for _ in range(2)]
    with torch_made.noted(), jax_made.noted():
        original = compare.Torch(Original(), nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1))
        return compare.check(original, compare.Flax(Port(nnx.Rngs(0)), mse, optax.sgd(0.2)), batches)


def line_of(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(
    ("title", "side", "function", "text"),
    [
        ("LayerNorm epsilon", "torch", Original.__init__, "nn.LayerNorm(4)"),
        ("LayerNorm epsilon", "jax", Port.__init__, "nnx.LayerNorm(4"),
        ("activation", "torch", None, "gelu"),
        ("activation", "jax", Port.__call__, "nnx.gelu"),
        ("reduction", "jax", mse, "def mse"),
        ("learning rate", "jax", None, "optax.sgd(0.2)"),
    ],
)
def test_lines(report: compare.Report, title: str, side: str, function: Any, text: str) -> None:
    group = next(each for each in report.groups if each.title == title)
    line = group.line(side)
    if title == "activation" and side == "torch":  # the end of the model: it is called by nobody
        assert line is None
        return
    assert line
    assert line.source.file == __file__
    assert text in line.source.text
    if function is not None:
        assert line.source.line == line_of(function, text)


def test_they_are_in_the_json_and_the_text(report: compare.Report) -> None:
    found = json.loads(report.to_json())["reports"][0]
    (group,) = (each for each in found["groups"] if each["title"] == "LayerNorm epsilon")
    assert {line["side"]: line["role"] for line in group["lines"]} == {"torch": "called", "jax": "called"}
    assert [line["role"] for line in group["lines"] if "LayerNorm" in line["text"]] == ["made", "made"]
    assert f"{Path(__file__).name}:{line_of(Port.__init__, 'LayerNorm')}" in str(report)


def test_annotations(report: compare.Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    first, *_ = annotations(report)
    line = line_of(Port.__init__, "LayerNorm")
    assert first.startswith(f"::error file=tests/test_lines.py,line={line},title=LayerNorm epsilon::epsilon: ")
    assert "%0Afix: nnx.LayerNorm(..., epsilon=1e-05)" in first


def test_layers_that_linen_makes_while_it_runs() -> None:
    class Compact(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.Dense(4, name="fc")(x)
            return linen.LayerNorm(name="norm")(x)

    class Plain(Original):
        def forward(self, x: torch.Tensor) -> Any:
            return self.norm(self.fc(x))

    x = np.random.default_rng(0).normal(size=(5, 3))
    import jax

    variables = Compact().init(jax.random.key(0), x)
    report = compare.check(compare.Torch(Plain()), compare.Flax((Compact(), variables)), [(x, None)])
    (group,) = report.groups
    line = group.line("jax")
    assert line
    assert (str(line.role), line.source.text) == ("made", 'return linen.LayerNorm(name="norm")(x)')


def test_a_line_of_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruptible, "INTERVAL", 0.05)
    monkeypatch.setattr(sys, "stderr", printed := io.StringIO())
    with interruptible.shown(quiet=False) as show:
        show(Progress("step 3 of 10", 2, 10))
        time.sleep(0.3)
    assert "netparity: step 3 of 10, 0 s" in printed.getvalue()
    monkeypatch.setattr(sys, "stderr", silent := io.StringIO())
    with interruptible.shown(quiet=True):
        time.sleep(0.2)
    assert not silent.getvalue()


class Deep(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, *, wide: bool) -> None:
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs) for _ in range(2)])
        if wide:
            self.either = nnx.Linear(4, 4, rngs=rngs)
        else:
            self.either = nnx.Linear(4, 4, use_bias=False, rngs=rngs)


def test_what_a_class_assigns_is_found_in_its_source() -> None:
    """No notes were taken while this model was made."""
    model = Deep(nnx.Rngs(0), wide=True)
    last = made_in([(model, "last")], nnx.Linear)
    assert last is not None
    assert last.expression == "nnx.Linear(4, 4, rngs=rngs)"
    norm = made_in([(model.norms, "1"), (model, "norms")], nnx.LayerNorm)
    assert norm is not None
    assert norm.line == line_of(Deep, "self.norms")
    assert made_in([(model, "either")], nnx.Linear) is None  # one of two calls: which one is not known
    assert made_in([(nnx.Sequential(model), "layers")], nnx.Linear) is None


def test_a_report_from_python_has_lines_and_patches() -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(5, 3)), rng.normal(size=(5, 4))) for _ in range(2)]
    original = compare.Torch(Original(), nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1))
    optimizer = optax.sgd(0.2)
    found = compare.check(original, compare.Flax(Port(nnx.Rngs(0)), mse, optimizer), batches, device="cpu")
    patches = {group.title: group.patch for group in found.groups}
    assert all(patches.values()), str(found)
    changed = {title: patch.changes[0].added[0].strip() for title, patch in patches.items() if patch}
    assert changed["LayerNorm epsilon"] == "self.norm = nnx.LayerNorm(4, epsilon=1e-05, rngs=rngs)"
    assert changed["learning rate"] == "optimizer = optax.sgd(0.1)"


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        x = nn.functional.gelu(self.first(x))
        return self.last(nn.functional.gelu(self.second(x)))


class TwicePort(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.second, self.last = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.gelu(self.first(x))
        return self.last(nnx.gelu(self.second(x)))


def test_an_activation_that_stands_twice_is_exchanged_twice() -> None:
    batches = [(np.random.default_rng(0).normal(size=(5, 3)), None)]
    found = compare.check(compare.Torch(Twice()), compare.Flax(TwicePort(nnx.Rngs(0))), batches, device="cpu")
    (group,) = found.groups
    assert len(group.places) == 2
    assert group.patch
    assert [len(change.added) for change in group.patch.changes] == [2]
    assert "given to self.second(x)" in str(found)  # the torch side's line, which has the other activation


def entropy(logits: Any) -> Any:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def composite(logits: Any, labels: Any) -> Any:
    return nn.functional.cross_entropy(logits, labels) - 0.1 * entropy(logits)


def flax_sum(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


def flax_composite(logits: Any, labels: Any) -> Any:
    log_p = nnx.log_softmax(logits)
    return flax_sum(logits, labels) + 0.1 * (jnp.exp(log_p) * log_p).sum(-1).mean()


@pytest.mark.parametrize(("loss", "port"), [(composite, flax_composite), (nn.CrossEntropyLoss(), flax_sum)])
def test_a_wrong_term_of_a_loss_makes_no_patch_and_a_wrong_loss_does(loss: Any, port: Any) -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(5, 3)), rng.integers(0, 4, 5)) for _ in range(2)]
    ours, theirs = compare.Torch(nn.Linear(3, 4), loss), compare.Flax(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), port)
    (group,) = compare.check(ours, theirs, batches, device="cpu").groups
    assert group.title == "reduction"
    assert (group.patch is None) == (loss is composite)
    assert ("this term alone" in group.fix) == (loss is composite)


def conv(stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(2, 2, (3, 3), strides=stride, rngs=rngs)


class Strided(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a, self.b = conv(1, rngs), conv(2, rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(nnx.relu(self.a(x)))


class StridedOriginal(nn.Module):
    def __init__(self, padding: int, kernel: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, kernel, padding=padding), nn.Conv2d(2, 2, 3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(torch.relu(self.a(x)))


class Sizes(nnx.Module):
    """Its first convolution is another one, and right as it is."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a, self.b = (nnx.Conv(2, 2, (n, n), strides=s, rngs=rngs) for n, s in ((5, 1), (3, 2)))

    def __call__(self, x: Any) -> Any:
        return self.b(nnx.relu(self.a(x)))


@pytest.mark.parametrize(
    ("original", "port", "mended"),
    [(StridedOriginal(1, 3), Strided, True), (StridedOriginal(2, 5), Sizes, False)],
    ids=["torch has the padding of the fix in both", "torch has another in one"],
)
def test_a_line_that_makes_a_right_layer_is_changed_where_that_stays_right(
    original: nn.Module, port: type[nnx.Module], mended: bool
) -> None:
    """Flax's "SAME" is a padding of 1 for a stride of 1, and another one for a stride of 2."""
    batches = [(np.random.default_rng(0).normal(size=(2, 2, 6, 6)), None)]
    with torch_made.noted(), jax_made.noted():
        flax = compare.Flax(port(nnx.Rngs(0)), batch=lambda x, y: (np.moveaxis(x, 1, -1), y))  # type: ignore[call-arg]
        (group,) = compare.check(compare.Torch(original), flax, batches, device="cpu").groups
    assert group.places == (("b", "b"),)
    assert bool(group.patch) == mended
    assert mended or group.unpatched == "the line makes other layers too, and these are right"
