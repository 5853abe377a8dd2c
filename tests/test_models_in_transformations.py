"""What a model's modules take and give is compared within scan, vmap and checkpoint too, iteration by iteration."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from programs.common import drawn, squares, trained, trained_in_torch
from torch.nn import functional

import compare
from compare.verdict.divergence import Role

WIDTH, LAYERS, TIMES = 5, 3, 4
RIGHT = 1e-5
KEYS = jax.random.split(jax.random.key(0), LAYERS)


class Block(torch.nn.Module):
    """A block that calls its norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dense = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + torch.tanh(self.norm(self.dense(self.norm(x))))
        return result


class Deep(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block() for _ in range(LAYERS)])
        self.head = torch.nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(torch.sigmoid(x))
        return result


class BlockOfNnx(nnx.Module):
    def __init__(self, epsilon: float, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon, rngs=rngs)
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + jnp.tanh(self.norm(self.dense(self.norm(x))))


Activation = Callable[[Any], Any]


class Remat(nnx.Module):
    def __init__(self, epsilon: float, activation: Activation) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([BlockOfNnx(epsilon, rngs) for _ in range(LAYERS)])
        self.head, self.activation = nnx.Linear(WIDTH, 2, rngs=rngs), activation

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = nnx.remat(BlockOfNnx.__call__)(block, x)
        return self.head(self.activation(x))


class Scan(nnx.Module):
    def __init__(self, epsilon: float, activation: Activation) -> None:
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap
        def made(rngs: nnx.Rngs) -> BlockOfNnx:
            return BlockOfNnx(epsilon, rngs)

        rngs = nnx.Rngs(0)
        self.blocks, self.head, self.activation = made(rngs), nnx.Linear(WIDTH, 2, rngs=rngs), activation

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x: Any, block: BlockOfNnx) -> Any:
            return block(x)

        return self.head(self.activation(run(x, self.blocks)))


class BlockOfLinen(linen.Module):
    epsilon: float

    @linen.compact
    def __call__(self, x: Any, _: Any) -> Any:
        norm = linen.LayerNorm(self.epsilon, name="norm")
        return x + jnp.tanh(norm(linen.Dense(WIDTH, name="dense")(norm(x)))), None


class ScanOfLinen(linen.Module):
    epsilon: float
    activation: Activation

    @linen.compact
    def __call__(self, x: Any) -> Any:
        blocks: Any = linen.scan(
            linen.remat(BlockOfLinen), variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
        )
        x, _ = blocks(self.epsilon, name="blocks")(x, None)
        return linen.Dense(2, name="head")(self.activation(x))


class BlockOfEquinox(eqx.Module):
    norm: eqx.nn.LayerNorm
    dense: eqx.nn.Linear

    def __init__(self, epsilon: float, key: Any) -> None:
        self.norm = eqx.nn.LayerNorm(WIDTH, eps=epsilon)
        self.dense = eqx.nn.Linear(WIDTH, WIDTH, key=key)

    def __call__(self, x: Any) -> Any:
        return x + jnp.tanh(self.norm(self.dense(self.norm(x))))


def remat(epsilon: float, activation: Activation) -> tuple[Any, ...]:
    return (Remat(epsilon, activation),)


def scan(epsilon: float, activation: Activation) -> tuple[Any, ...]:
    return (Scan(epsilon, activation),)


def linen_scan(epsilon: float, activation: Activation) -> tuple[Any, ...]:
    net = ScanOfLinen(epsilon, activation)
    return ((net, net.init(jax.random.key(0), jnp.zeros((1, WIDTH)))),)


def checkpoint(epsilon: float, activation: Activation) -> tuple[Any, ...]:
    params = {
        "blocks": [BlockOfEquinox(epsilon, key) for key in KEYS],
        "head": eqx.nn.Linear(WIDTH, 2, key=jax.random.key(1)),
    }

    def apply(params: Any, x: Any) -> Any:
        for block in params["blocks"]:
            x = jax.vmap(eqx.filter_checkpoint(block))(x)
        return jax.vmap(params["head"])(activation(x))

    return apply, params


def lax_scan(epsilon: float, activation: Activation) -> tuple[Any, ...]:
    params = {
        "blocks": eqx.filter_vmap(lambda key: BlockOfEquinox(epsilon, key))(KEYS),
        "head": eqx.nn.Linear(WIDTH, 2, key=jax.random.key(1)),
    }

    def apply(params: Any, x: Any) -> Any:
        arrays, rest = eqx.partition(params["blocks"], eqx.is_array)
        run = jax.checkpoint(lambda x, block: (jax.vmap(eqx.combine(block, rest))(x), None))
        return jax.vmap(params["head"])(activation(jax.lax.scan(run, x, arrays)[0]))

    return apply, params


STYLES = [remat, scan, linen_scan, checkpoint, lax_scan]


def checked(original: torch.nn.Module, port: tuple[Any, ...], *shape: int) -> compare.Report:
    generator = np.random.default_rng(0)
    batches = [
        (generator.normal(size=(7, *shape)).astype(np.float32), generator.normal(size=(7, 2)).astype(np.float32))
        for _ in range(2)
    ]
    side: Any = compare.Flax if len(port) == 1 else compare.Jax
    theirs = side(*port, loss=lambda y, t: ((y - t) ** 2).mean(), optimizer=optax.sgd(0.1))
    ours = compare.Torch(original, functional.mse_loss, lambda parameters: torch.optim.SGD(parameters, 0.1))
    return compare.check(ours, theirs, batches, device="cpu", quick=True)


def compared(report: compare.Report) -> set[str]:
    return {each.torch for each in report.quantities if each.stage == "forward"}


@pytest.mark.parametrize("made", STYLES)
def test_every_call_in_each_block_of_a_right_port_is_compared(made: Any) -> None:
    report = checked(Deep(), made(RIGHT, jax.nn.sigmoid), WIDTH)
    assert report.verdict == "match", str(report)
    calls = (f"blocks.{n}.{call} output" for n in range(LAYERS) for call in ("norm", "norm (2nd call)", "dense"))
    assert {*calls} <= compared(report), str(report)


@pytest.mark.parametrize("made", STYLES)
def test_two_faults_within_and_behind_the_blocks_are_two_findings(made: Any) -> None:
    """The second is found because torch's values are put in the place of those of each iteration."""
    report = checked(Deep(), made(1e-2, jnp.tanh), WIDTH)
    assert report.divergence is not None
    assert report.divergence.torch == "blocks.0.norm", str(report)
    causes = {each.cause.name for each in (report.divergence, *report.others) if each.cause}
    assert causes == {"epsilon", "activation"}, str(report)
    assert {each.torch.partition(".norm")[0] for each in report.others if each.cause == report.divergence.cause} <= {
        f"blocks.{n}" for n in range(1, LAYERS)
    }


class Twice(torch.nn.Module):
    """A layer that is called twice in each time step."""

    def __init__(self, *, backwards: bool) -> None:
        super().__init__()
        self.cell, self.head = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 2)
        self.times = range(TIMES)[::-1] if backwards else range(TIMES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros_like(x[:, 0])
        for time in self.times:
            h = torch.tanh(self.cell(torch.sigmoid(self.cell(x[:, time] + h))))
        result: torch.Tensor = self.head(h)
        return result


class TwiceInAScan(nnx.Module):
    def __init__(self, *, backwards: bool, first: Activation = jax.nn.sigmoid) -> None:
        rngs = nnx.Rngs(0)
        self.cell, self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 2, rngs=rngs)
        self.backwards, self.first = backwards, first

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(None, nnx.Carry, 1), out_axes=nnx.Carry, reverse=self.backwards)
        def run(cell: Any, h: Any, x: Any) -> Any:
            return jnp.tanh(cell(self.first(cell(x + h))))

        return self.head(run(self.cell, jnp.zeros_like(x[:, 0]), x))


@pytest.mark.parametrize("backwards", [False, True])
def test_the_calls_in_a_scan_over_time_are_numbered_as_torch_makes_them(backwards: bool) -> None:
    report = checked(Twice(backwards=backwards), (TwiceInAScan(backwards=backwards),), TIMES, WIDTH)
    assert report.verdict == "match", str(report)
    calls = (f"cell{which} output" for which in ("", " (2nd call)", " (3rd call)", f" ({2 * TIMES}th call)"))
    assert {*calls} <= compared(report), str(report)


def test_a_scan_over_time_in_the_wrong_direction_is_one_finding() -> None:
    report = checked(Twice(backwards=True), (TwiceInAScan(backwards=False),), TIMES, WIDTH)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert "reversal" in report.divergence.cause.explanation
    assert not report.others, str(report)


def test_a_fault_between_two_calls_of_one_iteration_is_found_there() -> None:
    report = checked(Twice(backwards=False), (TwiceInAScan(backwards=False, first=jnp.tanh),), TIMES, WIDTH)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "activation"


class Critic(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            torch.nn.Linear(WIDTH, 6),
            torch.nn.LayerNorm(6),
            torch.nn.Linear(6, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        return result


class Critics(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.critics = torch.nn.ModuleList([Critic() for _ in range(LAYERS)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([critic(x) for critic in self.critics]).mean(0)


class CriticOfNnx(nnx.Module):
    def __init__(self, epsilon: float, rngs: nnx.Rngs) -> None:
        self.first, self.last = nnx.Linear(WIDTH, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.norm = nnx.LayerNorm(6, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(jnp.tanh(self.norm(self.first(x))))


class CriticsOfNnx(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap
        def made(rngs: nnx.Rngs) -> CriticOfNnx:
            return CriticOfNnx(epsilon, rngs)

        self.critics = made(nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        run = nnx.vmap(CriticOfNnx.__call__, in_axes=(0, None))
        return run(self.critics, x).mean(0)


class CriticOfEquinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, epsilon: float, key: Any) -> None:
        self.first, self.last = eqx.nn.Linear(WIDTH, 6, key=key), eqx.nn.Linear(6, 2, key=key)
        self.norm = eqx.nn.LayerNorm(6, eps=epsilon)

    def __call__(self, x: Any) -> Any:
        return self.last(jnp.tanh(self.norm(self.first(x))))


def critics_of_nnx(epsilon: float) -> tuple[Any, ...]:
    return (CriticsOfNnx(epsilon),)


def critics_of_equinox(epsilon: float) -> tuple[Any, ...]:
    params = {"critics": eqx.filter_vmap(lambda key: CriticOfEquinox(epsilon, key))(KEYS)}

    def apply(params: Any, x: Any) -> Any:
        run = eqx.filter_vmap(lambda critic, x: jax.vmap(critic)(x), in_axes=(eqx.if_array(0), None))
        return run(params["critics"], x).mean(0)

    return apply, params


@pytest.mark.parametrize("made", [critics_of_nnx, critics_of_equinox])
def test_an_ensemble_is_compared_critic_by_critic(made: Any) -> None:
    report = checked(Critics(), made(RIGHT), WIDTH)
    assert report.verdict == "match", str(report)
    inner = (f"critics.{n}{each} output" for n in range(LAYERS) for each in ("", ".first", ".norm", ".last"))
    assert {*inner} <= compared(report), str(report)
    found = checked(Critics(), made(1e-2), WIDTH).divergence
    assert found is not None
    assert found.torch == "critics.0.norm"
    assert found.cause is not None
    assert found.cause.name == "epsilon"


def test_a_function_is_described_as_no_layer() -> None:
    """The whole function of a `compare.Jax` is compared, and is of no class that could be named."""

    def apply(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["w"].T + params["b"])

    params = {"w": np.zeros((2, WIDTH), np.float32), "b": np.zeros(2, np.float32)}
    report = checked(torch.nn.Sequential(torch.nn.Linear(WIDTH, 2), torch.nn.Sigmoid()), (apply, params), WIDTH)
    assert report.divergence is not None
    assert "NoneType" not in str(report), str(report)


class OwnName(nnx.LSTMCell):
    """Flax's cell under a name of the user's."""


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell, OwnName])
def test_a_fault_before_an_lstm_cell_is_found_there(cell: Any) -> None:
    """Flax's cell takes its carry first. Which tensor is which does not depend on their values."""

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cell = torch.nn.Linear(WIDTH, WIDTH), torch.nn.LSTMCell(WIDTH, WIDTH)
            self.head = torch.nn.Linear(WIDTH, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = c = torch.zeros_like(x[:, 0])
            for time in range(TIMES):
                h, c = self.cell(torch.sigmoid(self.first(x[:, time])), (h, c))
            result: torch.Tensor = self.head(h)
            return result

    class Port(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.first, self.cell = nnx.Linear(WIDTH, WIDTH, rngs=rngs), cell(WIDTH, WIDTH, rngs=rngs)
            self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            carry = (jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[:, 0]))
            for time in range(TIMES):
                carry, _ = self.cell(carry, jnp.tanh(self.first(x[:, time])))
            return self.head(carry[1])

    report = checked(Original(), (Port(),), TIMES, WIDTH)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "activation", str(report)
    assert {each.cause and each.cause.name for each in report.others} <= {"two biases"}, str(report)


def test_the_carry_of_a_cell_of_the_users_own_may_have_another_order() -> None:
    """A cell of the name of Flax's, whose carry is `(h, c)`."""

    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input, self.hidden = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(WIDTH, 4 * WIDTH)

        def forward(self, x: torch.Tensor, state: Any) -> Any:
            i, f, g, o = (self.input(x) + self.hidden(state[0])).chunk(4, 1)
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c

    Cell.__name__ = "LSTMCell"

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = Cell(), torch.nn.Linear(WIDTH, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = (torch.zeros_like(x[:, 0]), torch.ones_like(x[:, 0]))
            for time in range(TIMES):
                state = self.cell(x[:, time], state)
            result: torch.Tensor = self.head(state[0])
            return result

    class LSTMCell(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.input, self.hidden = (nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs) for _ in range(2))

        def __call__(self, carry: Any, x: Any) -> Any:
            i, f, g, o = jnp.split(self.input(x) + self.hidden(carry[0]), 4, 1)
            c = nnx.sigmoid(f) * carry[1] + nnx.sigmoid(i) * jnp.tanh(g)
            h = nnx.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

    class Port(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.cell, self.head = LSTMCell(rngs), nnx.Linear(WIDTH, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            carry = (jnp.zeros_like(x[:, 0]), jnp.ones_like(x[:, 0]))
            for time in range(TIMES):
                carry, _ = self.cell(carry, x[:, time])
            return self.head(carry[0])

    report = checked(Original(), (Port(),), TIMES, WIDTH)
    assert report.verdict == "match", str(report)
    assert not [each for each in report.left_out() if "cell" in str(each)], str(report)


class Dropped(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.dropout(torch.tanh(self.dropout(self.dense(x))))
        return result


class DeepDropped(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(*(Dropped() for _ in range(LAYERS)))
        self.head = torch.nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.blocks(x))
        return result


class DroppedOfNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense, self.dropout = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + self.dropout(jnp.tanh(self.dropout(self.dense(x))))


class ScanOfDropped(nnx.Module):
    def __init__(self) -> None:
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap
        def made(rngs: nnx.Rngs) -> DroppedOfNnx:
            return DroppedOfNnx(rngs)

        rngs = nnx.Rngs(0)
        self.blocks, self.head = made(rngs), nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def run(x: Any, block: DroppedOfNnx) -> Any:
            return block(x)

        return self.head(run(x, self.blocks))


def in_torch() -> Any:
    model = DeepDropped()

    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        return functional.mse_loss(model(batch["x"]), batch["y"])

    return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)


@pytest.mark.parametrize("as_program", [False, True])
def test_dropout_in_blocks_that_are_computed_again_is_compared(as_program: bool) -> None:
    """The backward pass of a checkpoint computes its program again, with torch's draws: these are no more calls."""
    if as_program:
        batches = drawn(count=2, size=7, x=(WIDTH,), y=(2,))
        sides = (
            compare.TorchProgram(in_torch),
            compare.JaxProgram(lambda: trained(ScanOfDropped(), optax.sgd(0.1), squares)),
        )
        report = compare.check(*sides, batches, device="cpu", quick=True)
    else:
        report = checked(DeepDropped(), (ScanOfDropped(),), WIDTH)
    assert report.verdict in ("match", "precision"), str(report)
    root = "model." if as_program else ""
    calls = (f"{root}blocks.{n}.dropout{which} output" for n in range(LAYERS) for which in ("", " (2nd call)"))
    assert {*calls} <= compared(report), str(report)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.head = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        once = self.dense(x)
        again = self.dense(torch.sigmoid(once))
        result: torch.Tensor = self.head(again)
        return result


class TiedOfNnx(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.dense, self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        once = self.dense(x)
        return self.head(self.dense(jnp.tanh(once)))


def test_the_line_of_the_first_call_is_not_told_of_the_second() -> None:
    report = checked(Tied(), (TiedOfNnx(),), WIDTH)
    assert report.divergence is not None
    assert "between dense and dense (2nd call)" in str(report)
    given = [each.source.expression for each in report.divergence.lines if each.role is Role.GIVEN]
    assert "self.dense(x)" not in given, str(report)


def test_parameters_may_be_the_state_of_an_nnx_module() -> None:
    graph, params = nnx.split(TiedOfNnx())

    def apply(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params)(x)

    report = checked(Tied(), (apply, params), WIDTH)
    assert report.divergence is not None
    assert {"dense output", "head output"} <= compared(report)
