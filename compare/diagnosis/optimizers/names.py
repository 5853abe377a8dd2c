"""What optax calls an optimizer of torch and its settings, and the calls that mend a setting."""

from collections.abc import Mapping
from typing import Any

from compare.diagnosis.optimizers.calls import ELLIPSIS, Call

OPTAX = {
    "SGD": "optax.sgd",
    "Adam": "optax.adam",
    "AdamW": "optax.adamw",
    "NAdam": "optax.nadam",
    "RAdam": "optax.radam",
    "Adamax": "optax.adamax",
    "Adagrad": "optax.adagrad",
    "Adadelta": "optax.adadelta",
    "RMSprop": "optax.rmsprop",
    "Rprop": "optax.rprop",
    "Adafactor": "optax.adafactor",
    "Muon": "optax.contrib.muon",
}
"""What optax calls each optimizer of `torch.optim`."""

NAMES = {
    "lr": "learning rate",
    "betas[0]": "first moment's decay",
    "betas[1]": "second moment's decay",
    "eps": "epsilon",
    "weight_decay": "weight decay",
    "momentum": "momentum",
    "alpha": "decay",
    "rho": "decay",
    "initial_accumulator_value": "initial accumulator",
    "nesterov": "Nesterov momentum",
    "centered": "centring",
    "decoupled_weight_decay": "decoupled weight decay",
    "maximize": "ascent",
}
"""What settings of torch are called in words. Others keep their names."""

_ADAM = {"lr": "learning_rate", "betas[0]": "b1", "betas[1]": "b2", "eps": "eps"}

ARGUMENTS: dict[str, dict[str, str]] = {
    "SGD": {"lr": "learning_rate", "momentum": "momentum", "nesterov": "nesterov"},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "NAdam": _ADAM,
    "RAdam": _ADAM,
    "Adamax": _ADAM,
    "Adagrad": {"lr": "learning_rate", "initial_accumulator_value": "initial_accumulator_value"},
    "Adadelta": {"lr": "learning_rate", "rho": "rho", "eps": "eps"},
    "RMSprop": {
        "lr": "learning_rate",
        "alpha": "decay",
        "eps": "eps",
        "momentum": "momentum",
        "centered": "centered",
    },
    "Rprop": {
        "lr": "learning_rate",
        "etas[0]": "eta_minus",
        "etas[1]": "eta_plus",
        "step_sizes[0]": "min_step_size",
        "step_sizes[1]": "max_step_size",
    },
    "Adafactor": {"lr": "learning_rate", "d": "clipping_threshold"},
    "Muon": {
        "lr": "learning_rate",
        "momentum": "beta",
        "eps": "eps",
        "ns_steps": "ns_steps",
        "nesterov": "nesterov",
        "weight_decay": "weight_decay",
    },
}
"""For each optimizer, the settings of torch that are one argument of optax's function, and its name."""

DECOUPLED = {"AdamW": "optax.adamw", "Adam": "optax.adamw", "NAdam": "optax.nadamw"}
"""The functions of optax whose weight decay is decoupled from the gradient."""

OPTIMIZERS = "https://optax.readthedocs.io/en/latest/api/optimizers.html"

TRANSFORMATIONS = "https://optax.readthedocs.io/en/latest/api/transformations.html"

COMBINING = "https://optax.readthedocs.io/en/latest/api/combining_optimizers.html"


def in_words(setting: str) -> str:
    """Name a setting of torch for a person."""
    return NAMES.get(setting, setting.replace("_", " "))


def optimizer_call(kind: str, arguments: Mapping[str, Any] | None = None) -> Call:
    """Write optax's call for an optimizer of torch, with some arguments spelled out."""
    return Call(function_of(kind), (ELLIPSIS,), arguments or {})


def function_of(kind: str) -> str:
    """Name optax's function; for a class that optax lacks, a word for the optimizer that the port has in its place."""
    return OPTAX.get(kind, "optimizer")


def named(kind: str) -> str:
    """Name an optimizer's class: "torch.optim.Adam", and a class of the user's own by its name alone."""
    import torch

    return f"torch.optim.{kind}" if hasattr(torch.optim, kind) else kind


def lacking(kind: str, name: str, value: str) -> str:
    """Say that optax has no argument for a setting; for a class that is not torch's, that both need the same number."""
    if kind not in OPTAX:
        return f"torch has {name}={value}: give the port the same number"
    return f"torch has {name}={value}: {OPTAX[kind]} has no such argument"
