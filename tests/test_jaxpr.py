"""One interpreter of traced programs: a canary for each operation of JAX's that runs programs of its own.

`compare.jax_side.primitives` is what these rest on. Where one fails under a new JAX, that file has a row to be changed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.sharding import AxisType, PartitionSpec

from compare.errors import InputError
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.lift import Lifter, lift
from compare.jax_side.primitives import KINDS, NAME, Program, bind, kind, programs

X = np.random.default_rng(0).normal(size=(4, 4))


@jax.custom_jvp
def twice(x: Any) -> Any:
    return x * 0.7


twice.defjvp(lambda primals, tangents: (twice(primals[0]), tangents[0] * 0.3))


@jax.custom_vjp
def backwards(x: Any) -> Any:
    return x * 0.7


backwards.defvjp(lambda x: (x * 0.7, None), lambda _, cotangent: (cotangent * 0.3,))


@jax.custom_batching.custom_vmap
def batched(x: Any) -> Any:
    return x * 0.7


batched.def_vmap(lambda _, mapped, x: (x * 0.7, mapped[0]))


def scanned(x: Any, dtype: Any, *, steps: int = 4, reverse: bool = False) -> Any:
    def body(carry: Any, item: Any) -> Any:
        (total, number), factor = carry, jnp.asarray(0.3, dtype)
        return (jnp.tanh(total * factor + item[0] + x[0].astype(dtype)), number + 1), (total.sum(), item[1] * number)

    start = (jnp.zeros(4, dtype), 0)
    return jax.lax.scan(body, start, (x[:steps].astype(dtype), jnp.arange(steps)), reverse=reverse)


def looped(x: Any, dtype: Any) -> Any:
    limit, step = x.astype(dtype).sum() + 9, jnp.asarray(0.7, dtype)
    return jax.lax.while_loop(
        lambda s: s[0] < limit, lambda s: (s[0] + step, s[1] * step), (limit * 0, x.astype(dtype))
    )


def chosen(x: Any, dtype: Any) -> Any:
    y = x.astype(dtype)
    zeros = jax.lax.cond(x[0, 0] > 9, lambda y: y * 0.3, jnp.zeros_like, y)
    same = jax.lax.cond(x[0, 0] < 9, lambda y: y * 0.3, lambda y: y, y)
    constant = jax.lax.switch(1, [lambda: jnp.ones((), dtype), lambda: jnp.asarray(0.1, dtype)])
    key = jax.lax.cond(x[0, 0] > 0, lambda: jax.random.key(0), lambda: jax.random.key(1))
    return zeros, same, constant, jax.random.key_data(key)


def on_devices(x: Any, dtype: Any) -> Any:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))

    def part(x: Any) -> Any:
        state = jax.lax.scan(lambda c, row: (c * 0.7 + row.sum(), None), jnp.zeros((), dtype), x.astype(dtype))[0]
        return jax.lax.pmean((x.astype(dtype) * 0.3).sum(0) + state, "data")

    # JAX wants to be told that the carry, which starts equal on all devices, does not stay so.
    return jax.shard_map(part, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(), check_vma=False)(x)


def differentiated_on_devices(x: Any, dtype: Any) -> Any:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda w, x: jax.lax.pmean(jnp.tanh(x.astype(dtype) @ w.astype(dtype)), "data"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )
    return jax.value_and_grad(lambda w: mapped(w, x).sum())(x * 0.3)


PROGRAMS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    # The operation that the program has, and the program.
    "jit": ("jit", lambda x, dtype: jax.jit(lambda x: x.astype(dtype) * 0.7)(x)),
    "composite": ("composite", lambda x, dtype: jax.lax.composite(lambda y: y * 0.7, "my.op")(x.astype(dtype))),
    "custom jvp": ("custom_jvp_call", lambda x, dtype: twice(x.astype(dtype))),
    "custom vjp": ("custom_vjp_call", lambda x, dtype: backwards(x.astype(dtype))),
    "custom vmap": ("custom_vmap_call", lambda x, dtype: batched(x.astype(dtype))),
    "checkpoint": ("remat2", lambda x, dtype: jax.checkpoint(lambda x: jnp.sin(x.astype(dtype)))(x)),
    "gradient of a checkpoint": (
        "remat2",
        jax.value_and_grad(lambda x, dtype: jax.checkpoint(lambda x: jnp.sin(x.astype(dtype)))(x).sum()),
    ),
    "scan": ("scan", scanned),
    "scan backwards": ("scan", lambda x, dtype: scanned(x, dtype, reverse=True)),
    "gradient of a scan": ("scan", jax.value_and_grad(lambda x, dtype: scanned(x, dtype)[0][0].sum())),
    "scan of nothing": ("scan", lambda x, dtype: scanned(x, dtype, steps=0)[1]),
    "map": ("scan", lambda x, dtype: jax.lax.map(lambda row: row.astype(dtype) * 0.7, x)),
    "fori": ("scan", lambda x, dtype: jax.lax.fori_loop(0, 3, lambda i, y: y * 0.7 + i, x.astype(dtype))),
    "while": ("while", looped),
    "cond": ("cond", chosen),
    "gradient of a cond": ("cond", jax.value_and_grad(lambda x, dtype: chosen(x, dtype)[1].sum())),
    "platform": (
        "cond",
        lambda x, dtype: jax.lax.platform_dependent(
            x.astype(dtype), cpu=lambda y: y * 0.7, cuda=lambda y: y * 0.7, default=lambda y: y
        ),
    ),
    "shard_map": ("shard_map", on_devices),
    "gradient of a shard_map": ("shard_map", differentiated_on_devices),
    "pmap": (
        "shard_map",
        lambda x, dtype: jax.pmap(lambda x: jax.lax.pmean(x.astype(dtype) * 0.7, "i"), axis_name="i")(x[None]),
    ),
    "reduce": ("reduce", lambda x, dtype: jax.lax.reduce(x.astype(dtype), np.dtype(dtype).type(1), either, (0,))),
    "window": (
        "reduce_window",
        lambda x, dtype: jax.lax.reduce_window(
            x.astype(dtype), np.dtype(dtype).type(1), either, (2, 2), (1, 1), "SAME"
        ),
    ),
    "scatter": ("scatter", lambda x, dtype: jnp.zeros((4, 4), dtype).at[1].set(x[0].astype(dtype) * 0.7)),
    "scatter add": ("scatter-add", lambda x, dtype: x.astype(dtype).at[jnp.array([0, 0])].add(0.7)),
    "scatter mul": ("scatter-mul", lambda x, dtype: x.astype(dtype).at[jnp.array([0, 0])].multiply(0.7)),
    "scatter min": ("scatter-min", lambda x, dtype: x.astype(dtype).at[jnp.array([0, 0])].min(0.1)),
    "scatter max": ("scatter-max", lambda x, dtype: x.astype(dtype).at[jnp.array([0, 0])].max(0.1)),
    "solve": (
        "custom_linear_solve",
        lambda x, dtype: jnp.linalg.solve(x.astype(dtype) + 3 * jnp.eye(4, dtype=dtype), jnp.ones(4, dtype)),
    ),
    "name": (NAME, lambda x, dtype: checkpoint_name(x.astype(dtype) * 0.7, "here")),
}


def either(a: Any, b: Any) -> Any:
    return a * b + jnp.asarray(0.5, a.dtype) * a


def names(program: Any) -> set[str]:
    """All operations of a program and of those within it."""
    found = set()
    for eqn in Program.of(program).equations:
        found |= {eqn.primitive.name}.union(*map(names, programs(eqn)))
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_operation(name: str) -> None:
    operation, f = PROGRAMS[name]
    pinned: list[str] = []
    with jax.enable_x64(True):
        x = jnp.asarray(X)
        traced = jax.make_jaxpr(lambda x: f(x, jnp.float32))(x)
        as_it_is = Interpreter().run(traced, [x])
        lifted = jax.jit(lift(lambda x: f(x, jnp.float32), pinned))(x)
        low, meant = (jax.jit(f, static_argnums=1)(x, dtype) for dtype in (jnp.float32, jnp.float64))
    assert operation in names(traced)
    assert pinned == []
    far = []
    for plain, wide, narrow, right in zip(*map(arrays, (as_it_is, lifted, low, meant)), strict=True):
        assert (plain.dtype, wide.dtype) == (narrow.dtype, right.dtype)
        np.testing.assert_allclose(plain, narrow, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(wide, right, rtol=1e-14, atol=1e-15)
        far += [np.abs(narrow - right).max(initial=0) > 1e-12] * (right.dtype == np.float64)
    assert any(far) or name == "scan of nothing"


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_every_operation_has_a_canary() -> None:
    without = {"closed_call", "select_and_scatter", "scatter-sub"}  # no public function of JAX's leads there
    assert set(KINDS) - {operation for operation, _ in PROGRAMS.values()} == without


def unheard_of(x: Any) -> Any:
    primitive = Primitive("unheard_of")
    primitive.def_abstract_eval(lambda aval, **_: aval)
    return primitive.bind(x, body=jax.make_jaxpr(lambda x: x * 2)(x))


def test_an_unknown_operation_that_runs_a_program_is_named() -> None:
    with pytest.raises(
        InputError, match=rf"operation 'unheard_of', which runs .* This is JAX {jax.__version__}; tested"
    ):
        jax.make_jaxpr(lift(unheard_of, []))(jnp.ones(3))


def test_a_parameter_that_is_no_more_is_named() -> None:
    class Renamed:
        """A scan whose length a later JAX calls otherwise."""

        def __init__(self, eqn: Any) -> None:
            self.primitive, self.invars, self.outvars = eqn.primitive, eqn.invars, eqn.outvars
            self.params = {"steps" if name == "length" else name: value for name, value in eqn.params.items()}

    traced = jax.make_jaxpr(lambda x: scanned(x, jnp.float32))(jnp.ones((4, 4)))
    (scan,) = (eqn for eqn in Program.of(traced).equations if eqn.primitive.name == "scan")
    with pytest.raises(InputError, match="operation 'scan' without the parameter 'length'"):
        Interpreter().scan(Renamed(scan), [], ())


# Values at named places, which come from within jit, checkpoint, gradients and scans, and can be replaced


class AtNames(Interpreter):
    """Shows what stands at names, and puts what is given in its place."""

    def places(self, eqn: Any) -> int:
        within = sum(sum(map(self.places, Program.of(program).equations)) for program in programs(eqn))
        return (eqn.primitive.name == NAME) + within * eqn.params.get("length", 1)

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        if eqn.primitive.name != NAME:
            return bind(eqn, args)
        self.shown.append(args[0])
        return [args[0] if given[0] is None else given[0]]


def named(w: Any, x: Any) -> Any:
    def layer(h: Any, w: Any) -> Any:
        return checkpoint_name(jnp.tanh(h * w), "layer"), h.sum()

    h, _ = jax.lax.scan(jax.checkpoint(layer), jax.jit(lambda x: checkpoint_name(x * 2, "first"))(x), w)
    return (h**2).sum()


def test_values_at_names_come_out() -> None:
    w, x = jnp.array([0.3, 0.7, 0.9]), jnp.array([1.0, 2.0])
    reader = AtNames()
    traced = jax.make_jaxpr(jax.grad(named))(w, x)
    outputs = reader.run(traced, [w, x], [None] * sum(map(reader.places, Program.of(traced).equations)))
    np.testing.assert_allclose(outputs[0], jax.grad(named)(w, x), rtol=1e-6)
    layers = [jnp.tanh(2 * x * w[0])]
    layers += [jnp.tanh(layers[0] * w[1])]
    layers += [jnp.tanh(layers[1] * w[2])]
    np.testing.assert_allclose(reader.shown[0], 2 * x)
    np.testing.assert_allclose(reader.shown[1], layers, rtol=1e-6)


def test_values_at_names_are_replaced() -> None:
    w, x = jnp.array([0.3, 0.7]), jnp.array([1.0, 2.0])
    traced = jax.make_jaxpr(named)(w, x)
    given = [None, jnp.array([5.0, 5.0]), jnp.array([3.0, 4.0])]
    (output,) = jax.jit(lambda given: AtNames().run(traced, [w, x], given))(given)
    assert output == 25
    assert AtNames().run(traced, [w, x], [None] * 3)[0] == pytest.approx(named(w, x))


def mapped_names(function: Callable[..., Any], *arguments: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Give how many axes are mapped of each named tensor, and its shape."""
    from compare.jax_side.labels import Label

    named = [each for each in equations(jax.make_jaxpr(function)(*arguments)) if each.primitive.name == NAME]
    labels = [(Label.of(each.params["name"]), each.outvars[0].aval.shape) for each in named]
    return [(int(label.mapped), shape) for label, shape in labels if label is not None]


def equations(program: Any) -> Iterator[Any]:
    for eqn in Program.of(program).equations:
        yield eqn
        for nested in programs(eqn):
            yield from equations(nested)


def test_a_mapped_axis_is_the_first_of_what_is_named() -> None:
    from compare.jax_side.labels import named

    weight = jnp.ones((2, 3))

    def layer(x: Any) -> Any:  # the axis that is mapped is the last of the product
        return jnp.sin(named(weight @ x, "output", "", "layer"))

    def one(x: Any) -> Any:
        return jax.grad(lambda x: layer(x).sum())(x)

    assert mapped_names(jax.vmap(layer), jnp.ones((5, 3))) == [(1, (5, 2))]
    assert mapped_names(jax.vmap(jax.vmap(layer), in_axes=1), jnp.ones((5, 4, 3))) == [(2, (4, 5, 2))]
    assert mapped_names(jax.vmap(one), jnp.ones((5, 3))) == [(1, (5, 2))]
    assert mapped_names(jax.grad(lambda x: jax.vmap(jax.jit(layer))(x).sum()), jnp.ones((5, 3)))[0] == (1, (5, 2))
    found = jax.vmap(jax.jit(one))(jnp.ones((5, 3)))
    np.testing.assert_allclose(found, np.broadcast_to(np.cos(3.0) * 2, (5, 3)), rtol=1e-6)


def test_other_names_keep_the_place_of_a_mapped_axis() -> None:
    program = jax.make_jaxpr(jax.vmap(lambda x: checkpoint_name(x, "own"), in_axes=1))(jnp.ones((5, 3)))
    assert [each.outvars[0].aval.shape for each in equations(program) if each.primitive.name == NAME] == [(5, 3)]


def test_a_lifted_program_calls_nothing_unknown() -> None:
    traced = jax.make_jaxpr(lambda x: x + 1)(jnp.ones(3))
    assert [kind(eqn) for eqn in Program.of(traced).equations] == [None]
    assert isinstance(Lifter([]), Interpreter)
