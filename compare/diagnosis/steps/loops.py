"""Edits of a training loop: accumulation over backward passes, the order of updates, a model in another's place.

None of them has a number that is fitted. What a loop does, such as how many backward passes make an update, is seen in
its first step.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any
from unittest import mock

from compare.diagnosis.steps import clippings, scales
from compare.diagnosis.steps.edit import ALL, Edit
from compare.diagnosis.steps.undone import undone
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.fix import Code

UPDATE_LEFT_OUT = "update left out"
"""What the cause is called where the JAX step does not change what an optimizer of torch's trains."""


@dataclasses.dataclass
class Loop:
    """What a step of torch's is seen to do."""

    backwards: int = 0
    """How many backward passes it has made since an optimizer was stepped."""
    parts: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many backward passes make the gradients of each optimizer."""
    early: set[str] = dataclasses.field(default_factory=set)
    """The optimizers that are stepped before other gradients of the step are computed."""
    clipping: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    """The arguments of `clip_grad_norm_`, but for the parameters; None where two calls have others."""
    clips: int = 0
    """How often it is called."""
    afresh: bool = False
    """Whether a second backward pass before an update begins without the gradients of the first."""
    second_order: bool = False
    """Whether it differentiates a gradient."""

    @contextlib.contextmanager
    def watching(self, run: TorchProgramRun) -> Iterator[None]:
        """See what the step does that runs while this lasts."""
        import torch

        def counted(original: Callable[..., Any], see: Callable[..., None]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                see(*args, **kwargs)
                return original(*args, **kwargs)

            return call

        def backward(*_: Any, **__: Any) -> None:
            kept = any(each.grad is not None and bool(each.grad.any()) for each in run.trained_tensors())
            self.afresh |= self.backwards > 0 and not kept
            self.backwards += 1
            self.early |= self.parts.keys()

        def grad(*_: Any, create_graph: bool = False, **__: Any) -> None:
            self.second_order |= create_graph
            self.early |= self.parts.keys()

        def clip(parameters: Any, *args: Any, **kwargs: Any) -> None:
            # One tensor in each call is clipped by its own norm.
            one = isinstance(parameters, torch.Tensor) or (isinstance(parameters, list | tuple) and len(parameters) < 2)
            alike = self.clips == 0 or (self.clipping == (args, kwargs) and not one)
            self.clipping = (args, kwargs) if alike else None
            self.clips += 1

        paths = {id(optimizer): path for path, optimizer in run.optimizers.items()}

        def update(optimizer: Any, *_: Any) -> None:
            # The first update counts: what a loop does in its first step is what the edits are made of, and later steps
            # are what confirms them.
            self.parts.setdefault(paths[id(optimizer)], self.backwards)
            self.backwards = 0

        with contextlib.ExitStack() as stack:
            for module, name, see in (
                (torch.autograd, "backward", backward),
                (torch.autograd, "grad", grad),
                (torch.nn.utils, "clip_grad_norm_", clip),
            ):
                stack.enter_context(mock.patch.object(module, name, counted(getattr(module, name), see)))
            for optimizer in run.optimizers.values():
                stack.callback(optimizer.register_step_post_hook(update).remove)
            yield


def edits(run: TorchProgramRun, loop: Loop, sizes: Collection[int]) -> Iterator[Edit]:
    """Yield the edits that a loop of this kind can have; `sizes` are those of the batches' first axes."""
    # With one backward pass an update there is nothing to add up, and a sum is a mean.
    for path, parts in loop.parts.items():
        if parts > 1:
            yield from _of_accumulation(path, parts, loop.clipping, sizes)
    if loop.afresh:
        yield Edit(
            name="backward pass left out",
            explanation="torch sets the gradients to zero between two backward passes and updates with those of the "
            "second, and the JAX step updates with those of the first",
            fix="compute the gradients once more where torch makes its second backward pass, and update with these",
            agrees=1,
            during=_of_first_pass,
        )
    if loop.second_order:
        yield Edit(
            name="second derivative",
            explanation="torch differentiates through a gradient that it computes (create_graph=True), and the JAX "
            "step does not",
            fix="leave out jax.lax.stop_gradient around that gradient",
            agrees=1,
            during=_penalty_detached,
        )
    if loop.clipping is not None:
        yield from clippings.edits(*loop.clipping)
    else:
        yield clippings.left_out()
    for path in run.optimizers:
        # An optimizer that is not stepped keeps its moments; one whose updates are thrown away goes on counting.
        for remembered in (False, True):
            yield Edit(
                name=UPDATE_LEFT_OUT,
                explanation=f"torch steps {path}, and the JAX step does not change what it trains",
                fix=f"apply the updates of {path}: params = optax.apply_updates(params, updates), or give it torch's "
                "learning rate if its own is 0",
                agrees=ALL,  # what is made at some steps alone, as behind optax.MultiSteps, is not left out
                during=functools.partial(_left_out, path=path, remembered=remembered),
            )
        if path in loop.early and len(run.optimizers) > 1:
            yield Edit(
                name="order of updates",
                explanation=f"torch steps {path} before it computes the gradients of the other optimizers, and "
                "the JAX step does so after it",
                fix=f"update {path} first, and compute the other gradients with the updated weights",
                agrees=1,
                during=functools.partial(_postponed, path=path),
            )


def _of_accumulation(path: str, parts: int, clipping: Any, sizes: Collection[int]) -> Iterator[Edit]:
    alone = f"torch adds up the gradients of {parts} backward passes for {path}, and the JAX step has those of the"
    both = f"over {parts} backward passes instead of their"
    add = "add up the gradients of all: total = jax.tree.map(jnp.add, total, gradients)"
    rows: tuple[tuple[str, str, str, Callable[[Any, Any], Any]], ...] = (
        (
            "gradient scale",
            f"the JAX step's gradients are {parts} times torch's before they are clipped or used: a sum {both} mean",
            f"jax.tree.map(lambda leaf: leaf / {parts}, gradients)",
            lambda parameter, gradient: gradient * parts,
        ),
        (
            "gradient scale",
            f"the JAX step's gradients are torch's divided by {parts}: a mean {both} sum",
            f"jax.tree.map(lambda leaf: leaf * {parts}, gradients)",
            lambda parameter, gradient: gradient / parts,
        ),
        # A loop that keeps one gradient may divide its loss by the number of parts all the same, or not: both scales.
        *(
            (f"{which} micro-batch alone", f"{alone} {which} alone", add, functools.partial(change, scale=scale))
            for which, change in (("last", _last), ("first", _first))
            for scale in (1, parts)
        ),
    )
    for name, says, fix, change in rows:
        code: Code | None = None
        if name == "gradient scale":
            fix, code = scales.changed_gradients(fix, parts, sizes)
            if clipping is not None:
                # They must be right before they are clipped, and where that is in the user's code is not known.
                fix, code = f"{fix}, before they are clipped", None
        yield Edit(name, says, fix, functools.partial(_gradients, path=path, change=change), agrees=1, code=code)
    for scale in (1, parts) if clipping is not None else ():
        yield Edit(
            name="clipping of each micro-batch",
            explanation=f"torch clips the gradients once, when those of {parts} backward passes are added up, and "
            "the JAX step clips those of each before it adds them up",
            fix="add up the gradients of the micro-batches first, and clip the total",
            agrees=1,
            during=functools.partial(_each_clipped, clipping=clipping, scale=scale),
        )


@contextlib.contextmanager
def _gradients(run: TorchProgramRun, path: str, change: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Change what each backward pass adds to the gradients of an optimizer."""
    with contextlib.ExitStack() as stack:
        for parameter in (each for group in run.optimizers[path].param_groups for each in group["params"]):
            # A hook of a tensor sees what one backward pass adds, before it is added to `grad`.
            if parameter.requires_grad:
                hook = parameter.register_hook(lambda gradient, p=parameter: change(p, gradient))
                stack.callback(hook.remove)
        yield


def _first(parameter: Any, gradient: Any, scale: int) -> Any:
    # `zero_grad` leaves None, or zeros with set_to_none=False: either way nothing has been added yet.
    return gradient * (0 if parameter.grad is not None and parameter.grad.any() else scale)


def _last(parameter: Any, gradient: Any, scale: int) -> Any:
    if parameter.grad is not None:
        parameter.grad.zero_()  # what the passes before have left
    return gradient * scale


@contextlib.contextmanager
def _each_clipped(run: TorchProgramRun, clipping: Any, scale: int) -> Iterator[None]:
    """Clip what each backward pass adds to the gradients, and the total no more.

    With `scale`, as it would be clipped if torch did not divide the loss by the number of passes.
    """
    import torch

    args, kwargs = clipping
    clip, original = torch.nn.utils.clip_grad_norm_, torch.autograd.backward

    def backward(*given: Any, **more: Any) -> None:
        trained = run.trained_tensors()
        # Each pass begins without gradients, so that what is clipped is its own and not the total so far.
        before = [None if each.grad is None else each.grad.clone() for each in trained]
        for each in trained:
            each.grad = None
        original(*given, **more)
        with torch.no_grad():
            own = [each for each in trained if each.grad is not None]
            for gradient in [each.grad for each in own if each.grad is not None]:
                gradient.mul_(scale)
            clip(own, *args, **kwargs)
            for each, kept in zip(trained, before, strict=True):
                added = None if each.grad is None else each.grad / scale
                each.grad = added if kept is None else kept if added is None else kept + added

    with (
        mock.patch.object(torch.autograd, "backward", backward),
        mock.patch.object(torch.nn.utils, "clip_grad_norm_", return_value=torch.zeros(())),
    ):
        yield


@contextlib.contextmanager
def _of_first_pass(run: TorchProgramRun) -> Iterator[None]:
    """Give each optimizer the gradients that the first backward pass since its last step left."""
    import torch

    first, original = dict[Any, Any](), torch.autograd.backward

    def backward(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        for each in run.trained_tensors():
            if each.grad is not None and each not in first:
                first[each] = each.grad.clone()

    def put_back(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for each in group["params"]:
                if (gradient := first.pop(each, None)) is not None and each.grad is not None:
                    each.grad.copy_(gradient)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.autograd, "backward", backward))
        for optimizer in run.optimizers.values():
            stack.callback(optimizer.register_step_pre_hook(put_back).remove)
        yield


@contextlib.contextmanager
def _penalty_detached(_: TorchProgramRun) -> Iterator[None]:
    import torch

    original = torch.autograd.grad

    def grad(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        # Without its graph, the penalty still changes the loss, but none of its gradients.
        return tuple(each if each is None else each.detach() for each in found)

    with mock.patch.object(torch.autograd, "grad", grad):
        yield


def _left_out(run: TorchProgramRun, path: str, *, remembered: bool) -> contextlib.AbstractContextManager[None]:
    return undone(run.optimizers[path], remembered=remembered)


@contextlib.contextmanager
def _postponed(run: TorchProgramRun, path: str) -> Iterator[None]:
    """Let what an optimizer trains change only after the next step of another one, or at the end."""
    optimizer = run.optimizers[path]
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    before: list[Any] = []
    late: list[list[Any]] = []

    def keep(*_: Any) -> None:
        before[:] = [each.detach().clone() for each in parameters]

    def put_off(*_: Any) -> None:
        # The change and not the new value: the other optimizer may train the same weights.
        late.append([each.detach() - old for each, old in zip(parameters, before, strict=True)])
        for each, old in zip(parameters, before, strict=True):
            each.data.copy_(old)

    def catch_up(*_: Any) -> None:
        while late:
            for each, change in zip(parameters, late.pop(0), strict=True):
                each.data.add_(change)

    with contextlib.ExitStack() as stack:
        stack.callback(optimizer.register_step_pre_hook(keep).remove)
        stack.callback(optimizer.register_step_post_hook(put_off).remove)
        for other in run.optimizers.values():
            if other is not optimizer:
                stack.callback(other.register_step_post_hook(catch_up).remove)
        yield
        catch_up()
