"""One parameter of the JAX side for two of torch's, such as the two biases of a recurrent cell."""

from collections.abc import Iterator, Sequence

from compare.diagnosis.optimizers.calls import Call, Code
from compare.diagnosis.optimizers.evidence import Evidence
from compare.diagnosis.optimizers.hypothesis import Hypothesis, Numbers
from compare.diagnosis.optimizers.masks import doubled_parts, mask_of
from compare.diagnosis.optimizers.names import COMBINING, function_of
from compare.diagnosis.optimizers.told import Told
from compare.diagnosis.optimizers.trial import Trial


def halved_sums(evidence: Evidence) -> Iterator[Hypothesis]:
    """Let a JAX parameter that is the sum of two torch parameters make the update of one.

    Torch's two biases of an LSTM or a GRU get the same gradient and each makes a step: their sum moves twice as far.
    """
    results = [r for step in evidence.steps for r in step.results if r.pairing.last and not r.is_state]
    if not any(result.differs for result in results):
        return

    def change(trial: Trial, _: Numbers) -> None:
        trial.one_of_two = True

    def tell(evidence: Evidence, _: Numbers) -> Told:
        # d(b1 + b2) = db1 + db2: under the same gradient, Adam moves each bias by the same step.
        names = list(dict.fromkeys(result.pairing.jax for result in results))
        every = dict.fromkeys(r.pairing.jax for r in evidence.steps[0].results if not r.is_state)
        optimizer = Code(f"{function_of(evidence.kind)}(...)")
        chain = Call("optax.chain", (optimizer, *doubled(names, list(every))))
        decays = any(group.get("weight_decay") for group in evidence.steps[0].groups)
        return Told(
            "two biases",
            "torch has two biases for each bias of the JAX side "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); both are updated, so their sum "
            "moves twice as far as the one bias",
            fix="give the port both biases: with weight decay, one bias cannot make the update of two"
            if decays
            else chain,
            source=COMBINING,
        )

    yield Hypothesis("two biases", change, tell)


def doubled(names: Sequence[str], every: Sequence[str]) -> list[Call]:
    """Return the transformations that double the updates of some parameters, or of parts of them.

    Args:
        names: What is doubled: "rnn/bias", or "cell/bias[0:3]" for a part.
        every: All that is updated, in the same parts.

    """
    parts: dict[str, list[str]] = {}
    for name in names:
        array, _, index = name.partition("[")
        parts.setdefault(array, []).append(index.removesuffix("]"))
    # In a GRU's last gate the two biases are two parameters on either side: of its array the other gates alone are
    # doubled, and a mask of whole arrays would double that one too.
    left = {name.partition("[")[0] for name in every if name not in names}
    whole = [array for array in parts if array not in left]
    calls = [Call("optax.masked", (Call("optax.scale", (2.0,)), Code(mask_of(whole, every))))] if whole else []
    by_parts: dict[tuple[str, ...], list[str]] = {}
    for array in parts.keys() & left:
        by_parts.setdefault(tuple(parts[array]), []).append(array)
    for some, arrays in by_parts.items():
        calls.append(Call("optax.stateless", (Code(doubled_parts(some, sorted(arrays), every)),)))
    return calls
