"""What optax calls an optimizer of torch and its settings."""

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
    "lr": ("learning rate", "learning_rate"),
    "betas[0]": ("first moment's decay", "b1"),
    "betas[1]": ("second moment's decay", "b2"),
    "eps": ("epsilon", "eps"),
    "weight_decay": ("weight decay", "weight_decay"),
    "momentum": ("momentum", "momentum"),
    "alpha": ("decay", "decay"),
    "rho": ("decay", "rho"),
    "initial_accumulator_value": ("initial accumulator", "initial_accumulator_value"),
    "nesterov": ("Nesterov momentum", "nesterov"),
    "centered": ("centring", "centered"),
}
"""For settings of torch: what they are, and optax's argument. Others keep their names."""

TRANSFORMATIONS = "https://optax.readthedocs.io/en/latest/api/transformations.html"
