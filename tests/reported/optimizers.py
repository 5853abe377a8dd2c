"""Reports about optimizers, schedules, clipping, accumulation and averages of weights."""

import copy
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx
from programs.common import clip_as_torch

import compare
from reported.common import FlaxMLP, Report, TorchMLP, mse, normal

DATA = ((9, 6), (9, 2))


def clipping(made: torch.optim.Optimizer, params: list[Any], most: float) -> torch.optim.Optimizer:
    """Clip before each step, as a training loop does."""

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(params, most)

    made.register_step_pre_hook(clip)
    return made


def trained(optimizer: Any, tx: optax.GradientTransformation) -> Any:
    return compare.Torch(TorchMLP(), mse, optimizer), compare.Flax(FlaxMLP(), mse, tx), normal(*DATA)


def cosine(*, wrong: bool) -> Any:
    """The last step of a cosine is the last step of training in torch, and one step after it in optax."""
    total, peak = 9, 4e-3

    def factor(step: int) -> float:
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / (total - 1)))

    def optimizer(params: Any) -> Any:
        made = torch.optim.Adam(params, peak, betas=(0.8, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(made, factor)
        made.register_step_post_hook(lambda *_: schedule.step())
        return made

    ported = optax.cosine_decay_schedule(peak, total, alpha=0.1)
    right = optax.cosine_decay_schedule(peak, total - 1, alpha=0.1)
    return trained(optimizer, optax.adam(ported if wrong else right, b1=0.8, b2=0.99))


def clip_epsilon(*, wrong: bool) -> Any:
    """torch divides by the norm and 1e-6, optax by the norm, and every step is clipped hard."""
    most = 0.01

    def clip(updates: Any, state: Any, params: Any = None) -> Any:
        return clip_as_torch(updates, most), state

    def optimizer(params: Any) -> Any:
        params = list(params)
        return clipping(torch.optim.AdamW(params, 2e-3, weight_decay=0.0), params, most)

    as_torch = optax.GradientTransformation(lambda params: optax.EmptyState(), clip)
    return trained(optimizer, optax.chain(optax.clip_by_global_norm(most) if wrong else as_torch, optax.adam(2e-3)))


def epsilon_hat(*, wrong: bool) -> Any:
    """Adam as TensorFlow computes it: the bias correction is in the step size, and epsilon is not corrected."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        count, mu, nu = state
        count = count + 1
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mu, updates)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, nu, updates)
        size = jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        return jax.tree.map(lambda m, v: size * m / (jnp.sqrt(v) + 1e-5), mu, nu), (count, mu, nu)

    def start(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), zeros, zeros

    as_tensorflow = optax.chain(optax.GradientTransformation(start, update), optax.scale(-3e-4))
    ported = as_tensorflow if wrong else optax.adam(3e-4, eps=1e-5)
    return trained(lambda params: torch.optim.Adam(params, 3e-4, eps=1e-5), ported)


def clipped_updates(*, wrong: bool) -> Any:
    """What is clipped is what the optimizer gives, and not what it takes."""

    def optimizer(params: Any) -> Any:
        params = list(params)
        return clipping(torch.optim.AdamW(params, 1e-3, weight_decay=0.05), params, 0.2)

    def clip(updates: Any, state: Any, params: Any = None) -> Any:
        return clip_as_torch(updates, 0.2), state

    clipped = optax.GradientTransformation(lambda params: optax.EmptyState(), clip)
    adamw = optax.adamw(1e-3, weight_decay=0.05)
    return trained(optimizer, optax.chain(adamw, clipped) if wrong else optax.chain(clipped, adamw))


def apply_every(*, wrong: bool) -> Any:
    """Accumulation by `optax.apply_every` before Adam, which then makes steps of zero gradients in between."""

    def original() -> Any:
        model = TorchMLP()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        taken = 0

        def step(state: Any, batch: Any) -> Any:
            nonlocal taken
            loss = torch.nn.functional.mse_loss(model(batch[0]), batch[1])
            (loss / 2).backward()
            taken += 1
            if taken % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxMLP()
        every = optax.chain(optax.scale(0.5), optax.apply_every(2), optax.adam(2e-3))
        tx = every if wrong else optax.MultiSteps(optax.adam(2e-3), 2).gradient_transformation()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda m: mse(m(batch[0]), batch[1]))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return compare.TorchProgram(original), compare.JaxProgram(port), normal(*DATA)


def debiased_average(*, wrong: bool) -> Any:
    """An average of the weights that starts at zero and is debiased, where torch's starts at the weights."""

    def original() -> Any:
        model = TorchMLP()
        average = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

        def step(state: Any, batch: Any) -> Any:
            loss = torch.nn.functional.mse_loss(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                    kept.copy_(0.98 * kept + 0.02 * new)
            return {"loss": loss}

        return {"model": model, "average": average, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxMLP()
        optimizer = nnx.Optimizer(model, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)
        ema = optax.ema(0.98)
        state = {"model": model, "average": nnx.clone(model), "optimizer": optimizer}
        if wrong:
            state["ema"] = ema.init(nnx.state(model, nnx.Param))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda m: mse(m(batch[0]), batch[1]))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            new = nnx.state(state["model"], nnx.Param)
            if wrong:
                shown, state["ema"] = ema.update(new, state["ema"])
            else:
                old = nnx.state(state["average"], nnx.Param)
                shown = optax.incremental_update(new, old, 0.02)
            nnx.update(state["average"], shown)
            return state, {"loss": loss}

        return state, step

    return compare.TorchProgram(original), compare.JaxProgram(port), normal(*DATA)


OPTIMIZERS = (
    Report("cosine", "goodfire-ai/spd#642", cosine, "update", words="schedule", steps=8),
    Report("clip epsilon", "goodfire-ai/spd#643", clip_epsilon, "update", words="clip"),
    Report("epsilon hat", "google-deepmind/optax#571", epsilon_hat, "update", words="before the bias correction"),
    Report("clipped updates", "sanchit-gandhi/seq2seq-speech#7", clipped_updates, "update", words="clip"),
    Report("apply_every", "borisdayma/dalle-mini#122", apply_every, "update", "model", steps=6),
    Report(
        "debiased average",
        "huggingface/pytorch-image-models#1182",
        debiased_average,
        "state",
        "average",
        "average's decay",
    ),
)
