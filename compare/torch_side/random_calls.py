"""Torch's random operations: reads what a call has drawn, and repeats a call with recorded random numbers."""

import functools
from typing import Any

from compare.step.draws import Draw


@functools.cache  # it is asked for every operation of every step
def random(operation: Any) -> bool:
    """Whether an operation of aten draws random numbers."""
    import torch

    return torch.Tag.nondeterministic_seeded in operation.tags or _name(operation) in _UNTAGGED


_UNTAGGED = frozenset({"random_", "binomial", "_sample_dirichlet"})
"""Random operations that torch has not tagged as such."""

_PARAMETERS = {
    "uniform": ("from", "to"),
    "normal": ("mean", "std"),
    "log_normal": ("mean", "std"),
    "exponential": ("", "lambd"),
    "cauchy": ("median", "sigma"),
}
"""What the parameters of a distribution are called, where 0 and 1 are the standard ones."""

_KINDS = {
    "native_dropout": "bernoulli",
    "rand": "uniform",
    "rand_like": "uniform",
    "randn": "normal",
    "randn_like": "normal",
    "randint_like": "randint",
    "log_normal": "normal",
    "_standard_gamma": "gamma",
    "_sample_dirichlet": "dirichlet",
}
"""The kind of a draw, where it is not the operation's name."""


class RandomCall:
    """One call of a random operation of aten."""

    def __init__(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parameters = operation._schema.arguments
        self.given: dict[str, Any] = {p.name: p.default_value for p in parameters if p.has_default_value()}
        self.given |= {parameter.name: value for parameter, value in zip(parameters, args, strict=False)} | kwargs
        # The schema marks the tensor that an operation in place writes to: Tensor(a!) in
        # native_functions.yaml.
        self.written: Any = next(
            (self.given[p.name] for p in parameters if p.alias_info and p.alias_info.is_write), None
        )
        self.operation, self._args, self._kwargs = operation, args, kwargs
        self.base = _name(operation).removesuffix("_")
        self.fused = "attention" in self.base or self.base.endswith("_rnn")
        """Whether it is dropout and much else at once, and does not give the mask."""
        self.race = self.base == "multinomial"
        """Whether it is a race of exponential variables: torch takes the largest of probability / variable."""
        self.kind = "race" if self.race else _KINDS.get(self.base, self.base)
        if self.base == "random" and "to" in self.given:
            self.kind, self.given["low"], self.given["high"] = "randint", self.given.get("from", 0), self.given["to"]

    def __str__(self) -> str:
        return f"{_name(self.operation)} {self.shape()}"

    def draws(self) -> bool:
        """Tell whether it draws at all: not so dropout in evaluation, or of nothing."""
        for name in ("train", "training"):
            if self.given.get(name) is False:
                return False
        return not any(self.given.get(name) == 0 for name in ("dropout_p", "dropout"))

    def shape(self) -> tuple[int, ...]:
        """What shape of random numbers it draws."""
        import torch

        given = self.given
        if "size" in given:
            return tuple(given["size"])
        if self.base == "randperm":
            return (given["n"],)
        if self.race:
            return (*((given["num_samples"],) if self._several() else ()), *given["self"].shape)
        if isinstance(self.written, torch.Tensor):
            return tuple(self.written.shape)
        return tuple(torch.broadcast_shapes(*(v.shape for v in given.values() if isinstance(v, torch.Tensor))))

    def run(self) -> tuple[Any, Draw]:
        """Run it, and read what it drew."""
        if self.race:
            # What `multinomial` does itself, see aten's Distributions.cpp: the variables of a Gumbel-max, which are
            # what `jax.random.categorical` draws, stay inside of it. The generator gives the same numbers, but for
            # several categories with replacement, for which torch searches the sums of the probabilities.
            chances, generator = self.given["self"], self.given.get("generator")
            variables = _close_race(chances, chances.new_empty(self.shape()).exponential_(1, generator=generator))
            return self._winners(variables), self._read(variables)
        output = self.operation(*self._args, **self._kwargs)
        return output, self._read(output)

    def _winners(self, variables: Any) -> Any:
        """Give the categories that `multinomial` draws by these exponential variables."""
        rates = self.given["self"] / variables
        number = self.given["num_samples"]
        if self._several():
            chosen = rates.argmax(-1).movedim(0, -1)
        else:
            chosen = rates.argmax(-1, keepdim=True) if number == 1 else rates.topk(number).indices
        return chosen if self.written is None else self.written.copy_(chosen)

    def _several(self) -> bool:
        """Tell whether several categories are drawn independently: each has a race of its own."""
        return bool(self.given["num_samples"] > 1 and self.given["replacement"])

    def _read(self, output: Any) -> Draw:
        import torch
        from torch.utils.module_tracker import ModuleTracker

        tensor: Any = output
        if self.base == "native_dropout":
            tensor = output[1]
        elif self.base == "rrelu_with_noise":
            tensor = self.given["noise"]
        tensor = tensor.detach()
        if self.kind == "bernoulli":
            tensor = tensor != 0
        elif self.kind == "randint":
            tensor = tensor - self.given.get("low", 0)
        elif self.base == "log_normal":
            tensor = tensor.double().log()
        elif self.kind == "dirichlet":
            tensor = tensor.double()
            tensor = tensor / tensor.sum(-1, keepdim=True)  # in float32 the sum is 1 but for rounding
        if self.base in _PARAMETERS:
            location, scale = self._parameters()
            if not (isinstance(location, float) and isinstance(scale, float) and (location, scale) == (0.0, 1.0)):
                # The standard form does not depend on the parameters: a mean that is wrong on one side is not hidden
                # by the replay.
                tensor = torch.nan_to_num((tensor.double() - location) / scale)  # 0 / 0 where there is no variance
        value = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy().copy()
        return Draw(self.kind, value, self._open(), ModuleTracker().is_bw)

    def _open(self) -> tuple[Any, ...]:
        """Give the parameters that the standard form of a draw leaves open."""
        import torch

        given = self.given
        if self.kind == "randint":
            return (float(given["high"] - given.get("low", 0)),)
        if self.kind in ("gamma", "dirichlet", "poisson", "race"):
            return (_numbers(given["self"]),)
        if self.kind != "bernoulli":
            return ()
        if self.base == "native_dropout":  # dropout on a GPU, whose p is that of dropping
            return (1 - given["p"],)
        chance: Any = given.get("p", given.get("self"))  # `bernoulli` without p draws by the tensor itself
        return (_numbers(chance) if isinstance(chance, torch.Tensor) else float(chance),)

    def _parameters(self) -> tuple[Any, Any]:
        """The location and the scale of the distribution: numbers, or tensors in float64."""
        import torch

        values = [self.given.get(name, standard) for name, standard in zip(_PARAMETERS[self.base], (0, 1), strict=True)]
        first, second = (value.double() if isinstance(value, torch.Tensor) else float(value) for value in values)
        if self.kind == "uniform":
            return first, second - first
        return (0.0, 1 / second) if self.kind == "exponential" else (first, second)

    def give(self, draw: Draw) -> Any:
        """Do what the operation does, with random numbers that were drawn before."""
        import torch

        # Functions such as rand_like and bernoulli take device and dtype from their input.
        like = next((value for value in self.given.values() if isinstance(value, torch.Tensor)), None)
        device = self.given.get("device") or (like.device if like is not None else None)
        # A recorded array may be read again: torch gets its own copy.
        value = torch.tensor(draw.value, device=device)
        if self.base == "native_dropout":
            keep = 1 - self.given["p"]
            return self.given["input"] * value * (1 / keep if keep else 0.0), value
        if self.base == "rrelu_with_noise":
            x = self.given["self"]
            noise = self.given["noise"].copy_(value)
            return x.mul_(noise) if self.written is x else x * noise
        if self.race:
            return self._winners(value)
        if self.kind == "randint":
            value = value + self.given.get("low", 0)
        if self.base in _PARAMETERS:
            location, scale = self._parameters()
            value = location + scale * value.double()
        if self.base == "log_normal":
            value = value.exp()
        if self.written is not None:
            return self.written.copy_(value)
        dtype = self.given.get("dtype")
        if not isinstance(dtype, torch.dtype):  # a default is given in a schema as a number
            dtype = value.dtype
            if draw.kind == "bernoulli" or value.is_floating_point():
                dtype = like.dtype if like is not None else torch.get_default_dtype()
        return value.to(dtype)


def _close_race(chances: Any, variables: Any) -> Any:
    """Give variables of a race with the same winner, whom all others follow closely, each at its place.

    Scores of 3.1, 1.2 and 0.4 have the same winner if a port mistakes probabilities for their logarithms. Scores of
    3.1, 3.05 and 3.0 have another one as a rule.
    """
    import torch

    rates = chances / variables
    places = rates.argsort(-1, descending=True).argsort(-1).clamp(max=_PLACES)
    close = rates.amax(-1, keepdim=True) * torch.exp(-_BEHIND * places.to(rates.dtype))
    return torch.where(chances > 0, chances / close, variables)


_BEHIND, _PLACES = 0.05, 600
"""The distance of each score from the one before it, which is more than rounding, and the number of scores that have
one: further ones would leave float32's range."""


def _numbers(tensor: Any) -> Any:
    return tensor.detach().double().cpu().numpy()


def _name(operation: Any) -> str:
    """The name of an operation without its overload: "bernoulli_" for aten.bernoulli_.float."""
    return str(operation.name()).removeprefix("aten::").partition(".")[0]
