"""Tells which axes of a traced program are over the layers of a stack, as `jax.vmap` maps them."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from compare.jax_side.labels import Label
from compare.jax_side.primitives import NAME, Program, programs


class Stacks:
    """The stacks of layers, in a step that takes a batch.

    Only the sizes of mapped axes are known. A module's outputs are mapped over the layers and over the examples; an
    input may be mapped over one of the two. So the outputs decide.

    Args:
        layers: How many layers each stack has, by path: see `CommonRun.stacks`.
        batch: What the step takes.
        program: That of the step.

    """

    def __init__(self, layers: Mapping[str, int], batch: Any, program: Any) -> None:
        self.layers = layers
        self._known = _apart_from(layers, batch)
        self._outputs = _mapped_outputs(program) if self._known else {}

    def are_in_front(self, label: Label, path: str, value: Any) -> bool:
        """Tell whether the first axis of a value is one that `jax.vmap` has mapped over the layers of a stack.

        Of the mapped axes of its module's outputs the first, and no other one, must have as many elements as there are
        layers.
        """
        layers, outputs = self._known.get(path, 0), self._outputs.get((label.root, label.path), set())
        decided = all(sizes[:1] == (layers,) and sizes.count(layers) == 1 for sizes in outputs)
        return decided and _mapped_axes(label, value)[:1] == (layers,)


def apart_from_stacks(outermost: Iterable[str], stacks: Container[str]) -> set[str]:
    """Leave out of the paths of what is the whole model those of stacks: their calls are one for each layer."""
    return {path for path in outermost if not path or path not in stacks}


def _apart_from(stacks: Mapping[str, int], batch: Any) -> dict[str, int]:
    """Leave out the stacks with as many layers as a batch has examples or micro-batches.

    A mapped axis of that size may be either. Examples and micro-batches are along the first two axes of a batch, but
    for its last axis.
    """
    import jax

    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    sizes = {size for shape in shapes for size in (shape[:1] if len(shape) < 3 else shape[:2])}
    return {path: layers for path, layers in stacks.items() if layers not in sizes}


def _mapped_outputs(program: Any) -> dict[tuple[str, str], set[tuple[int, ...]]]:
    """Give the sizes of the axes that are mapped of the outputs of modules, by the root and the path in their names."""
    found: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for eqn in Program.of(program).equations:
        label = Label.of(eqn.params["name"]) if eqn.primitive.name == NAME else None
        if label is not None and label.what == "output":
            found.setdefault((label.root, label.path), set()).add(_mapped_axes(label, eqn.outvars[0].aval))
        for nested in programs(eqn):
            for key, sizes in _mapped_outputs(nested).items():
                found.setdefault(key, set()).update(sizes)
    return found


def _mapped_axes(label: Label, value: Any) -> tuple[int, ...]:
    sizes: tuple[int, ...] = value.shape[: int(label.mapped)]
    return sizes
