"""Check the corpus of dishonest ports and their honest twins.

python -m benchmarks.honesty [--processes N] [words of kinds]
"""

import argparse
import sys
from pathlib import Path

from benchmarks.parts import spread

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def outcome(number: int) -> tuple[bool, str]:
    """Check one port and its twin, by their number in the corpus: whether both are as they should be, and a line."""
    import jax
    from honesty.corpus import dishonest, honest, is_plain_match, pairs

    kind, base = list(pairs())[number]
    found, twin = dishonest(kind, base), honest(kind, base)
    wrong = []
    if is_plain_match(found):
        wrong.append("PLAIN MATCH")
    if getattr(twin, "verdict", None) != "match":
        wrong.append(f"FALSE ALARM {getattr(twin, 'headline', twin)}")
    said = getattr(found, "headline", None) or f"refused: {found}".splitlines()[0]
    said += "".join(f" | {line}" for line in getattr(found, "unexercised", []))
    jax.clear_caches()
    return not wrong, f"{'; '.join(wrong) or 'ok'}: {kind.name}, {base.name}: {said[:170]}"


def main() -> int:
    """Print a line for each port and each twin, and how many came out as they should."""
    from honesty.corpus import pairs

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only kinds and models whose names have one of them")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    names = [f"{kind.name} {base.name}" for kind, base in pairs()]
    words = arguments.words or [""]
    chosen = [number for number, name in enumerate(names) if any(word in name for word in words)]
    right = 0
    for fine, line in spread(outcome, chosen, arguments.processes):
        right += fine
        print(line, flush=True)
    print(f"{right} of {len(chosen)} ports and their twins as they should be")
    return right < len(chosen)


if __name__ == "__main__":
    sys.exit(main())
