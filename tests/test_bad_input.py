"""What is wrong with the input is said in one sentence, with status 2, and leaves no file behind."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import compare
import jaxnet
import torchnet
from compare.command_line.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps must be a positive whole number, not 0"),
        (["--steps", "-3"], "steps must be a positive whole number, not -3"),
        (["--steps", "many"], "argument --steps: must be a whole number, not 'many'"),
        (["--seed", "1.5"], "argument --seed: must be a whole number, not '1.5'"),
        (["--seed", "-1"], "seed must be a whole number that is not negative, not -1"),
        (["--variant", "torch"], "argument --variant: invalid choice: 'torch'"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--learning-rate", "0"], "learning_rate must be a positive number, not 0.0"),
        (["--learning-rate", "nan"], "learning_rate must be a positive number, not nan"),
        (
            ["--json", "/nowhere/at/all.json"],
            "/nowhere/at/all.json cannot be written: No such file or directory",
        ),
        (["--json", "/"], "/ cannot be written: Is a directory"),
        (
            ["--plot", "losses.txt"],
            "argument --plot: must end in .png, .svg or .pdf, and 'losses.txt' does not",
        ),
        (
            ["--variant", "manual", "--learning-rate", "1"],
            "the loss is not finite at step 2, in float32 on both sides",
        ),
        (
            ["--variant", "adam", "--learning-rate", "1e30"],
            "the loss is not finite at step 1, in float32 on both",
        ),
        (["published", "--seeds", "1"], "seeds must be at least 2, not 1"),
        (["publish"], "invalid choice: 'publish'"),
    ],
)
def test_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


FUNCTIONS = """
import sys

def raises():
    raise RuntimeError("the data are not here")

def wrong():
    return 3

def two():
    return 1, 2

def unnamed():
    return {"torch": 1, "jax": 2, "batchs": []}

def unknown():
    return 1, 2, [], {"step": 3}

def takes(model):
    return model

def exits():
    sys.exit(2)

def kinds():
    return 1, 2, []

def late():
    import compare, numpy, optax, torch
    from flax import nnx
    sides = (
        compare.Torch(torch.nn.Linear(3, 2), torch.nn.functional.mse_loss, lambda p: torch.optim.SGD(p, rate)),
        compare.Flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), optax.squared_error, optax.sgd(1e-2)),
    )
    return *sides, [(numpy.ones((4, 3)), numpy.ones((4, 2)))]

value = 3
"""


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("functions:raises", r"functions:raises raised RuntimeError: the data are not here \(.*functions.py, line 5\)"),
        ("functions:wrong", r"functions:wrong must return \(torch, jax, batches\), .* not 3"),
        ("functions:two", "functions:two must return .* not 2 values"),
        ("functions:unnamed", "functions:unnamed must return .*: batches is missing"),
        (
            "functions:unknown",
            "functions:unknown returned step, which compare.check does not take: torch, jax,",
        ),
        ("functions:takes", "functions:takes must be a function without arguments: missing .*'model'"),
        ("functions:exits", "functions:exits raised SystemExit: 2"),
        ("functions:kinds", "the first argument must be a compare.Torch, not a int"),
        (
            "functions:late",
            r"the function Torch\(optimizer=...\) raised NameError: name 'rate' is not .* \(.*functions.py, line 32\)",
        ),
        ("functions:value", "functions has no function 'value'"),
        ("functions:none", "functions has no function 'none'"),
        ("functions", "give a function as package.module:function or file.py:function, not 'functions'"),
        ("nowhere:pair", "no module 'nowhere' was found from here"),
        ("broken:pair", r"importing broken raised ZeroDivisionError: division by zero \(.*broken.py, line 2\)"),
        ("incomplete:pair", "importing incomplete raised ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_the_user_function(
    pair: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("functions", FUNCTIONS), ("broken", "\n1 / 0\n"), ("incomplete", "import not_installed\n")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit) as stop:
        main(["check", pair, "--device", "cpu", "--json", str(out)])
    for name in ("functions", "broken", "incomplete"):
        sys.modules.pop(name, None)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert re.match(f"error: .*{message}", printed.err.lstrip())  # older versions of rich end an empty line
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not list(tmp_path.glob("*out.json*"))


def test_no_traceback_and_no_partial_file(tmp_path: Path) -> None:
    """In a process of its own, as a user sees it."""
    command = [
        sys.executable,
        "-m",
        "compare",
        "--learning-rate",
        "1",
        "--json",
        "out.json",
        "--plot",
        "out.png",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    # A slow machine gets lines of progress before it.
    lines = run.stderr.splitlines(keepends=True)
    said = "".join(line for line in lines if not line.startswith("netparity: "))
    assert re.fullmatch(
        r"error: the loss is not finite at step 2.*Lower the learning rate, or take fewer steps\n", said
    )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_the_file_of_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main(["--variant", "manual", "--steps", "2", "--json", str(out), "--device", "cpu"]) == 0
    before = out.read_text()
    assert json.loads(before)["reports"][0]["verdict"] == "match"
    with pytest.raises(SystemExit):
        main(["--variant", "manual", "--steps", "0", "--json", str(out)])
    assert out.read_text() == before
    assert list(tmp_path.iterdir()) == [out]
    capsys.readouterr()


GOOD = compare.draw(0, biases=True, shape=(4, 6, 5, 3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"w1": np.zeros((5, 6), np.float32)},
            r"w1 has shape \(5, 6\), but should be \(D_in, H\) with D_in=6, as x has it",
        ),
        ({"w2": np.zeros((5,), np.float32)}, r"w2 has shape \(5,\), but should be \(H, D_out\)"),
        ({"b1": np.zeros(4, np.float32)}, r"b1 has shape \(4,\), but should be \(H\) with H=5, as w1 has it"),
        (
            {"y": np.zeros((3, 3), np.float32)},
            r"y has shape \(3, 3\), but should be \(N, D_out\) with N=4, as x has it",
        ),
        ({"w1": np.zeros((6, 5), np.int32)}, "w1 has dtype int32, but should be float32 or float64"),
        ({"x": np.zeros((4, 6), np.complex64)}, "x has dtype complex64, but should be float32 or float64"),
        ({"x": [[1.0]]}, "x is a list, but should be a NumPy array"),
        (
            {"x": np.full((4, 6), np.nan, np.float32)},
            r"x\[0, 0\] is nan: the data and weights must be finite",
        ),
        (
            {"w2": np.full((5, 3), np.inf, np.float32)},
            r"w2\[0, 0\] is inf: the data and weights must be finite",
        ),
        ({"x": np.zeros((0, 6), np.float32)}, r"x has shape \(0, 6\): it is empty"),
        ({"b2": None}, "b1 and b2 go together"),
    ],
)
def test_problems(changed: dict[str, object], message: str) -> None:
    with pytest.raises(compare.InputError, match=message):
        compare.Problem(**(vars(GOOD) | changed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "cell5"}, "variant must be one of numpy, manual, autograd, module, adam, not 'cell5'"),
        ({"steps": 2.0}, r"steps must be a positive whole number, not 2\.0"),
        ({"seed": "1"}, "seed must be a whole number that is not negative, not '1'"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, not 'gpu'"),
        ({"variant": "manual", "problem": GOOD}, "variant 'manual' has no biases, unlike the problem given"),
        ({"variant": "numpy", "torch": torchnet.manual}, "variant 'numpy' has NumPy in torch's place"),
        ({"problem": compare.draw(0, biases=False)}, "variant 'adam' has biases, unlike the problem given"),
    ],
)
def test_run(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(compare.InputError, match=message):
        compare.notebook.run(**({"variant": "adam"} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("package", [torchnet, jaxnet])
@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_train(package: object, steps: int) -> None:
    for variant in ("manual", "autograd", "module", "adam"):
        biases = variant in ("module", "adam")
        problem = compare.draw(0, biases=biases, shape=(4, 6, 5, 3))
        with pytest.raises(ValueError, match="steps must be a positive whole number, not"):
            getattr(package, variant).train(problem, steps)


def test_a_weight_without_a_partner_is_named() -> None:
    def step(*arguments: Any) -> torchnet.Step:
        step = torchnet.manual.step(*arguments)
        return step._replace(weights=dict(step.weights) | {"w3": step.loss})

    program = compare.Altered(torchnet.manual.start, step, torchnet.manual.train)
    with pytest.raises(compare.InputError, match="the torch side has a parameter without a partner: w3"):
        compare.notebook.run("manual", torch=program, steps=1, device="cpu")


def test_not_finite_on_one_side_only_is_a_mismatch() -> None:
    def step(state: jaxnet.State, x: Any, y: Any) -> jaxnet.Step:
        step = jaxnet.manual.step(state, x, y)
        return step._replace(loss=step.loss * np.nan)

    program = compare.Altered(jaxnet.manual.start, step, jaxnet.manual.train)
    report = compare.notebook.run("manual", jax=program, steps=3, device="cpu")
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    assert (report.divergence.step, report.divergence.stage) == (0, "loss")


@pytest.mark.parametrize("side", ["torch", "flax"])
def test_complex_parameters_are_refused(side: str) -> None:
    """A copy in float64 would lose their imaginary parts."""

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(4, dtype=torch.complex64 if side == "torch" else torch.float32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.scale).abs()

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.scale = nnx.Param(jnp.ones(4, jnp.complex64 if side == "flax" else jnp.float32))

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.abs(x * self.scale[...])

    batches = [np.random.default_rng(0).standard_normal((3, 4))]
    with pytest.raises(compare.InputError, match=rf"the {side} model has complex parameters.*scale \(.*complex64\)"):
        compare.check(
            compare.Torch(Original()), compare.Flax(Port()), batches, weights={"scale": "scale"}, device="cpu"
        )
