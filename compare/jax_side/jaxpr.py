"""An interpreter of traced JAX programs, with hooks for subclasses.

`Interpreter` computes what the program computes. `lift.Lifter` computes it in float64, `replay.Replayer` with torch's
random numbers, `watching.Watcher` reads named tensors. Loops, branches and checkpoints within the program are built
again around the hooks with JAX's public functions. Calls that only run a program, such as jit, are run in place.

The design is that of "Writing custom Jaxpr interpreters in JAX": an environment of values by variable, and one rule for
each operation (https://docs.jax.dev/en/latest/notebooks/Writing_custom_interpreters_in_Jax.html).
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from compare.jax_side.primitives import (
    Cond,
    Kind,
    Program,
    Scan,
    ShardMap,
    While,
    bind,
    called,
    is_literal,
    kind,
    made_where,
    typed,
)


class Interpreter:
    """Runs a traced program.

    A subclass overrides `operation` for single operations, `constant` for the numbers and arrays that the program
    contains, and `carried` for what goes from one program into another.

    It may also put values in, and take values out, at places of its own: `places` says how many of these an operation
    has, and `run` takes one value (or None) for each, in order of execution. What a subclass adds to `shown` comes
    out of scans and checkpoints as well. A scan has the places of all its iterations one after another; what its
    iterations show comes out stacked.
    """

    def __init__(self) -> None:
        self.shown: list[Any] = []
        """Values from within the program that `operation` has put here, in order of execution."""
        self.renewed: dict[Any, Any] = {}
        """What the operation that was evaluated last puts in the place of variables that it reads, for all that comes
        after it."""

    def constant(self, value: Any) -> Any:
        """Return what stands for a number or an array that the program contains."""
        return value

    def carried(self, value: Any, variable: Any) -> Any:
        """Give what stands for a value that a loop hands on or a branch gives; its type must not depend on the code."""
        del variable
        return value

    def handed_on(self, values: Sequence[Any], inside: Sequence[Any]) -> None:
        """Note that values are other arrays within a loop, a branch or a shard_map, or after it."""

    def numbered(self, loop: Scan) -> Any:
        """Give what tells the iterations of a scan apart, along a first axis; None if they need not be told apart."""
        del loop

    def iteration(self, number: Any) -> contextlib.AbstractContextManager[None]:
        """Return the context in which an iteration of a scan runs."""
        del number
        return contextlib.nullcontext()

    def branch(self, number: int, before: dict[int, Any]) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a branch is traced, which happens more than once.

        `before` is of one conditional, for a subclass to keep by number what it must know again.
        """
        del number, before
        return contextlib.nullcontext()

    def places(self, eqn: Any) -> int:
        """Count the places within one operation, itself or the programs in it, at which a value is put in."""
        del eqn
        return 0

    def operation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate one operation that runs no program; `given` has a value for each of its places."""
        del given
        return bind(eqn, args)

    def run(self, program: Any, args: Sequence[Any], given: Sequence[Any] = ()) -> list[Any]:
        """Evaluate a `ClosedJaxpr`, or a `Jaxpr` without constants, with a value for each of its places."""
        constants, variables, parameters, equations, outputs = Program.of(program)
        values: dict[Any, Any] = dict(zip(parameters, args, strict=True))
        values |= {var: self.constant(typed(value)) for var, value in zip(variables, constants, strict=True)}

        def read(atom: Any) -> Any:
            return self.constant(typed(atom.val)) if is_literal(atom) else values[atom]

        # The last operation that reads each variable. Outside of a trace, a value that is kept longer is
        # memory: a training step has an activation for every operation.
        last = {atom: number for number, eqn in enumerate(equations) for atom in eqn.invars if not is_literal(atom)}
        kept = {atom for atom in outputs if not is_literal(atom)}
        rest, renewed = iter(given), dict[Any, Any]()
        for number, eqn in enumerate(equations):
            own = list(itertools.islice(rest, self.places(eqn)))
            self.renewed = {}
            with made_where(eqn):
                found = self.equation(eqn, [read(atom) for atom in eqn.invars], own)
            renewed |= self.renewed
            values.update({**self.renewed, **dict(zip(eqn.outvars, found, strict=True))})
            for atom in {atom for atom in eqn.invars if not is_literal(atom)} - kept:
                if last[atom] == number:
                    del values[atom]  # an array that nothing reads any more
        self.renewed = {parameter: renewed[parameter] for parameter in parameters if parameter in renewed}
        return [read(atom) for atom in outputs]

    def step(self, program: Any, args: Sequence[Any], written: Sequence[Any] = ()) -> list[Any]:
        """Evaluate the program of a whole step; `written` has its arguments as the program is written."""
        del written
        return self.run(program, args)

    def equation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate one operation, and the programs that it runs."""
        return getattr(self, _METHODS[kind(eqn)])(eqn, args, given)

    def call(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Run the program of a call in place."""
        return self._in_place(eqn, args, given)

    def checkpoint(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Run the program of a checkpoint in place: nothing is differentiated any more."""
        return self._in_place(eqn, args, given)

    def _in_place(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        program = called(eqn)
        outputs = self.run(program, args, given)
        pairs = zip(eqn.invars, Program.of(program).arguments, strict=True)
        self.renewed = {
            outside: self.renewed[inside]
            for outside, inside in pairs
            if inside in self.renewed and not is_literal(outside)
        }
        return outputs

    def scan(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Rebuild a scan; each iteration has its own values for its places."""
        import jax
        import jax.numpy as jnp

        loop = Scan.of(eqn)
        split, carry = loop.constants, loop.carry
        inside = Program.of(loop.program).arguments[split : split + carry]
        fixed, start, sequences = args[:split], args[split : split + carry], args[split + carry :]
        each, order = len(given) // loop.length if loop.length else 0, -1 if loop.reverse else 1
        # Place j of the first iteration, of the second, ...: a sequence to scan over, if all of them have a value.
        # `given` is in order of execution, and lax.scan reads its sequences from the end if `reverse` is set.
        columns = [given[j::each][::order] for j in range(each)]
        stacked = [None if any(value is None for value in column) else jnp.stack(column) for column in columns]
        end: list[Any] = []

        def body(state: Any, item: Any) -> Any:
            values, own, number = item
            self.handed_on([*start, *sequences], [*state, *values])
            with self.iteration(number):
                outputs, shown = self.enclosed(loop.program, [*fixed, *state, *values], own)
            end[:] = outputs[:carry]
            # What an iteration shows is a tracer of the scan's body. As an output of the body it leaves the scan,
            # stacked.
            return self._carried(outputs[:carry], inside), (outputs[carry:], shown)

        state, (collected, shown) = jax.lax.scan(
            body,
            self._carried(start, inside),
            (sequences, stacked, self.numbered(loop)),
            loop.length,
            reverse=loop.reverse,
            unroll=loop.unroll,
        )
        self.shown += shown
        self.handed_on(end, state)
        return [*state, *collected]

    def while_loop(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Rebuild a while loop. It has no places: how often it runs is not known before."""
        import jax

        del given
        loop = While.of(eqn)
        first, second = loop.condition_constants, loop.condition_constants + loop.body_constants
        tested, fixed, start = args[:first], args[first:second], args[second:]
        inside = Program.of(loop.body).arguments[loop.body_constants :]
        end: list[Any] = []

        def proceed(state: Any) -> Any:
            self.handed_on(start, state)
            end[:] = self.unshown(loop.body, [*fixed, *state])
            # jax.lax.while_loop and jax.lax.scan require that the state has the same shape and dtype before and after
            # the body.
            return self._carried(end, inside)

        def test(state: Any) -> Any:
            return self.unshown(loop.condition, [*tested, *state])[0]

        # Nothing that the body shows can leave a while_loop, which has no outputs for each iteration.
        state = list(jax.lax.while_loop(test, proceed, self._carried(start, inside)))
        self.handed_on(end, state)
        return state

    def cond(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Rebuild a conditional, whose places are those of its branches one after another.

        Values that a branch shows are returned with zeros in place of what is shown by the branches that are not taken:
        a flag that is True in what a branch shows is False then.
        """
        import jax
        import jax.numpy as jnp

        choice, rest = Cond.of(eqn), iter(given)
        counts = [sum(map(self.places, Program.of(program).equations)) for program in choice.branches]
        own = [list(itertools.islice(rest, count)) for count in counts]
        before: dict[int, Any] = {}

        def branch(number: int, *given: Any) -> tuple[list[Any], list[Any]]:
            self.handed_on(args[1:], given)
            with self.branch(number, before):
                outputs, shown = self.enclosed(choice.branches[number], given, own[number])
            return self._carried(outputs, eqn.outvars), shown

        numbers = range(len(choice.branches))
        if choice.platforms is not None:
            named = [
                (platforms, lambda *args, number=number: branch(number, *args)[0])
                for platforms, number in zip(choice.platforms, numbers, strict=True)
            ]
            default = next((branch for platforms, branch in named if platforms is None), None)
            each = {platform: branch for platforms, branch in named for platform in platforms or ()}
            # args[0] is left out: it is the index of the platform, which jax.lax.platform_dependent determines again.
            return list(jax.lax.platform_dependent(*args[1:], default=default, **each))

        # lax.switch requires equal outputs of all branches, and each shows other values. So every branch also returns
        # zeros for what the other branches show.
        shapes = [jax.eval_shape(functools.partial(branch, number), *args[1:])[1] for number in numbers]
        empty = [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape) for shape in shapes]

        def taken(number: int, *args: Any) -> Any:
            outputs, shown = branch(number, *args)
            arrays = jax.tree.map(jnp.asarray, shown)
            return outputs, [arrays if other == number else empty[other] for other in numbers]

        outputs, shown = jax.lax.switch(args[0], [functools.partial(taken, number) for number in numbers], *args[1:])
        self.shown += [item for each in shown for item in each]
        return list(outputs)

    def shard_map(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Rebuild a shard_map. It has no places: a value for all devices is not the value on one."""
        import jax

        del given
        mapped = ShardMap.of(eqn)

        def part(*given: Any) -> tuple[Any, ...]:
            self.handed_on(args, given)
            return tuple(self.unshown(mapped.program, given))

        return list(jax.shard_map(part, **mapped.options)(*args))

    def enclosed(self, program: Any, args: Sequence[Any], given: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
        """Run a program within a transformation of JAX's; what it shows is for the transformation to bring out."""
        with self._aside() as shown:
            outputs = self.run(program, args, given)
        self.renewed = {}  # what is a variable within the transformation is none outside of it
        return outputs, shown

    def unshown(self, program: Any, args: Sequence[Any]) -> list[Any]:
        """Run a program within a transformation that brings out nothing of what it shows."""
        return self.enclosed(program, args)[0]

    @contextlib.contextmanager
    def _aside(self) -> Iterator[list[Any]]:
        before, self.shown = self.shown, []
        try:
            yield self.shown
        finally:
            self.shown = before

    def _carried(self, values: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        return [self.carried(value, variable) for value, variable in zip(values, variables, strict=True)]


_METHODS: dict[Kind | None, str] = {
    None: "operation",
    Kind.ELEMENTS: "operation",
    Kind.CALL: "call",
    Kind.CHECKPOINT: "checkpoint",
    Kind.SCAN: "scan",
    Kind.WHILE: "while_loop",
    Kind.COND: "cond",
    Kind.SHARD_MAP: "shard_map",
}
"""The method of `Interpreter` for each kind of operation."""
