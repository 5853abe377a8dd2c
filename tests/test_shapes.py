"""The shapes of both forward passes, layer by layer."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from rich.console import Console
from torch import nn

import compare
from compare.comparison.shapes_by_layer import shapes_by_layer
from compare.report.shapes import Shapes, show
from compare.step.observation import Port

ROOT = Path(__file__).parents[1]
SEQUENCES = [(np.random.default_rng(0).normal(size=(3, 5, 4)), None)]
IMAGES = [(np.random.default_rng(0).normal(size=(2, 3, 8, 6)), None)]


def shown(found: Shapes) -> str:
    console = Console(width=160, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        show(found, console)
    return capture.get()


class Recurrent(nn.Module):
    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.gru(x)[0])


class Cell(nnx.Module):
    """Runs its cell once per time step, in a loop or in a scan; or hands it to Flax's own layer."""

    def __init__(self, how: str, hidden: int = 6, width: int = 2) -> None:
        rngs = nnx.Rngs(0)
        self.how, self.hidden = how, hidden
        cell: Any = nnx.GRUCell(4, hidden, rngs=rngs)
        self.gru: Any = nnx.RNN(cell, rngs=rngs) if how == "layer" else cell
        self.head = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        carry = jnp.zeros((len(x), self.hidden))
        if self.how == "layer":
            return self.head(self.gru(x))
        if self.how == "scan":
            steps = jax.lax.scan(lambda h, each: self.gru(h, each), carry, jnp.moveaxis(x, 1, 0))[1]
            return self.head(jnp.moveaxis(steps, 0, 1))
        steps = []
        for t in range(x.shape[1]):
            carry, y = self.gru(carry, x[:, t])
            steps.append(y)
        return self.head(jnp.stack(steps, 1))


@pytest.mark.parametrize("how", ["loop", "scan"])
def test_a_layer_that_runs_once_per_time_step_is_no_difference(how: str) -> None:
    found = shapes_by_layer(compare.Torch(Recurrent()), compare.Flax(Cell(how)), SEQUENCES)
    assert found.ok
    assert [row.torch.name for row in found.rows if row.torch and row.not_comparable] == ["gru"]
    text = shown(found)
    assert "not comparable (once per time step)" in text
    assert "all shapes agree; not comparable: gru" in text


@pytest.mark.parametrize("how", ["loop", "scan"])
def test_what_follows_such_a_layer_is_still_compared(how: str) -> None:
    found = shapes_by_layer(compare.Torch(Recurrent()), compare.Flax(Cell(how, width=7)), SEQUENCES)
    assert found.first
    assert found.first.torch
    assert found.first.torch.name == "head"


def test_a_recurrent_layer_of_flax_is_one_row_with_that_of_torch() -> None:
    found = shapes_by_layer(compare.Torch(Recurrent()), compare.Flax(Cell("layer")), SEQUENCES)
    assert found.ok
    assert [(row.torch and row.torch.name, row.jax and row.jax.name) for row in found.rows] == [
        ("gru", "gru"),
        ("head", "head"),
        ("the model", "the model"),
    ]
    assert shown(found).endswith("all shapes agree\n")  # no order of axes differs
    wrong = shapes_by_layer(compare.Torch(Recurrent()), compare.Flax(Cell("layer", hidden=7)), SEQUENCES)
    assert wrong.first
    assert wrong.first.torch
    assert wrong.first.torch.name == "gru"


def test_a_recurrent_layer_of_linen_is_one_row_too() -> None:
    class Port(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(2)(linen.RNN(linen.GRUCell(6))(x))

    variables = Port().init(jax.random.key(0), jnp.zeros((3, 5, 4)))
    found = shapes_by_layer(compare.Torch(Recurrent()), compare.Flax((Port(), variables)), SEQUENCES)
    assert found.ok
    assert len(found.rows) == 3


def test_a_layer_that_raised_is_not_ticked() -> None:
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    port = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    found = shapes_by_layer(compare.Torch(original), compare.Flax(port), IMAGES)  # without batch=
    assert not found.ok
    assert found.rows[0].raised
    assert "✓" not in shown(found)


def test_the_layers_with_another_order_of_axes_are_named() -> None:
    class Original(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.conv(x).mean((2, 3)))

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
            self.head = nnx.Linear(4, 5, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.head(self.conv(x).mean((1, 2)))

    port = compare.Flax(Port(), batch=lambda x, target: (np.moveaxis(x, 1, -1), target))
    text = shown(shapes_by_layer(compare.Torch(Original()), port, IMAGES))
    assert text.endswith("all shapes agree; the order of axes differs at conv\n")


def test_a_scanned_block_takes_no_partner_from_the_layers_after_it() -> None:
    original = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 7))

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return linen.Dense(4)(x), None

    class Blocks(linen.Module):
        width: int

        @linen.compact
        def __call__(self, x: Any) -> Any:
            scan = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return linen.Dense(self.width)(scan()(x, None)[0])

    def port(width: int) -> Any:
        return compare.Flax((Blocks(width), Blocks(width).init(jax.random.key(0), jnp.zeros((3, 5, 4)))))

    assert shapes_by_layer(compare.Torch(original), port(7), SEQUENCES).ok
    wrong = shapes_by_layer(compare.Torch(original), port(6), SEQUENCES).first
    assert wrong
    assert wrong.torch
    assert wrong.torch.name == "3"


def test_a_program_has_no_shapes_check() -> None:
    def build() -> Any:
        raise AssertionError("this is not called")

    original, port = compare.TorchProgram(build), compare.JaxProgram(build)
    with pytest.raises(compare.InputError, match=r"no shapes check.*`netparity check`"):
        shapes_by_layer(original, port, SEQUENCES)  # type: ignore[arg-type]


def test_links_to_headings_of_the_readme_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    known = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for page in (ROOT / "docs").glob("*.md"):
        assert set(re.findall(r"\.\./README\.md#([\w-]+)", page.read_text(encoding="utf-8"))) <= known, page


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x))


class Fused(nnx.Module):
    def __init__(self, width: int) -> None:
        self.qkv = nnx.Linear(4, width, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(4, 4, rngs=nnx.Rngs(1))

    def __call__(self, x: Any) -> Any:
        q, k, v = jnp.split(self.qkv(x)[..., :12], 3, -1)
        return self.out(nnx.softmax(q @ k.mT, -1) @ v)


@pytest.mark.parametrize(("width", "ok"), [(12, True), (13, False)])
def test_one_layer_for_several_is_no_difference_where_sizes_add_up(width: int, ok: bool) -> None:
    assert shapes_by_layer(compare.Torch(Projections()), compare.Flax(Fused(width)), SEQUENCES).ok == ok


def test_both_directions_of_a_recurrent_layer() -> None:
    class Original(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 6, bidirectional=True, batch_first=True)

        def forward(self, x: torch.Tensor) -> Any:
            return self.lstm(x)[0]

    def port(hidden: int) -> Any:
        rngs = nnx.Rngs(0)
        each = [nnx.RNN(nnx.LSTMCell(4, hidden, rngs=rngs), rngs=rngs) for _ in range(2)]
        return compare.Flax(nnx.Bidirectional(*each, rngs=rngs))

    assert shapes_by_layer(compare.Torch(Original()), port(6), SEQUENCES).ok
    assert not shapes_by_layer(compare.Torch(Original()), port(5), SEQUENCES).ok


@pytest.mark.parametrize(("call", "said"), [(0, "norm"), (1, "norm (2nd call)"), (11, "norm (12th call)")])
def test_calls_of_a_module_are_counted_as_people_do(call: int, said: str) -> None:
    assert Port("norm", call, "output", "0").module == said
