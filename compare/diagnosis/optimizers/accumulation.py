"""Several batches for one update: `optax.MultiSteps` and `optax.apply_every`."""

from collections.abc import Iterator

from compare.diagnosis.optimizers.evidence import Evidence
from compare.diagnosis.optimizers.hypothesis import Hypothesis, Numbers
from compare.diagnosis.optimizers.names import COMBINING, OPTAX
from compare.diagnosis.optimizers.told import Told
from compare.diagnosis.optimizers.trial import Trial

MOST = 8
"""Batches for one update that are looked for."""


def accumulations(evidence: Evidence) -> Iterator[Hypothesis]:
    """Let an update come at every second, third or later step, from the gradients of the steps since the last."""
    steps = evidence.steps
    if [step.number for step in steps] != list(range(len(steps))):
        return  # not all steps were kept
    for every in range(2, min(MOST, len(steps)) + 1):
        for mean in (True, False):
            yield _accumulation(evidence, every, mean)


def _accumulation(evidence: Evidence, every: int, mean: bool) -> Hypothesis:
    def change(trial: Trial, _: Numbers) -> None:
        number = trial.step.number
        # optax.MultiSteps updates after every k-th gradient, with the mean of k; apply_every with their sum.
        if (number + 1) % every:
            trial.silent = True
            return
        # Each side's gradients are those at the same parameters, as every step starts from torch's: between
        # two updates the JAX side's own parameters would have stayed where they were.
        window = [step.given for step in evidence.steps[number + 1 - every : number + 1]]
        for name, last in trial.step.given.items():
            parts = [gradients[name] for gradients in window]
            known = [part for part in parts if part is not None]
            total = None if last is None else sum(known[1:], known[0])
            trial.gradients[name] = total / every if total is not None and mean else total

    def tell(evidence: Evidence, _: Numbers) -> Told:
        of = "mean" if mean else "sum"
        optimizer = OPTAX.get(evidence.kind, "the optimizer")
        return Told(
            "accumulation",
            f"the JAX side makes an update at every {every} steps only, from the {of} of their gradients, and torch at "
            "every step",
            fix=f"{optimizer}(...) without optax.MultiSteps or optax.apply_every, or accumulate in torch as well",
            source=COMBINING,
        )

    return Hypothesis(f"accumulation of {every}, {mean}", change, tell, place="gradient", alone=True)
