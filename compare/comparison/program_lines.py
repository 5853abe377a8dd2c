"""Finds the lines of the user's code that a difference between two programs comes from, in what `build` creates."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compare.jax_side import made as jax_made
from compare.jax_side.program_run import JaxProgramRun
from compare.jax_side.program_state import is_nnx, modules_of, path_name
from compare.step.made import made_at
from compare.step.stage import Stage
from compare.torch_side import made as torch_made
from compare.torch_side.program import TorchProgram
from compare.torch_side.program_state import State, seeded
from compare.verdict.divergence import Divergence, Line, Role


def with_lines(torch: TorchProgram, jax: JaxProgramRun, found: Sequence[Divergence]) -> list[Divergence]:
    """Add to each difference where its layer or its optimizer is made, before the lines that it has already.

    Both programs are built once more for it.

    Args:
        torch: The original.
        jax: A run of the port that has taken a step.
        found: The differences.

    """
    with seeded(), torch_made.noted(), jax_made.noted():
        ours, (theirs, step) = State(torch.build()[0]), jax.side.build()
    places = _Places(ours, theirs, step, jax)
    return [dataclasses.replace(each, lines=(*places.lines(each), *each.lines)) for each in found]


class _Places:
    """What two programs are made of, by name.

    Args:
        ours: Torch's state.
        theirs: The JAX side's.
        step: Its step, whose variables may hold an optimizer.
        run: A run of it, whose step may make its modules.

    """

    def __init__(self, ours: State, theirs: Any, step: Any, run: JaxProgramRun) -> None:
        import torch

        self.modules, self.tensors = ours.parts(torch.nn.Module), ours.tensors()
        self.optimizers = ours.parts(torch.optim.Optimizer)
        self.objects, self._run = modules_of(theirs), run
        self.theirs = _partners(list(self.optimizers) or [""], _optimizers(theirs, step, len(self.optimizers)))
        """The JAX side's optimizers, by the names of torch's; "" where torch updates by hand."""

    def lines(self, found: Divergence) -> Iterator[Line]:
        """Give the lines that are known of a difference."""
        if found.stage == Stage.UPDATE:
            made = made_at(self._optimizer(found.torch))
            if made is not None:
                yield Line("jax", Role.MADE, made)
        elif found.modules is not None:
            ours, theirs = found.modules
            ran = self._run.module(theirs)
            for side, made in (
                ("torch", made_at(self._ours(ours))),
                ("jax", made_at(module_at(self.objects, theirs)) or (ran.made if ran else None)),
            ):
                if made is not None:
                    yield Line(side, Role.MADE, made)

    def _optimizer(self, parameter: str) -> Any:
        """Give the JAX side's optimizer of a parameter."""
        known = dict(self.tensors)
        for root, module in self.modules.items():
            known |= {f"{root}.{path}": each for path, each in module.named_parameters(remove_duplicate=False)}
        # What an optimizer remembers of a parameter has its name, and one more: "fc1.weight.exp_avg".
        own = next((path for path in known if f"{parameter}.".startswith(f"{path}.")), None)
        trained = known.get(own or "")
        for name, optimizer in self.optimizers.items():
            if any(each is trained for group in optimizer.param_groups for each in group["params"]):
                return self.theirs.get(name)
        return self.theirs.get("")

    def _ours(self, path: str) -> Any:
        for root, module in self.modules.items():
            if path == root or path.startswith(f"{root}."):
                return dict(module.named_modules()).get(path[len(root) + 1 :])
        return None


def module_at(objects: Mapping[str, Any], path: str) -> Any:
    """Give the module at a path of a state, whose outermost modules are given by path; None where there is none."""
    from compare.weights.layers import at_path

    for root, module in objects.items():
        if path == root:
            return module
        if path.startswith(f"{root}/"):
            keys = path[len(root) + 1 :].split("/")
            try:
                return at_path(module, tuple(int(key) if key.isdecimal() else key for key in keys))
            except (AttributeError, KeyError, IndexError, TypeError):
                return None
    return None


def _partners(ours: Sequence[str], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Give the JAX side's optimizers by the names of torch's: of one name, or the only ones left."""
    left = dict(theirs)
    found = {name: left.pop(name.replace(".", "/")) for name in ours if name.replace(".", "/") in left}
    others = [name for name in ours if name not in found]
    return found | (dict(zip(others, left.values(), strict=True)) if len(others) == len(left) == 1 else {})


def _optimizers(state: Any, step: Any, count: int) -> dict[str, Any]:
    """Give the transformations of optax that a state holds, with those of the step's variables if it holds fewer."""
    import jax

    def holds(value: Any) -> bool:
        return hasattr(value, "tx")

    leaves = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda value: holds(value) or is_nnx(value))[0]
    found = {path_name(path): each.tx for path, each in leaves if holds(each)}
    function = inspect.unwrap(step)
    if len(found) >= count or not inspect.isfunction(function):
        return found
    variables = inspect.getclosurevars(function)
    for name, each in {**variables.globals, **variables.nonlocals}.items():
        if _transforms(each) and not any(each is known for known in found.values()):
            found.setdefault(name, each)
    return found


def _transforms(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "init") and hasattr(value, "update")
