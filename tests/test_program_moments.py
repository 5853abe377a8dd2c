"""The moments of a port's optimizer are compared with torch's, whatever its modules are called."""

from typing import Any

import optax
import torch
from flax import nnx
from programs.common import drawn, squares, trained, trained_in_torch
from torch.nn import functional

import compare

WIDTH = 5


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dense = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.dense(self.norm(x))
        return result


class Net(torch.nn.Module):
    """A net with a norm of its own, of the same name and shape as those of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.norm = torch.nn.Sequential(Block(), Block()), torch.nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.blocks(x))
        return result


class BlockOfNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm, self.dense = (
            nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs),
            nnx.Linear(WIDTH, WIDTH, rngs=rngs),
        )

    def __call__(self, x: Any) -> Any:
        return x + self.dense(self.norm(x))


class NetOfNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([BlockOfNnx(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def original() -> Any:
    model = Net()

    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        return functional.mse_loss(model(batch["x"]), batch["y"])

    return trained_in_torch(model, torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4), loss_of)


def test_the_moments_of_two_layers_of_one_name_are_compared() -> None:
    batches = drawn(count=2, size=7, x=(WIDTH,), y=(WIDTH,))
    report = compare.check(
        compare.TorchProgram(original),
        compare.JaxProgram(lambda: trained(NetOfNnx(nnx.Rngs(0)), optax.adamw(1e-3), squares)),
        batches,
        device="cpu",
        quick=True,
    )
    assert report.verdict in ("match", "precision"), str(report)
    assert not [each for each in report.left_out() if "exp_avg" in str(each) or "/mu/" in str(each)]
    compared = {each.torch for each in report.quantities}
    for path in ("norm", "blocks.0.norm", "blocks.1.norm"):
        assert {f"model.{path}.weight.exp_avg", f"model.{path}.bias.exp_avg_sq"} <= compared
