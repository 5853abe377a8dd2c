"""`compare.check` on small models: what it finds, where, and what it says of input that cannot be compared."""

import copy
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from in_ci import first

import compare

TorchModel = torch.nn.Module


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(8, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.act = torch.nn.GELU()
        self.fc2 = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(self.act(self.norm(self.fc1(x))))
        return result


class Port(nnx.Module):
    def __init__(self, epsilon: float = 1e-5, approximate: bool = False, scale: float = 1.0) -> None:
        rngs = nnx.Rngs(0)
        self.fc1 = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, epsilon=epsilon, rngs=rngs)
        self.fc2 = nnx.Linear(16, 4, rngs=rngs)
        self.approximate = approximate
        self.scale = scale

    def __call__(self, x: Any) -> Any:
        return self.fc2(nnx.gelu(self.norm(self.fc1(x)), approximate=self.approximate)) * self.scale


class LinenPort(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Dense(16, dtype=jnp.float32, name="fc1")(x)
        x = linen.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x)
        return linen.Dense(4, dtype=jnp.float32, name="fc2")(linen.gelu(x, approximate=False))


def torch_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


def jax_loss(output: Any, target: Any) -> Any:
    return jnp.square(output - target).mean()


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 1e-3)


@pytest.fixture
def original() -> Original:
    torch.manual_seed(0)
    return Original()


@pytest.fixture
def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    shapes = ((6, 8), (6, 4))
    return [tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes) for _ in range(3)]  # type: ignore[misc]


def linen_pair() -> Any:
    import jax

    module = LinenPort()
    return module, module.init(jax.random.key(0), jnp.zeros((1, 8)))


def plain(params: Any, x: Any) -> Any:
    x = x @ params["fc1"]["w"] + params["fc1"]["b"]
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(variance + 1e-5) * params["norm"]["scale"] + params["norm"]["offset"]
    return nnx.gelu(x, approximate=False) @ params["fc2"]["w"] + params["fc2"]["b"]


PLAIN = {
    "fc1": {"w": jnp.zeros((8, 16)), "b": jnp.zeros(16)},
    "norm": {"scale": jnp.zeros(16), "offset": jnp.zeros(16)},
    "fc2": {"w": jnp.zeros((16, 4)), "b": jnp.zeros(4)},
}


@pytest.mark.parametrize("kind", ["nnx", "linen", "pure"])
def test_a_right_port_matches(kind: str, original: Original, batches: Any) -> None:
    optimizer = optax.adam(1e-3)
    sides: dict[str, Callable[[], compare.Flax | compare.Jax]] = {
        "nnx": lambda: compare.Flax(Port(), jax_loss, optimizer),
        "linen": lambda: compare.Flax(linen_pair(), jax_loss, optimizer),
        "pure": lambda: compare.Jax(plain, PLAIN, jax_loss, optimizer),
    }
    report = compare.check(compare.Torch(original, torch_loss, adam), sides[kind](), batches, steps=4, device="cpu")
    assert report.verdict != "mismatch", str(report)
    assert report.divergence is None
    assert all(len(quantity.error64) == 4 for quantity in report.quantities)
    counted = {stage: sum(q.stage == stage for q in report.quantities) for stage in ("loss", "gradient", "parameters")}
    assert counted == {"loss": 1, "gradient": 6, "parameters": 6}


def test_the_batch_is_the_same_number_on_both_sides(original: Original) -> None:
    """A float32 0.1 in a batch is what it is: a run that lifts takes it for no constant of the model's."""
    batches = [(np.full((6, 8), 0.1, np.float32), np.full((6, 4), 0.1, np.float32))]
    sides = compare.Torch(original, torch_loss, adam), compare.Flax(Port(), jax_loss, optax.adam(1e-3))
    report = compare.check(*sides, batches, device="cpu")
    assert report.divergence is None, str(report)
    assert report.pinned == []


@pytest.mark.parametrize(
    ("port", "loss", "optimizer", "stage", "place"),
    first(
        [
            (Port(scale=1 + 1e-9), jax_loss, optax.adam(1e-3), "forward", "between fc2 and the end of the model"),
            (Port(), jax_loss, optax.adam(1.00001e-3), "update", "fc1.weight"),
            (Port(epsilon=1e-6), jax_loss, optax.adam(1e-3), "forward", "norm"),
            (Port(approximate=True), jax_loss, optax.adam(1e-3), "forward", "between norm and fc2"),
            (Port(), lambda o, t: jax_loss(o, t) * 1.001, optax.adam(1e-3), "loss", "loss"),
        ],
        2,
    ),
)
def test_a_wrong_port_is_placed(
    port: Any, loss: Any, optimizer: Any, stage: str, place: str, original: Original, batches: Any
) -> None:
    jax = compare.Flax(port, loss, optimizer)
    report = compare.check(compare.Torch(original, torch_loss, adam), jax, batches, steps=3, device="cpu")
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    assert (report.divergence.step, report.divergence.stage, report.divergence.torch) == (0, stage, place)
    assert f"mismatch at step 0, {stage}" in str(report)
    with pytest.raises(AssertionError, match=f"mismatch at step 0, {stage}"):
        report.raise_on_mismatch()


def test_every_independent_divergence_is_listed(original: Original, batches: Any) -> None:
    port = Port(epsilon=1e-6, approximate=True)
    jax = compare.Flax(port, lambda o, t: jax_loss(o, t) * 1.001, optax.adam(1e-3))
    report = compare.check(compare.Torch(original, torch_loss, adam), jax, batches, steps=2, device="cpu")
    assert report.divergence is not None
    assert report.divergence.torch == "norm"
    assert [other.torch for other in report.others] == ["between norm and fc2", "loss"]


def test_nothing_of_the_users_is_changed(original: Original, batches: Any) -> None:
    port = Port()
    before = copy.deepcopy(original.state_dict()), nnx.to_pure_dict(nnx.state(port)), copy.deepcopy(batches)
    compare.check(
        compare.Torch(original, torch_loss, adam), compare.Flax(port, jax_loss, optax.adam(1e-3)), batches, device="cpu"
    )
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, before[0][name])
    assert all(param.grad is None for param in original.parameters())
    import jax

    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.to_pure_dict(nnx.state(port)), before[1]))
    assert all(
        np.array_equal(a, b)
        for pair, old in zip(batches, before[2], strict=True)
        for a, b in zip(pair, old, strict=True)
    )


@pytest.mark.parametrize("loss", [True, False])
def test_without_an_optimizer_and_without_a_loss(loss: bool, original: Original, batches: Any) -> None:
    report = compare.check(
        compare.Torch(original, torch_loss if loss else None),
        compare.Flax(Port(), jax_loss if loss else None),
        batches,
        device="cpu",
    )
    stages = {quantity.stage for quantity in report.quantities}
    assert report.verdict == "match"
    assert stages == ({"forward", "loss", "gradient"} if loss else {"forward"})
    assert "match" in str(report)


def test_what_is_not_a_number_on_one_side_only_is_a_divergence(original: Original, batches: Any) -> None:
    class Broken(Port):
        def __call__(self, x: Any) -> Any:
            return self.fc2(jnp.sqrt(nnx.gelu(self.norm(self.fc1(x)), approximate=False) - 1e9))

    report = compare.check(compare.Torch(original), compare.Flax(Broken()), batches, device="cpu")
    assert report.divergence is not None
    assert report.divergence.torch == "between norm and fc2"
    assert np.isinf(report.divergence.error64)


def test_what_float32_cannot_hold_on_one_side_is_said_and_not_explained() -> None:
    """A softmax that does not subtract the maximum: float32 has no exp of 100, and float64 has it up to 709."""

    class TorchSoftmax(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([0.3]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x * self.scale, -1)

    def plain_softmax(x: Any) -> Any:
        return jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)

    logits = 600 * np.random.default_rng(0).standard_normal((5, 5), np.float32)
    report = compare.check(
        compare.Torch(TorchSoftmax()),
        compare.Jax(lambda params, x: plain_softmax(x * params["scale"]), {"scale": np.zeros(1, np.float32)}),
        [logits],
        device="cpu",
    )
    assert report.divergence is not None
    assert report.divergence.cause is None
    assert report.divergence.opinion.startswith("in float32 the JAX side alone is not finite there")


def sides(original: Original, **changed: Any) -> tuple[Any, Any]:
    ours = {"model": original, "loss": torch_loss, "optimizer": adam} | changed.get("torch", {})
    theirs = {"model": Port(), "loss": jax_loss, "optimizer": optax.adam(1e-3)} | changed.get("jax", {})
    return compare.Torch(**ours), compare.Flax(**theirs)


class Wider(Port):
    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nnx.Linear(16, 5, rngs=nnx.Rngs(0))


class Lacking(Port):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nnx.Linear(8, 16, use_bias=False, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"jax": {"model": Wider()}}, r"fc2\.weight.*\(4, 16\).*fc2/kernel.*\(16, 5\)"),
        ({"jax": {"model": Lacking()}}, r"fc1\.bias"),
        (
            {"torch": {"loss": lambda o, t: (o - t).square()}},
            r"the torch loss has shape \(6, 4\), but must be a scalar",
        ),
        ({"jax": {"loss": lambda o, t: jnp.square(o - t)}}, r"the flax loss has shape \(6, 4\), but must be a scalar"),
        ({"jax": {"loss": None, "optimizer": None}}, "loss: the torch side has one and the flax side has none"),
        ({"jax": {"optimizer": None}}, "optimizer: the torch side has one and the flax side has none"),
        (
            {"jax": {"batch": lambda batch: (batch[0][:, :4], batch[1])}},
            r"the flax model raised .*fc1.*\(6, 4\).*batch=",
        ),
        (
            {"jax": {"batch": lambda batch: batch[0].nothing}},
            r"batch= raised AttributeError.*test_check.py, line \d+.*\(6, 8\)",
        ),
        ({"jax": {"batch": lambda batch: batch[0]}}, r"batch= must return a pair \(inputs, target\)"),
    ],
)
def test_what_cannot_be_compared_is_said(changed: Any, message: str, original: Original, batches: Any) -> None:
    with pytest.raises(compare.InputError, match=rf"(?s){message}"):
        compare.check(*sides(original, **changed), batches, device="cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "batches is empty"),
        (np.zeros((2, 8)), "batches must be a list"),
        ([np.zeros((6, 8))], r"batches\[0\] must be a pair"),
        ([(torch.zeros(6, 8), np.zeros((6, 4)))], r"batches\[0\] holds a torch tensor"),
        ([(np.full((6, 8), np.nan), np.zeros((6, 4)))], r"batches\[0\] holds nan at \[0, 0\]"),
        ([(np.zeros((6, 8)), np.array(["a"] * 6))], r"batches\[0\] holds an array of dtype <U1"),
        (
            [(np.zeros((6, 7), np.float32), np.zeros((6, 4)))],
            r"the torch model raised RuntimeError: .*in module fc1\), .*\(6, 7\)",
        ),
    ],
)
def test_batches_that_cannot_be_used_are_named(given: Any, message: str, original: Original) -> None:
    with pytest.raises(compare.InputError, match=rf"(?s){message}"):
        compare.check(*sides(original), given, device="cpu")


def test_sides_of_the_wrong_kind_are_named(original: Original, batches: Any) -> None:
    with pytest.raises(compare.InputError, match=r"Torch\(model=...\) must be a torch.nn.Module, not a Port"):
        compare.Torch(Port())  # type: ignore[arg-type]
    with pytest.raises(compare.InputError, match=r"must be an nnx\.Module or a pair"):
        compare.Flax(original)
    with pytest.raises(compare.InputError, match=r"lambda params: torch.optim.Adam\(params"):
        compare.Torch(original, torch_loss, adam(original.parameters()))  # type: ignore[arg-type]
    with pytest.raises(compare.InputError, match=r"must be an optax\.GradientTransformation, not a float"):
        compare.Flax(Port(), jax_loss, 1e-3)
    with pytest.raises(compare.InputError, match="needs a loss"):
        compare.Torch(original, optimizer=adam)
    with pytest.raises(compare.InputError, match=r"the first argument must be a compare\.Torch"):
        compare.check(original, Port(), batches)  # type: ignore[arg-type]
    with pytest.raises(compare.InputError, match="steps must be a positive whole number"):
        compare.check(*sides(original), batches, steps=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(original: Original, batches: Any) -> None:
    with pytest.raises(compare.InputError, match="no CUDA GPU is seen by torch and jax"):
        compare.check(*sides(original), batches, device="cuda")


@pytest.mark.parametrize("wrong", [False, True])
def test_a_port_that_came_with_the_weights_is_compared_as_converted(
    wrong: bool, original: Original, batches: Any
) -> None:
    port = Port()
    compare.copy_weights(original, port)
    if wrong:
        kernel = np.array(port.fc2.kernel[...])
        kernel[3, 2] *= 1 + 1e-5
        port.fc2.kernel[...] = jnp.asarray(kernel)
    report = compare.check(compare.Torch(original), compare.Flax(port), batches, device="cpu")
    assert report.ok != wrong
    if report.divergence:
        place = (report.divergence.stage, report.divergence.torch, report.divergence.jax)
        assert place == ("parameters", "fc2.weight", "fc2/kernel")
        assert "except for 1 of 4: check their conversion" in " ".join(str(report).split())


def test_a_cast_to_lower_precision_is_named_and_is_no_mismatch(original: Original, batches: Any) -> None:
    class Cast(Port):
        def __call__(self, x: Any) -> Any:
            x = self.norm(self.fc1(x).astype(jnp.bfloat16).astype(jnp.float32))
            return self.fc2(nnx.gelu(x, approximate=False))

    report = compare.check(compare.Torch(original, torch_loss), compare.Flax(Cast(), jax_loss), batches, device="cpu")
    assert report.verdict == "precision"
    assert report.ok
    assert report.headline == "precision: the same mathematics, but bfloat16 on the flax side"
    assert re.search("where +first at norm input", str(report))


class Flattened(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4 * 5 * 5, 2)
        torch.nn.init.zeros_(self.conv.weight)
        torch.nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(torch.nn.functional.elu(self.conv(x)).flatten(1))
        return result


class FlattenedPort(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv, self.fc = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4 * 5 * 5, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.fc(nnx.elu(self.conv(x)).reshape(x.shape[0], -1))


def test_features_that_start_at_zero_are_flattened_in_the_order_of_the_port() -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, 5, 5), np.float32)
    report = compare.check(
        compare.Torch(Flattened(), torch_loss, lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(FlattenedPort(), jax_loss, optax.sgd(0.1), batch=lambda x, y: (np.moveaxis(x, 1, -1), y)),
        [(images, np.ones((1, 2), np.float32))],
        steps=3,
    )
    assert report.verdict == compare.Verdict.MATCH, str(report)


class Strided(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.conv(x))
        return result


class StridedPort(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.conv(x))


def test_an_image_whose_sizes_are_all_equal_lies_as_the_others_do() -> None:
    images = np.random.default_rng(0).standard_normal((6, 3, 12, 12), np.float32)  # six channels of 6 x 6 points
    port = compare.Flax(StridedPort(), batch=lambda x, y: (np.moveaxis(x, 1, -1), y))
    report = compare.check(compare.Torch(Strided().eval()), port, [(images, None)], device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "padding"
    assert report.others == []
