"""One comparison of a model, its loss and its optimizer with a port: see `common_check`."""

import dataclasses
from collections.abc import Iterator, Sequence

from compare import bugs
from compare.alignment.pairings import NotCompared, Pairing
from compare.comparison.common_check import CommonCheck
from compare.comparison.from_torch import FromTorch
from compare.comparison.lines import lines_of
from compare.comparison.model_causes import Causes, explained
from compare.comparison.model_independent import Independent, independent
from compare.comparison.model_pair import ModelPair
from compare.comparison.model_questions import ModelQuestions
from compare.comparison.model_runs import ModelRuns
from compare.comparison.precision import named_algorithm, precision_causes
from compare.comparison.readings import without, without_formula
from compare.jax_side.draws_made import draws_of_torch_alone, idle_draws
from compare.jax_side.run import JaxRun
from compare.report.progress import Progress
from compare.report.report import Report
from compare.step.stage import Stage
from compare.torch_side.idle_draws import change_nothing
from compare.verdict.divergence import Cause, Detail, DetailKind, Divergence, Line
from compare.verdict.first_difference import Found, first_divergence
from compare.verdict.following import Followed


class ModelCheck(CommonCheck):
    """One comparison of models."""

    runs: ModelRuns
    pair: ModelPair
    jax: JaxRun
    searches_what_draws_otherwise = True
    """A layer that the port lacks, such as a dropout, is a cause: torch's draws are replayed when it is tried."""
    starts, questions = ModelRuns, ModelQuestions

    def _follow(self) -> Followed:
        if self.runs.in_pairs:  # what compiling takes is not needed at the same time as what a step takes
            self.progress(Progress("compiling", 0, self.steps))
            self.jax.compile(self.pair.batches[0], self.pair.probed)
        return super()._follow()

    def lines(self, pairing: Pairing) -> Iterator[Line]:
        """Give the lines of the user's code that compute something of both sides."""
        return lines_of(self.pair, pairing)

    def _named_algorithm(self, followed: Followed) -> bool:
        pairs = zip(followed.pairings, followed.quantities, strict=True)
        found = next(((p, q) for p, q in pairs if p.ports and q.decides and q.other32.any()), None)
        if found is None or named_algorithm(self.runs, *found) is None:
            return False
        for quantity in followed.quantities:
            quantity.spread32.clear()
        return True

    def _idle_draws(self) -> list[NotCompared]:
        batch, draws = self.pair.batches[0], self.runs.stepper.draws[0]
        sites = idle_draws(self.pair.jax_run("float32"), [(batch, draws)])
        if sites is None:
            return []
        alone = draws_of_torch_alone(self.pair.jax_run("float32"), batch, draws)
        if alone and not change_nothing(lambda: self.pair.torch_run("float32"), batch, draws, alone):
            return []
        idle = "a draw without effect, which {} does not make"
        places = [", ".join(filter(None, (str(site), site.place))) for site in sites]
        return [
            *(NotCompared("jax", place, idle.format("torch")) for place in places),
            *(NotCompared("torch", str(draws[number]), idle.format("the JAX side")) for number in alone),
        ]

    def _causes(self, followed: Followed, found: Report) -> tuple[Divergence | None, list[Divergence], list[Cause]]:
        if first := first_divergence(followed):
            self.progress(Progress("looking for independent differences", found=lambda: found))
            causes, doubtful = self._explained_from(followed, first, found)
            if doubtful:
                causes = self._of_other_outputs(causes, self._explained_from(followed, first, found, doubtful)[0])
            divergence, *others = causes.divergences
            if causes.rounding and divergence.cause and not others:
                return None, [], [divergence.cause]
            return divergence, others, []
        if found.nondeterministic:
            return None, [], []
        self.progress(Progress("looking for what rounds more on one side", found=lambda: found))
        doing = "looking for what rounds more on one side"
        return None, [], bugs.attempt(doing, lambda: precision_causes(self.runs, followed)) or []

    def _of_other_outputs(self, of_torchs: Causes, of_own: Causes) -> Causes:
        """Choose between causes for a loss of torch's outputs, and for one of the port's own, such as logits.

        The loss is wrong of either. If the outputs and the loss each have a cause, both have a fault. Else what
        explains the loss of the port's own outputs says more: torch's may have no meaning to it.
        """
        of_both = [each for each in of_torchs.divergences if each.stage in (Stage.FORWARD, Stage.LOSS)]
        if all(each.cause for each in of_both):
            return of_torchs
        explained = any(each.stage == Stage.LOSS and each.cause for each in of_own.divergences)
        return of_own if explained else of_own._replace(divergences=[*map(_in_doubt, of_own.divergences)])

    def _explained_from(
        self, followed: Followed, first: Found, found: Report, made_up_for: Sequence[Pairing] = ()
    ) -> tuple[Causes, Sequence[Pairing]]:
        """Explain what differs, and give the outputs that the JAX side's loss may make up for, besides these."""
        doing, from_torch = "looking for independent differences", FromTorch(self.runs, followed)
        alone = bugs.attempt(doing, lambda: independent(self.runs, followed, from_torch, made_up_for))
        if alone is not None:
            own = [each for each in alone.found if not each.follows]
            first = first_divergence(without(followed, alone.made_up_for), own) or first
            # What the model gives after other updates follows from these, where it is right from torch's weights.
            follows = first.pairing.stage in (Stage.FORWARD, Stage.LOSS) and first.divergence.step > 0
            if follows and own and not any(each.pairing is first.pairing for each in own):
                first = min(own, key=lambda each: (each.divergence.step, each.divergence.number))
        self.progress(Progress(f"looking for the cause at {first.divergence.torch}", found=lambda: found))
        alone = alone or Independent()
        causes = explained(self.runs, followed, first, alone, self.jax, from_torch, self.budget())
        if alone.made_up_for:
            causes = causes._replace(divergences=[*map(without_formula, causes.divergences)])
        return causes, alone.may_be_made_up_for


def _in_doubt(found: Divergence) -> Divergence:
    """Say of a loss that nothing explains that the model's output differs too."""
    if found.stage != Stage.LOSS or found.cause is not None:
        return found
    says = "what the model gives differs too: the loss may make up for it, as one that takes logits does"
    return dataclasses.replace(found, details=(*found.details, Detail(DetailKind.UNDECIDED, says)))
