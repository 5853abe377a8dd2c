"""Compiles steps: as a training loop does, as far as possible alike where values are put in, and what runs once."""

import functools
from collections.abc import Callable
from typing import Any

_LITTLE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""The options of XLA's with which it optimizes least on a CPU."""


def compiled(function: Callable[..., Any], *, overwriting: bool = False) -> Any:
    """Compile a step when it is first taken.

    Args:
        function: The step, of which the first argument is the state.
        overwriting: Whether it overwrites the state that it takes: there is memory for one of each array.

    """
    import jax

    # XLA may reuse the memory of donated arguments for results of the same shape:
    # https://docs.jax.dev/en/latest/faq.html#buffer-donation.
    return jax.jit(function, donate_argnums=0 if overwriting else ())


def compiled_with_values(function: Callable[..., Any]) -> Any:
    """Compile a step that is given values in the place of computed ones."""
    import jax

    return jax.jit(function, compiler_options=_older_fusions())


def compiled_quickly(function: Callable[..., Any]) -> Any:
    """Compile a function as `jax.jit` does, on a CPU in a fifth of the time; the program may run slower.

    It is for what runs once or twice, for which XLA's usual effort takes longer than it saves. The user's own step is
    compiled as the user does, since a fault may be in what XLA makes of it.
    """
    import jax

    return jax.jit(function, compiler_options=_options(_platform()))


def _older_fusions() -> dict[str, Any] | None:
    """Return the options with which XLA fuses operations on a CPU in its older way.

    In jaxlib 0.10.2 the newer one misplaces some of what this gives, in float64, for y, g and d of shape (4, 5), b of
    (5,) and z of (4, 4): `jnp.concatenate([y * jnp.where(k, g, d + b) + y, z], -1)`. Putting values into a step adds
    such choices to it.
    """
    every = _options(_platform())
    return every and {name: value for name, value in every.items() if name == "xla_cpu_use_fusion_emitters"}


def _platform() -> str:
    import jax

    device = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
    return str(getattr(device, "platform", device))


@functools.cache
def _options(platform: str) -> dict[str, Any] | None:
    """Return those of the options that this XLA has."""
    import jax

    def known(name: str, value: Any) -> bool:
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except RuntimeError:  # "No such compile option": XLA renames its options as it likes
            return False
        return True

    return {name: value for name, value in _LITTLE.items() if known(name, value)} if platform == "cpu" else None
