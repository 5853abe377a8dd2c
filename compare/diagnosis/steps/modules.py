"""Edits of the modules that a step runs: a model in another's place, norms in another mode, statistics taken twice."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

from compare.diagnosis.steps.edit import Edit
from compare.torch_side.program_run import TorchProgramRun


def edits(run: TorchProgramRun) -> Iterator[Edit]:
    """Yield the edits that the modules of a state allow."""
    for path in run.models:
        if _norms(run, path):
            yield from _of_norms(path)
    trained = {path for path in run.models if any(name.startswith(f"{path}.") for name in run.trained)}
    shapes = {path: _shapes(run, path) for path in run.models}
    for target in run.models:
        for source in trained:
            if target not in trained and shapes[target] == shapes[source] and shapes[target]:
                yield from _of_target(target, source)


def _of_target(target: str, source: str) -> Iterator[Edit]:
    for called, meant in ((source, target), (target, source)):
        yield Edit(
            name="another model",
            explanation=f"torch calls {meant}, and the JAX step calls {called} in its place",
            fix=f"call {meant}",
            agrees=1,
            during=functools.partial(_replaced, meant=meant, called=called),
        )


def _of_norms(path: str) -> Iterator[Edit]:
    yield Edit(
        name="evaluation mode",
        explanation=f"torch runs the norms of {path} in training mode, on the statistics of the batch, and the JAX "
        "step on the running ones",
        fix="run the model in training mode on the JAX side: model.train(), or use_running_average=False",
        agrees=1,
        during=lambda run: _in_mode(run, path, training=True, wanted=False),
    )
    yield Edit(
        name="training mode",
        explanation=f"torch runs the norms of {path} in evaluation mode, on their running statistics, and the JAX step "
        "on those of the batch",
        fix="run the model in evaluation mode on the JAX side: model.eval(), or use_running_average=True",
        agrees=1,
        during=lambda run: _in_mode(run, path, training=False, wanted=True),
    )
    yield Edit(
        name="statistics updated twice",
        explanation=f"torch updates the running statistics of {path} once in each forward pass, and the JAX step "
        "twice, as a second forward pass on the same batch does",
        fix="keep the statistics that one forward pass gives, and drop those of the other",
        agrees=1,
        during=lambda run: _twice(run, path),
    )


def _shapes(run: TorchProgramRun, path: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in run.model.get_submodule(path).named_parameters()}


def _norms(run: TorchProgramRun, path: str) -> list[Any]:
    modules = run.model.get_submodule(path).modules()
    return [each for each in modules if getattr(each, "running_mean", None) is not None]


@contextlib.contextmanager
def _replaced(run: TorchProgramRun, meant: str, called: str) -> Iterator[None]:
    one, other = (run.model.get_submodule(path) for path in (meant, called))
    with mock.patch.object(one, "forward", other.forward):
        yield


@contextlib.contextmanager
def _in_mode(run: TorchProgramRun, path: str, *, training: bool, wanted: bool) -> Iterator[None]:
    """Run the norms that are in one mode in the other."""
    with contextlib.ExitStack() as stack:
        for norm in _norms(run, path):

            def forward(*args: Any, norm: Any = norm, original: Any = norm.forward) -> Any:
                if norm.training != training:
                    return original(*args)
                norm.training = wanted
                try:
                    return original(*args)
                finally:
                    norm.training = training

            stack.enter_context(mock.patch.object(norm, "forward", forward))
        yield


@contextlib.contextmanager
def _twice(run: TorchProgramRun, path: str) -> Iterator[None]:
    import torch

    with contextlib.ExitStack() as stack:
        for norm in _norms(run, path):

            def forward(*args: Any, norm: Any = norm, original: Any = norm.forward) -> Any:
                if norm.training:
                    with torch.no_grad():
                        original(*args)
                return original(*args)

            stack.enter_context(mock.patch.object(norm, "forward", forward))
        yield
