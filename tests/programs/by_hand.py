"""How a person puts printed fixes into ports where the report has no patch: the printed expression, or what it says."""

import ast
from typing import NamedTuple

Changes = tuple[tuple[str, str], ...]


def printed(fix: str) -> str:
    """Give the expression at the beginning of a fix; words may follow it."""
    ends = [number + 1 for number, character in enumerate(fix) if character == ")"]
    found = next(fix[:end] for end in reversed(ends) if _is_code(fix[:end]))
    return found.partition(";")[0].removeprefix("gradients = ")


def _is_code(text: str) -> bool:
    try:
        return bool(ast.parse(text))
    except SyntaxError:
        return False


class ByHand(NamedTuple):
    """What one printed fix changes in a port, as `written` has it."""

    says: str
    """What the fix says, in part."""
    changes: Changes
    """Text and what takes its place, in which "{fix}" is the printed expression."""


SUMMED_ONCE = "add up the gradients of the micro-batches first, and clip the total"
ADDED_UP = "total = jax.tree.map(jnp.add, total, gradients)"
GENERATOR_UPDATE = "state['generator_optimizer'].update(generator, gradients)"
UPDATE = "state['optimizer'].update(state['model'], total)"
AT_STEPS = "with a count of the steps from 0, to copy it at the same steps"
COPIED = "lambda new, old: jnp.where(count % every == 0, new, old)"
AT_COUNT = "(lambda new, old, count: {fix})(model, state['target'], state['count'])"
NOT_UPDATED = "update it as torch does, and return its new value with the state, as nnx.merge or has_aux=True does"

BY_HAND: dict[str, ByHand] = {
    "ema: average before the update": ByHand(
        "after the optimizer's update",
        (
            ("            update_average()\n            loss", "            loss"),
            ("update(model, gradients)\n", "update(model, gradients)\n            update_average()\n"),
        ),
    ),
    "ema: buffers not averaged": ByHand(
        "copy model to average in each step",
        (
            (
                "            update_average()\n",
                "            update_average()\n            nnx.update(average, nnx.state(model, nnx.BatchStat))\n",
            ),
        ),
    ),
    "temperature: not exponentiated": ByHand(
        "apply exp to log_alpha", (("scale = log_alpha\n", "scale = jnp.exp(log_alpha)\n"),)
    ),
    "accumulation: each clipped": ByHand(
        SUMMED_ONCE,
        (
            ("                gradients = clip_as_torch(gradients, 0.3)\n", ""),
            (UPDATE, "state['optimizer'].update(state['model'], clip_as_torch(total, 0.3))"),
        ),
    ),
    "accumulation: summed": ByHand(
        "with parts = 4 for these batches, before they are clipped",
        (
            (
                "clip_as_torch(total, 0.3)",
                "(lambda gradients, parts: clip_as_torch({fix}, 0.3))(total, len(batch['x']))",
            ),
        ),
    ),
    "decoder: each clipped": ByHand(
        SUMMED_ONCE,
        (
            ("                gradients = clip_as_torch(gradients, 0.5)\n", ""),
            (UPDATE, "state['optimizer'].update(state['model'], clip_as_torch(total, 0.5))"),
        ),
    ),
    "decoder: summed": ByHand(
        "with parts = 3 for these batches, before they are clipped",
        (
            (
                "clip_as_torch(total, 0.5)",
                "(lambda gradients, parts: clip_as_torch({fix}, 0.5))(total, len(batch['tokens']))",
            ),
        ),
    ),
    "decoder: optax's clipping": ByHand(
        "",
        (
            (
                "total, _ = optax.clip_by_global_norm(0.5).update(total, optax.EmptyState())",
                "total = (lambda gradients: {fix})(total)",
            ),
        ),
    ),
    "warm_up: no mask": ByHand(
        "optax.multi_transform",
        (
            (
                "optax.adamw(rate, weight_decay=0.2, mask=mask)",
                "{fix}",
            ),
            ("optax.adamw(...,", "optax.adamw(rate,"),
        ),
    ),
    "decoder: decay for all": ByHand(
        "optax.multi_transform",
        (
            (
                "optax.adamw(rate, b2=b2, weight_decay=0.1, mask=mask)",
                "{fix}",
            ),
            ("optax.adamw(...,", "optax.adamw(rate, b2=b2,"),
        ),
    ),
    "temperature: never updated": ByHand(
        "params = optax.apply_updates(params, updates)",
        (("new = state['log_alpha']", "new = optax.apply_updates(state['log_alpha'], updates)"),),
    ),
    "gan: minimax": ByHand(
        "jax.nn.softplus(x)", (("-jnp.mean(jax.nn.softplus(logits))", "jnp.mean((lambda x: {fix})(-logits))"),)
    ),
    "gan: generator first": ByHand(
        "update discriminator_optimizer first, and compute the other gradients with the updated weights",
        (
            ("            g_loss = generator_update()\n", ""),
            (
                "update(discriminator, gradients)\n",
                "update(discriminator, gradients)\n            g_loss = generator_update()\n",
            ),
        ),
    ),
    "penalty: penalty detached": ByHand(
        "leave out jax.lax.stop_gradient around that gradient",
        (("                slope = jax.lax.stop_gradient(slope)\n", ""),),
    ),
    "penalty: weight": ByHand("as torch does", (("weight = 1.0", "weight = 10.0"),)),
    "penalty: one-sided": ByHand(
        "take the sum of the output of sub", (("jnp.maximum(norm - 1, 0) ** 2", "(norm - 1) ** 2"),)
    ),
    "epochs: second target": ByHand(
        "leave out sin", (("jnp.sin(batch['y']) if name == 'x2' else batch['y']", "batch['y']"),)
    ),
    "actor_critic: maximum": ByHand(
        "compute the minimum of them, as torch does", (("jnp.maximum(*", "jnp.minimum(*"),)
    ),
    "actor_critic: critics' targets left": ByHand(
        "at the same steps as torch",
        (("                    if name != 'actor':\n                        continue\n", ""),),
    ),
    "actor_critic: actor every step": ByHand(
        "of actor and what its optimizer remembers",
        (
            (
                "            train_actor(state)\n",
                "            nnx.cond(state['count'] % 2 == 0, train_actor, lambda state: None, state)\n",
            ),
        ),
    ),
    "equinox_step: copied too often": ByHand(
        AT_STEPS, ((f"jax.tree.map({COPIED}, model, state['target'])", AT_COUNT),)
    ),
    "equinox_step: target follows": ByHand(AT_STEPS, (("target = model\n", f"target = {AT_COUNT}\n"),)),
    "haiku_state: momentum of the mean": ByHand(
        "take 2 times as much of the new value in each step", (("keep = 0.9", "keep = 0.8"),)
    ),
    "haiku_state: state not set": ByHand(
        NOT_UPDATED, (("hk.set_state('mean', mean)", "hk.set_state('mean', keep * mean + (1 - keep) * x.mean(0))"),)
    ),
    "queue: queue's other end": ByHand(
        NOT_UPDATED, (("both = [state['queue'], keys]", "both = [keys, state['queue']]"),)
    ),
    "queue: queue kept": ByHand(NOT_UPDATED, (("new = state['queue']", "new = jnp.concatenate(both)[:18]"),)),
    "queue: followed afterwards": ByHand(
        "before the optimizer's update",
        (
            ("            follow()\n            both", "            both"),
            ("            keys = jax", "            follow()\n            keys = jax"),
        ),
    ),
    "twins: no target": ByHand("call second_target", (("state['second'].params", "state['second'].target_params"),)),
    "closure: second moment": ByHand("", (("optax.adam(0.01, b2=0.99)", "{fix}"), ("adam(...,", "adam(0.01,"))),
    "scaler: no hook": ByHand(
        "multiply the gradients of model.fc1.weight by 0.5 on the JAX side",
        (("        return gradients\n        gradients", "        gradients"),),
    ),
    "pmapped: summed over devices": ByHand(
        "", (("tx.update(gradients, ", "tx.update({fix}, "), ("'model': gradients}", "'model': {fix}}"))
    ),
    "dcgan: second forward pass": ByHand(
        "drop those of the other",
        (("            generator(batch['z'])\n            real", "            real"),),
    ),
    "dcgan: evaluation mode": ByHand("as model.train() does", (("        generator.eval()\n", ""),)),
    "dcgan: real alone": ByHand(ADDED_UP, (("total = gradients", "total = jax.tree.map(jnp.add, gradients, more)"),)),
    "dcgan: generator never updated": ByHand(
        "apply the updates of generator_optimizer: params = optax.apply_updates(params, updates)",
        (
            (
                "            return (state, {'loss': real + made",
                f"            {GENERATOR_UPDATE}\n            return (state, {{'loss': real + made",
            ),
        ),
    ),
    "clipped_in_chain: no 1e-6": ByHand(
        "divides by the norm without 1e-6",
        (("optax.chain(clip, optax.adam(0.01))", "{fix}"), ("adam(...)", "adam(0.01)")),
    ),
    "single_examples: summed": ByHand(
        "with parts = 5 for these batches",
        ((UPDATE, UPDATE.replace("total", "(lambda gradients, parts: {fix})(total, len(batch['x']))")),),
    ),
    "decoder: decays to zero": ByHand("from count 0 on", (("floor = 0.0", "floor = least"),)),
}
"""By the names of a program and of its fault."""
