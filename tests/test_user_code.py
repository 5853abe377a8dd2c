"""An error of the user's code names whose it is, its file and line, its module, step and batch; ours is told apart."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx

import compare
from compare.errors import InternalError, UserCodeError
from compare.step.user_code import call_user_code, passes_on


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1)


class Block(torch.nn.Module):
    def __init__(self, fault: Any = None) -> None:
        super().__init__()
        self.fc, self.fault = torch.nn.Linear(3, 3), fault

    def forward(self, x: Any) -> Any:
        return self.fc(x) if self.fault is None else self.fault(self.fc(x))


class Original(torch.nn.Module):
    def __init__(self, fault: Any = None) -> None:
        super().__init__()
        self.block, self.head = Block(fault), torch.nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        return self.head(self.block(x))


class PortBlock(nnx.Module):
    def __init__(self, fault: Any, rngs: Any) -> None:
        self.fc, self.fault = nnx.Linear(3, 3, rngs=rngs), fault

    def __call__(self, x: Any) -> Any:
        return self.fc(x) if self.fault is None else self.fault(self.fc(x))


class Port(nnx.Module):
    def __init__(self, fault: Any = None) -> None:
        rngs = nnx.Rngs(0)
        self.block, self.head = PortBlock(fault, rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.block(x))


def check(torch_side: Any = None, jax_side: Any = None, batches: Any = None, **settings: Any) -> Any:
    rng = np.random.default_rng(0)
    batches = batches or [(rng.normal(size=(4, 3)), rng.normal(size=(4, 2))) for _ in range(2)]
    ours = {"model": Original(), "loss": mse, "optimizer": sgd, **(torch_side or {})}
    theirs = {"model": Port(), "loss": mse, "optimizer": optax.sgd(0.1), **(jax_side or {})}
    return compare.check(compare.Torch(**ours), compare.Flax(**theirs), batches, device="cpu", **settings)


def misspelled(x: Any) -> Any:
    return x.rehsape(-1)


def exits(x: Any) -> Any:
    sys.exit(0)


def line(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, each in enumerate(lines) if text in each)


@pytest.mark.parametrize(("fault", "text"), [(misspelled, "x.rehsape"), (exits, "sys.exit")])
@pytest.mark.parametrize("side", ["torch", "flax"])
def test_an_error_in_a_model_has_its_place(side: str, fault: Any, text: str) -> None:
    sides = {"torch_side": {"model": Original(fault)}} if side == "torch" else {"jax_side": {"model": Port(fault)}}
    with pytest.raises(UserCodeError) as caught:
        check(**sides)
    error = caught.value
    assert error.call == f"the {side} model"
    assert error.place == f"{__file__}, line {line(fault, text)}"
    assert error.module == "block"
    assert error.given == "inputs float32 (4, 3)"
    assert error.advice == ""  # another layout of the batch would not help
    assert ("SystemExit: 0" if fault is exits else "rehsape") in str(error)


def test_a_batch_that_does_not_fit_is_told_with_what_the_model_was_given() -> None:
    with pytest.raises(compare.InputError, match=r"the flax model raised TypeError: .*given inputs x=float32 \(4, 2\)"):
        check(jax_side={"batch": lambda x, y: ({"x": x[:, :2]}, y)})
    with pytest.raises(compare.InputError, match=r"the flax model does not take inputs y=.*argument: 'x'.*batch="):
        check(jax_side={"batch": lambda x, y: ({"y": x}, y)})
    with pytest.raises(compare.InputError, match=r"the torch model does not take inputs float32.*too many positional"):
        check(batches=[((np.ones((4, 3)), np.ones((4, 3))), np.ones((4, 2)))])


class AtStepOne:
    """Raises when it is called in the second step of a run."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ZeroDivisionError("in the user's hook")


def test_an_error_in_an_optimizer_has_its_step() -> None:
    def optimizer(params: Any) -> torch.optim.Optimizer:
        made = sgd(params)
        made.register_step_pre_hook(AtStepOne())
        return made

    with pytest.raises(UserCodeError, match=r"optimizer's step raised ZeroDivisionError.*at step 1, batches\[1\]"):
        check({"optimizer": optimizer})


@pytest.mark.parametrize(
    ("torch_side", "jax_side", "message"),
    [
        ({"loss": lambda o: o}, {}, "the torch loss does not take .*: too many positional arguments"),
        ({"loss": lambda o, t: o[0].foo}, {}, r"the torch loss raised AttributeError.*test_user_code.py, line"),
        ({"loss": lambda o, t: mse(o, t) + 0j}, {}, "the torch loss is complex"),
        ({"loss": lambda o, t: mse(o, t).detach()}, {}, "the torch loss depends on no parameter that is trained"),
        ({"loss": "mse"}, {}, r"Torch\(loss=...\) must be a function, not 'mse'"),
        ({"optimizer": "sgd"}, {}, r"Torch\(optimizer=...\) must be a function, not 'sgd'"),
        ({"optimizer": torch.optim.LBFGS}, {}, "the torch optimizer LBFGS takes a closure"),
        (
            {"optimizer": lambda params: sgd([torch.nn.Parameter(torch.ones(2))])},
            {},
            "an optimizer of parameters that are not the model's",
        ),
        ({"model": torch.nn.LazyLinear(2)}, {}, "weight of the torch model has no shape yet"),
        ({"model": torch.nn.Linear(3, 2, device="meta")}, {}, "on the device meta"),
        ({}, {"optimizer": optax.lbfgs()}, "the flax optimizer's update raised TypeError.*value_fn"),
        ({}, {"batch": lambda x, y: (torch.tensor(x), y)}, "batch= returned a torch tensor"),
        ({}, {"model": nnx.eval_shape(Port)}, "is abstract: block/fc/bias has no values"),
        ({}, {"model": (linen.Dense(2), None)}, "variables must be the dict that module.init"),
    ],
)
def test_what_cannot_be_compared_is_an_input_error(torch_side: Any, jax_side: Any, message: str) -> None:
    with pytest.raises(compare.InputError, match=message):
        check(torch_side, jax_side)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"progress": None}, "progress must be a function"),
        ({"weights": {"head.weight": 3}}, r"weights= has 'head.weight': 3: both must be names"),
        ({"weights": {3: "kernel"}}, "weights= has 3: 'kernel'"),
        (
            {"batches": [(np.zeros((0, 3)), np.zeros((0, 2)))]},
            r"batches\[0\] is empty: .* float64 \(0, 3\)",
        ),
    ],
)
def test_settings_of_the_wrong_kind_are_named(settings: Any, message: str) -> None:
    with pytest.raises(compare.InputError, match=message):
        check(**settings)


class Pair(NamedTuple):
    x: Any
    scale: Any


class Scaled(Original):
    def forward(self, x: Any, scale: Any = 1, mode: str = "plain") -> Any:
        return super().forward(x) * scale * (1 if mode == "plain" else 2)


class ScaledPort(Port):
    def __call__(self, x: Any, scale: Any = 1, mode: str = "plain") -> Any:
        return super().__call__(x) * scale * (1 if mode == "plain" else 2)


@pytest.mark.parametrize(
    "inputs", [Pair(np.ones((4, 3)), np.ones(2)), {"x": np.ones((4, 3)), "scale": np.ones(2), "mode": "double"}]
)
def test_named_tuples_and_strings_are_inputs(inputs: Any) -> None:
    torch.manual_seed(0)
    report = check({"model": Scaled()}, {"model": ScaledPort()}, [(inputs, np.ones((4, 2)))])
    assert report.verdict == "match"


def test_the_global_random_numbers_go_on_as_if_nothing_had_been_drawn() -> None:
    model, port = torch.nn.Sequential(torch.nn.Dropout(0.5), Original(misspelled)), Port()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with pytest.raises(compare.InputError, match="rehsape"):
        compare.check(compare.Torch(model), compare.Flax(port), [np.ones((4, 3))], device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_an_error_of_this_package_is_told_apart() -> None:
    namespace: dict[str, Any] = {}
    path = str(Path(compare.__file__).parent / "hook.py")
    exec(compile("def hook(function):\n    return function({})\n", path, "exec"), namespace)
    hook = namespace["hook"]
    with pytest.raises(InternalError, match="KeyError"):
        call_user_code("the model", lambda: hook(dict.popitem))
    with pytest.raises(UserCodeError, match="the model raised KeyError"):
        call_user_code("the model", lambda: passes_on(hook)(dict.popitem))


def test_a_script_that_exits_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import sys, numpy as np, torch, jax.numpy as jnp, compare\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x): sys.exit(0)\n"
        "def pair():\n"
        "    params = {'weight': jnp.zeros((2, 3)), 'bias': jnp.zeros(2)}\n"
        "    port = compare.Jax(lambda p, x: x @ p['weight'].T, params)\n"
        "    return compare.Torch(Net(3, 2)), port, [(np.ones((4, 3)), None)]\n"
    )
    command = [sys.executable, "-m", "compare", "check", "mine:pair", "--device", "cpu"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert "the torch model raised SystemExit: 0" in run.stderr
    assert "mine.py, line 3" in run.stderr


def test_what_jax_cannot_differentiate_is_the_users_error() -> None:
    """A maximum over windows with another start than -inf has no gradient in JAX."""

    def pooled(x: Any) -> Any:
        return jax.lax.reduce_window(x, 0.0, jax.lax.max, (1, 2), (1, 1), "SAME")

    with pytest.raises(UserCodeError, match=r"the flax model raised .*test_user_code\.py, line"):
        compare.check(
            compare.Torch(Original(), mse, sgd),
            compare.Flax(Port(pooled), mse, optax.sgd(0.1)),
            [(np.ones((4, 3)), np.ones((4, 2)))],
            device="cpu",
        )
