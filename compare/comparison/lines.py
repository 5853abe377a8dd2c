"""Finds the lines of the user's code, on both sides, that a difference comes from."""

import inspect
import linecache
from collections.abc import Iterator, Sequence
from typing import Any

from compare.alignment.pairings import Pairing
from compare.comparison.mapped_pair import MappedPair
from compare.diagnosis.place import named
from compare.jax_side.side import Flax, Jax
from compare.step.made import made_at
from compare.step.places import Source
from compare.step.stage import Stage
from compare.verdict.divergence import Line, Role
from compare.verdict.fix import Code
from compare.weights.layers import at_path


def lines_of(pair: MappedPair, pairing: Pairing, codes: Sequence[Code] = ()) -> Iterator[Line]:
    """Give where the layers of both sides were made and called, what computes the value, the loss or the optimizer.

    Args:
        pair: Both sides.
        pairing: What differs.
        codes: The fix: of a pure function, the one layer whose class it names is where the fix belongs.

    """
    if pairing.stage == Stage.LOSS:
        yield from _defined(pair)
    elif pairing.stage == Stage.UPDATE:
        yield from _line("jax", Role.MADE, made_at(pair.jax.optimizer))
    elif pairing.ports is None:
        ours, theirs = pairing.torch.rpartition(".")[0], pairing.jax.rpartition("/")[0]
        yield from _made(pair, ours, theirs)
    else:
        yield from _of_ports(pair, pairing)

    if isinstance(pair.jax, Jax) and pairing.stage == Stage.FORWARD:
        calls = {code.call for code in codes}
        made = {made_at(each) for each in holders(pair) if named(type(each)) in calls}
        if len(made) == 1:
            yield from _line("jax", Role.MADE, made.pop())


def holders(pair: MappedPair) -> list[Any]:
    """Give the modules, such as Equinox's, in which a pure function has its parameters."""
    if not isinstance(pair.jax, Jax):
        return []
    paths = dict.fromkeys(link.jax.rpartition("/")[0] for link in pair.links)
    found = [_module(pair, path) for path in paths]
    return [each for each in found if each is not None and type(each).__module__ != "builtins"]


def _of_ports(pair: MappedPair, pairing: Pairing) -> Iterator[Line]:
    assert pairing.ports is not None
    ours, theirs = pairing.ports
    role = Role.CALLED if ours.kind == "output" else Role.GIVEN
    if role is Role.CALLED and theirs.path:  # who makes the whole model says nothing of what differs at its end
        yield from _made(pair, ours.path, theirs.path)
    yield from _line("torch", role, pair.torch_calls.get(ours.path))
    called = pair.jax_calls.get(theirs.path)
    yield from _line("jax", role, called)
    for source in pair.computed.towards(theirs) if pair.computed else []:
        if source != called:
            yield Line("jax", Role.COMPUTED, source)


def _made(pair: MappedPair, torch: str, jax: str) -> Iterator[Line]:
    module = dict(pair.torch.model.named_modules()).get(torch)
    yield from _line("torch", Role.MADE, made_at(module) if module is not None else None)
    yield from _line("jax", Role.MADE, made_at(_module(pair, jax)))


def _module(pair: MappedPair, path: str) -> Any:
    """Give a module of the JAX side as the user made it; Linen makes its modules while the model runs."""
    whole = _whole(pair.jax)
    if whole is None:
        return pair.jax_modules.get(path)
    try:
        return at_path(whole, tuple(int(part) if part.isdecimal() else part for part in path.split("/") if part))
    except (AttributeError, KeyError, IndexError, TypeError):
        return None


def _whole(side: Flax | Jax) -> Any:
    if isinstance(side, Jax):
        return side.params
    return None if isinstance(side.model, tuple) else side.model


def _defined(pair: MappedPair) -> Iterator[Line]:
    for side, loss in (("torch", pair.torch.loss), ("jax", pair.jax.loss)):
        code = getattr(inspect.unwrap(loss), "__code__", None) if loss is not None else None
        if code is not None:
            line = code.co_firstlineno
            source = Source(code.co_filename, line, linecache.getline(code.co_filename, line).strip())
            if not source.is_installed:
                yield Line(side, Role.DEFINED, source)


def _line(side: str, role: Role, source: Source | None) -> Iterator[Line]:
    if source is not None:
        yield Line(side, role, source)
