"""What modules take and give is compared, in whatever way a step calls them."""

import functools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from programs.common import drawn, trained_in_torch
from torch.nn import functional

import compare
from compare.alignment.partners import partners
from compare.jax_side.naming import naming
from compare.jax_side.record import JaxRecord
from compare.verdict.divergence import Divergence
from compare.weights.links import Link
from compare.weights.stacks import stacked
from compare.weights.units import View

Apply = Callable[[Any, Any], Any]

RIGHT = 1e-5


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(5, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        return result


class OfNnx(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(6, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(jnp.tanh(self.norm(self.first(x))))


class OfLinen(linen.Module):
    epsilon: float

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.LayerNorm(self.epsilon, name="norm")(linen.Dense(6, name="first")(x))
        return linen.Dense(3, name="last")(jnp.tanh(x))


class OfEquinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, epsilon: float) -> None:
        keys = jax.random.split(jax.random.key(0))
        self.first, self.last = eqx.nn.Linear(5, 6, key=keys[0]), eqx.nn.Linear(6, 3, key=keys[1])
        self.norm = eqx.nn.LayerNorm(6, eps=epsilon)

    def __call__(self, x: Any) -> Any:
        return self.last(jnp.tanh(self.norm(self.first(x))))


class Doubled(OfEquinox):
    """A class whose call is that of another one, and more."""

    def __init__(self, epsilon: float) -> None:
        super().__init__(epsilon)

    def __call__(self, x: Any) -> Any:
        return super().__call__(x) * 1.0


def merged(epsilon: float) -> tuple[Any, Apply]:
    graph, params = nnx.split(OfNnx(epsilon))
    return params, lambda params, x: nnx.merge(graph, params)(x)


def merged_for_each_row(epsilon: float) -> tuple[Any, Apply]:
    graph, params = nnx.split(OfNnx(epsilon))
    return params, lambda params, x: jax.vmap(nnx.merge(graph, params))(x)


def linen_for_each_row(epsilon: float) -> tuple[Any, Apply]:
    net = OfLinen(epsilon)
    params = net.init(jax.random.key(0), jnp.zeros(5))
    return params, lambda params, x: jax.vmap(net.apply, in_axes=(None, 0))(params, x)


def equinox(epsilon: float) -> tuple[Any, Apply]:
    return OfEquinox(epsilon), lambda model, x: jax.vmap(model)(x)


def equinox_mapped_last(epsilon: float) -> tuple[Any, Apply]:
    """Map over the last axis, and over a first axis of one within it."""
    return Doubled(epsilon), lambda model, x: jax.vmap(jax.vmap(model), in_axes=2)(x.T[None])[:, 0]


def haiku(epsilon: float) -> tuple[Any, Apply]:
    def net(x: Any) -> Any:
        x = hk.LayerNorm(-1, create_scale=True, create_offset=True, eps=epsilon, name="norm")(hk.Linear(6)(x))
        return hk.Linear(3)(jnp.tanh(x))

    made: Any = hk.without_apply_rng(hk.transform(net))
    return made.init(jax.random.key(0), jnp.zeros((1, 5))), made.apply


def original(net: type[torch.nn.Module] = Net) -> Any:
    model = net()

    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        return functional.mse_loss(model(batch["x"]), batch["y"])

    return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)


def port(made: Callable[[float], tuple[Any, Apply]], epsilon: float) -> compare.JaxProgram:
    def build() -> Any:
        params, apply = made(epsilon)

        @eqx.filter_jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(params: Any) -> Any:
                return jnp.mean((apply(params, batch["x"]) - batch["y"]) ** 2)

            loss, gradients = eqx.filter_value_and_grad(loss_of)(state["params"])
            updates = jax.tree.map(lambda gradient: -0.1 * gradient, gradients)
            return {"params": eqx.apply_updates(state["params"], updates)}, {"loss": loss}

        return {"params": params}, step

    return compare.JaxProgram(build)


def checked(made: Callable[[float], tuple[Any, Apply]], epsilon: float = RIGHT) -> compare.Report:
    batches = drawn(count=2, size=7, x=(5,), y=(3,))
    sides = compare.TorchProgram(original), port(made, epsilon)
    return compare.check(*sides, batches, device="cpu", quick=True)


STYLES = [
    (merged, "nnx.LayerNorm", ""),
    (merged_for_each_row, "nnx.LayerNorm", ""),  # nothing tells where a module was made that `nnx.merge` makes
    (linen_for_each_row, "nn.LayerNorm", "linen.LayerNorm(self.epsilon"),
    (equinox, "eqx.nn.LayerNorm", "eqx.nn.LayerNorm(6, eps=epsilon)"),
    (equinox_mapped_last, "eqx.nn.LayerNorm", "eqx.nn.LayerNorm(6, eps=epsilon)"),
    (haiku, "hk.LayerNorm", "hk.LayerNorm(-1"),
]


@pytest.mark.parametrize("made", [made for made, _, _ in STYLES])
def test_every_layer_of_a_right_port_is_compared(made: Any) -> None:
    report = checked(made)
    assert report.verdict == "match", str(report)
    compared = {each.torch for each in report.quantities if each.stage == "forward"}
    assert {f"model.{name} output" for name in ("first", "norm", "last")} <= compared


@pytest.mark.parametrize(("made", "norm", "line"), [each for each in STYLES if each[0] not in (merged, equinox)])
def test_a_fault_is_found_in_its_layer(made: Any, norm: str, line: str) -> None:
    found = checked(made, epsilon=1e-2).divergence
    assert found is not None
    assert (found.stage, found.torch) == ("forward", "model.norm")
    assert _fix(found) == norm
    lines = [each.source.expression for each in found.lines if each.side == "jax"]
    assert [each for each in lines if each.startswith(line)] if line else not lines


def _fix(found: Divergence) -> str:
    assert found.cause is not None
    assert found.cause.name == "epsilon"
    (code,) = found.cause.code
    return code.call


@pytest.mark.parametrize("epsilon", [RIGHT, 1e-2])
def test_modules_of_a_pure_function_are_compared_within_vmap(epsilon: float) -> None:
    sides = (
        compare.Torch(Net(), functional.mse_loss, lambda parameters: torch.optim.SGD(parameters, 0.1)),
        compare.Jax(
            lambda model, x: jax.vmap(model)(x), OfEquinox(epsilon), lambda y, t: ((y - t) ** 2).mean(), optax.sgd(0.1)
        ),
    )
    batches = [(each["x"], each["y"]) for each in drawn(count=2, size=7, x=(5,), y=(3,))]
    report = compare.check(*sides, batches, device="cpu", quick=True)
    if epsilon == RIGHT:
        assert report.verdict == "match", str(report)
        assert "norm output" in {each.torch for each in report.quantities if each.stage == "forward"}
    else:
        assert report.divergence is not None
        assert report.divergence.torch == "norm"
        assert _fix(report.divergence) == "eqx.nn.LayerNorm"


def test_a_model_of_other_parameters_than_those_of_the_state_is_no_module_of_the_state() -> None:
    """A net that is made within the step has a place nowhere."""

    def build() -> Any:
        state, step = port(equinox, RIGHT).build()
        other = OfEquinox(0.3)

        def and_more(state: Any, batch: Any) -> Any:
            after, shown = step(state, batch)
            more = jax.vmap(other)(jnp.asarray(np.ones((2, 5)), batch["x"].dtype))
            return after, {"loss": shown["loss"] + 0 * more.sum()}

        return state, and_more

    sides = compare.TorchProgram(original), compare.JaxProgram(build)
    report = compare.check(*sides, drawn(count=2, size=7, x=(5,), y=(3,)), device="cpu", quick=True)
    assert report.verdict == "match", str(report)


def test_a_recurrent_layer_has_a_partner_though_its_cell_is_called_for_each_time_step() -> None:
    links = [Link("rnn.weight_ih_l0", "rnn/cell/dense_i/kernel"), Link("rnn.weight_hh_l0", "rnn/cell/dense_h/kernel")]
    theirs = [("rnn", 0), *((f"rnn/{inner}", time) for time in range(4) for inner in ("cell", "cell/dense_i"))]
    found = partners(links, [("rnn", 0)], theirs, ({"rnn": "LSTM"}, {}), ({}, {}))
    assert found["rnn", 0] == ("rnn", 0)


class Called:
    """What modules may have their call from."""

    def __call__(self, x: Any) -> Any:
        return x


class Mixed(Called, nnx.Module):
    pass


class Scaled(OfNnx):
    """A class whose call is that of another one, and more; both are in a state."""

    def __call__(self, x: Any) -> Any:
        return super().__call__(x) * 2.0


class MoreThanDoubled(Doubled):
    def __init__(self, epsilon: float) -> None:
        super().__init__(epsilon)

    def __call__(self, x: Any) -> Any:
        return super().__call__(x) + 1.0


@pytest.mark.parametrize(
    ("module", "other"),
    [(Mixed(), None), (Scaled(RIGHT), OfNnx(RIGHT)), (MoreThanDoubled(RIGHT), Doubled(RIGHT))],
)
def test_each_call_is_named_once_whatever_class_it_is_from(module: Any, other: Any) -> None:
    with naming({"module": module, "other": other}, JaxRecord()):
        program = str(jax.make_jaxpr(lambda x: module(x))(jnp.ones(5)))
    kind = type(module).__name__
    assert len(re.findall(rf"name=netparity\|output\|[^ ]*\|{kind}\|", program)) == 1, program


def test_each_call_of_a_stack_is_of_one_layer() -> None:
    """Two calls of a map over three layers are two calls of each of torch's."""
    links = [
        Link(f"critics.{n}.{leaf}", f"critic/{leaf}", jax_view=View((n,))) for n in range(3) for leaf in ("w", "b")
    ]
    ours = [(f"critics.{n}", call) for n in range(3) for call in range(2)]
    theirs = [("critic", call) for call in range(6)]
    found = partners(links, ours, theirs, ({}, {}), ({}, {}))
    for n in range(3):
        assert [found[f"critics.{n}", call] for call in range(2)] == [("critic", n), ("critic", 3 + n)]
    assert stacked(links) == {"": 3, "critic": 3}


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Net() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + torch.nn.functional.pad(block(x), (0, 2))
        return x


def sliced(made: Callable[[], tuple[Any, Apply]]) -> compare.JaxProgram:
    """Scan over the slices of stacked parameters, and set a flag of the state to a constant."""

    def build() -> Any:
        params, apply = made()

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(params: Any) -> Any:
                def layer(x: Any, own: Any) -> Any:
                    return x + jnp.pad(apply(own, x), ((0, 0), (0, 2))), None

                return jnp.mean((jax.lax.scan(layer, batch["x"], params)[0] - batch["y"]) ** 2)

            loss, gradients = jax.value_and_grad(loss_of)(state["params"])
            params = jax.tree.map(lambda value, gradient: value - 0.1 * gradient, state["params"], gradients)
            return {"params": params, "first": jnp.array(False)}, {"loss": loss}

        return {"params": params, "first": jnp.array(True)}, step

    return compare.JaxProgram(build)


def linen_layers() -> tuple[Any, Apply]:
    net = OfLinen(1e-2)
    keys = jax.random.split(jax.random.key(0), 3)
    return jax.vmap(lambda key: net.init(key, jnp.zeros((1, 5)))["params"])(keys), lambda params, x: net.apply(
        {"params": params}, x
    )


def equinox_layers() -> tuple[Any, Apply]:
    arrays, rest = eqx.partition(eqx.filter_vmap(lambda _: OfEquinox(1e-2))(jnp.arange(3)), eqx.is_array)
    return arrays, lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x)


@pytest.mark.parametrize("made", [linen_layers, equinox_layers])
def test_layers_that_a_scan_takes_from_a_stack_are_compared_one_by_one(made: Any) -> None:
    sides = compare.TorchProgram(functools.partial(original, Stack)), sliced(made)
    found = compare.check(*sides, drawn(count=2, size=7, x=(5,), y=(5,)), device="cpu", quick=True).divergence
    assert found is not None
    assert (found.stage, found.torch) == ("forward", "model.blocks.0.norm")
    _fix(found)
