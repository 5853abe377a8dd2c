"""What a later step makes of rounding is no excuse for the steps before it began."""

from compare.verdict.ratio import FACTOR, Quantity

OWN = [1e-7, 1e-7]


def output(error: float, noise: float) -> Quantity:
    """Give an output that differs at step 0, where rounding explains 2e-15, and at step 1 explains `noise`."""
    return Quantity("forward", "out", "out", True, [error, noise], OWN, OWN, [1.0, 1.0], noise=[2e-15, noise])


def test_a_step_of_adam_that_is_all_rounding_does_not_excuse_an_epsilon_before_it() -> None:
    assert output(1e-5, 4e-3).ratio[0] > FACTOR


def test_a_neighbouring_step_still_excuses_what_is_small_by_accident() -> None:
    assert output(1e-12, 1e-12).ratio[0] < FACTOR
