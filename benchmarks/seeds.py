"""How equal the five pairs are over many seeds, and how far a right port stays from the limit.

Prints, for each variant, over all seeds and steps: the largest float64 difference of the loss (asked: 1e-12 at most
over 100 steps), the largest ratio of a float64 difference to what rounding explains, over every quantity (a
mismatch is past `compare.verdict.ratio.FACTOR`), and the JAX side's float32 rounding of the first loss over the
other's.
"""

import argparse

import compare
from compare.verdict.ratio import FACTOR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (100)")
    parser.add_argument("--steps", type=int, default=100, help="of each run (100)")
    options = parser.parse_args()
    print(f"{options.seeds} seeds, {options.steps} steps; a mismatch is a ratio past {FACTOR:.0f}")
    print(f"{'variant':10}{'float64':>10}{'ratio':>8}  {'imbalance':>16}  verdicts")
    for variant in compare.notebook.VARIANTS:
        reports = [
            compare.notebook.run(variant, seed=seed, steps=options.steps, device="cpu") for seed in range(options.seeds)
        ]
        verdicts = [str(report.verdict) for report in reports]
        worst = max(max(report.loss.error64) for report in reports)
        ratio = max(float(quantity.ratio.max()) for report in reports for quantity in report.quantities)
        peaks = [report.loss.imbalance for report in reports]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
        spread = f"{min(peaks):.1f} to {max(peaks):.1f}"
        print(f"{variant:10}{worst:10.1e}{ratio:8.1f}  {spread:>16}  {counts}", flush=True)


if __name__ == "__main__":
    main()
