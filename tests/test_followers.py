"""A difference that a sum carries past modules is one finding, and a second fault behind it is another one."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs import adversarial, plain
from programs.common import trained, trained_in_torch
from torch import nn

import compare

WIDTH = 8


def with_a_ripple(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Change a function in a way of which no cause of the catalogue tells."""
    return lambda x: function(x) + 0.1 * jnp.sin(3.1 * x) * x


odd = with_a_ripple(jnp.tanh)


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def linear(inputs: int, outputs: int) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0))


def batches() -> list[Any]:
    rng = np.random.default_rng(0)
    sizes = (4, 5, WIDTH), (4, 5, 3)
    return [tuple(rng.normal(size=size).astype(np.float32) for size in sizes) for _ in range(2)]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.up(self.norm(x))) * 0.5


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.start(x))
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.end(x)
        return out


class BlockPort(nnx.Module):
    def __init__(self, scale: float = 0.5) -> None:
        self.norm, self.up = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=nnx.Rngs(0)), linear(WIDTH, WIDTH)
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(self.up(self.norm(x))) * self.scale


class ResidualPort(nnx.Module):
    def __init__(self, scale: float = 0.5, remat: bool = False) -> None:
        self.start, self.end, self.remat = linear(WIDTH, WIDTH), linear(WIDTH, 3), remat
        self.blocks = nnx.List([BlockPort(), BlockPort(scale), BlockPort()])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = odd(self.start(x))
        for block in self.blocks:
            x = nnx.remat(BlockPort.__call__)(block, x) if self.remat else block(x)
        return self.end(x)


class Right(ResidualPort):
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(self.start(x))
        for block in self.blocks:
            x = block(x)
        return self.end(x)


class ScannedPort(nnx.Module):
    def __init__(self) -> None:
        self.start, self.end = linear(WIDTH, WIDTH), linear(WIDTH, 3)
        self.blocks = nnx.vmap(lambda _: BlockPort(), in_axes=0, out_axes=0)(jnp.arange(3))

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x: jax.Array, block: BlockPort) -> jax.Array:
            return block(x)

        return self.end(run(odd(self.start(x)), self.blocks))


class EquinoxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(jax.vmap(self.up)(jax.vmap(self.norm)(x))) * 0.5


class EquinoxPort(eqx.Module):
    start: eqx.nn.Linear
    end: eqx.nn.Linear
    blocks: list[EquinoxBlock]

    def __call__(self, x: jax.Array) -> jax.Array:
        x = odd(jax.vmap(self.start)(x))
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.end)(x)


class Skip(nn.Module):
    """A value that is used again, and that no module takes as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.middle, self.end = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.start(x))
        out: torch.Tensor = self.end(torch.cat([torch.tanh(self.middle(x.flip(1))), x], -1))
        return out


class SkipPort(nnx.Module):
    def __init__(self) -> None:
        self.start, self.middle, self.end = linear(WIDTH, WIDTH), linear(WIDTH, WIDTH), linear(2 * WIDTH, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = odd(self.start(x))
        h = jnp.tanh(self.middle(jnp.flip(x, 1)))
        return self.end(jnp.concatenate([h, x], -1))


class Memory(nn.Module):
    """What the layers of a decoder take beside their own values."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.start, self.end = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.keys = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory, x = torch.tanh(self.encoder(x)), torch.tanh(self.start(x))
        for key in self.keys:
            x = x + torch.softmax(x @ key(memory).transpose(1, 2), -1) @ memory
        out: torch.Tensor = self.end(x)
        return out


class MemoryPort(nnx.Module):
    def __init__(self) -> None:
        self.encoder, self.start, self.end = linear(WIDTH, WIDTH), linear(WIDTH, WIDTH), linear(WIDTH, 3)
        self.keys = nnx.List([linear(WIDTH, WIDTH) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        memory = odd(self.encoder(x))
        x = jnp.tanh(self.start(x))
        for key in self.keys:
            x = x + jax.nn.softmax(x @ key(memory).swapaxes(1, 2), -1) @ memory
        return self.end(x)


def equinox_port() -> compare.Jax:
    key = jax.random.key(0)

    def made(outputs: int) -> eqx.nn.Linear:
        return eqx.nn.Linear(WIDTH, outputs, key=key)

    blocks = [EquinoxBlock(eqx.nn.LayerNorm(WIDTH), made(WIDTH)) for _ in range(3)]
    params, rest = eqx.partition(EquinoxPort(made(WIDTH), made(3), blocks), eqx.is_array)
    return compare.Jax(lambda params, x: jax.vmap(eqx.combine(params, rest))(x), params, mse)


PORTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "residual": (Residual, lambda: compare.Flax(ResidualPort(), mse), "between start and blocks.0"),
    "checkpointed": (Residual, lambda: compare.Flax(ResidualPort(remat=True), mse), "between start and blocks.0"),
    "scanned": (Residual, lambda: compare.Flax(ScannedPort(), mse), "between start and blocks.0"),
    "equinox": (Residual, equinox_port, "between start and blocks.0"),
    "skip": (Skip, lambda: compare.Flax(SkipPort(), mse), "between start and middle"),
    "memory": (Memory, lambda: compare.Flax(MemoryPort(), mse), "between start and keys.0"),
}


@pytest.mark.parametrize("kind", PORTS)
def test_one_fault_whose_value_is_used_again_is_one_finding(kind: str) -> None:
    torch.manual_seed(0)
    model, port, place = PORTS[kind]
    report = compare.check(compare.Torch(model(), mse), port(), batches(), steps=1, quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is None, str(report)
    assert report.divergence.torch == place, str(report)
    assert not report.others, str(report)


def test_a_second_fault_behind_a_sum_is_explained_by_itself() -> None:
    torch.manual_seed(0)
    side = compare.Flax(ResidualPort(scale=0.75), mse)
    report = compare.check(compare.Torch(Residual(), mse), side, batches(), steps=1, quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is None, str(report)
    assert len(report.others) == 1, str(report)
    second = report.others[0]
    assert "blocks.1" in second.torch
    assert second.cause is not None, str(report)
    assert "0.75" in second.cause.explanation


def program(port: Callable[[], nnx.Module], loss: Callable[[Any, Any], Any], rate: float) -> compare.Report:
    def original() -> Any:
        torch.manual_seed(0)
        model = Residual()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return trained_in_torch(model, optimizer, lambda model, batch: mse(model(batch[0]), batch[1]))

    def ported() -> Any:
        return trained(port(), optax.adam(rate), lambda model, batch: loss(model(batch[0]), batch[1]))

    return compare.check(compare.TorchProgram(original), compare.JaxProgram(ported), batches(), quick=True)


def other_loss(output: Any, target: Any) -> Any:
    return (jnp.abs(output - target) ** 2.3).mean()


def test_a_program_lists_what_differs_behind_a_difference_without_a_cause() -> None:
    report = program(lambda: ResidualPort(scale=0.75), other_loss, 0.02)
    assert report.divergence is not None
    assert report.divergence.cause is None, str(report)
    stages = [str(each.stage) for each in report.others]
    assert stages == ["forward", "loss", "update"], str(report)
    inside, of_loss, update = report.others
    assert "model.blocks.1" in inside.torch
    assert inside.cause is not None, str(report)
    assert "0.75" in inside.cause.explanation
    assert of_loss.cause is None, str(report)
    assert update.cause is not None, str(report)
    assert update.cause.name == "learning rate"


def test_a_program_with_one_fault_without_a_cause_has_one_finding() -> None:
    report = program(ResidualPort, mse, 0.01)
    assert report.divergence is not None
    assert not report.others, str(report)
    report = program(Right, other_loss, 0.01)
    assert report.divergence is not None
    assert report.divergence.stage == "loss"
    assert not report.others, str(report)


class Forces(nn.Module):
    """An energy and its gradient by what the model takes."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.energy = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_(True)
        energy = self.energy(torch.tanh(self.start(x)))
        (forces,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy - forces[..., :3]


class ForcesPort(nnx.Module):
    def __init__(self) -> None:
        self.start, self.energy = linear(WIDTH, WIDTH), linear(WIDTH, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        def energy_of(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            energy = self.energy(odd(self.start(x)))
            return energy.sum(), energy

        forces, energy = jax.grad(energy_of, has_aux=True)(x)
        return energy - forces[..., :3]


def test_a_gradient_within_the_model_is_that_of_what_differs() -> None:
    torch.manual_seed(0)
    sides = compare.Torch(Forces(), mse), compare.Flax(ForcesPort(), mse)
    report = compare.check(*sides, batches(), steps=1, quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is None, str(report)
    assert report.divergence.torch == "between start and energy"
    assert not report.others, str(report)


@pytest.mark.parametrize("pair", [plain.clipped_in_chain, adversarial.penalty])
def test_an_activation_of_a_program_is_the_only_finding(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a loss that has the activation's slope in it, and an optimizer that clips by itself."""
    both = pair()
    report = compare.check(compare.TorchProgram(both.original), compare.JaxProgram(both.port), both.batches, quick=True)
    assert report.ok, str(report)
    monkeypatch.setattr(jnp, "tanh", with_a_ripple(jnp.tanh))
    report = compare.check(compare.TorchProgram(both.original), compare.JaxProgram(both.port), both.batches, quick=True)
    assert report.divergence is not None
    places = [each.torch for each in (report.divergence, *report.others)]
    assert all("fc1" in place and "fc2" in place for place in places), str(report)
