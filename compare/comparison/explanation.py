"""The cause of each divergence, and both layers with their settings where a layer is the culprit."""

import dataclasses
import itertools
from functools import partial
from typing import Any

from compare import bugs
from compare.comparison.mapped_pair import MappedPair
from compare.comparison.runs import Runs
from compare.diagnosis.search import explain
from compare.jax_side.run import JaxRun
from compare.verdict.divergence import Divergence
from compare.verdict.first_difference import Found
from compare.weights.links import to_jax


def explained(runs: Runs, found: list[Found], jax: JaxRun) -> list[Divergence]:
    """Look for the cause of each divergence; the first of `found` is the first in the followed runs."""
    first, *others = found
    if others and others[0].pairing is first.pairing:
        target = others.pop(0)
        first = first._replace(target=target.target, update=target.update)
    elif first.pairing.stage == "update":
        others = [each for each in others if each.pairing.stage != "update"]
    divergences = []
    for each in (first, *others):
        doing = f"the search for the cause at {each.divergence.torch}"
        divergences.append(bugs.attempt(doing, partial(_with_cause, runs, each, jax)) or each.divergence)
    return divergences


def _with_cause(runs: Runs, found: Found, jax: JaxRun) -> Divergence:
    pair, step, run = runs.pair, found.divergence.step, runs.torch_run("float64")
    rates = [run.learning_rate]
    for _ in itertools.islice(runs.stepper.whole(run), step):
        rates.append(run.learning_rate)
    batch, draws = pair.batches[step % len(pair.batches)], runs.stepper.draws[step]
    if found.target is None:  # what comes before is the same on both sides
        jax.load(to_jax(pair.links, run.arrays(), jax.arrays()))
        found = found._replace(target=found.pairing.jax_array(jax.step(batch, draws)))
    cause, related = explain(found, run, batch, draws, _layer(pair, found), rates)
    ours, theirs = _both_layers(pair, found)
    details = (f"torch  {ours}", f"{pair.jax.name}  {theirs}") if ours and theirs else ()
    return dataclasses.replace(found.divergence, cause=cause, details=(*details, *related))


def _both_layers(pair: MappedPair, found: Found) -> tuple[str, str]:
    """Show both layers with their settings, where the culprit is a layer."""
    ports = found.pairing.ports
    if ports is None or not found.divergence.torch.startswith(ports[0].module):
        return "", ""
    module = dict(pair.torch.model.named_modules()).get(ports[0].path)
    return _described(module), _described(pair.jax_modules.get(ports[1].path))


def _described(module: Any) -> str:
    """Show a layer with those of its settings that are plain values: "LayerNorm(num_features=8, epsilon=1e-06)"."""
    if module is None:
        return ""
    if hasattr(module, "extra_repr"):  # torch's own
        return f"{type(module).__name__}({module.extra_repr()})"
    settings = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    shown = ", ".join(f"{n}={v!r}" for n, v in settings.items() if not n.startswith("_") and n != "name")
    return f"{type(module).__name__}({shown})"


def _layer(pair: MappedPair, found: Found) -> str:
    """Name the layer of the JAX side that is the culprit, as its code does: "nnx.LayerNorm"."""
    path = found.pairing.ports[1].path if found.pairing.ports else found.pairing.jax.rpartition("/")[0]
    module = pair.jax_modules.get(path)
    if module is None:
        return ""
    package = {"flax.nnx": "nnx.", "flax.linen": "nn."}
    prefix = next((short for name, short in package.items() if type(module).__module__.startswith(name)), "")
    return f"{prefix}{type(module).__name__}"
