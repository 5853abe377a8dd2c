"""The faults of the programs, where each must be named and what must be said of it."""

from typing import Any, NamedTuple

from programs import adversarial, averages, ensembles, larger, loops, perturbed, plain


class Fault(NamedTuple):
    """One fault of a port."""

    program: Any
    name: str
    stage: str
    """Where the first difference must be named: the stage."""
    place: str
    """And the beginning of the path on the torch side; "" where the stage says all."""
    cause: str = ""
    """A word of the cause's name; "" where the place alone is known."""


PROGRAMS = (
    averages.ema,
    averages.accumulation,
    averages.warm_up,
    averages.temperature,
    adversarial.gan,
    adversarial.penalty,
    adversarial.actor_critic,
    adversarial.wasserstein,
    ensembles.equinox_step,
    ensembles.haiku_state,
    ensembles.queue,
    ensembles.devices,
    plain.spikes,
    plain.twins,
    plain.clipped_in_chain,
    plain.epochs,
    loops.closure,
    loops.scaler,
    loops.pmapped,
    larger.dcgan,
    larger.decoder,
    larger.single_examples,
    perturbed.sharpness,
    perturbed.frozen_part,
    perturbed.memory,
)

FAULTS = (
    Fault(averages.ema, "schedule every three steps", "update", "model", "schedule"),
    Fault(averages.ema, "schedule one step ahead", "update", "model", "schedule"),
    Fault(averages.ema, "decay", "state", "average", "decay"),
    Fault(averages.ema, "average before the update", "state", "average", "before the update"),
    Fault(averages.ema, "no clipping", "update", "model", "clipping"),
    Fault(averages.ema, "buffers not averaged", "state", "average.norm", "not updated"),
    Fault(averages.accumulation, "each clipped", "gradient", "model", "clipping of each"),
    Fault(averages.accumulation, "last only", "gradient", "model", "last micro-batch"),
    Fault(averages.accumulation, "summed", "gradient", "model", "scale"),
    Fault(averages.warm_up, "per step", "update", "model", "schedule"),
    Fault(averages.warm_up, "no mask", "update", "model", "groups"),
    Fault(averages.warm_up, "two updates", "update", "model"),  # the schedule goes on twice as fast as well
    Fault(averages.temperature, "target entropy", "gradient", "log_alpha", "constant"),
    Fault(averages.temperature, "not exponentiated", "gradient", "log_alpha", "operation left out"),
    Fault(averages.temperature, "never updated", "update", "log_alpha", "update left out"),
    Fault(adversarial.gan, "momentum", "update", "discriminator", "moment"),
    Fault(adversarial.gan, "smoothed", "loss", "", "operation added"),
    Fault(adversarial.gan, "minimax", "shown", "generator_loss", "activation"),
    Fault(adversarial.gan, "generator first", "shown", "generator_loss", "order of updates"),
    Fault(adversarial.penalty, "eps inside the root", "update", "critic", "eps"),
    Fault(adversarial.penalty, "penalty detached", "gradient", "critic", "second derivative"),
    # The norm is below 1 at all steps, so that the penalty is zero.
    Fault(adversarial.penalty, "one-sided", "loss", "", "operation left out"),
    Fault(adversarial.penalty, "weight", "loss", "", "left out"),
    Fault(adversarial.wasserstein, "a turn too few", "loss", ""),
    Fault(adversarial.wasserstein, "not clamped", "forward", "critic.fc1", "operation left out"),
    Fault(adversarial.actor_critic, "tau", "state", "target_actor", "decay"),
    Fault(adversarial.actor_critic, "maximum", "loss", "", "another operation"),
    Fault(adversarial.actor_critic, "critics' targets left", "state", "target_first", "not updated"),
    Fault(adversarial.actor_critic, "actor every step", "update", "actor", "other steps"),
    Fault(ensembles.equinox_step, "copied too often", "state", "target", "other steps"),
    Fault(ensembles.equinox_step, "huber delta", "loss", ""),
    Fault(ensembles.equinox_step, "target follows", "state", "target", "other steps"),
    Fault(ensembles.haiku_state, "momentum of the mean", "buffers", "model.mean", "share"),
    Fault(ensembles.haiku_state, "state not set", "buffers", "model.mean", "not updated"),
    Fault(ensembles.haiku_state, "no nesterov", "update", "model", "Nesterov"),
    Fault(ensembles.queue, "followed afterwards", "state", "slow", "after the update"),
    Fault(ensembles.queue, "queue's other end", "state", "queue", "not updated"),
    Fault(ensembles.queue, "queue kept", "state", "queue", "not updated"),
    Fault(ensembles.devices, "summed over devices", "gradient", "model", "scale"),
    Fault(plain.spikes, "never skipped", "update", "model", "other steps"),
    Fault(plain.twins, "no target", "loss", "", "another model"),
    Fault(plain.clipped_in_chain, "no 1e-6", "update", "model", "clipping"),
    Fault(plain.clipped_in_chain, "bound", "update", "model", "clipping"),
    Fault(plain.clipped_in_chain, "rate", "update", "model", "learning rate"),
    Fault(
        plain.epochs, "second target", "loss", "", "operation added"
    ),  # and no word of clipping, which is in the chain
    Fault(loops.closure, "second moment", "update", "model", "second moment"),
    Fault(loops.scaler, "no hook", "gradient", "model.fc1.weight", "scale"),
    Fault(loops.pmapped, "summed over devices", "gradient", "model", "scale"),
    Fault(plain.twins, "every step", "update", "second", "other steps"),
    Fault(larger.dcgan, "second forward pass", "buffers", "generator.norm", "twice"),
    Fault(larger.dcgan, "evaluation mode", "forward", "between discriminator", "mode"),
    Fault(larger.dcgan, "real alone", "gradient", "discriminator", "first micro-batch"),
    Fault(larger.dcgan, "generator never updated", "update", "generator", "update left out"),
    Fault(larger.decoder, "decays to zero", "update", "model", "schedule"),
    Fault(larger.decoder, "decay for all", "update", "model", "groups"),
    Fault(larger.decoder, "second moment", "update", "model", "second moment"),
    Fault(larger.decoder, "each clipped", "gradient", "model", "clipping of each"),
    Fault(larger.decoder, "summed", "gradient", "model", "scale"),
    Fault(larger.decoder, "optax's clipping", "gradient", "model", "1e-6"),
    Fault(larger.decoder, "no clipping", "update", "model", "clipping"),
    Fault(larger.single_examples, "mean clipped", "gradient", "model"),
    Fault(larger.single_examples, "summed", "gradient", "model", "scale"),
    Fault(perturbed.sharpness, "radius", "forward", "model.fc1", "constant"),
    Fault(perturbed.sharpness, "not normalized", "forward", "model.fc1", "left out"),
    Fault(perturbed.sharpness, "descends", "forward", "model.fc1", "another operation"),
    Fault(perturbed.sharpness, "one pass", "gradient", "model", "backward pass"),
    Fault(perturbed.frozen_part, "not frozen", "state", "model.fc1", "JAX side alone"),
    Fault(perturbed.frozen_part, "decays", "state", "model.fc1", "JAX side alone"),
    Fault(perturbed.memory, "pointer kept", "state", "pointer"),
)
