"""Finds the user's expressions that compute a value between two modules of a traced JAX model or step."""

import itertools
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any

from compare.jax_side.calls import Calls, Turns
from compare.jax_side.labels import Label
from compare.jax_side.lines import expression, is_of_function
from compare.jax_side.primitives import (
    NAME,
    Cond,
    Kind,
    Program,
    Scan,
    called,
    is_literal,
    is_of_derivative,
    kind,
    programs,
)
from compare.jax_side.program_state import Leaf
from compare.jax_side.recomputed import is_again
from compare.jax_side.stacks import apart_from_stacks
from compare.jax_side.successors import remembered_names, succeeded
from compare.step.observation import Port
from compare.step.places import Source


class Computed:
    """A traced program, of which each operation knows the line that it comes from.

    Modules' inputs and outputs are named in it, also within nested programs: see `labels.py`.

    Args:
        program: That of a step, or of a model.
        leaves: The arrays of the state, which are its first arguments.
        names: The names of its outputs.
        outermost: See `CommonRun.outermost`.
        stacks: See `CommonRun.stacks`.

    """

    def __init__(
        self,
        program: Any,
        leaves: Sequence[Leaf],
        names: Sequence[str],
        outermost: Collection[str] = (),
        stacks: Mapping[str, int] | None = None,
    ) -> None:
        self._program = getattr(program, "jaxpr", program)  # without its constants: see `JaxRun.probe`
        self._equations = list(_all(program))
        self._makers = {variable: eqn for eqn in self._equations for variable in eqn.outvars}
        self._carried = dict(_carries(self._equations))
        """What a loop's body takes as its state, and what it gives as the next one."""
        self._roots = roots_of(program, [leaf.name for leaf in leaves], remembered_names(leaves))
        self._outermost = outermost
        self.modules: dict[str, dict[tuple[str, str], None]] = {}
        """The roots and paths under which each module is named in the program, by its path in the state."""
        self._of_port: dict[Port, Any] = {}
        """The variable that each module's input or output is."""
        self._operands: dict[Any, Any] = {}
        """By that of an input, the variable that its module is given: what else uses it, as a residual sum does, is no
        part of what comes after."""
        outputs = zip(names, Program.of(program).outputs, strict=True)
        self._of_output = {name: _inside(atom, program) for name, atom in outputs if not is_literal(atom)}
        self.number(stacks or {})

    def number(self, stacks: Mapping[str, int]) -> None:
        """Number the calls of modules, as they are when the program runs: see `Calls`."""
        self._of_port.clear()
        self._operands.clear()
        # Calls that the run shows are numbered from 0 on. While loops, shard_maps and what a checkpoint computes again
        # show nothing (see `watching`): calls in them get negative numbers, which no call of a run has.
        calls, unshown = Calls(stacks), itertools.count(-1, -1)
        outermost = apart_from_stacks(self._outermost, stacks)

        def note(label: Label, path: str, variable: Any, *, shown: bool) -> None:
            value = label.what, path, label.leaf
            numbers = calls.numbers(value).ravel().tolist() if shown else [next(unshown)]
            self._of_port.update((Port(path, number, label.what, label.leaf), variable) for number in numbers)
            self.modules.setdefault(path, {})[label.root, label.path] = None

        def walk(program: Any, *, shown: bool) -> None:
            for eqn in Program.of(program).equations:
                known = kind(eqn)
                if known is Kind.SCAN:
                    loop = Scan.of(eqn)
                    each = named_in(loop.program, self._roots, outermost)
                    with calls.scan(Turns(loop.length, loop.reverse), each), calls.iteration(None):
                        walk(loop.program, shown=shown)
                else:
                    inside = shown and known not in (Kind.WHILE, Kind.SHARD_MAP) and not is_again(eqn)
                    for nested in programs(eqn):
                        walk(nested, shown=inside)
                label = Label.of(eqn.params["name"]) if eqn.primitive.name == NAME else None
                path = label.place(self._roots, outermost) if label is not None else None
                if label is not None and path is not None and label.what in ("input", "output"):
                    note(label, path, eqn.outvars[0], shown=shown)
                    if label.what == "input" and not is_literal(eqn.invars[0]):
                        self._operands[eqn.outvars[0]] = eqn.invars[0]

        walk(self._program, shown=True)

    def of_output(self, name: str) -> list[Source]:
        """List the expressions that compute an output from modules' and from other outputs, in order of execution."""
        end = self._of_output.get(name)
        return [] if end is None else self._between(end)

    def given(self) -> list[Source]:
        """List the expressions at which optimizers are given gradients."""
        named = (eqn for eqn in self._equations if eqn.primitive.name == NAME)
        labels = ((eqn, Label.of(eqn.params["name"])) for eqn in named)
        places = (expression(eqn, own=True) for eqn, label in labels if label is not None and label.what == "gradient")
        return list(dict.fromkeys(place for place in places if place))

    def towards(self, port: Port, since: str | None = None) -> list[Source]:
        """List the expressions that compute a module's input or output from other modules', in order of execution.

        Args:
            port: The input or output.
            since: The path of the module that ran last before, if it is known: it tells which branch was taken.

        """
        end = self._of_port.get(port)
        return [] if end is None else self._between(end, since)

    def takes_derivative(self, value: Port | str) -> bool:
        """Tell whether a module's input or output, or an output of the program by name, comes from a backward pass.

        What modules take and give does not count: a derivative within it is theirs.
        """
        end = self._of_output.get(value) if isinstance(value, str) else self._of_port.get(value)
        if end is None:
            return False
        needed = set(self._before(end, self._others(end, *self._of_port.values()), None))
        return any(is_of_derivative(eqn) for eqn in self._equations if id(eqn) in needed)

    def _others(self, end: Any, *known: Any) -> set[Any]:
        """Give the variables at which the search for what a variable comes from ends, but for itself."""
        every = (*known, *self._operands.values())
        return {variable for variable in every if variable is not end and variable is not self._operands.get(end)}

    def _between(self, end: Any, since: str | None = None) -> list[Source]:
        ends = self._others(end, *self._of_port.values(), *self._of_output.values())
        needed = set(self._before(end, ends, since))
        named = (eqn for eqn in self._equations if id(eqn) in needed and eqn.primitive.name != NAME)
        places = map(expression, named)
        return list(dict.fromkeys(place for place in places if place))

    def _before(self, end: Any, ends: set[Any], since: str | None) -> Iterator[int]:
        """Yield the operations that a value comes from, back to what is a module's input or output itself."""
        open_, seen = [end], set()
        while open_:
            variable = open_.pop()
            if variable in seen:
                continue
            seen.add(variable)
            before = [self._carried[variable]] if variable in self._carried else []
            if (eqn := self._makers.get(variable)) is not None:
                yield id(eqn)
                before += [*eqn.invars, *_results_within(eqn, variable, self._taken(eqn, since))]
            open_ += [atom for atom in before if not is_literal(atom) and atom not in ends]

    def _taken(self, eqn: Any, since: str | None) -> list[Any]:
        """Give the programs that an operation runs; of a conditional, without the branches that were not taken.

        A branch was taken if the module that ran last is called in it, and nowhere else. If that module is called
        elsewhere too, it is not known which branch was taken. If no branch calls it, the branches that call other
        modules were not taken: one of these would have run last.
        """
        every = list(programs(eqn))
        if since is None or kind(eqn) is not Kind.COND:
            return every
        called = [self._calls_in(each) for each in every]
        if any(since in calls for calls in called):
            everywhere = self._calls_in(self._program)[since]
            return [each for each, calls in zip(every, called, strict=True) if calls[since] == everywhere]
        return [each for each, calls in zip(every, called, strict=True) if not calls]

    def _calls_in(self, program: Any) -> Counter[str]:
        """Count how often a program names what each module gives, by path."""
        named = named_in(program, self._roots, self._outermost)
        return Counter(path for (what, path, _), times in named.items() if what == "output" for _ in range(times))


def roots_of(program: Any, given: Sequence[str | None], remembered: Container[str] = ()) -> dict[str, str]:
    """Give the path in the state of each number that stands for a root: a Linen module does not know its own.

    The parameters that it is applied to tell it. They are leaves of the state, or take the place of one, handed on to
    the functions that the step calls.

    Args:
        program: Traced.
        given: Which leaf of the state each of its arguments is, by name.
        remembered: The leaves that an optimizer remembers.

    """
    found: dict[str, str] = {}

    def walk(program: Any, given: Sequence[str | None]) -> list[str | None]:
        """Give the names of a program's outputs from those of its arguments."""
        program = Program.of(program)
        names: dict[Any, str | None] = dict(zip(program.arguments, given, strict=False))

        def name(atom: Any) -> str | None:
            return None if is_literal(atom) else names.get(atom)

        for eqn in program.equations:
            of_arguments = [name(atom) for atom in eqn.invars]
            within: list[list[str | None]] = []
            for nested in programs(eqn):
                # Those of a branch, and of a loop's body, are the last ones.
                count = len(Program.of(nested).arguments)
                within.append(walk(nested, of_arguments[len(of_arguments) - count :]))
            if eqn.primitive.name == NAME:
                label = Label.of(eqn.params["name"])
                root = label.root_in(of_arguments[0] or "") if label is not None else None
                if label is not None and label.what == "parameter" and root is not None:
                    found[label.root] = root
                names[eqn.outvars[0]] = of_arguments[0]
            elif within and len(within[-1]) == len(eqn.outvars):
                names |= zip(eqn.outvars, within[-1], strict=True)
            elif not within and eqn.outvars:
                names[eqn.outvars[0]] = succeeded(eqn, of_arguments, remembered)
        return [name(atom) for atom in program.outputs]

    walk(program, given)
    return found


def _inside(variable: Any, program: Any) -> Any:
    """Return the variable of a nested program that an output is, if that program is the user's: a jitted step.

    Modules run in it, or it gives several outputs. A conditional is followed into the one branch that computes the
    output: the others give it back as it was.
    """
    outputs = [atom for atom in Program.of(program).outputs if not is_literal(atom)]
    for eqn in Program.of(program).equations:
        if variable in eqn.outvars and (known := kind(eqn)) in (Kind.CALL, Kind.COND):
            # Functions of jax.numpy are jitted too. JAX traces them once, and knows the line of that time alone.
            nested = [called(eqn)] if known is Kind.CALL else Cond.of(eqn).branches
            if sum(each in outputs for each in eqn.outvars) < 2:
                nested = [each for each in nested if any(inner.primitive.name == NAME for inner in _all(each))]
            found = [(each, Program.of(each).outputs[eqn.outvars.index(variable)]) for each in nested]
            made = [(each, atom) for each, atom in found if not is_literal(atom) and _makes(each, atom)]
            return _inside(made[0][1], made[0][0]) if len(made) == 1 else variable
    return variable


def _results_within(eqn: Any, variable: Any, run: Sequence[Any]) -> Iterator[Any]:
    """Give what the programs that an operation runs compute of one of its results; nothing of JAX's own programs."""
    known = kind(eqn)
    if known not in _OF_USERS and not (known is Kind.CALL and is_of_function(eqn)):
        return
    for program in run:
        outputs = Program.of(program).outputs
        # A turn of a loop starts from all that the turn before has computed.
        whole = known in (Kind.SCAN, Kind.WHILE) or len(outputs) != len(eqn.outvars)
        yield from outputs if whole else [outputs[eqn.outvars.index(variable)]]


_OF_USERS = (Kind.SCAN, Kind.WHILE, Kind.COND, Kind.CHECKPOINT, Kind.SHARD_MAP)
"""Operations that run functions of the user's."""


def _makes(program: Any, variable: Any) -> bool:
    return any(variable in eqn.outvars for eqn in Program.of(program).equations)


def _carries(equations: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    for loop in (Scan.of(eqn) for eqn in equations if kind(eqn) is Kind.SCAN):
        body = Program.of(loop.program)
        state = body.arguments[loop.constants : loop.constants + loop.carry]
        pairs = zip(state, body.outputs[: loop.carry], strict=True)
        yield from ((before, after) for before, after in pairs if not is_literal(after))


def _all(program: Any) -> Iterator[Any]:
    for eqn in Program.of(program).equations:
        for nested in programs(eqn):
            yield from _all(nested)
        yield eqn


def named_in(program: Any, roots: Mapping[str, str], outermost: Container[str]) -> Counter[tuple[str, str, str]]:
    """Count how often the body of a scan names each value: what it is, the path of its module and its leaf."""
    found: Counter[tuple[str, str, str]] = Counter()
    for eqn in Program.of(program).equations:
        label = Label.of(eqn.params["name"]) if eqn.primitive.name == NAME else None
        if label is not None and (path := label.place(roots, outermost)) is not None:
            found[label.what, path, label.leaf] += 1
        for nested in () if is_again(eqn) else programs(eqn):
            found += named_in(nested, roots, outermost)
    return found
