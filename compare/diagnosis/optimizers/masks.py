"""Masks over the parameters of the JAX side, as code."""

from collections.abc import Mapping, Sequence

_PATH = 'jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")'


def mask_of(names: Sequence[str], every: Sequence[str]) -> str:
    """Write a mask that is true for some parameters, by the ends of their paths where these tell them apart.

    The number of axes would not do: the biases of Flax's attention have two.

    Args:
        names: The paths, "layers/0/kernel", for which it is true.
        every: All paths.

    """
    test = _test(names, every)
    if not test:
        return "lambda params: jax.tree.map(lambda _: True, params)"
    return f"lambda params: jax.tree.map_with_path(lambda path, _: {test}, params)"


def labels_of(groups: Mapping[int, Sequence[str]]) -> str:
    """Write the labels of `optax.multi_transform`: a tree of the parameters with the number of each one's group.

    Args:
        groups: By number, the paths of its parameters.

    """
    last, rest = list(groups)[-1], dict(groups)
    written = ""
    for number in list(groups)[:-1]:
        every = [path for names in rest.values() for path in names]
        written += f"{number} if {_test(rest.pop(number), every)} else "
    return f"lambda params: jax.tree.map_with_path(lambda path, _: {written}{last}, params)"


def doubled_parts(parts: Sequence[str], names: Sequence[str], every: Sequence[str]) -> str:
    """Write a function of updates that doubles a part of some of them: a mask of optax's has whole arrays alone.

    Args:
        parts: The parts as code, "0:3".
        names: The paths of the arrays, "cell/bias", of which these parts are doubled.
        every: All paths.

    """
    doubled = "update" + "".join(f".at[{part}].multiply(2)" for part in parts)
    test = _test(names, every)
    chosen = f"{doubled} if {test} else update" if test else doubled
    return f"lambda updates, params: jax.tree.map_with_path(lambda path, update: {chosen}, updates)"


def _test(names: Sequence[str], every: Sequence[str]) -> str:
    """Write a condition on `path` that is true for some parameters; nothing where it is true for all."""
    wanted = {name.partition("[")[0] for name in names}  # without the index of a part
    others = {name.partition("[")[0] for name in every} - wanted
    if not others:
        return ""
    # A mask by names reads like what people write, `path.endswith("/bias")`, and stays right for a deeper
    # model.
    ends = {_shortest_end(name, others) for name in wanted}
    written = ", ".join(f'"{end}"' for end in sorted(ends))
    if any(_fits(name, end) for name in others for end in ends):
        return f"{_PATH} in {{{written}}}"
    written = ", ".join(f'"/{end}"' for end in sorted(ends)) + ("," if len(ends) == 1 else "")
    return f'("/" + {_PATH}).endswith(({written}))'


def _shortest_end(name: str, others: set[str]) -> str:
    """Return the shortest end of a path that fits none of the others; the whole path where each does."""
    parts = name.split("/")
    ends = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return next((end for end in ends if not any(_fits(other, end) for other in others)), name)


def _fits(name: str, end: str) -> bool:
    return f"/{name}".endswith(f"/{end}")
