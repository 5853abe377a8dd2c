"""A random key that the JAX side uses twice, where torch draws anew; and programs that look like it and are right."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from test_distributions import needs_beta

import compare

WIDTH = 6
RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(5, WIDTH)), RNG.normal(size=(5, 2))) for _ in range(2)]


class Original(torch.nn.Module):
    """Two layers with dropout behind each; `once` draws one mask for both."""

    def __init__(self, once: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.out, self.once = torch.nn.Linear(WIDTH, 2), once

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        mask = torch.nn.functional.dropout(torch.ones_like(x), 0.4)
        x = torch.tanh(self.second(x * mask))
        return self.out(x * (mask if self.once else torch.nn.functional.dropout(torch.ones_like(x), 0.4)))


SIZES = {"first": (WIDTH, WIDTH), "second": (WIDTH, WIDTH), "out": (WIDTH, 2)}
PARAMS = {name: {"kernel": jnp.zeros(size), "bias": jnp.zeros(size[1])} for name, size in SIZES.items()}


def dropout(key: Any, x: Any) -> Any:
    return jnp.where(jax.random.bernoulli(key, 0.6, x.shape), x / 0.6, 0.0)


def run(params: Any, x: Any, first: Any, second: Any) -> Any:
    def linear(name: str, x: Any) -> Any:
        return x @ params[name]["kernel"] + params[name]["bias"]

    x = first(jnp.tanh(linear("first", x)))
    return linear("out", second(jnp.tanh(linear("second", x))))


def with_keys(params: Any, x: Any, one: Any, two: Any) -> Any:
    return run(params, x, lambda x: dropout(one, x), lambda x: dropout(two, x))


class Port(nnx.Module):
    def __init__(self, ask: int) -> None:
        rngs = nnx.Rngs(0, dropout=1)
        self.first, self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.out, self.rngs, self.ask = nnx.Linear(WIDTH, 2, rngs=rngs), rngs, ask

    def __call__(self, x: jax.Array) -> jax.Array:
        keys = [self.rngs.dropout() for _ in range(self.ask)]
        x = dropout(keys[0], jnp.tanh(self.first(x)))
        return self.out(dropout(keys[-1], jnp.tanh(self.second(x))))


class LinenPort(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for name in ("first", "second"):
            x = linen.Dropout(0.4, deterministic=not train)(jnp.tanh(linen.Dense(WIDTH, name=name)(x)))
        return linen.Dense(2, name="out")(x)


def by_batch(inputs: Any, target: Any) -> Any:
    """Bring a key with each batch, as a training loop does that splits outside of the step."""
    seed = int(abs(inputs).sum() * 1e6)
    return {"x": inputs, "key": np.asarray(jax.random.key_data(jax.random.key(seed)))}, target


def with_data(params: Any, x: Any, key: Any) -> Any:
    return with_keys(params, x, *jax.random.split(jax.random.wrap_key_data(key)))


def in_rows(params: Any, x: Any, key: Any, same: bool = False) -> Any:
    """Each example has a key of its own, under vmap."""
    one, two = (jax.random.split(each, len(x)) for each in jax.random.split(jax.random.wrap_key_data(key)))
    if same:
        one = jnp.broadcast_to(one[:1], one.shape)
    return run(params, x, lambda x: jax.vmap(dropout)(one, x), lambda x: jax.vmap(dropout)(two, x))


def constant(params: Any, x: Any) -> Any:
    return with_keys(params, x, *jax.random.split(jax.random.key(3)))


def check(port: Any, original: Any = None, steps: int = 4) -> compare.Report:
    def mean_square(output: Any, target: Any) -> Any:
        return jnp.mean((output - target) ** 2)

    optimizer = optax.sgd(0.1)
    if callable(port) and not isinstance(port, nnx.Module):
        batch = by_batch if port is not constant else None
        side: Any = compare.Jax(port, PARAMS, mean_square, optimizer, batch=batch)
    else:
        side = compare.Flax(port, mean_square, optimizer)
    ours = compare.Torch(original or Original(), torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1))
    return compare.check(ours, side, BATCHES, steps=steps, device="cpu")


def linen_pair() -> Any:
    port = LinenPort()
    return port, port.init(jax.random.key(0), BATCHES[0][0])


@pytest.mark.parametrize(
    "port", [lambda: Port(2), linen_pair, lambda: with_data, lambda: in_rows], ids=["nnx", "linen", "batch", "vmap"]
)
def test_keys_that_differ(port: Any) -> None:
    """Four steps of two batches: a key that a batch brings comes again with it."""
    report = check(port())
    assert report.verdict == "match", str(report)


def test_one_key_for_two_draws() -> None:
    report = check(Port(1), steps=2)
    assert report.divergence is not None
    assert report.divergence.step == 0
    assert report.divergence.jax.startswith("test_random_keys.py:")
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "random key used twice"
    assert "jax.random.split" in report.divergence.cause.fix


def test_one_key_for_all_steps() -> None:
    report = check(constant, steps=2)
    assert report.divergence is not None
    assert report.divergence.step == 1
    assert report.divergence.cause is not None
    assert "the same key at step 1 as at step 0" in report.divergence.cause.explanation


def test_one_key_for_all_rows() -> None:
    report = check(lambda params, x, key: in_rows(params, x, key, same=True), steps=1)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "random key used twice"


def test_one_key_for_the_layers_of_a_scan() -> None:
    class Stack(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.nn.functional.dropout(torch.tanh(layer(x)), 0.4)
            return x[:, :2]

    params = {"layers": {"kernel": jnp.zeros((3, WIDTH, WIDTH)), "bias": jnp.zeros((3, WIDTH))}}

    def apply(params: Any, x: Any, key: Any, same: bool) -> Any:
        def layer(x: Any, item: Any) -> Any:
            weights, own = item
            return dropout(key if same else own, jnp.tanh(x @ weights["kernel"] + weights["bias"])), None

        key = jax.random.wrap_key_data(key)
        return jax.lax.scan(layer, x, (params["layers"], jax.random.split(key, 3)))[0][:, :2]

    for same in (False, True):
        port = compare.Jax(
            lambda params, x, key, same=same: apply(params, x, key, same),
            params,
            lambda output, target: jnp.mean((output - target) ** 2),
            batch=by_batch,
        )
        report = compare.check(compare.Torch(Stack(), torch.nn.MSELoss()), port, BATCHES, device="cpu")
        assert report.verdict == ("mismatch" if same else "match"), str(report)
        assert (report.headline.endswith("random key used twice")) == same


class Always(linen.Module):
    """Dropout that draws whatever its rate is, as a schedule of rates needs it."""

    rate: float

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = jnp.tanh(linen.Dense(WIDTH, name="first")(x))
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape) if train else True
        return linen.Dense(2, name="out")(jnp.where(kept, x / (1 - self.rate), 0.0))


@pytest.mark.parametrize(("rate", "verdict"), [(0.0, "match"), (0.3, "mismatch")])
def test_a_draw_without_effect_is_no_mismatch(rate: float, verdict: str) -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.nn.functional.dropout(torch.tanh(self.first(x)), 0.0))

    port = Always(rate)
    report = check((port, port.init(jax.random.key(0), BATCHES[0][0])), Plain(), steps=2)
    assert report.verdict == verdict, str(report)
    assert bool(report.nondeterministic) == (rate > 0)
    idle = [each.name for each in report.not_compared if each.reason.startswith("a draw without effect")]
    assert [name.startswith("bernoulli (5, 6), test_random_keys.py:") for name in idle] == [True] * (rate == 0)


class Masked(linen.Module):
    """Draws from a stream with a name of its own, and from dropout's."""

    rate: float

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        noise = jax.random.uniform(self.make_rng("masking"), x.shape)
        x = jnp.where(noise < 0.5, 0.0, x)
        x = linen.Dropout(self.rate, deterministic=not train)(jnp.tanh(linen.Dense(WIDTH, name="first")(x)))
        return linen.Dense(2, name="out")(x)


@pytest.mark.parametrize(("rate", "verdict"), [(0.4, "match"), (0.3, "mismatch")])
def test_a_linen_module_draws_from_streams_of_any_name(rate: float, verdict: str) -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.where(torch.rand_like(x) < 0.5, 0.0, x)
            return self.out(torch.nn.functional.dropout(torch.tanh(self.first(x)), 0.4))

    port, key = Masked(rate), jax.random.key(0)
    report = check((port, port.init({"params": key, "masking": key}, BATCHES[0][0])), Plain(), steps=2)
    assert report.verdict == verdict, str(report)


def program_in_python(*, rate: float = 0.8, split: bool = True) -> Any:
    """Give what builds a step in plain Python that counts, and draws within a compiled function."""

    def build() -> Any:
        @jax.jit
        def run(w: Any, key: Any, x: Any, count: Any) -> Any:
            def loss(w: Any) -> Any:
                return jnp.mean((x * jax.random.bernoulli(key, rate, x.shape) @ w - count) ** 2)

            value, gradient = jax.value_and_grad(loss)(w)
            return value, w - 0.1 * gradient

        count = 0

        def step(state: Any, batch: Any) -> Any:
            nonlocal count
            count += 1
            key, used = jax.random.split(state["key"])
            value, w = run(state["weights"]["w"], used if split else state["key"], batch["x"], count)
            return {"weights": {"w": w}, "key": key if split else state["key"]}, {"loss": value}

        return {"weights": {"w": jnp.zeros(4)}, "key": jax.random.key(0)}, step

    return build


def torch_program() -> Any:
    w = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([w], 0.1)
    count = 0

    def step(state: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        x = batch["x"] * torch.bernoulli(torch.full_like(batch["x"], 0.8))
        loss = ((x @ w - count) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"weights": torch.nn.ParameterDict({"w": w}), "optimizer": optimizer}, step


@pytest.mark.parametrize(
    ("port", "name"),
    [({}, None), ({"rate": 0.7}, "probability of a random mask"), ({"split": False}, "random key used twice")],
)
def test_a_program_whose_step_is_plain_python(port: Any, name: str | None) -> None:
    """Its keys are read from the program that each step is traced to: run once more, it would count once more."""
    data = [{"x": np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)} for seed in range(2)]
    original, side = compare.TorchProgram(torch_program), compare.JaxProgram(program_in_python(**port))
    report = compare.check(original, side, data, steps=2, quick=True, device="cpu")
    causes = [each.cause.name for each in (report.divergence, *report.others) if each and each.cause]
    assert causes == ([name] if name else []), str(report)
    assert report.ok == (name is None)


NUMPY: Any = np.random
"""Its global generator, as training scripts use it."""


def mixing_torch() -> Any:
    NUMPY.seed(3)
    w = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([w], 0.1)

    def step(state: Any, batch: Any) -> Any:
        share, order = NUMPY.beta(0.4, 0.4), NUMPY.permutation(5)
        x = share * batch["x"] + (1 - share) * batch["x"][order]
        loss = ((x @ w - 1) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"weights": torch.nn.ParameterDict({"w": w}), "optimizer": optimizer}, step


def mixing_port(*, squared: bool, keyed: bool) -> Any:
    def build() -> Any:
        NUMPY.seed(3)

        def step(state: Any, batch: Any) -> Any:
            key, one, two = jax.random.split(state["key"], 3)
            share, order = (
                (jax.random.beta(one, 0.4, 0.4), jax.random.permutation(two, 5))
                if keyed
                else (NUMPY.beta(0.4, 0.4), NUMPY.permutation(5))
            )
            share = share**2 if squared else share
            x = share * batch["x"] + (1 - share) * batch["x"][order]
            value, gradient = jax.value_and_grad(lambda w: jnp.mean((x @ w - 1) ** 2))(state["weights"]["w"])
            return {"weights": {"w": state["weights"]["w"] - 0.1 * gradient}, "key": key}, {"loss": value}

        return {"weights": {"w": jnp.zeros(4)}, "key": jax.random.key(0)}, step

    return build


@pytest.mark.parametrize(
    ("squared", "keyed"),
    [(False, False), pytest.param(False, True, marks=needs_beta), pytest.param(True, False, marks=pytest.mark.slow)],
)
def test_a_program_that_draws_from_numpy(*, squared: bool, keyed: bool) -> None:
    """Whether the port draws with a key or from NumPy's generator too, whose seed may be another one."""
    data = [{"x": np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)} for seed in range(2)]
    side = compare.JaxProgram(mixing_port(squared=squared, keyed=keyed))
    report = compare.check(compare.TorchProgram(mixing_torch), side, data, steps=2, quick=True, device="cpu")
    assert report.nondeterministic == [], str(report)
    assert report.ok != squared, str(report)


def test_a_key_that_a_model_keeps_in_a_variable_is_no_buffer() -> None:
    class Kept(nnx.Module):
        def __init__(self) -> None:
            self.linear, self.key = nnx.Linear(5, 2, rngs=nnx.Rngs(0)), nnx.Variable(jax.random.key(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            self.key[...], key = jax.random.split(self.key[...])
            return self.linear(dropout(key, x))

    torch.manual_seed(0)
    report = compare.check(
        compare.Torch(torch.nn.Sequential(torch.nn.Dropout(0.4), torch.nn.Linear(5, 2))),
        compare.Flax(Kept()),
        [(np.random.default_rng(seed).standard_normal((3, 5)), None) for seed in range(2)],
        device="cpu",
    )
    assert report.verdict == "match", str(report)
