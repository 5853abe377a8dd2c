"""Finds the lines of the user's code, on both sides, that a difference comes from."""

import dataclasses
import inspect
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from compare.alignment.pairings import Pairing, jax_path
from compare.comparison.model_pair import ModelPair
from compare.diagnosis.place import named
from compare.jax_side.side import Flax, Jax
from compare.step.assigned import given_to, made_in
from compare.step.made import made_at
from compare.step.observation import Port
from compare.step.places import Source
from compare.step.stage import Stage
from compare.verdict.divergence import Divergence, Line, Role
from compare.verdict.fix import Code
from compare.weights.layers import at_path


def lines_of(
    pair: ModelPair, pairing: Pairing, codes: Sequence[Code] = (), before: Pairing | None = None
) -> Iterator[Line]:
    """Yield where the layers of both sides were made and called, what computes the value, the loss or the optimizer.

    Args:
        pair: Both sides.
        pairing: What differs.
        codes: The fix: of a pure function, the one layer whose class it names is where the fix belongs.
        before: The last thing before it that was computed and does not differ.

    """
    if pairing.stage == Stage.LOSS:
        yield from _defined(pair)
    elif pairing.stage == Stage.UPDATE:
        yield from _line("jax", Role.MADE, _optimizer(pair.jax))
    elif pairing.ports is None:
        ours, theirs = pairing.torch.rpartition(".")[0], pairing.jax.rpartition("/")[0]
        yield from _made(pair, ours, theirs)
    else:
        yield from _of_ports(pair, pairing, before)

    if isinstance(pair.jax, Jax) and pairing.stage == Stage.FORWARD:
        calls = {code.call for code in codes}
        made = {_made_in_jax(pair, path) for path, cls in _holders(pair) if named(cls) in calls}
        if len(made) == 1:
            yield from _line("jax", Role.MADE, made.pop())


def values_of(pair: ModelPair, codes: Sequence[Code], partners: Mapping[str, str]) -> dict[str, tuple[Line, ...]]:
    """Return where the JAX side has the values that fixes name.

    Args:
        pair: Both sides.
        codes: The fixes.
        partners: The JAX side's modules by those of torch.

    """
    return {
        name: tuple(line for port in ports for line in _of_value(pair, port, partners.get(port.path)))
        for code in codes
        for name, ports in code.values.items()
    }


def _of_value(pair: ModelPair, port: Port, path: str | None) -> Iterator[Line]:
    if path is None or port.call:
        return
    role = Role.CALLED if port.kind == "output" else Role.GIVEN
    yield from _line("jax", role, _called(pair, port._replace(path=path)))
    if role is Role.GIVEN and (cls := _class(pair, path)) is not None:
        yield from _beginning("jax", vars(cls).get("__call__"))


def _called(pair: ModelPair, port: Port) -> Source | None:
    """Return the line that calls a module of the JAX side; None of a later call, if several lines call it."""
    ran = pair.jax_modules.get(port.path)
    return ran.called if ran and not (port.call and ran.elsewhere) else None


def _class(pair: ModelPair, path: str) -> type | None:
    """Return the class of a module of the JAX side; None if there is none."""
    ran, module = pair.jax_modules.get(path), _module(pair, path)
    if ran is not None and path:
        return ran.cls
    return None if module is None else type(module)


def with_counts(pair: ModelPair, found: Sequence[Divergence]) -> list[Divergence]:
    """Say of each line that makes a layer how many layers it makes for which a fix is not known to be right.

    A helper makes many layers. Those that do not differ stay right if torch's have the setting too: a padding of 1 is
    "SAME" where the stride is 1, and is not where it is 2.
    """
    if not any(line.role is Role.MADE for each in found for line in each.lines):
        return list(found)
    made: dict[Source, list[str]] = {}
    for path, _ in _holders(pair):
        if source := _made_in_jax(pair, path):
            made.setdefault(source, []).append(path)
    partners = {link.jax.rpartition("/")[0]: link.torch.rpartition(".")[0] for link in pair.links}
    layers = dict(pair.torch.model.named_modules())
    differing = {each.modules[1] for each in found if each.modules}

    def stays_right(path: str, each: Divergence) -> bool:
        if path in differing or each.modules is None or each.cause is None or path not in partners:
            return False
        return _have_same(layers.get(each.modules[0]), layers.get(partners[path]), each.cause.code)

    def counted(line: Line, each: Divergence) -> Line:
        paths = [path for path in made.get(line.source, ()) if not stays_right(path, each)]
        return dataclasses.replace(line, makes=max(len(paths), 1)) if line.side == "jax" else line

    return [dataclasses.replace(each, lines=tuple(counted(line, each) for line in each.lines)) for each in found]


def _have_same(one: Any, other: Any, codes: Sequence[Code]) -> bool:
    """Return whether two layers of torch are of one class and agree in what the settings of a fix follow from."""
    names = {name for code in codes for name in code.keywords}
    if type(one) is not type(other) or not names <= _FROM.keys():
        return False
    return all(getattr(one, each, None) == getattr(other, each, None) for name in names for each in _FROM[name])


_FROM = {
    "epsilon": ("eps",),
    "momentum": ("momentum",),
    "padding": ("padding", "output_padding", "kernel_size", "dilation"),
}
"""The settings of torch's layers that those of Flax follow from."""


def holders(pair: ModelPair) -> list[type]:
    """Return the classes of modules, such as Equinox's, in which a pure function has its parameters."""
    return [each for _, each in _holders(pair)] if isinstance(pair.jax, Jax) else []


def _holders(pair: ModelPair) -> Iterator[tuple[str, type]]:
    for path in dict.fromkeys(link.jax.rpartition("/")[0] for link in pair.links):
        cls = _class(pair, path)
        if cls is not None and cls.__module__ != "builtins":
            yield path, cls


def _of_ports(pair: ModelPair, pairing: Pairing, before: Pairing | None) -> Iterator[Line]:
    assert pairing.ports is not None
    ours, theirs = pairing.ports
    role = Role.CALLED if ours.kind == "output" else Role.GIVEN
    if role is Role.CALLED and theirs.path:  # who makes the whole model says nothing of what differs at its end
        yield from _made(pair, ours.path, theirs.path)
    if not ours.call or ours.path not in pair.torch_elsewhere:
        yield from _line("torch", role, pair.torch_calls.get(ours.path))
    called = _called(pair, theirs)
    yield from _line("jax", role, called)
    for source in pair.computed.towards(theirs, jax_path(before)):
        if source != called:
            yield Line("jax", Role.COMPUTED, source)


def _made(pair: ModelPair, torch: str, jax: str) -> Iterator[Line]:
    modules = dict(pair.torch.model.named_modules())
    yield from _line("torch", Role.MADE, _made_at(modules.get, torch, "."))
    yield from _line("jax", Role.MADE, _made_in_jax(pair, jax))


def _made_in_jax(pair: ModelPair, path: str) -> Source | None:
    """Return where a module of the JAX side was made; Linen makes its modules while the model runs."""
    ran = pair.jax_modules.get(path)
    return (ran.made if ran else None) or _made_at(partial(_module, pair), path, "/")


def _made_at(module: Callable[[str], Any], path: str, separator: str) -> Source | None:
    """Return where a module was made: noted when it was, or as the class that holds it has it."""
    this = module(path)
    if this is None:
        return None
    if noted := made_at(this):
        return noted
    parts, parents = path.split(separator), []
    for depth in reversed(range(len(parts))):
        parent = module(separator.join(parts[:depth]))
        if parent is not None and not parts[depth].isdecimal():
            parents.append((parent, parts[depth]))
    return made_in(parents, type(this))


def _optimizer(side: Flax | Jax) -> Source | None:
    """Return where the optimizer was made, or what the call that made the side was given for it."""
    noted, call = made_at(side.optimizer), made_at(side)
    position = [each.name for each in dataclasses.fields(side)].index("optimizer")
    return noted or (given_to(call, "optimizer", position) if call else None)


def _module(pair: ModelPair, path: str) -> Any:
    """Return a module of the JAX side as the user made it; None of Linen, which makes its modules as the model runs."""
    whole = pair.jax.params if isinstance(pair.jax, Jax) else pair.jax.model
    if isinstance(pair.jax, Flax) and isinstance(whole, tuple):
        return None
    try:
        return at_path(whole, tuple(int(part) if part.isdecimal() else part for part in path.split("/") if part))
    except (AttributeError, KeyError, IndexError, TypeError):
        return None


def _defined(pair: ModelPair) -> Iterator[Line]:
    yield from _beginning("torch", pair.torch.loss)
    yield from _beginning("jax", pair.jax.loss)


def _beginning(side: str, function: Any) -> Iterator[Line]:
    """Yield where a function of the user's begins."""
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    if code is not None:
        line = code.co_firstlineno
        source = Source(code.co_filename, line, linecache.getline(code.co_filename, line).strip())
        if not source.is_installed:
            yield Line(side, Role.DEFINED, source)


def _line(side: str, role: Role, source: Source | None) -> Iterator[Line]:
    if source is not None:
        yield Line(side, role, source)
