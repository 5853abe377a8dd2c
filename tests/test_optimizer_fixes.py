"""Every fix that the search in optimizers can print is code that parses, resolves and fits the real signatures."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from compare.alignment.pairings import Pairing
from compare.diagnosis.optimizers.calls import Call, Recounted
from compare.diagnosis.optimizers.evidence import Evidence, OptimizerStep, Result, kind_of
from compare.diagnosis.optimizers.explain import fixes_of
from compare.diagnosis.optimizers.families import Family, candidates, told_family
from compare.diagnosis.optimizers.fit import Fit
from compare.diagnosis.optimizers.lambda_schedules import schedule_of_function
from compare.diagnosis.optimizers.masks import mask_of
from compare.diagnosis.optimizers.names import named, optimizer_call
from compare.diagnosis.optimizers.rates import Rates
from compare.diagnosis.optimizers.schedulers import right_call, row_of
from compare.diagnosis.optimizers.schedules import told_rates
from compare.diagnosis.optimizers.search import hypotheses
from compare.diagnosis.optimizers.some_parameters import Assignment, treatments
from compare.diagnosis.optimizers.sums import doubled
from compare.diagnosis.optimizers.told import Told, rates_in_words, with_distinct_digits
from compare.diagnosis.optimizers.told_of_some import told as told_some
from compare.step.stage import Stage

MODULES = {"jax": jax, "jnp": jnp, "optax": optax}

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.1),
    "SGD, Nesterov": lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True),
    "SGD, ascent": lambda p: optim.SGD(p, 0.1, maximize=True),
    "Adam": lambda p: optim.Adam(p, 0.1),
    "Adam, L2": lambda p: optim.Adam(p, 0.1, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, 0.1),
    "NAdam": lambda p: optim.NAdam(p, 0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda p: optim.RAdam(p, 0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "Adamax": lambda p: optim.Adamax(p, 0.1, weight_decay=0.1),
    "Adagrad": lambda p: optim.Adagrad(p, 0.1, weight_decay=0.1),
    "Adadelta": lambda p: optim.Adadelta(p, 0.1, weight_decay=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, 0.1, weight_decay=0.1, momentum=0.9, centered=True),
    "Rprop": lambda p: optim.Rprop(p, 0.1),
    "Adafactor": lambda p: optim.Adafactor(p, 0.1, weight_decay=0.1),
    "Muon": lambda p: optim.Muon(p, 0.1),
    "groups": lambda p: optim.AdamW([{"params": [q], "weight_decay": 0.1 * i, "lr": 0.1 + i} for i, q in enumerate(p)]),
}


def evidence_of(optimizer: optim.Optimizer, largest: float | None = None) -> Evidence:
    """Make one step in which all differs, with a gradient that is clipped if there is a largest norm."""
    gradient = torch.ones(3, 2, dtype=torch.float64)
    given = gradient if largest is None else gradient * largest / (gradient.norm() + 1e-6)
    names = ["encoder.weight", "head.weight"]

    def read(_: Any) -> np.ndarray:
        return np.ones((3, 2))

    def result(name: str, *, two: bool = False) -> Result:
        pairing = Pairing(Stage.UPDATE, name, name.replace(".weight", "/kernel"), read, read, operands=read)
        return Result(pairing._replace(last=read if two else None), np.ones((3, 2)), np.zeros((3, 2)), 1e-9)

    step = OptimizerStep(
        0,
        dict.fromkeys(names, gradient),
        dict.fromkeys(names, gradient),
        dict.fromkeys(names, given),
        optimizer.state_dict(),
        [result(names[0]), result(names[1], two=True)],
    )
    return Evidence(type(optimizer).__name__, [step, step, step], [0.1] * 3, parameter_names=names)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))]


def everything_told(optimizer: optim.Optimizer) -> Iterator[Told]:
    """Give all that can be told of an optimizer."""
    for largest in (None, 0.5):
        evidence = evidence_of(optimizer, largest)
        for hypothesis in hypotheses(evidence):
            yield hypothesis.tell(evidence, [0.5 for _ in hypothesis.start])
    for treatment in treatments(evidence):
        for paths in (["encoder/kernel"], ["encoder/kernel", "head/kernel"]):
            names = {"encoder/kernel": "encoder.weight", "head/kernel": "head.weight"}
            found = Assignment(Fit(()), dict.fromkeys(paths, treatment), names)
            if treatment.kind != "as torch":
                yield from told_some(evidence, found, Rates((0.1,), (0.1,)))
    yield told_rates(evidence, Rates((0.1,) * 3, (0.2,) * 3))
    yield told_rates(evidence, Rates((0.1, 0.1, 0.1), (0.1, 0.2, 0.3)))


def check_code(code: str) -> int:
    """Parse an expression, and bind every call whose function can be resolved; give how many there were."""
    bound = 0
    for node in ast.walk(ast.parse(code, mode="eval")):
        if not isinstance(node, ast.Call):
            continue
        function = resolved(node.func)
        if function is not None:
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(function).bind(*node.args, **keywords)
            bound += 1
    return bound


def resolved(node: ast.expr) -> Any:
    """Give what a dotted name stands for; None for what a lambda's argument has, or what a call gives."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in MODULES:
        value: Any = MODULES[node.id]
        for name in reversed(parts):
            value = getattr(value, name)
        return value
    return None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_fix_of_an_optimizer_binds(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    calls = 0
    for told in everything_told(optimizer):
        fixes = fixes_of(type(optimizer).__name__, [told])
        assert fixes, told
        for fix in fixes:
            if isinstance(fix, Call):
                assert check_code(str(fix)) >= 1
                assert str(fix.code()) == str(fix)
                calls += 1
            else:  # words: what they name must be there
                for dotted in re.findall(r"(?:optax|jax|jnp)\.[\w.]*\w", fix):
                    assert resolved(ast.parse(dotted, mode="eval").body) is not None
    assert calls >= 5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_other_optimizer_binds_and_is_mended_by_a_fix_that_binds(name: str) -> None:
    evidence = evidence_of(OPTIMIZERS[name](parameters()))
    tried = list(candidates(evidence))
    assert len(tried) >= 20
    for candidate in tried:
        assert check_code(str(candidate.call(0.1))) >= 1
        fix = told_family(evidence, Family(candidate, 0.1, 0, 0.0)).fix
        assert fix
        if isinstance(fix, Call):
            assert check_code(str(fix)) >= 1
            fix.made()


@pytest.mark.parametrize(
    "code",
    ["optax.adam(..., weight_decay=0.1)", "optax.sgd(..., weight_decay=0.1)", "optax.sgd(..., learning_rate=0.1)"],
)
def test_a_call_that_does_not_bind_is_found(code: str) -> None:
    with pytest.raises(TypeError):
        check_code(code)


def test_a_name_that_does_not_resolve_is_found() -> None:
    with pytest.raises(AttributeError):
        check_code("optax.adamz(0.1)")


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20, 0.01),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "longer restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5], 0.5),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 12, 2.0),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "a line of OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20, anneal_strategy="linear"),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 16)], [3]
    ),
    "a warm-up": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, (t + 1) / 4)),
    "a warm-up and a decay": lambda o: lr_scheduler.LambdaLR(o, lambda t: min((t + 1) / 4, max(0.0, (23 - t) / 20))),
    "a warm-up and a cosine": lambda o: lr_scheduler.LambdaLR(
        o, lambda t: t / 4 if t < 4 else 0.1 + 0.45 * (1 + np.cos(np.pi * min(t - 4, 30) / 30))
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_every_schedule_is_torchs_at_every_count(name: str) -> None:
    optimizer = optim.SGD(parameters(), 0.1, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    call = right_call(scheduler)
    assert isinstance(call, Call | Recounted)
    check_code(str(call))
    schedule, slower = call.made(), Recounted(call, 3).made() if isinstance(call, Call) else None
    row = row_of(scheduler)
    assert row is not None
    for mistake in row.mistakes(scheduler, 0.1):
        check_code(str(mistake.call))
        mistake.call.made()
    for count in range(19):
        rate = optimizer.param_groups[0]["lr"]
        np.testing.assert_allclose(schedule(count), rate, rtol=2e-5, atol=1e-8)
        if slower is not None:
            np.testing.assert_allclose(slower(3 * count + 2), rate, rtol=2e-5, atol=1e-8)
        optimizer.step()
        scheduler.step()


def test_a_function_of_no_known_form_is_no_schedule() -> None:
    assert schedule_of_function(lambda count: 1 / (1 + count), 0.1) is None
    assert schedule_of_function(lambda count: [1.0, 0.5][count], 0.1) is None


def test_a_mask_is_true_for_what_it_names_alone() -> None:
    params = {"bias": 0, "norm": {"bias": 0, "scale": 0}, "rebias": 0, "attention": {"query": {"bias": 0, "kernel": 0}}}
    every = ["bias", "norm/bias", "norm/scale", "rebias", "attention/query/bias", "attention/query/kernel"]
    for wanted in (["bias", "norm/bias", "attention/query/bias"], ["norm/bias"], ["bias"], ["rebias"], every[2:]):
        code = mask_of(wanted, every)
        check_code(code)
        mask = eval(code, dict(MODULES))(params)
        paths = jax.tree_util.tree_flatten_with_path(mask)[0]
        assert {jax.tree_util.keystr(path, simple=True, separator="/") for path, true in paths if true} == set(wanted)


def test_numbers_that_differ_are_never_written_alike() -> None:
    assert with_distinct_digits(0.1, 0.1 + 1e-9) == ("0.1", "0.100000001")
    ours, theirs = rates_in_words([0.1, 0.01], [0.1, float(np.float32(0.01))])
    assert ours != theirs
    assert ours.split()[0] == theirs.split()[0]


def test_of_a_part_with_two_biases_that_part_alone_is_doubled() -> None:
    """Of a GRU in Equinox the last gate has a bias of its own for the hidden side."""
    every = ["cell/bias[0:2]", "cell/bias[2:4]", "cell/bias[4:6]", "cell/bias_n", "other/bias"]
    updates = {"cell": {"bias": jnp.ones(6), "bias_n": jnp.ones(2)}, "other": {"bias": jnp.ones(2)}}

    def after(names: list[str]) -> Any:
        calls = doubled(names, every)
        for call in calls:
            check_code(str(call))
        chain = optax.chain(*(eval(str(call), dict(MODULES)) for call in calls))
        return jax.tree.map(np.asarray, chain.update(updates, chain.init(updates), updates)[0])

    part = after(every[:2])
    assert part["cell"]["bias"].tolist() == [2, 2, 2, 2, 1, 1]
    assert part["cell"]["bias_n"].tolist() == part["other"]["bias"].tolist() == [1, 1]
    whole = after(every[:3])
    assert whole["cell"]["bias"].tolist() == [2] * 6
    assert whole["cell"]["bias_n"].tolist() == whole["other"]["bias"].tolist() == [1, 1]
    assert after([*every[:2], "other/bias"])["other"]["bias"].tolist() == [2, 2]


def test_a_class_of_the_users_is_no_optimizer_of_torchs() -> None:
    params = [torch.nn.Parameter(torch.zeros(2))]

    class Named(torch.optim.SGD):
        """Its step is that of SGD."""

    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            del closure

    assert kind_of(torch.optim.AdamW(params)) == "AdamW"
    assert kind_of(Named(params)) == "SGD"
    assert kind_of(Adam(params)).endswith(".Adam")
    assert named("AdamW") == "torch.optim.AdamW"
    assert named("Lion") == "Lion"


def test_what_optax_lacks_is_not_mended_by_another_optimizer() -> None:
    assert str(optimizer_call("Lion", {"learning_rate": 0.1})) == "optimizer(..., learning_rate=0.1)"
    assert str(optimizer_call("AdamW")) == "optax.adamw(...)"
