"""What is nothing but rounding: what is left of 1 + tanh(x) where tanh(x) is -1, and of sums that cancel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import some

import compare
from compare.jax_side.moved_functions import FunctionsMoved


def mse(y: Any, target: Any) -> Any:
    return ((y - target) ** 2).mean()


class Saturated(torch.nn.Module):
    """ELU of numbers around -13, where its slope is 2e-6."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.elu(self.first(x) - 13))


class Port(nnx.Module):
    def __init__(self, slope: float = 1.0) -> None:
        self.first, self.second = nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        self.slope = slope

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x) - 13
        if self.slope != 1.0 and x.dtype == jnp.float32:
            x = self.slope * x - jax.lax.stop_gradient((self.slope - 1.0) * x)  # the same, with another gradient
        return self.second(jax.nn.elu(x))


def batches() -> list[Any]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((8, 5)), rng.standard_normal((8, 2))) for _ in range(3)]


def checked(slope: float) -> compare.Report:
    torch.manual_seed(0)
    return compare.check(
        compare.Torch(Saturated(), torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(Port(slope), mse, optax.sgd(0.1)),
        batches(),
        device="cpu",
    )


def checked_programs(slope: float) -> compare.Report:
    def original() -> Any:
        torch.manual_seed(0)
        model = Saturated()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(state: Any, batch: Any) -> Any:
            del state
            optimizer.zero_grad()
            loss = mse(model(batch["x"]), batch["y"])
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = Port(slope)
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda model: mse(model(batch["x"]), batch["y"]))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    pairs = [{"x": x, "y": y} for x, y in batches()]
    return compare.check(compare.TorchProgram(original), compare.JaxProgram(port), pairs, device="cpu")


@pytest.mark.parametrize("check", [checked, checked_programs])
def test_a_slope_that_is_left_with_few_digits_is_no_other_program(check: Any) -> None:
    report = check(1.0)
    [slope] = [q for q in report.quantities if q.stage == "gradient" and q.torch.endswith("first.weight")]
    assert report.ok, str(report)
    if slope.error_jax[0] <= 1000 * slope.fair32[0]:
        pytest.skip("this version of JAX computes the slope of ELU with all digits")


@pytest.mark.parametrize("check", [checked, checked_programs])
def test_a_slope_that_is_another_one_in_float32_is(check: Any) -> None:
    report = check(1.5)
    assert report.verdict == "mismatch"
    assert "in float32, where this is another program" in str(report).replace("\n", " ")


def test_only_what_functions_give_is_moved() -> None:
    def program(x: jax.Array) -> Any:
        def body(carry: jax.Array, element: jax.Array) -> Any:
            return carry + 1, jnp.tanh(element)

        last, within = jax.lax.scan(body, x[0], x)
        return jnp.exp(x), x * 3 + last, within

    x = jnp.linspace(-1, 1, 64, dtype=jnp.float32)
    traced = jax.make_jaxpr(program)(x)
    moved = [FunctionsMoved(draw).run(traced, [x]) for draw in (1, 3)]
    for outputs in moved:
        for output, plain in zip(outputs, program(x), strict=True):
            ulps = np.abs(np.asarray(output, np.float64) - plain) / np.spacing(np.abs(plain))
            assert ulps.max() <= 8
        assert np.array_equal(outputs[1], program(x)[1])
        assert 0.25 < np.mean(np.asarray(outputs[0]) > program(x)[0]) < 0.75
        assert not np.array_equal(outputs[2], program(x)[2])
    assert not np.array_equal(moved[0][0], moved[1][0])


@pytest.mark.parametrize("draw", [1, 2])
def test_sums_move_as_their_terms_are_rounded(draw: int) -> None:
    """The fast variance of Flax's norms, E[x²] - E[x]², is the difference of two sums."""
    x = jnp.array([1000.0, 1000.5], jnp.float32)

    def program(x: jax.Array) -> Any:
        return jnp.mean(x * x) - jnp.mean(x) ** 2, jnp.sum(x > 0), jnp.sum(jnp.sign(x))

    variance, count, signs = FunctionsMoved(draw).run(jax.make_jaxpr(program)(x), [x])
    assert 0.01 < abs(float(variance) - 0.0625) < 5  # the rounding of a million is 0.06
    assert (int(count), float(signs)) == (2, 2.0)


def test_an_even_movement_saturates() -> None:
    x = jnp.array([-20.0, -8.0, 0.3, 8.0, 20.0], jnp.float32)
    [moved] = FunctionsMoved(2).run(jax.make_jaxpr(jnp.tanh)(x), [x])
    assert moved.tolist() == [-1.0, -1.0, float(jnp.tanh(x[2])), 1.0, 1.0]


class Shifted(torch.nn.Module):
    """A function far from zero, where its slope is next to nothing."""

    def __init__(self, function: Any, shift: float) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)
        self.function, self.shift = function, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The first of the four numbers stays where the slope is large: its gradient is that of the whole tensor.
        return self.second(self.function(self.first(x) + self.shift * torch.tensor([0.0, 1, 1, 1], dtype=x.dtype)))


class ShiftedPort(nnx.Module):
    def __init__(self, function: Any, shift: float) -> None:
        self.first, self.second = nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        self.function, self.shift = function, shift

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.function(self.first(x) + self.shift * jnp.array([0.0, 1, 1, 1])))


SHIFTED: dict[str, tuple[Any, Any, float]] = {
    "gelu": (torch.nn.functional.gelu, lambda x: jax.nn.gelu(x, approximate=False), -6.5),
    "gelu tanh": (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), jax.nn.gelu, -5.0),
    "elu": (torch.nn.functional.elu, jax.nn.elu, -30.0),
    "sigmoid": (torch.sigmoid, jax.nn.sigmoid, 17.0),
    "tanh": (torch.tanh, jnp.tanh, 9.0),
}


@pytest.mark.parametrize("name", some(SHIFTED, ["gelu"]))
@pytest.mark.parametrize("fault", [0.0, 1e-4])
def test_a_function_far_from_zero_before_adam(name: str, fault: float) -> None:
    """Adam makes a whole step of each gradient, also of one that is nothing but the rounding of 1 - 1."""
    ours, theirs, shift = SHIFTED[name]
    torch.manual_seed(0)
    report = compare.check(
        compare.Torch(Shifted(ours, shift), torch.nn.MSELoss(), lambda params: torch.optim.Adam(params, 1e-2)),
        compare.Flax(ShiftedPort(lambda x: (1 + fault) * theirs(x), shift), mse, optax.adam(1e-2)),
        batches(),
        device="cpu",
    )
    assert report.ok == (fault == 0), str(report)


def amplifying(factor: float) -> optax.GradientTransformation:
    """SGD whose updates are scaled by an amplified last digit: of 4 / 3, which is always there, and of tanh(20)."""

    def scaled(update: jax.Array) -> jax.Array:
        digit = 1 - ((update * 0 + 4 / 3) - 1) * 3
        return update * (1 + factor * (digit + 1 - jnp.tanh(update * 0 + 20)))

    sgd = optax.sgd(0.1)

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        updates, state = sgd.update(gradients, state, params)
        return jax.tree.map(scaled, updates), state

    return optax.GradientTransformation(sgd.init, update)


@pytest.mark.parametrize(("factor", "verdict"), [(4e6, "precision"), (1e5, "precision"), (1.0, "match")])
def test_an_update_that_amplifies_its_own_rounding_is_no_plain_match(factor: float, verdict: str) -> None:
    torch.manual_seed(0)
    report = compare.check(
        compare.Torch(torch.nn.Linear(5, 2), torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(nnx.Linear(5, 2, rngs=nnx.Rngs(0)), mse, amplifying(factor)),
        batches(),
        device="cpu",
    )
    assert report.verdict == verdict, str(report)
    assert (", update" in str(report)) == (verdict == "precision")


@pytest.mark.parametrize("fault", [0.0, 1e-4])
def test_a_sum_of_signs_that_cancels(fault: float) -> None:
    """Half of the outputs are above their targets: the gradient of the bias is zero but for rounding."""
    x = np.random.default_rng(0).standard_normal((6, 5))
    target = np.array([[-9.0], [-9], [-9], [9], [9], [9]])
    torch.manual_seed(0)
    report = compare.check(
        compare.Torch(torch.nn.Linear(5, 1), torch.nn.L1Loss(), lambda params: torch.optim.Adam(params, 1e-3)),
        compare.Flax(
            nnx.Linear(5, 1, rngs=nnx.Rngs(0)), lambda y, t: (1 + fault) * jnp.abs(y - t).mean(), optax.adam(1e-3)
        ),
        [(x, target)],
        device="cpu",
    )
    assert report.ok == (fault == 0), str(report)


@pytest.mark.parametrize("fault", [0.0, 1e-4])
def test_a_gelu_that_torch_gives_as_zero(fault: float) -> None:
    """For -14, 1 + erf(x) is zero, and erfc is not: both are zero to the rounding of 1."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((6, 5))
    gelu = torch.nn.functional.gelu

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(gelu(0.1 * self.first(x) - 14))

    class Copy(nnx.Module):
        def __init__(self) -> None:
            self.first, self.second = nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))

        def __call__(self, x: jax.Array) -> jax.Array:
            return (1 + fault) * self.second(jax.nn.gelu(0.1 * self.first(x) - 14, approximate=False))

    report = compare.check(
        compare.Torch(Original(), torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(Copy(), mse, optax.sgd(0.1)),
        [(x, np.ones((6, 2)))],
        device="cpu",
    )
    assert report.ok == (fault == 0), str(report)
