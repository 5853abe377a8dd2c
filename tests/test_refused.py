"""What a kernel of CUDA asserts is refused before it runs, as on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from compare.torch_side.refused import refuse_what_asserts

ROWS = torch.arange(12.0).reshape(3, 4)
MORE = torch.ones(2, 4)
ATEN = torch.ops.aten
Indexed = Callable[[torch.Tensor], tuple[Any, tuple[Any, ...]]]
OPERATIONS: dict[str, Indexed] = {
    "embedding": lambda i: (ATEN.embedding.default, (ROWS, i)),
    "embedding bag": lambda i: (ATEN._embedding_bag.default, (ROWS, i, torch.tensor([0]))),
    "index_select": lambda i: (ATEN.index_select.default, (ROWS, 0, i)),
    "index_select of a number": lambda i: (ATEN.index_select.default, (torch.tensor(1.0), 0, i[:1])),
    "gather": lambda i: (ATEN.gather.default, (ROWS, -2, i[:, None])),
    "scatter": lambda i: (ATEN.scatter_.src, (ROWS.clone(), 0, i[:, None], MORE)),
    "scatter_add": lambda i: (ATEN.scatter_add.default, (ROWS, 0, i[:, None], MORE)),
    "scatter_reduce": lambda i: (ATEN.scatter_reduce.two, (ROWS, 0, i[:, None], MORE, "amax")),
    "index_add": lambda i: (ATEN.index_add.default, (ROWS, 0, i, MORE)),
    "index_copy": lambda i: (ATEN.index_copy.default, (ROWS, 0, i, MORE)),
    "index_fill": lambda i: (ATEN.index_fill.int_Scalar, (ROWS, 0, i, 0.0)),
    "index": lambda i: (ATEN.index.Tensor, (ROWS, [i])),
    "index of a later axis": lambda i: (ATEN.index.Tensor, (ROWS.t(), [None, i])),
    "index behind a mask": lambda i: (
        ATEN.index.Tensor,
        (ROWS.expand(2, 2, 3, 4), [torch.eye(2, dtype=torch.bool), i]),
    ),
    "index_put": lambda i: (ATEN.index_put_.default, (ROWS.clone(), [i], MORE)),
    "take": lambda i: (ATEN.take.default, (ROWS[:, 0], i)),
    "nll_loss": lambda i: (ATEN.nll_loss_forward.default, (ROWS[:2, :3], i, None, 1, -2)),
    "multi_margin_loss": lambda i: (ATEN.multi_margin_loss.default, (ROWS[:2, :3], i)),
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(indices=st.tuples(st.integers(-5, 5), st.integers(-5, 5)))
def test_an_index_is_refused_exactly_where_the_cpu_refuses_it(name: str, indices: tuple[int, int]) -> None:
    operation, arguments = OPERATIONS[name](torch.tensor(indices))
    try:
        operation(*arguments)
    except (IndexError, RuntimeError) as error:
        with pytest.raises(type(error)):
            refuse_what_asserts(operation, OPERATIONS[name](torch.tensor(indices))[1], {})
    else:
        refuse_what_asserts(operation, arguments, {})


@pytest.mark.parametrize("number", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("of", ["the input", "the target"])
def test_a_number_that_is_no_probability(number: float, of: str) -> None:
    number_of = {"the input": 0.5, "the target": 0.5, of: number}
    given = torch.tensor([number_of["the input"], 0.5]), torch.tensor([number_of["the target"], 0.5])
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        refuse_what_asserts(ATEN.binary_cross_entropy.default, given, {})
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        functional.binary_cross_entropy(*given)


def test_what_overwrites_its_argument_leaves_it_alone() -> None:
    rows = ROWS.clone()
    with pytest.raises((IndexError, RuntimeError)):
        refuse_what_asserts(ATEN.index_put_.default, (rows, [torch.tensor([0, 7])], MORE), {})
    assert torch.equal(rows, ROWS)
